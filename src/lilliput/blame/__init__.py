"""Where a compressed network loses, layer by layer, why, and what to try."""
