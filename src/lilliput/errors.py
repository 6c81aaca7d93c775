"""The errors a user meets: each says what went wrong, where, why, and what to do next."""

from __future__ import annotations

import difflib
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

RAISE_OWN = "LILLIPUT_RAISE_OWN"  # a variable of the environment, which the tests set
_BESIDES = {  # packages that may be left out, and what is to be installed with each
    "torch": (),
    "onnx": ("onnxruntime",),
    "onnxruntime": (),
    "onnxscript": (),
}
_LONGEST = 600  # characters of a part of a message
_HERE = str(Path(__file__).parent)
_INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
_CALLS_A_MODEL = ("_call_impl", "_wrapped_call_impl")  # of torch
_PASSES_ON = "__torch_function__"  # of ours: called beneath every operator of a model's own code
_CONVERTERS = ("/torch/export/", "/torch/_export/", "/torch/onnx/", "/torch/fx/", "/torch/_dynamo/", "/onnxruntime/")


class LilliputError(Exception):
    """Something the user can act on.

    `what` happened, `where` (a module path, a file, a field), `why`, and what to do `next`.

    >>> str(LilliputError("groups of 128 do not divide 72 inputs", where="layer3.conv1", next="use group=72"))
    'layer3.conv1: groups of 128 do not divide 72 inputs; use group=72'
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", next: str = "") -> None:
        what, where, why, next = map(_printable, (what, where, why, next))
        self.what, self.where, self.why, self.next = what, where, why, next
        place = f"{where}: " if where else ""
        reason = f" ({why})" if why else ""
        remedy = f"; {next}" if next else ""
        super().__init__(f"{place}{what}{reason}{remedy}")


def _printable(text: str) -> str:
    """`text` as a terminal may be given it: a file's own words may be in it, of any length and with any character."""
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return short if short.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


class InputError(LilliputError):
    """The task, its data or a file given by the user is not usable."""


class RecipeError(LilliputError):
    """The recipe names something unknown, or an order of steps that cannot work."""


class CaptureError(LilliputError):
    """The model could not be turned into a graph."""


class EncodingError(LilliputError):
    """A tensor cannot be represented as asked."""


class FormatError(LilliputError):
    """A file is damaged, hostile, or of a version this library does not read."""


class ExportError(LilliputError):
    """The model could not leave, or what left does not compute what the module computes."""


class MeasureError(LilliputError):
    """A measurement failed or cannot be trusted."""


class ResumeError(LilliputError):
    """A folder holds a run of other inputs than those given now."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy naming the closest of `known`, for an unknown `name`.

    >>> nearest("quantise", ["quantize", "prune"])
    "did you mean 'quantize'? (known: prune, quantize)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    listing = ", ".join(names)
    return f"did you mean {close[0]!r}? (known: {listing})" if close else f"known: {listing}"


def not_installed(
    package: str, *besides: str, where: str = "", error: BaseException | None = None, otherwise: str = ""
) -> InputError:
    """What to raise where a package is missing: its name, the command that installs it, and what can be done without.

    >>> str(not_installed("onnx", "onnxruntime", where="net.lil"))
    'net.lil: onnx is not installed; pip install onnx onnxruntime'
    """
    why = "" if error is None else reason(error)
    command = f"pip install {' '.join((package, *besides))}"
    remedy = f"{command}, or {otherwise}" if otherwise else command
    return InputError(f"{package} is not installed", where=where, why=why, next=remedy)


def lacking(error: ModuleNotFoundError, where: str = "") -> InputError:
    """What to raise for a failed import; raises it again where it is of no package that may be left out."""
    package = (error.name or "").partition(".")[0]
    if package not in _BESIDES:
        raise error
    return not_installed(package, *_BESIDES[package], where=where)


def reason(error: BaseException) -> str:
    """An error of somebody else's in one line.

    >>> reason(ValueError("no\\nmore"))
    'ValueError: no'
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()  # colours are for terminals
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def raise_own(error: BaseException) -> None:
    """Raise `error` again if it is a mistake of this library, in its tests; in a user's run do nothing.

    It stands wherever a run goes on without what failed because somebody else's code may fail there. A mistake of ours
    in the same lines would pass for a property of the user's model.

    >>> raise_own(ValueError("raised by no line of this library"))
    """
    if os.environ.get(RAISE_OWN) and is_own(error):
        raise error


def is_own(error: BaseException) -> bool:
    """Whether a line of this library failed, or what it called of another, and no model's own code or converter.

    What is raised on purpose, a LilliputError, is no mistake.
    """
    if isinstance(error, LilliputError):
        return False
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(_HERE):
            if name != _PASSES_ON:
                return True
        elif name in _CALLS_A_MODEL or any(part in path for part in _CONVERTERS) or not _installed(path):
            return False
    return False


def _installed(path: str) -> bool:
    """Whether a file is of Python or of a library, and none of the user's."""
    return path.startswith(("<frozen", *_INSTALLED))
