"""Runtimes for phones and boards, ExecuTorch and LiteRT: int8 all the way, by packages in environments of their own.

docs/edge.md tells what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding, Int
from lilliput.encodings.integer import Uniform
from lilliput.errors import ExportError, InputError
from lilliput.exporters import written
from lilliput.exporters.quantized import quantized
from lilliput.measure import Clocks, Latencies, interleaved, others_seconds
from lilliput.model.edits.edit import Edit
from lilliput.model.rescaling.fold import fold_norms
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import CONVOLUTIONS, LOOKS_UP, Call, View
from lilliput.recipe import Recipe
from lilliput.targets.elsewhere import Elsewhere
from lilliput.targets.kernels import (
    INTEGER_CONVOLUTIONS,
    at_run_time,
    eight_bits,
    no_kernel_finds,
    weights_lack,
)
from lilliput.targets.placing import Placing
from lilliput.targets.target import Preferences, Runner, Runtime, Target, Writer
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.run import Placed, Wanted


@dataclass(frozen=True)
class EdgePreferences(Preferences):
    """Int8 from layer to layer: kernels compute on integers only where the file says what comes out as well."""

    title: str
    dimensions: int  # of the largest convolution that runs on integers

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Networks with convolutions with ranges from calibration, others with ranges found at run time.

        Layers that no kernel computes on integers stay as they are: their codes would be written as floats.
        """
        convolutional = any(call.op in CONVOLUTIONS for call in view.calls)
        layers = {path.rpartition(".")[0]: used[0].op for path, used in view.weights.items()}
        known = {"linear", *LOOKS_UP, *(op for op in INTEGER_CONVOLUTIONS if int(op[4]) <= self.dimensions)}
        floats = sorted(path for path, op in layers.items() if op not in known)
        activations = Int(8, dynamic=not (calibrated and convolutional))
        where = ("*", *(f"!{path}" for path in floats))
        return Recipe([Quantize(weights=Int(8), activations=activations, where=where)])

    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        return fold_norms(view, root)

    def place(self, view: View, wanted: Wanted) -> Placed:
        placing = Placing(view, wanted, outputs=True)
        for call, encoding in placing.calls():
            if why := self._no_kernel(call, encoding) or weights_lack(call, wanted.weights):
                placing.leave(call, why)
            elif at_run_time(encoding):
                placing.operand(call, encoding)
            else:
                placing.layer(call, encoding)
        placing.additions()
        return placing.placed()

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if weight is None:
            return "float"
        if call.op in LOOKS_UP and eight_bits(weight):
            return "size only: rows are decoded as they are looked up"
        whole = isinstance(activation, Uniform) and eight_bits(weight) and not self._no_kernel(call, activation)
        if not whole or activation is None:
            return "written as float: no kernel takes such codes"
        return "int8 kernel, ranges found at each run" if at_run_time(activation) else "int8 kernel"

    def _no_kernel(self, call: Call, values: Uniform) -> str:
        """Why nothing multiplies such integers by the weights of a call; empty where a kernel does."""
        if no_kernel_finds(values):
            return "ranges are found at run time for 8 bits alone"
        if call.op == "linear":
            return ""
        if call.op not in INTEGER_CONVOLUTIONS or int(call.op[4]) > self.dimensions:
            return f"{self.title} has no integer kernel for {call.op}"
        return "convolutions run on integers with calibrated ranges" if at_run_time(values) else ""


