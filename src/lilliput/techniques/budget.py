"""What a network costs once something is removed, relative to what it cost: counted, or measured on the target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lilliput.errors import MeasureError, RecipeError
from lilliput.measure import macs, parameters
from lilliput.model.inputs import Inputs
from lilliput.model.signature import Signature
from lilliput.recipe import Recipe
from lilliput.targets.target import Runner, Target


@dataclass(frozen=True)
class Cost:
    """The cost of a network on an example, built for a target where it is timed."""

    example: Inputs
    dynamic: Mapping[str | int, Mapping[int, str]]
    target: Target

    def left(self, what: str, model: nn.Module, smaller: nn.Module) -> tuple[float, str]:
        """The ``macs``, ``parameters`` or ``latency`` of `smaller`, relative to those of `model`; what disturbed that.

        Raises MeasureError where the latency cannot be known.
        """
        if what == "latency":
            return self._latency(model, smaller)
        return self._count(what)(smaller) / self._count(what)(model), ""

    def _count(self, what: str) -> Callable[[nn.Module], int]:
        if what == "parameters":
            return parameters
        return lambda model: macs(model, (given := self.example.copied()).args, given.kwargs).total

    def _latency(self, model: nn.Module, smaller: nn.Module) -> tuple[float, str]:
        with tempfile.TemporaryDirectory() as folder:
            subjects = {"with": model, "without": smaller}
            runs = {name: self._opened(net, Path(folder) / name) for name, net in subjects.items()}
            taken = self.target.latencies(runs, self.example)
        if not taken.known:
            raise MeasureError(
                "a budget of latency cannot be measured",
                why=f"{taken.disturbance}, and the target has {self.target.threads_used} threads",
                next="wait until the machine is idle, give the target threads=1, or give macs= or parameters=",
            )
        return taken.ratio("without", "with").value, taken.disturbance

    def _opened(self, model: nn.Module, path: Path) -> Runner:
        path = path.with_suffix(f".{self.target.format}")
        self.target.build(path, model, self.example, self.dynamic)
        with torch.no_grad():
            signature = Signature.of(self.example, self.example.call(model), model.forward)
        return self.target.open(path, signature)


def check_timed(recipe: Recipe | None, target: Target) -> None:
    """Refuse a recipe that goes by timing for a target that is not to time."""
    for i, step in enumerate(() if recipe is None or target.times else recipe.steps):
        if step.times:
            raise RecipeError(
                f"step {i + 1}, {type(step).__name__}, has a budget of latency, and the target has seconds=0",
                why="such a budget is measured on the target",
                next="give the target seconds, or the step macs= or parameters= in place of latency=",
            )
