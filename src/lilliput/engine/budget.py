"""What a network costs once something is removed, relative to what it cost: counted, or measured on the target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lilliput.measure import macs, parameters
from lilliput.model.inputs import Inputs
from lilliput.model.signature import Signature
from lilliput.targets.target import Runner, Target


@dataclass(frozen=True)
class Cost:
    """The cost of a network on an example, built for a target where it is timed."""

    example: Inputs
    dynamic: Mapping[str | int, Mapping[int, str]]
    target: Target

    def left(self, what: str, model: nn.Module, smaller: nn.Module) -> float:
        """The ``macs``, ``parameters`` or ``latency`` of `smaller`, relative to those of `model`."""
        if what == "latency":
            return self._latency(model, smaller)
        return self._count(what)(smaller) / self._count(what)(model)

    def _count(self, what: str) -> Callable[[nn.Module], int]:
        if what == "parameters":
            return parameters
        return lambda model: macs(model, (given := self.example.copied()).args, given.kwargs).total

    def _latency(self, model: nn.Module, smaller: nn.Module) -> float:
        with tempfile.TemporaryDirectory() as folder:
            subjects = {"with": model, "without": smaller}
            runs = {name: self._opened(net, Path(folder) / name) for name, net in subjects.items()}
            return self.target.latencies(runs, self.example).ratio("without", "with").value

    def _opened(self, model: nn.Module, path: Path) -> Runner:
        path = path.with_suffix(f".{self.target.format}")
        self.target.build(path, model, self.example, self.dynamic)
        with torch.no_grad():
            signature = Signature.of(self.example, self.example.call(model), model.forward)
        return self.target.open(path, signature)