@dataclass(frozen=True)
class EdgeWriter(Writer):
    """A file that the package makes of a program, for the lengths of the example."""

    elsewhere: Elsewhere

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        _refuse_open(dynamic, self.elsewhere.title)
        program = written.keep(quantized(model, example), path)
        try:
            self.elsewhere.ask({"do": "build", "program": str(program.resolve()), "path": str(path.resolve())})
        except ExportError as error:
            raise ExportError(
                f"{self.elsewhere.title} cannot write the network",
                where=path.name,
                why=error.why,
                next="leave out what the operator that is named computes, or take another target",
            ) from None

    def reference(self, built: Path, signature: Signature, *, rounded: bool) -> Runner | None:
        """The program that the file was made of, computed by torch."""
        found = written.as_written(built, rounded=rounded)
        if found is None:
            return None
        takes, run = found

        def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [x.numpy() for x in run([torch.from_numpy(x) for x in arrays])]

        return Fixed(takes, signature, call)


@dataclass(frozen=True)
class EdgeRuntime(Runtime):
    """What runs such a file on a CPU, here."""

    elsewhere: Elsewhere

    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        """The file as a callable; other numbers of samples than the file's run in pieces."""
        if isinstance(built, bytes):
            raise InputError(f"{self.elsewhere.title} opens files", where="graph", next="write it, and give its path")
        told, _ = self.elsewhere.ask({"do": "open", "path": str(built.resolve())})
        takes = [tuple(shape) for shape in told["takes"]]
        if len(takes) != len(signature.inputs):
            raise ExportError("has other inputs than the module", where=built.name)
        return Held(takes, signature, lambda given: self._ask("run", told["id"], given)[1], told["id"])

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        """Of calls that are made in that process, by its processor's time."""
        subjects = {}
        for name, run in runs.items():
            assert isinstance(run, Held)
            subjects[name] = _Timed(self, run.id, run.pieces(example)[0])

        def own() -> float:
            return float(self.elsewhere.ask({"do": "clock"})[0]["seconds"])

        clocks = Clocks(own=own, others=lambda: others_seconds() - own())
        return interleaved(subjects, budget_s=seconds, threads=self.elsewhere.threads, clocks=clocks)

    def _ask(self, verb: str, held: int, given: Sequence[np.ndarray], **more: Any) -> tuple[dict[str, Any], Any]:
        return self.elsewhere.ask({"do": verb, "id": held, **more}, given)


class PteWriter(EdgeWriter):
    """A `.pte`, of which XNNPACK runs all that it takes."""

    format: ClassVar[str] = "pte"


class TfliteWriter(EdgeWriter):
    """A `.tflite`, int8 in and out where the first and last values are encoded."""

    format: ClassVar[str] = "tflite"


@dataclass(frozen=True)
class _Edge(Target):
    """What is run by a package in an environment of its own; `python` is that environment's."""

    python: str | None = None

    title: ClassVar[str]
    package: ClassVar[tuple[str, str]]  # as pip knows it, and the least version
    module: ClassVar[str]  # in `elsewhere`, which knows how it is called
    kernels: ClassVar[str]
    writer: ClassVar[type[EdgeWriter]]

    def check(self) -> None:
        super().check()
        self._elsewhere.check()

    @property
    def prefers(self) -> EdgePreferences:
        return EdgePreferences(self.kernels, 2)

    @property
    def writes(self) -> EdgeWriter:
        return self.writer(self._elsewhere)

    @property
    def runs(self) -> EdgeRuntime:
        return EdgeRuntime(self._elsewhere)

    @property
    def _elsewhere(self) -> Elsewhere:
        variable = f"{self.name.upper()}_PYTHON"
        return Elsewhere(self.title, *self.package, self.module, variable, self.python, self.threads_used)


@dataclass(frozen=True)
class ExecuTorch(_Edge):
    """ExecuTorch with XNNPACK on a CPU: int8 from layer to layer, written and run in an environment of its own.

    `python` is that environment's; None: what the variable EXECUTORCH_PYTHON names, or else this one. Files have the
    lengths of the example. Raises InputError, when work begins, where ExecuTorch is not installed there.

    >>> ExecuTorch(threads=1).writes.format
    'pte'
    """

    name: ClassVar[str] = "executorch"
    title: ClassVar[str] = "ExecuTorch"
    package: ClassVar[tuple[str, str]] = ("executorch", "1.5")
    module: ClassVar[str] = "with_executorch"
    kernels: ClassVar[str] = "XNNPACK"
    writer: ClassVar[type[EdgeWriter]] = PteWriter


