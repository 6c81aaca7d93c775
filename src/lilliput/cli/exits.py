"""Exit codes, and how a command comes to one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

import lilliput
from lilliput.errors import LilliputError, lacking

DONE, BAD_INPUT, NOT_MET, HARMED, STOPPED = 0, 2, 3, 4, 130
OUTCOMES = {"done": DONE, "not met": NOT_MET, "harmed": HARMED}  # of a report


def _noting(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows a warning of Lilliput's own as one line, and any other as before."""
    ours = str(Path(lilliput.__file__).parent)

    def show(message: Warning | str, category: type[Warning], filename: str, *place: Any) -> None:
        if filename.startswith(ours):
            typer.echo(f"note: {message}", err=True)
        else:
            otherwise(message, category, filename, *place)

    return show


def leave(run: Callable[[], int], stopped: str) -> None:
    """End with the code that `run` returns; an error becomes its message, an interruption what is `stopped`.

    What Lilliput warns of is one line each.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _noting(warnings.showwarning)
            code = run()
    except LilliputError as error:
        typer.echo(f"error: {error}", err=True)
        code = BAD_INPUT
    except ModuleNotFoundError as error:
        typer.echo(f"error: {lacking(error)}", err=True)
        code = BAD_INPUT
    except KeyboardInterrupt:
        typer.echo(f"stopped; {stopped}", err=True)
        code = STOPPED
    sys.stdout.flush()
    raise typer.Exit(code)
