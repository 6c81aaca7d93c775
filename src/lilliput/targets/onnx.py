"""ONNX files, whatever runs them: how they are written, checked, opened and called."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lilliput.errors import ExportError, InputError, raise_own, reason
from lilliput.exporters.onnx import export
from lilliput.exporters.profiles import Profile, breaches
from lilliput.exporters.unrounded import unrounded
from lilliput.external import read
from lilliput.file.session import session
from lilliput.measure import Latencies, interleaved
from lilliput.model.carrier.arrays import from_user
from lilliput.model.edits.edit import Edit
from lilliput.model.rescaling.fold import fold_norms
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import View
from lilliput.targets.operators import Operator
from lilliput.targets.target import Preferences, Runner, Runtime, Writer

_ACCOUNT_S = 2.0  # of calls, to tell what each operator takes


@dataclass(frozen=True)
class Loaded:
    """A file as a runtime holds it."""

    inputs: int
    outputs: int
    run: Callable[[Sequence[np.ndarray]], Sequence[Any]]  # the inputs in order -> the outputs in order, as arrays


def loaded_by(held: Any) -> Loaded:
    """What a session of ONNX Runtime holds."""
    names = [value.name for value in held.get_inputs()]
    run = held.run
    return Loaded(len(names), len(held.get_outputs()), lambda given: run(None, dict(zip(names, given, strict=True))))


def input_names(built: Path | bytes) -> list[str]:
    """The inputs that a file declares, in order, whether or not anything reads them."""
    model = onnx.load_from_string(built) if isinstance(built, bytes) else onnx.load(built, load_external_data=False)
    return [value.name for value in model.graph.input]


def _check_given(arguments: Iterable[Any]) -> None:
    for x in arguments:
        numbers = tree_leaves(x) if isinstance(x, list | tuple) else []
        if numbers and all(isinstance(one, bool | int | float) for one in numbers):
            raise InputError("called with a list of numbers", next="give a tensor or an array: torch.tensor(…)")


class OnnxPreferences(Preferences):
    """What runtimes of ONNX files have in common: norms are folded into the layers before them."""

    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        return fold_norms(view, root)


@dataclass(frozen=True)
class OnnxWriter(Writer):
    """An ONNX file, which breaks no rule of a profile where there is one."""

    opset: int
    rules: Profile | None  # None: what the runtime itself takes, which opening it shows
    opened_by: str = ""

    format: ClassVar[str] = "onnx"

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        rules = self.rules
        integer_bias, unsigned = rules is None or rules.integer_bias, rules is None or not rules.signed
        export(path, model, example, dynamic, self.opset, integer_bias=integer_bias, unsigned=unsigned)
        broken = None if rules is None else next(breaches(path, rules), None)
        if broken is not None and rules is not None:
            raise ExportError(f"{rules.name} does not take {broken.rule}", where=broken.node, next=broken.next)

    def reference(self, built: Path, signature: Signature, *, rounded: bool) -> Runner | None:
        given = built if rounded else unrounded(built)
        if given is None:
            return None
        try:
            held = session(given, as_written=True, folder=built.parent)
        except Exception:  # it has no kernel for a type that a target has one for, such as bfloat16
            return None
        return _runner(loaded_by(held), signature, f"{built}, as it is written", "ONNX Runtime")


@dataclass(frozen=True)
class OnnxSession(Runtime):
    """A runtime that reads ONNX, on this machine."""

    threads: int

    title: ClassVar[str]  # its name in a message

    @abstractmethod
    def load(self, built: Path | bytes) -> Loaded:
        """The file in the runtime; raises whatever the runtime raises."""

    @abstractmethod
    def accounts(self, built: Path, arrays: Sequence[np.ndarray], seconds: float) -> Sequence[Operator]:
        """The operators of the file, timed for about so many seconds; raises whatever the runtime raises."""

    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        where = "graph" if isinstance(built, bytes) else str(built)
        try:
            if isinstance(built, Path):
                read(built)  # tells what is missing where tensors lie beside it
            loaded = self.load(built)
        except InputError:
            raise
        except Exception as error:  # runtimes raise many kinds
            raise ExportError(f"{self.title} does not load the export", where=where, why=reason(error)) from error
        return _runner(loaded, signature, where, self.title)

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        subjects = {name: functools.partial(example.call, run) for name, run in runs.items()}
        return interleaved(subjects, budget_s=seconds, threads=self.threads)

    def operators(self, built: Path, signature: Signature, example: Inputs, seconds: float) -> Sequence[Operator]:
        arrays = [x.detach().numpy() for x in signature.arguments(example)]
        try:
            return self.accounts(built, arrays, min(_ACCOUNT_S, seconds))
        except Exception as error:  # runtimes raise many kinds; what they tell explains a figure, and changes none
            raise_own(error)
            return ()


def _runner(loaded: Loaded, signature: Signature, where: str, title: str) -> Runner:
    """A loaded file, called and answering as the module does."""
    if loaded.inputs != len(signature.inputs) or loaded.outputs != signature.count:
        raise ExportError("has other inputs or outputs than the module", where=where)

    def run(*args: Any, **kwargs: Any) -> Any:
        _check_given((*args, *kwargs.values()))
        tensors = signature.arguments(
            Inputs(tuple(map(from_user, args)), {key: from_user(x) for key, x in kwargs.items()})
        )
        try:
            found = loaded.run([x.detach().cpu().resolve_conj().resolve_neg().numpy() for x in tensors])
        except Exception as error:  # runtimes raise many kinds
            raise InputError(
                f"{title} fails on this input",
                where=where,
                why=reason(error),
                next="give inputs as the example's",
            ) from error
        return signature.assemble([torch.from_numpy(np.asarray(out)) for out in found])

    return run
