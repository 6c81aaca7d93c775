"""The command line; nothing heavy is imported until a command runs."""

from lilliput.cli.app import main

__all__ = ["main"]
