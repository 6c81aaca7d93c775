"""The `.lil` file: write, read, check."""
