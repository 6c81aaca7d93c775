"""ONNX files, whatever runs them: how they are written and checked, and that a runtime opens them."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from lilliput.errors import ExportError, raise_own
from lilliput.exporters.onnx import export
from lilliput.exporters.profiles import Profile, breaches
from lilliput.exporters.unrounded import unrounded
from lilliput.measure import Latencies, interleaved
from lilliput.model.edits.edit import Edit
from lilliput.model.rescaling.fold import fold_norms
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import View
from lilliput.runtimes import onnxruntime
from lilliput.runtimes.loaded import Loaded, Runner, opened, runner
from lilliput.runtimes.onnxruntime import loaded_by
from lilliput.runtimes.session import session
from lilliput.targets.operators import Operator
from lilliput.targets.target import Preferences, Runtime, Writer

_ACCOUNT_S = 2.0  # of calls, to tell what each operator takes


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
    packed: frozenset[int] = frozenset()  # bits of weights whose packed codes are multiplied by, with no floats made

    format: ClassVar[str] = "onnx"

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        rules = self.rules
        export(
            path,
            model,
            example,
            dynamic,
            self.opset,
            integer_bias=rules is None or rules.integer_bias,
            unsigned=rules is None or not rules.signed,
            packed=self.packed,
        )
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
        return runner(loaded_by(held), signature, f"{built}, as it is written", onnxruntime.TITLE)


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
        return opened(self.load, built, signature, self.title)

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
