"""Quantization after training: what numbers, how their ranges are fitted, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lilliput.encodings import Encoding, Int
from lilliput.errors import RecipeError
from lilliput.model.view import CONVOLUTIONS, Call, View
from lilliput.techniques.combinations import check
from lilliput.techniques.ranges import MSE, Range
from lilliput.techniques.statistics import Observe
from lilliput.techniques.technique import Placement, Run, Technique, check_where, chosen


@dataclass(frozen=True, repr=False)
class Quantize(Technique):
    """Represent weights, and values that flow, by fewer bits, without training.

    Weights alone: ``Quantize(weights=Int(8))``, or ``weights=Levels(16)``, by which they share few numbers. With
    activations whose ranges come from calibration (static): ``activations=Int(8)``; with ranges found at each run
    (dynamic): ``activations=Int(8, dynamic=True)``. What flows into weights that an earlier step has encoded is encoded
    with the rest, so that bits may differ from layer to layer.

    Activations as a grid of numbers, ``activations=Log(4)`` or ``Tiles(4)``, show what a network would lose by it: no
    runtime computes so, and nothing gets faster. What formats and fits combine is in the guide.

    >>> Quantize(weights=Int(8), activations=Int(8))
    Quantize(activations=Int())
    """

    weights: Encoding | None = Int()
    activations: Encoding | None = None
    fit: Range = MSE()  # how the scales, ranges or levels of weights are found
    calibration: Range = MSE()  # how those of activations are found
    bias_correction: bool = True  # move each bias by the mean error that rounded weights cause, if there are batches

    def __post_init__(self) -> None:
        if self.weights is None:
            raise RecipeError("Quantize without weights", next="give weights=Int(8), or leave the step out")
        check(self.weights, self.fit, "weights")
        check(self.activations, self.calibration, "values")

    @property
    def establishes(self) -> frozenset[str]:
        static = self.activations is not None and self.activations.calibrated
        return frozenset({"ranges"}) if static else frozenset()

    @property
    def disturbs(self) -> frozenset[str]:
        return frozenset({"ranges"})

    def apply(self, run: Run) -> None:
        run.prepare()
        chosen_weights = self._choose(run)
        encodings = {path: self._for_weight(calls[0]) for path, calls in chosen_weights.items()}
        places = [] if self.activations is None else self._places(run, {**_encoded(run), **encodings})
        correct = self._correctable(run, chosen_weights) if self.bias_correction and run.calibrated else {}
        wanted = {place.value: Observe() for place in places if place.encoding.calibrated}
        wanted |= {
            operand: Observe(histogram=operand in wanted, channel_axis=1 if call.op in CONVOLUTIONS else -1)
            for operand, call in correct.items()
        }
        seen = run.statistics(wanted) if wanted else {}
        exact = {call.weight: run.tensor(call.weight) for call in correct.values()}  # type: ignore[arg-type]
        for path, encoding in encodings.items():
            run.encode(path, encoding, fit=self.fit)
        for operand, call in correct.items():
            shift = mean_error(call, exact[call.weight], run.tensor(call.weight), seen[operand].mean)  # type: ignore[arg-type]
            run.set_tensor(call.bias, run.tensor(call.bias) - shift)  # type: ignore[arg-type]
        for place in places:
            if place.encoding.calibrated:
                held = seen[place.like or place.value]
                encoding = place.encoding.for_range(held.low)
                run.encode_value(place.value, encoding, self.calibration.of_value(held, encoding))
            else:
                run.encode_value(place.value, place.encoding, place.encoding.given())

    def _choose(self, run: Run) -> dict[str, list[Call]]:
        """The tensors to encode, with the calls that use them; all others are reported with a reason."""
        weights, shapes = run.view().weights, run.shapes()
        check_where(self.where, list(weights))
        for path in shapes:
            if len(shapes[path]) > 1 and path not in weights:
                run.skip(path, _why_not(run.view(), path))
        picked = {path: calls for path, calls in weights.items() if path in shapes and chosen(path, self.where)}
        earlier = _encoded(run)
        for path in [path for path in weights if path in shapes and path not in picked and path not in earlier]:
            run.skip(path, f"left out by where={self.where!r}")
        return picked

    def _places(self, run: Run, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        assert self.activations is not None
        return run.place(self.activations.for_value(), weights)

    def _for_weight(self, call: Call) -> Encoding:
        assert self.weights is not None
        return self.weights.for_weight(1 if call.op.startswith("conv_transpose") else None)

    def _correctable(self, run: Run, weights: dict[str, list[Call]]) -> dict[str, Call]:
        """Calls whose bias, theirs alone, can take up the mean error of their weight, by the operand they multiply."""
        readers = run.view().readers
        return {
            f"{calls[0].value}@0": calls[0]
            for calls in weights.values()
            if len(calls) == 1
            and calls[0].value
            and calls[0].bias
            and len(readers[f"tensor {calls[0].bias}"]) == 1
            and not calls[0].op.startswith("conv_transpose")
        }


def _encoded(run: Run) -> dict[str, Encoding]:
    """The weights that earlier steps have encoded: what flows into them is encoded with the rest."""
    found = {path: run.encoding(path) for path in run.view().weights}
    return {path: encoding for path, encoding in found.items() if encoding is not None}


def _why_not(view: View, path: str) -> str:
    """Why a tensor is no weight that this technique represents."""
    ops = sorted({call.op for call in view.readers.get(f"tensor {path}", [])})
    if not ops:
        return "no captured call reads it"
    return f"it is read by {' and '.join(ops)}, not by a convolution, linear layer or embedding"


def mean_error(call: Call, exact: Tensor, rounded: Tensor, mean: Tensor) -> Tensor:
    """What rounding a weight adds to each output on average: Σ (rounded - exact) · E[input], [outputs].

    For a convolution the borders are taken for inner points. Source: Nagel et al., "Data-Free Quantization Through
    Weight Equalization and Bias Correction", 2019, arXiv 1906.04721, with E[input] measured on the calibration batches.
    """
    error = (rounded - exact).flatten(2).sum(2) if exact.dim() > 2 else rounded - exact  # [outputs, inputs of a group]
    groups = mean.numel() // error.shape[1]
    inputs = mean.reshape(groups, 1, -1)  # [groups, 1, inputs of a group]
    return (error.reshape(groups, -1, error.shape[1]) * inputs).sum(2).reshape(-1)
