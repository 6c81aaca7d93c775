"""Pruning: which unit, how much of it, over what scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.encodings import Sparse
from lilliput.errors import RecipeError
from lilliput.model.carrier.parameters import read, shapes
from lilliput.model.views.view import MULTIPLIES, RECURRENT
from lilliput.techniques.amount import WAYS, Amount
from lilliput.techniques.choice import Choice
from lilliput.techniques.depths import leave_out
from lilliput.techniques.encode import encode
from lilliput.techniques.run import Run, counted
from lilliput.techniques.scores import Magnitude, Score
from lilliput.techniques.technique import Technique, used_weights
from lilliput.techniques.where import check_where, chosen
from lilliput.techniques.widths import remove_slices

UNITS = ("weights", "channels", "heads", "layers", "blocks")


@dataclass(frozen=True, repr=False)
class Prune(Technique):
    """Remove what matters least: single weights, channels, heads of attention, whole layers, or blocks within them.

    *Weights* become zeros and stay zeros: files get smaller, runtimes no faster, and the report says so. *Channels*
    (filters, neurons, hidden sizes, the widths of heads) and *heads* are taken out, with all that is coupled to them,
    and the module that comes back is an ordinary one of smaller tensors. What cannot go is listed with the reason, and
    with the line of the source that stands in the way.

    *Layers* are the modules that stand in a list with others of their class and give what they take, such as the layers
    of a transformer or the residual blocks of a stage; those that change their input least are left out (Men et al.
    2024, "ShortGPT"). *Blocks* are the modules within such layers that give what they take, such as attention or
    feed-forward (He et al. 2024, "What Matters in Transformers?"); those without which the network's answers turn
    least are left out. Both by the calibration batches, or the example where there are none.

    How much: `amount` is the fraction removed. `threshold` removes what scores less: of channels and heads in multiples
    of the mean score of their group, of layers and blocks 1 minus a cosine. `macs`, `parameters` and `latency` are
    fractions that may be left of the model's multiply-accumulates on the example, of its parameters, or of the time
    that it takes on the example, built for the target and measured; the amount is found. Channels are rounded to what
    the target states for any machine, or to `multiple`; of an axis shorter than two of these, to half of it, and so
    on. For a latency they are rounded to what the kernels of this machine take at once.

    Weights, channels and heads are ranked by `score`: magnitudes, of a channel over all tensors that it is coupled to
    (Fang et al. 2023, "DepGraph"), or a class of yours.

    Raises RecipeError for an unknown unit, scope, or amount.

    >>> Prune("channels", 0.5), Prune("weights", 0.5, scope="global")
    (Prune(unit='channels', amount=0.5), Prune(unit='weights', amount=0.5, scope='global'))
    """

    unit: Literal["weights", "channels", "heads", "layers", "blocks"]
    amount: float | None = None  # fraction removed, over 0 and under 1
    scope: Literal["layer", "global"] = "layer"  # the fraction holds in each layer, or over all layers together
    threshold: float | None = None
    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    score: Score = Magnitude()
    multiple: int | None = None  # what the numbers of channels are rounded to; None: what the target states

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise RecipeError(f"Prune cannot remove {self.unit!r}", next=f"known units: {', '.join(map(repr, UNITS))}")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"Prune with scope {self.scope!r}", next="known scopes: 'layer', 'global'")
        given = [name for name in WAYS if getattr(self, name) is not None]
        known = WAYS[:1] if self.unit == "weights" else WAYS
        if len(given) != 1 or given[0] not in known:
            one = "one of " if len(known) > 1 else ""
            next = f"give {one}{', '.join(f'{name}=' for name in known)}"
            raise RecipeError(f"Prune of {self.unit} by {' and '.join(given) or 'nothing'}", next=next)
        self._how_much  # noqa: B018 - raises
        if self.score != Magnitude() and self.unit in ("layers", "blocks"):
            raise RecipeError(
                f"Prune of {self.unit} by {self.score}", next="leave score= out: they are tried one by one"
            )
        if self.multiple is not None and self.multiple < 1:
            raise RecipeError(f"Prune to multiples of {self.multiple}", next="give a whole number of 1 or more")

    @property
    def establishes(self) -> frozenset[str]:
        return frozenset({"widths"} if self.unit in ("channels", "heads") else ())

    @property
    def disturbs(self) -> frozenset[str]:
        return frozenset({"ranges", "widths"} if self.unit in ("layers", "blocks") else {"ranges"})

    @property
    def needs(self) -> Mapping[str, str]:
        return self.score.needs

    @property
    def times(self) -> bool:
        return self.latency is not None

    def apply(self, run: Run) -> None:
        if self.unit == "weights":
            self._zeros(run)
        elif self.unit in ("layers", "blocks"):
            leave_out(run, self.unit, self.where, self._how_much)
        else:
            remove_slices(run, self.unit, self.where, self._how_much, self.scope, self._multiple(run), self.score)

    def _multiple(self, run: Run) -> int:
        """Of what numbers are multiples: what the target states, or, for a time that is measured here, likes here."""
        if self.unit == "heads":
            return 1
        if self.multiple is not None:
            return self.multiple
        here = run.target.multiple_here
        found = run.target.prefers.multiple if self.latency is None else here
        run.tell("multiples", {"of": found, "here": here})
        return found

    @property
    def _how_much(self) -> Amount:
        (found,) = (Amount(way, value) for way in WAYS if (value := getattr(self, way)) is not None)
        return found

    def _zeros(self, run: Run) -> None:
        assert self.amount is not None
        used = used_weights(run)
        multiply = MULTIPLIES | RECURRENT
        weights = {path: calls for path, calls in used.items() if all(call.op in multiply for call in calls)}
        check_where(self.where, list(weights))
        for path, shape in shapes(run.model).items():
            if path not in weights and len(shape) > 1:
                run.skip(path, "rows of it are looked up" if path in used else "no layer multiplies by it")
        paths = [path for path in weights if chosen(path, self.where)]
        for path in [path for path in weights if path not in paths]:
            run.skip(path, f"left out by where={self.where!r}")
        known = self.score.gather(run)
        scores = {path: self.score.single(known, path, read(run.model, path)) for path in paths}
        for path, kept in counted(run, "encoding", keep_largest(scores, self.amount, self.scope).items()):
            if not bool(kept.any()):
                run.skip(path, "all of its weights are among the smallest: pruning would empty it")
                continue
            x = read(run.model, path)
            encode(run, path, Sparse(), Choice(x * kept.to(x.dtype)))  # a score may be of another type


def keep_largest(scores: dict[str, Tensor], amount: float, scope: str) -> dict[str, Tensor]:
    """For each tensor of scores a mask of the same shape, 1 where it stays: `round(amount * n)` lowest scores go.

    >>> keep_largest({"w": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5, "layer")
    {'w': tensor([1., 0., 0., 1.])}
    """
    pools = [list(scores)] if scope == "global" else [[path] for path in scores]
    masks: dict[str, Tensor] = {}
    for pool in pools:
        flat = torch.cat([scores[path].flatten() for path in pool])
        lowest = flat.argsort(stable=True)[: round(amount * flat.numel())]
        kept = torch.ones_like(flat).index_fill(0, lowest, 0.0)
        parts = kept.split([scores[path].numel() for path in pool])
        masks |= {path: part.reshape(scores[path].shape) for path, part in zip(pool, parts, strict=True)}
    return masks
