"""A file as a runtime holds it, called and answering as the module does that it was built of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lilliput.errors import ExportError, InputError, reason
from lilliput.external import read
from lilliput.model.views.arguments import Arguments
from lilliput.model.views.signature import Signature

Runner = Callable[..., Any]  # called like the module, answers like the module


@dataclass(frozen=True)
class Loaded:
    """A file as a runtime holds it."""

    inputs: int
    outputs: int
    run: Callable[[Sequence[np.ndarray]], Sequence[Any]]  # the inputs in order -> the outputs in order, as arrays


def opened(load: Callable[[Path | bytes], Loaded], built: Path | bytes, signature: Signature, title: str) -> Runner:
    """What `load` makes of a file, as a callable; `title` is the runtime's name in a message.

    Raises ExportError for what the runtime does not load, InputError where it is not installed.
    """
    where = "graph" if isinstance(built, bytes) else str(built)
    try:
        if isinstance(built, Path):
            read(built)  # tells what is missing where tensors lie beside it
        loaded = load(built)
    except InputError:
        raise
    except Exception as error:  # runtimes raise many kinds
        raise ExportError(f"{title} does not load the export", where=where, why=reason(error)) from error
    return runner(loaded, signature, where, title)


def runner(loaded: Loaded, signature: Signature, where: str, title: str) -> Runner:
    """A loaded file, called and answering as the module does: with tensors to tensors, with arrays to arrays."""
    if loaded.inputs != len(signature.inputs) or loaded.outputs != signature.count:
        raise ExportError("has other inputs or outputs than the module", where=where)

    def run(*args: Any, **kwargs: Any) -> Any:
        _check_given((*args, *kwargs.values()))
        given = signature.arguments(Arguments(args, kwargs))
        held = [_plain(x) if isinstance(x, np.ndarray) else x for x in given]
        try:
            found = loaded.run([x if isinstance(x, np.ndarray) else _array(x) for x in held])
        except Exception as error:  # runtimes raise many kinds
            raise InputError(
                f"{title} fails on this input",
                where=where,
                why=reason(error),
                next="give inputs as the example's",
            ) from error
        return signature.assemble(_in_kind([np.asarray(out) for out in found], given))

    return run


def _check_given(arguments: Iterable[Any]) -> None:
    for x in arguments:
        numbers = list(_leaves(x)) if isinstance(x, list | tuple) else []
        if numbers and all(isinstance(one, bool | int | float) for one in numbers):
            raise InputError("called with a list of numbers", next="give a tensor or an array: numpy.array(…)")


def _leaves(x: Any) -> Iterable[Any]:
    if isinstance(x, list | tuple):
        for one in x:
            yield from _leaves(one)
    else:
        yield x


def _plain(x: np.ndarray) -> np.ndarray:
    """An array as runtimes take it."""
    if x.dtype.kind not in "biufcV" or x.dtype.names:
        raise InputError(f"an array of {x.dtype}", next="give numbers, as tensors or arrays")
    return np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(x.shape)


def _array(x: Any) -> np.ndarray:
    """A tensor as an array."""
    made: np.ndarray = x.detach().cpu().resolve_conj().resolve_neg().numpy()
    return made


def _in_kind(found: list[np.ndarray], given: Sequence[Any]) -> Sequence[Any]:
    """Arrays where all that was given were arrays, or nothing is known of tensors; else tensors."""
    torch = sys.modules.get("torch")
    if torch is None or (given and all(isinstance(x, np.ndarray) for x in given)):
        return found
    return [torch.from_numpy(out) for out in found]
