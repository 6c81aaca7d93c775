"""Exit codes, and how a command comes to one."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from lilliput.errors import LilliputError

DONE, BAD_INPUT, NOT_MET, HARMED, STOPPED = 0, 2, 3, 4, 130
OUTCOMES = {"done": DONE, "not met": NOT_MET, "harmed": HARMED}  # of a report


def leave(run: Callable[[], int], stopped: str) -> None:
    """End with the code that `run` returns; an error becomes its message, an interruption what is `stopped`."""
    try:
        code = run()
    except LilliputError as error:
        typer.echo(f"error: {error}", err=True)
        code = BAD_INPUT
    except KeyboardInterrupt:
        typer.echo(f"stopped; {stopped}", err=True)
        code = STOPPED
    sys.stdout.flush()
    raise typer.Exit(code)
