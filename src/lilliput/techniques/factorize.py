"""Weights of low rank: layers whose products become two that are smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from lilliput.encodings import LowRank
from lilliput.encodings.encoding import tensor_digest
from lilliput.errors import RecipeError, nearest
from lilliput.model.carrier.parameters import encoding_of, read, shapes
from lilliput.model.views.view import Call
from lilliput.techniques.choice import NEAREST, Choice
from lilliput.techniques.divide import divide, why_not
from lilliput.techniques.encode import encode, prepare, remembered
from lilliput.techniques.forms import Form, Ranks, keeping, leaving, most, numbers, rounded
from lilliput.techniques.inputs import Stop
from lilliput.techniques.run import Answer, Run, counted
from lilliput.techniques.technique import Technique, used_weights
from lilliput.techniques.walk import can_be_seen, walk
from lilliput.techniques.where import check_where, chosen

_DIVIDED = frozenset({"linear", "conv1d", "conv2d", "conv3d", "embedding"})  # by exporters, into two products
_WAYS = ("rank", "energy", "amount")
_DAMP = 0.01  # of the mean diagonal of a gram matrix, added to it
By = Literal["weights", "inputs"]


@dataclass(frozen=True, repr=False)
class Factorize(Technique):
    """Represent weights by products of two smaller matrices: low-rank factorization by SVD.

    A layer of ``[outputs, inputs]`` then computes ``rank · (outputs + inputs)`` products, and a convolution becomes one
    of `rank` filters and one of points. Layers that would not get smaller are left out and listed, as are convolutions
    in groups and transposed ones.

    How far: `rank` is the same number for all layers. `energy` is the least fraction of a weight's sum of squares that
    must be kept, and `amount` the fraction of its numbers that go; either gives each layer a rank of its own, rounded
    (up, and down) to what the target likes, or to `multiple`, unless it is less than two of these.

    The factors are the nearest to the weights, or, with ``by="inputs"``, those whose answers are nearest for what flows
    into the layer, layer by layer, each seeing what those before it really give. That wants calibration batches.

    With another `form` a convolution becomes several, under its path, and is no longer one weight: ``"spatial"``, of
    H x 1 and then of 1 x W; ``"tucker"``, points to fewer channels, the kernel between these, and points to all
    outputs, at two ranks; ``"separable"``, a number of filters for each input by itself, `rank`, then points. What
    is no plain convolution in one group, tied, or encoded already is left out and listed.

    A later `Quantize` rounds the factors. Sources: Denton et al. 2014, arXiv 1404.0736, and Zhang et al. 2015, arXiv
    1505.06798; of the forms in `spatial`, `tucker` and `separable`; by inputs Chen et al., "DRONE", 2021, and Wang et
    al., "SVD-LLM", 2024, arXiv 2403.07378.

    >>> Factorize(energy=0.9), Factorize(64, where="*.mlp.*")
    (Factorize(energy=0.9), Factorize(where='*.mlp.*', rank=64))
    """

    rank: int | None = None
    energy: float | None = None  # over 0 and under 1
    amount: float | None = None  # over 0 and under 1
    multiple: int | None = None  # what ranks are rounded to; None: what the target likes
    by: By = "weights"  # what the factors are to be near for
    form: Form = "product"  # what a layer becomes

    def __post_init__(self) -> None:
        given = [name for name in _WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            one = f"give one of {', '.join(f'{name}=' for name in _WAYS)}"
            raise RecipeError(f"Factorize by {' and '.join(given) or 'nothing'}", next=one)
        if self.rank is not None:
            LowRank(self.rank)  # refuses what is no rank
        for name in ("energy", "amount"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise RecipeError(f"Factorize with {name}={value}", next="give a fraction between 0 and 1")

        for name, known in (("by", get_args(By)), ("form", get_args(Form))):
            if (value := getattr(self, name)) not in known:
                raise RecipeError(f"Factorize {name}={value!r}", next=nearest(str(value), known))
        if self.by == "inputs" and self.form != "product":
            raise RecipeError(f"Factorize by inputs, form={self.form!r}", next='use by="weights", or form="product"')
        if self.multiple is not None and self.multiple < 1:
            raise RecipeError(f"Factorize to multiples of {self.multiple}", next="give a whole number of 1 or more")

    @property
    def disturbs(self) -> frozenset[str]:
        return frozenset({"ranges"})

    @property
    def needs(self) -> Mapping[str, str]:
        return {"calibrate": 'give calibrate=, or by="weights"'} if self.by == "inputs" else {}

    @property
    def needs_whole(self) -> str:
        return ""

    def apply(self, run: Run) -> None:
        prepare(run)
        ranks = self._ranks(run)
        if self.form != "product":
            divide(run, self.form, {path: of for path, (of, _) in ranks.items()})
            return
        seen = {path: calls[0] for path, (_, calls) in ranks.items() if self.by == "inputs" and can_be_seen(calls[0])}
        with ExitStack() as held:
            stops = held.enter_context(closing(walk(run, list(seen.values())))) if seen else iter(())
            for path, ((rank,), calls) in counted(run, "encoding", ranks.items()):
                if path in seen:
                    stop = next(stops)
                    assert isinstance(stop, Stop)
                    _by_inputs(run, path, rank, stop)
                else:
                    encode(run, path, LowRank(rank))
                    if self.by == "inputs":
                        run.note(path, f"near to its weights: what {calls[0].op} reads is not looked at")
            next(stops, None)

    def _ranks(self, run: Run) -> dict[str, tuple[Ranks, Sequence[Call]]]:
        """The weights that get smaller, with their ranks and the calls that use them; all others are reported."""
        used, known, found = used_weights(run), shapes(run.model), dict[str, tuple[Ranks, Sequence[Call]]]()
        check_where(self.where, list(used))
        for path, calls in used.items():
            if not chosen(path, self.where):
                run.skip(path, f"left out by where={self.where!r}")
            elif why := self._why_not(run, path, calls):
                run.skip(path, why)
            else:
                ranks, whole = self._ranks_of(run, path, known[path]), prod(known[path])
                if numbers(self.form, known[path], ranks) < whole:
                    found[path] = ranks, calls
                else:
                    run.skip(path, self._no_smaller(ranks, known[path]))
        return found

    def _why_not(self, run: Run, path: str, calls: Sequence[Call]) -> str:
        return _why_not(run, path, calls) if self.form == "product" else why_not(run, self.form, path, calls)

    def _no_smaller(self, ranks: Ranks, shape: tuple[int, ...]) -> str:
        if self.form != "product":
            kept = f"{numbers(self.form, shape, ranks):,} numbers"
            return f"parts of rank {' and '.join(map(str, ranks))} hold {kept}, no fewer than its {prod(shape):,}"
        outputs, inputs, rank = shape[0], prod(shape[1:]), ranks[0]
        sizes = f"{outputs} × {rank} and {rank} × {inputs}"
        return f"factors of {sizes} are no smaller than its {outputs} × {inputs}"

    def _ranks_of(self, run: Run, path: str, shape: tuple[int, ...]) -> Ranks:
        top, form = most(self.form, shape), self.form
        if self.rank is not None:
            return (self.rank,) if form == "product" else tuple(min(self.rank, one) for one in top)
        multiple = 1 if form == "separable" else self.multiple or run.target.prefers.multiple
        if self.amount is not None:
            return tuple(rounded(rank, multiple, up=False) for rank in leaving(form, shape, self.amount))
        assert self.energy is not None
        x, energy = read(run.model, path), self.energy
        question = ("ranks", form, tensor_digest(x), energy)
        ranks = run.ask(question, lambda: Answer(keeping(form, x, energy)), model=False, data=False).data
        return tuple(min(rounded(rank, multiple, up=True), one) for rank, one in zip(ranks, top, strict=True))


def _by_inputs(run: Run, path: str, rank: int, stop: Stop) -> None:
    """A weight as the product whose answers are nearest for what flows."""
    x = read(run.model, path)

    def nearest_one() -> Tensor:
        return nearest_for(x, stop.gram[0], rank) if stop.inputs else x

    found = remembered(run, ("product", path, rank), nearest_one)
    encode(run, path, LowRank(rank), NEAREST if run.dry else Choice(found))


def nearest_for(x: Tensor, gram: Tensor, rank: int) -> Tensor:
    """Of matrices of this rank the one nearest to `x`, [outputs, inputs, …], in E‖(x - x') · input‖².

    `gram` is E[input · inputᵀ], [K, K], which a hundredth of its mean diagonal is added to.

    >>> x, gram = torch.eye(2), torch.diag(torch.tensor([1.0, 100.0]))
    >>> nearest_for(x, gram, 1).abs().round().tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    rows, gram = x.detach().double().flatten(1), gram.double()
    damped = gram + _DAMP * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    root = torch.linalg.cholesky(damped)
    left, values, right = torch.linalg.svd(rows @ root, full_matrices=False)
    product = (left[:, :rank] * values[:rank]) @ right[:rank]
    found: Tensor = torch.linalg.solve_triangular(root, product, upper=False, left=False)
    return found.reshape(x.shape).to(x.dtype)


def _why_not(run: Run, path: str, calls: Sequence[Call]) -> str:
    """Why a weight is not to be a product; empty where it may be."""
    others = sorted({call.op for call in calls} - _DIVIDED)
    if others:
        return f"{' and '.join(others)} is not divided into two products"
    if any(call.window is not None and call.window.groups > 1 for call in calls):
        return "a convolution in groups is not divided into two"
    held = encoding_of(run.model, path)
    if held is not None and not isinstance(held, LowRank):
        return f"it is encoded already, as {held.label()}: factorize before that"
    return ""
