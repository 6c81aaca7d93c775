"""How much goes with a weight: by what single weights, channels and heads are ranked for pruning."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.errors import RecipeError
from lilliput.plain import short_repr
from lilliput.techniques.run import Run


@dataclass(frozen=True, repr=False)
class Score(ABC):
    """A number for each weight, none negative, that adds up over the weights of a slice; a frozen dataclass."""

    @abstractmethod
    def of(self, run: Run, path: str, x: Tensor) -> Tensor:
        """For each weight of the tensor `x` at `path`, [shape of x]."""

    @property
    def degree(self) -> float:
        """Of sums of it, the root that is taken: a threshold is a multiple of the mean of those."""
        return 1.0

    def single(self, run: Run, path: str, x: Tensor) -> Tensor:
        """What ranks single weights, [shape of x]: in the order of `of`, or finer where that cannot be told apart."""
        return self.of(run, path, x)

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


SCORES: dict[str, type[Score]] = {"Magnitude": Magnitude, "Random": Random}