@dataclass(frozen=True)
class LiteRt(_Edge):
    """LiteRT on a CPU: int8 from the first value to the last, written and run in an environment of its own.

    `python` is that environment's; None: what the variable LITERT_PYTHON names, or else this one. Files have the
    lengths of the example. Raises InputError, when work begins, where litert-torch is not installed there.

    >>> LiteRt(threads=1).writes.format
    'tflite'
    """

    name: ClassVar[str] = "litert"
    title: ClassVar[str] = "LiteRT"
    package: ClassVar[tuple[str, str]] = ("litert-torch", "0.10")
    module: ClassVar[str] = "with_litert"
    kernels: ClassVar[str] = "LiteRT"
    writer: ClassVar[type[EdgeWriter]] = TfliteWriter


@dataclass(frozen=True)
class Fixed:
    """What takes one number of samples, called with any: in pieces, of which the last is filled up."""

    takes: list[tuple[int, ...]]  # the shape of each input
    signature: Signature
    call: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = Inputs(args, kwargs)
        pieces = self.pieces(given)
        found = [[torch.from_numpy(x) for x in self.call(piece)] for piece in pieces]
        if len(found) == 1 and self._samples(given) == self._each:
            return self.signature.assemble(found[0])
        samples = self._samples(given)
        return self.signature.assemble([torch.cat(parts)[:samples] for parts in zip(*found, strict=True)])

    def pieces(self, given: Inputs) -> list[list[np.ndarray]]:
        """The inputs of each call; the last sample stands for those that are missing in the last."""
        arrays = [x.detach().cpu().contiguous().numpy() for x in self.signature.arguments(given)]
        if all(x.shape == shape for x, shape in zip(arrays, self.takes, strict=True)):
            return [arrays]
        samples = self._samples(given)
        if not samples or any(x.shape[1:] != shape[1:] for x, shape in zip(arrays, self.takes, strict=True)):
            raise InputError(
                f"called with {', '.join(str(x.shape) for x in arrays)}",
                why=f"the file takes {', '.join(map(str, self.takes))}",
                next="give inputs of the example's lengths; the number of samples alone may differ",
            )
        rows = [np.minimum(np.arange(i, i + self._each), samples - 1) for i in range(0, samples, self._each)]
        return [[np.ascontiguousarray(x[row]) for x in arrays] for row in rows]

    @property
    def _each(self) -> int:
        """Samples of a call of the file; 0 where its inputs have no one number of them."""
        each = {shape[:1] for shape in self.takes}
        return each.pop()[0] if len(each) == 1 and () not in each else 0

    def _samples(self, given: Inputs) -> int:
        """Samples of a call; 0 where its inputs have no one number of them."""
        each = {tuple(x.shape[:1]) for x in self.signature.arguments(given)}
        return each.pop()[0] if self._each and len(each) == 1 and () not in each else 0


@dataclass(frozen=True)
class Held(Fixed):
    """A file that the process holds."""

    id: int


@dataclass(frozen=True)
class _Timed:
    """One file and what it is called with."""

    runtime: EdgeRuntime
    id: int
    given: Sequence[np.ndarray]

    def calls_s(self, seconds: float) -> list[float]:
        told, _ = self.runtime._ask("time", self.id, self.given, **{"for": seconds})
        return list(told["seconds"])


def _refuse_open(dynamic: Dynamic, title: str) -> None:
    for key, axes in dynamic.items():
        for axis, name in axes.items():
            if axis != 0:
                raise ExportError(
                    f"axis {axis} of input {key!r} is open ({name})",
                    why=f"files for {title} have the lengths of the example",
                    next='name the batch alone, dynamic={input: {0: "batch"}}, and pad to one length',
                )
