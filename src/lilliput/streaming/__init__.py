"""Networks that do not fit in memory: a section at a time is read, fitted, written, and let go of."""
