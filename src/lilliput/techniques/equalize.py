"""Scales moved from one layer to the next before anything is rounded: nothing changes, and it rounds better."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lilliput.encodings import Sparse, tensor_digest
from lilliput.feeding import ask, fingerprint
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.parameters import encoding_of, read, rescaled, shapes, write
from lilliput.model.rescaling.pairs import Pair, find_pairs
from lilliput.model.views.view import MULTIPLIES, Call
from lilliput.modes import exact_products
from lilliput.outputs import departure
from lilliput.techniques.encode import prepare, set_tensor
from lilliput.techniques.run import Answer, Rough, Run
from lilliput.techniques.scalings import Scaling, factors
from lilliput.techniques.technique import Technique
from lilliput.techniques.where import check_where, chosen

_TOLERANCE, _STEPS = 1e-4, 8  # outputs may differ by, relative to the largest; and by steps of coarser numbers


@dataclass(frozen=True, repr=False)
class Equalize(Technique):
    """Rescale channels between layers, which changes nothing yet: put it before `Quantize`.

    What a layer or normalisation returns is divided by s, one number a channel, and the weights of all layers that
    read it are multiplied by s. `by` chooses s. `where` names the layers that are multiplied.

    >>> from lilliput.techniques.scalings import SmoothQuant
    >>> Equalize(SmoothQuant(alpha=0.7))
    Equalize(by=SmoothQuant(alpha=0.7))
    """

    by: Scaling

    @property
    def disturbs(self) -> frozenset[str]:
        return frozenset({"ranges"})

    @property
    def needs(self) -> Mapping[str, str]:
        remedy = "give calibrate=, or use Equalize(CrossLayer()), which looks at weights alone"
        return {"calibrate": remedy} if self.by.needs_batches else {}

    @property
    def needs_whole(self) -> str:
        return ""  # of pairs between parts nothing is seen, and they stay as they are

    def within(self, weights: Mapping[str, Sequence[Call]]) -> Self | None:
        return super().within(
            {path: calls for path, calls in weights.items() if not calls or calls[0].op in MULTIPLIES}
        )

    def apply(self, run: Run) -> None:
        prepare(run)
        pairs, apart = find_pairs(run.view(), shapes(run.model))
        check_where(self.where, [*apart, *(part.path for pair in pairs for part in pair.multiplied)])
        for path, reason in apart.items():
            if chosen(path, self.where):
                _skip(run, path, reason)
        taken = [pair for pair in pairs if self._takes(run, pair)]
        pairs = []
        for pair, reached in zip(taken, self.by.reached(run, taken), strict=True):
            if reached:
                pairs.append(pair)
                continue
            for part in pair.multiplied:
                _skip(run, part.path, "no calibration batch reaches it")
        if not pairs:
            return
        scales = self.by.scales(run, pairs)
        if not _accepted(run, pairs, scales) and len(pairs) > 1:
            for pair, s in zip(pairs, scales, strict=True):
                _accepted(run, [pair], [s])

    def _takes(self, run: Run, pair: Pair) -> bool:
        """Whether a pair is to be scaled and can be; if not, that is reported."""
        paths = [part.path for part in pair.multiplied]
        meant = [path for path in paths if chosen(path, self.where)]
        encoded = [path for path in pair.paths if encoding_of(run.model, path) not in (None, Sparse())]
        if encoded:
            reason = f"{encoded[0]} is encoded already: put Equalize before Quantize"
        elif len(meant) < len(paths):
            reason = f"it reads the same as others that are left out by where={self.where!r}"
        else:
            reason = self.by.refuses(pair)
        for path in meant if reason else []:
            _skip(run, path, reason)
        return not reason


def _accepted(run: Run, pairs: Sequence[Pair], scales: Sequence[Tensor]) -> bool:
    """Whether outputs stay the same; if so, the model is rescaled. A single pair that changes them is reported."""
    together: dict[str, Tensor] = {}
    for pair, s in zip(pairs, scales, strict=True):
        for path, factor in factors(pair, s, shapes(run.model)).items():
            together[path] = together.get(path, torch.ones(())) * factor
    coarsest = max(torch.finfo(read(run.model, path).dtype).eps for path in together)
    tolerance = max(_TOLERANCE, _STEPS * coarsest)
    found = rescale(run, together, tolerance)
    if not found <= tolerance and len(pairs) == 1:
        for part in pairs[0].multiplied:
            _skip(run, part.path, f"outputs would change by {found:.1g} of the largest")
    return found <= tolerance


def rescale(run: Run, factors: Mapping[str, Tensor], tolerance: float) -> float:
    """Multiply parameters by factors with which the model computes the same; tells by how much its outputs differ.

    Relative to the largest, on the example and on a calibration batch. Nothing is changed where it is not within the
    tolerance.
    """
    changed = {path: rescaled(read(run.model, path), factor) for path, factor in factors.items()}
    asked = [run.example, *itertools.islice(run.calibrate or (), 1)]

    def compute() -> Answer:
        other = duplicate(run.model)
        for path, x in changed.items():
            write(other, path, x)
        with torch.no_grad(), exact_products():
            both = ((ask(net, inputs, "a calibration batch") for net in (run.model, other)) for inputs in asked)
            return Answer(max(departure(*answers) for answers in both))

    digests = {path: tensor_digest(factor) for path, factor in factors.items()}
    question = ("rescale", digests, [fingerprint(inputs) for inputs in asked])
    found = float(run.ask(question, compute, data=False, rough=lambda: Rough(Answer(0.0), 0.0)).data)
    if found <= tolerance:
        for path, x in changed.items():
            set_tensor(run, path, x)
            run.tell("rescaled", {"factor": factors[path]}, path=path)
    return found


def _skip(run: Run, path: str, reason: str) -> None:
    """Reported for the layer, not the tensor, which a later step may well represent."""
    run.skip(path.rpartition(".")[0] or path, f"not equalized: {reason}")
