"""PyTorch itself: the module runs as it is, with the tensors of its `.lil`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding, Int
from lilliput.errors import InputError
from lilliput.file.container import Reader
from lilliput.file.lil import read_into, save
from lilliput.measure import Latencies, interleaved
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.edits.edit import Edit
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import Call, View
from lilliput.recipe import Recipe
from lilliput.targets.simulated import REMARK, operands
from lilliput.targets.target import Preferences, Runner, Runtime, Target, Writer
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.run import Placed, Wanted


class EagerPreferences(Preferences):
    """What PyTorch takes: any network, as it is written."""

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Weights alone: PyTorch has no integer kernel for what flows."""
        return Recipe([Quantize(weights=Int(8))])

    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        """Nothing: the module stays as it is written."""
        return ()

    def place(self, view: View, wanted: Wanted) -> Placed:
        """What each layer reads, as it alone reads it: rounded in float, to show what that costs."""
        return operands(view, wanted.activations)

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if activation is not None:
            return REMARK
        return "float" if weight is None else "size only: decoded to float at each call"


@dataclass(frozen=True)
class ModuleWriter(Writer):
    """The `.lil` file: the tensors of a module, and no graph. So nothing opens it without its source."""

    saved_for: str  # the target

    format: ClassVar[str] = "lil"
    whole: ClassVar[bool] = False

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        save(path, model, graph=f"saved for {self.saved_for}, which runs the module itself")


@dataclass(frozen=True)
class ModuleRuntime(Runtime):
    """The module that was built, run by PyTorch with the tensors of the file."""

    threads: int

    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        """A copy of `module` with the tensors of the file; raises InputError where there is no module."""
        if module is None or isinstance(built, bytes):
            raise InputError(
                "PyTorch opens no file without the module that it was built of",
                where="graph" if isinstance(built, bytes) else str(built),
                next="give the file to lilliput.load(path, into=…)",
            )
        held = read_into(Reader(built), duplicate(module), edited=True)
        held.__class__ = type(module)  # a copy has the class that it was made by, without what is exchanged for a while

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return Inputs(args, kwargs).call(held)

        return run

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        subjects = {name: functools.partial(example.call, run) for name, run in runs.items()}
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return interleaved(subjects, budget_s=seconds, threads=self.threads)
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Eager(Target):
    """PyTorch itself, on a CPU: what it runs is the user's own module, with the tensors of the `.lil`.

    It takes any network that PyTorch runs; of one that no graph holds whole, weights alone can be encoded. Those make
    the file smaller and nothing faster: they are decoded at each call. Values that flow are rounded in float.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> import lilliput
    >>> small = lilliput.compress(lilliput.Task(net, example=torch.randn(4, 64)), target=Eager(seconds=0))
    >>> small.built.name, small.data["ratio"]["smaller"] > 3
    ('net.lil', True)
    """

    name: ClassVar[str] = "eager"

    @property
    def prefers(self) -> EagerPreferences:
        return EagerPreferences()

    @property
    def writes(self) -> ModuleWriter:
        return ModuleWriter(self.name)

    @property
    def runs(self) -> ModuleRuntime:
        return ModuleRuntime(self.threads_used)
