"""Packages that live in an environment of their own: a process there, and what it is asked."""

from lilliput.targets.elsewhere.process import Elsewhere

__all__ = ["Elsewhere"]
