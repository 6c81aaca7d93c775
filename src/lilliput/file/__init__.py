"""The `.lil` file: write, read, check."""

from lilliput.file.lil import load, save

__all__ = ["load", "save"]
