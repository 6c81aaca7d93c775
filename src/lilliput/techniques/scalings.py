"""By how much each channel is scaled between two layers: s divides what the first returns, the second multiplies by it.

Each way is one function from tensors to s, [channels], and a class that gathers the tensors for all pairs at once.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.encodings import Encoding, Int
from lilliput.errors import EncodingError, RecipeError
from lilliput.model.carrier.parameters import read, shapes
from lilliput.model.rescaling.pairs import Pair, PairTensor
from lilliput.plain import short_repr
from lilliput.techniques.encode import remembered
from lilliput.techniques.inputs import Stop
from lilliput.techniques.observe import statistics
from lilliput.techniques.quantize import for_weight
from lilliput.techniques.ranges import MinMax, Range
from lilliput.techniques.rounding import damage
from lilliput.techniques.run import Run
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.walk import walk

_FARTHEST = 1e4  # from their geometric mean, that scales may be
_ROUNDS, _SETTLED = 50, 1e-3  # of equalization along chains, and the change at which it stops


@dataclass(frozen=True, repr=False)
class Scaling(ABC):
    """A way to choose scales for the channels between layers."""

    @abstractmethod
    def scales(self, run: Run, pairs: Sequence[Pair]) -> list[Tensor]:
        """One tensor [channels] for each pair."""

    @abstractmethod
    def refuses(self, pair: Pair) -> str:
        """Why this way has nothing to say about a pair; empty where it has."""

    @property
    def needs_batches(self) -> bool:
        return True

    def reached(self, run: Run, pairs: Sequence[Pair]) -> list[bool]:
        """Of which pairs the batches reach all that is looked at."""
        if not self.needs_batches or not pairs:
            return [True] * len(pairs)
        seen = statistics(run, _wanted(pairs))
        return [all(seen[f"{part.call.value}@0"].reached for part in pair.multiplied) for pair in pairs]

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True, repr=False)
class CrossLayer(Scaling):
    """The weights before and behind each channel get equal ranges: for weights with one scale a tensor, without data.

    Along chains of layers until nothing moves. Source: Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019, arXiv 1906.04721.
    """

    def refuses(self, pair: Pair) -> str:
        gains = "before it is a normalisation, whose gains are not quantized: SmoothQuant() and AWQ() scale by them"
        return gains if pair.normalises else ""

    @property
    def needs_batches(self) -> bool:
        return False

    def scales(self, run: Run, pairs: Sequence[Pair]) -> list[Tensor]:
        paths = {part.path for pair in pairs for part in (pair.divided[0], *pair.multiplied)}
        weights, known = {path: read(run.model, path).float() for path in paths}, shapes(run.model)
        found = [torch.ones(pair.channels) for pair in pairs]
        for _ in range(_ROUNDS):
            moved = 0.0
            for i, pair in enumerate(pairs):
                first = pair.divided[0].largest(weights[pair.divided[0].path])
                s = equal_ranges(first, _largest_weights(pair.multiplied, weights))
                for path, factor in factors(pair, s, known).items():
                    if path in weights:
                        weights[path] = weights[path] * factor.float()
                found[i], moved = found[i] * s, max(moved, float(s.log().abs().max()))
            if moved < _SETTLED:
                break
        return [bounded(s) for s in found]


@dataclass(frozen=True, repr=False)
class SmoothQuant(Scaling):
    """What is hard about activations goes over into the weights: for activations with one scale a tensor.

    Source: Xiao et al., "SmoothQuant", 2022, arXiv 2211.10438.
    """

    alpha: float = 0.5  # 0: the weights' inputs get equal ranges; 1: the activations' channels do

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise RecipeError(f"SmoothQuant with alpha={self.alpha}", next="use 0 to 1, such as 0.5")

    def refuses(self, pair: Pair) -> str:
        return _unseen(pair)

    def scales(self, run: Run, pairs: Sequence[Pair]) -> list[Tensor]:
        seen = statistics(run, _wanted(pairs))
        weights = {part.path: read(run.model, part.path).float() for pair in pairs for part in pair.multiplied}
        return [
            smooth(_largest_inputs(pair, seen), _largest_weights(pair.multiplied, weights), self.alpha)
            for pair in pairs
        ]


@dataclass(frozen=True, repr=False)
class AWQ(Scaling):
    """Inputs of large magnitude get finer weights: for weights of few bits, whatever the activations.

    s = (mean |x|)ᵅ, with the α between 0 and 1 by which `weights` do least damage to what the layers compute. Source:
    Lin et al., "AWQ: Activation-aware Weight Quantization", 2023, arXiv 2306.00978; here the damage follows from
    E[x xᵀ] instead of batches.
    """

    weights: Encoding = Int(4, group=64)  # as the `Quantize` afterwards
    steps: int = 20  # values of α that are tried, 0 and 1 among them
    fit: Range = MinMax()

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise RecipeError(f"AWQ of {self.steps} steps", next="use 2 or more")

    def refuses(self, pair: Pair) -> str:
        for part in pair.multiplied:
            if part.call.op != "linear" and part.call.window is None:
                return f"{part.call.op} has no patches to look at"
            try:
                encoding = for_weight(self.weights, part.call, part.call.weight_shape)
                if encoding is None:
                    return f"{self.weights} has groups of one length, which do not divide its inputs"
                encoding.fit(torch.zeros(part.call.weight_shape))
            except EncodingError as error:
                return str(error)
        return _unseen(pair)

    def scales(self, run: Run, pairs: Sequence[Pair]) -> list[Tensor]:
        seen = statistics(run, _wanted(pairs))
        order = {call.id: i for i, call in enumerate(run.view().calls)}
        tried = [salient(_mean_inputs(pair, seen), self.steps) for pair in pairs]  # each [steps, channels]
        damages = [torch.zeros(self.steps, dtype=torch.float64) for _ in pairs]
        parts = sorted(
            ((i, part) for i, pair in enumerate(pairs) for part in pair.multiplied), key=lambda x: order[x[1].call.id]
        )
        with closing(walk(run, [part.call for _, part in parts])) as stops:  # which end with it, whatever is raised
            for i, part in parts:
                stop, weight = next(stops), read(run.model, part.path).float()
                assert isinstance(stop, Stop)
                compute = functools.partial(self._damages, weight, part, tried[i], stop)
                damages[i] += remembered(run, ("AWQ", self, part.path), compute)
            next(stops, None)
        return [scales[int(found.argmin())] for scales, found in zip(tried, damages, strict=True)]

    def _damages(self, weight: Tensor, part: PairTensor, tried: Tensor, stop: Stop) -> Tensor:
        """Of a layer's weights scaled, rounded and scaled back, for each row of `tried`, [steps]."""
        encoding, gram = for_weight(self.weights, part.call, tuple(weight.shape)), stop.gram.double()
        assert encoding is not None, "refused before"
        found = []
        for s in tried:
            spread = part.spread(s, tuple(weight.shape))
            scaled = weight * spread
            rounded = encoding.represent(scaled, self.fit.fit(scaled, encoding)).decode() / spread
            exact, now = (x.double().reshape(len(gram), -1, gram.shape[-1]) for x in (weight, rounded))
            found.append(damage(exact, now, gram))
        return torch.stack(found)


