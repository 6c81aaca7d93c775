"""What changes a module: edits, what they leave in it, and the copies that they are made in."""
