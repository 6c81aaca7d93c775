"""How much goes with a weight: by what single weights, channels and heads are ranked for pruning."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.errors import RecipeError
from lilliput.plain import short_repr
from lilliput.techniques.gradients import Gradient, Of, gradients
from lilliput.techniques.run import Run


@dataclass(frozen=True, repr=False)
class Score(ABC):
    """A number for each weight, none negative, that adds up over the weights of a slice; a frozen dataclass."""

    def gather(self, run: Run) -> Any:
        """What `of` is given for every tensor, found once: the run, or what is computed of it for all."""
        return run

    @abstractmethod
    def of(self, run: Any, path: str, x: Tensor) -> Tensor:
        """For each weight of the tensor `x` at `path`, [shape of x]; `run` is what `gather` gives."""

    @property
    def degree(self) -> float:
        """Of sums of it, the root that is taken: a threshold is a multiple of the mean of those."""
        return 1.0

    def single(self, run: Any, path: str, x: Tensor) -> Tensor:
        """What ranks single weights, [shape of x]: in the order of `of`, or finer where that cannot be told apart."""
        return self.of(run, path, x)

    @property
    def needs(self) -> Mapping[str, str]:
        """Fields of the task without which nothing can be scored, each with what to do about it."""
        return {}

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True, repr=False)
class Magnitude(Score):
    """|w| to a power: 2 ranks slices by their Euclidean norm, 1 by the sum of magnitudes.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", 2017, arXiv 1608.08710 (power 1).

    >>> Magnitude(power=1)
    Magnitude(power=1)
    """

    power: float = 2

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise RecipeError(f"Magnitude to the power {self.power}", next="give a positive one, such as 1 or 2")

    def of(self, run: Run, path: str, x: Tensor) -> Tensor:
        return x.double().square() if self.power == 2 else x.double().abs().pow(self.power)

    @property
    def degree(self) -> float:
        return self.power

    def single(self, run: Run, path: str, x: Tensor) -> Tensor:
        return x.abs()  # which no power of a small number rounds to zero


@dataclass(frozen=True, repr=False)
class Random(Score):
    """By chance, the same each time: what every other score must beat before it is believed.

    >>> Random(seed=1)
    Random(seed=1)
    """

    seed: int = 0

    def of(self, run: Run, path: str, x: Tensor) -> Tensor:
        drawn = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {path}".encode()))
        return torch.rand(x.shape, generator=drawn, dtype=torch.float64).to(x.device)


@dataclass(frozen=True, repr=False)
class ByGradient(Score):
    """What a weight is worth to the `loss` of the task, or, without labels, to the `output`, over some batches."""

    to: Of = "loss"
    batches: int = 16  # of those to train with, or to calibrate with, that gradients are taken on

    def __post_init__(self) -> None:
        if self.to not in ("loss", "output"):
            raise RecipeError(f"{type(self).__name__} of {self.to!r}", next="known: 'loss', 'output'")
        if type(self.batches) is not int or self.batches < 1:
            raise RecipeError(
                f"{type(self).__name__} by {self.batches!r} batches", next="give a whole number from 1 on"
            )

    @property
    def needs(self) -> Mapping[str, str]:
        if self.to == "output":
            return {"calibrate": f"{type(self).__name__} takes gradients on them: give calibrate="}
        remedy = f"give train= and loss=, or {type(self).__name__}('output')"
        return {"train": remedy, "loss": remedy}

    def gather(self, run: Run) -> dict[str, Gradient]:
        return gradients(run, self.to, self.batches)


@dataclass(frozen=True, repr=False)
class Sensitivity(ByGradient):
    """|∂/∂w|: how much the loss, or the answers, follow a weight.

    >>> Sensitivity("output")
    Sensitivity(to='output')
    """

    def of(self, run: dict[str, Gradient], path: str, x: Tensor) -> Tensor:
        return run[path].size.double()


@dataclass(frozen=True, repr=False)
class Taylor(ByGradient):
    """|w · ∂/∂w|: to first order, what changes where a weight is zero.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, arXiv 1906.10771.

    >>> Taylor(batches=4)
    Taylor(batches=4)
    """

    def of(self, run: dict[str, Gradient], path: str, x: Tensor) -> Tensor:
        return x.double().abs() * run[path].size.double()


@dataclass(frozen=True, repr=False)
class Fisher(ByGradient):
    """w² · E[(∂/∂w)²]: to second order what changes where a weight is zero, by the diagonal of the Fisher information.

    Source: LeCun et al., "Optimal Brain Damage", 1989; Theis et al., arXiv 1801.05787.

    >>> Fisher()
    Fisher()
    """

    def of(self, run: dict[str, Gradient], path: str, x: Tensor) -> Tensor:
        return x.double().square() * run[path].square.double() / 2


SCORES: dict[str, type[Score]] = {one.__name__: one for one in (Magnitude, Random, Sensitivity, Taylor, Fisher)}