# tensors to tensors


def equal_ranges(first: Tensor, second: Tensor) -> Tensor:
    """√(r₁ / r₂): both weights' ranges of a channel become √(r₁ · r₂); 1 where one of them is 0.

    >>> equal_ranges(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor([2., 1.])
    """
    return torch.where((first > 0) & (second > 0), (first / second.clamp(min=1e-30)).sqrt(), 1.0)


def smooth(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max|x|ᵅ / max|w|¹⁻ᵅ, each [channels].

    >>> smooth(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5)
    tensor([4., 1.])
    """
    return bounded(inputs.pow(alpha) / weights.pow(1 - alpha))


def salient(inputs: Tensor, steps: int) -> Tensor:
    """(mean |x|)ᵅ for `steps` α from 0 to 1, the largest and the smallest as far from 1, [steps, channels].

    >>> salient(torch.tensor([16.0, 1.0]), 2)
    tensor([[1.0000, 1.0000],
            [4.0000, 0.2500]])
    """
    tried = torch.stack([bounded(inputs.pow(alpha)) for alpha in torch.linspace(0, 1, steps).tolist()])
    return tried / (tried.amax(1, keepdim=True) * tried.amin(1, keepdim=True)).sqrt()


def bounded(s: Tensor) -> Tensor:
    """Scales with those that are 0, infinite or NaN, of channels that are never used, at the mean of the others."""
    live = s.isfinite() & (s > 0)
    if not bool(live.any()):
        return torch.ones_like(s)
    mean = s[live].log().mean().exp()
    return torch.where(live, s, mean).clamp(float(mean) / _FARTHEST, float(mean) * _FARTHEST)


def factors(pair: Pair, s: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What each tensor of a pair is multiplied by, laid out against it, in float64."""
    divided = {part.path: part.spread(1 / s.double(), shapes[part.path]) for part in pair.divided}
    return divided | {part.path: part.spread(s.double(), shapes[part.path]) for part in pair.multiplied}


def _unseen(pair: Pair) -> str:
    hidden = [part.path for part in pair.multiplied if part.call.value is None]
    return f"what flows into {hidden[0]} cannot be seen" if hidden else ""


def _wanted(pairs: Sequence[Pair]) -> dict[str, Observe]:
    """The magnitudes of what flows into each layer that is to be multiplied."""
    return {
        f"{part.call.value}@0": Observe(
            histogram=False, channel_axis=1 - max(2, len(part.call.weight_shape)), magnitudes=True
        )
        for pair in pairs
        for part in pair.multiplied
    }


def _largest_inputs(pair: Pair, seen: Mapping[str, Statistics]) -> Tensor:
    each = [(part, seen[f"{part.call.value}@0"].largest_magnitude) for part in pair.multiplied]
    return torch.stack([x.reshape(-1, part.each).amax(1) for part, x in each]).amax(0)


def _mean_inputs(pair: Pair, seen: Mapping[str, Statistics]) -> Tensor:
    each = [(part, seen[f"{part.call.value}@0"].mean_magnitude) for part in pair.multiplied]
    return torch.stack([x.reshape(-1, part.each).mean(1) for part, x in each]).mean(0)


def _largest_weights(parts: Sequence[PairTensor], weights: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([part.largest(weights[part.path]) for part in parts]).amax(0)


SCALINGS: dict[str, type[Scaling]] = {"CrossLayer": CrossLayer, "SmoothQuant": SmoothQuant, "AWQ": AWQ}
