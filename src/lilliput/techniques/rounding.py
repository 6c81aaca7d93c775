"""Which of the numbers that an encoding offers each weight becomes, judged by what flows into the layer.

The damage of a rounded weight Q to a layer with weight W is E|(W - Q) x|² = tr((W - Q) E[x xᵀ] (W - Q)ᵀ): a function of
the weights and of the gram matrix of the inputs. The ways to make it small below know nothing of the encoding but the
numbers next to an element, so they work for integers, logarithms, codebooks and tiles alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.encodings import Encoding, Sparse
from lilliput.encodings.blocks import Blocked
from lilliput.errors import EncodingError, InputError, RecipeError
from lilliput.plain import short_repr
from lilliput.techniques.blocks import BlockStop
from lilliput.techniques.inputs import Moments, Stop
from lilliput.techniques.soft import UpOrDown, decide, reconstruct

Nearest = Callable[[Tensor, int], Tensor]  # values of input number j, [groups, rows] -> the numbers nearest to them
_CHATTER = 1e-4  # of their size, by which inputs that are meant to be constant may differ
_COLUMNS = 64  # rounded one by one before the rest of the matrix hears of it


@dataclass(frozen=True, repr=False)
class Rounding(ABC):
    """A way to choose among numbers; rounding to the nearest is the absence of one."""

    damp: float = 0.01  # of the mean of the gram matrix's diagonal, added to it
    correct: bool = True  # make up for the error of earlier layers too
    shrink: float | None = None  # of what inputs have in common, taken for chance; None: by how much batches differ

    def __post_init__(self) -> None:
        if not 0 < self.damp <= 1:
            raise RecipeError(f"{type(self).__name__} with damp={self.damp}", next="use more than 0 and at most 1")
        if self.shrink is not None and not 0 <= self.shrink <= 1:
            raise RecipeError(f"{type(self).__name__} with shrink={self.shrink}", next="use 0 to 1, or None")

    def round(
        self, x: Tensor, encoding: Encoding, parameters: Mapping[str, Tensor], stop: Stop
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """`x` moved to numbers that `encoding` offers by the parameters returned beside it.

        Raises EncodingError for an encoding that is no grid, such as half precision.
        """
        inner = self.numbers(encoding)
        seen = stop.moments.centred() if stop.absorbed else stop.moments
        chance = seen.chance() if self.shrink is None else self.shrink
        gram, cross = (shrunk(x.double(), chance) for x in (seen.gram, seen.cross))
        exact = weights = x.detach().double().reshape(len(gram), -1, gram.shape[-1])
        kept = weights != 0 if isinstance(encoding, Sparse) else None
        grid = Candidates(inner, dict(parameters), tuple(x.shape), kept)
        damped = with_damp(gram, self.damp, chatter(stop.moments))
        if self.correct:
            weights = weights + torch.linalg.solve(damped, weights @ (cross - gram), left=False)
        rounded, found = self.rows(grid, weights, damped)
        plain = grid.plain(exact)
        best = least_squared(exact, gram, cross if self.correct else gram)
        if best(rounded) > best(plain):  # where the batches say too little to do better
            rounded, found = plain, grid.parameters
        return rounded.reshape(x.shape).to(x.dtype), found

    def numbers(self, encoding: Encoding) -> Blocked:
        """What `encoding` offers to choose from; raises EncodingError where it is nothing."""
        inner = encoding.values if isinstance(encoding, Sparse) else encoding
        if not isinstance(inner, Blocked):
            raise EncodingError(f"{type(self).__name__} onto {encoding}", next="round to the nearest: rounding=None")
        return inner

    @abstractmethod
    def rows(self, grid: Candidates, weights: Tensor, gram: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Numbers of `grid` for `weights`, [groups, rows, K], and the parameters; `gram` is [groups, K, K]."""

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True)
class Candidates:
    """The numbers that one tensor may become."""

    encoding: Blocked
    parameters: Mapping[str, Tensor]
    shape: tuple[int, ...]
    kept: Tensor | None = None  # [groups, rows, K]: False where a pruned weight stays 0

    def nearest(self, column: Tensor, j: int) -> Tensor:
        """The numbers nearest to the values of input `j`, [groups, rows]."""
        own = self.encoding.of_column(self.parameters, self.shape, j)
        found = self.encoding.nearest(column.reshape(-1, 1).float(), own).reshape(column.shape).to(column.dtype)
        return found if self.kept is None else found * self.kept[..., j]

    def plain(self, weights: Tensor) -> Tensor:
        """The numbers nearest to all weights, [groups, rows, K]."""
        return torch.stack([self.nearest(weights[..., j], j) for j in range(weights.shape[-1])], -1)

    def brackets(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers next below and next above each of `weights`, [groups, rows, K]."""
        x = weights.reshape(self.shape).float()
        rows = self.encoding.rows(x)
        apart = len(self.encoding.parameter_shape(self.shape))
        own = {name: part.reshape(len(rows), *part.shape[apart:]) for name, part in self.parameters.items()}
        ends = self.encoding.brackets(rows, own)
        below, above = (self.encoding.unblocked(end, self.shape).reshape(weights.shape).to(weights) for end in ends)
        return (below, above) if self.kept is None else (below * self.kept, above * self.kept)


@dataclass(frozen=True, repr=False)
class GPTQ(Rounding):
    """Inputs are rounded one after another, and those still to come make up for the error of those that were.

    Source: Frantar et al., "GPTQ", 2022, arXiv 2210.17323; the order of falling E[x²] is its authors' later addition.
    Then each weight is looked at again, `sweeps` times, with all others as they are now (coordinate descent: Behdin et
    al., "QuantEase", 2023, arXiv 2309.01885), and between sweeps scales are set to their least squares.
    """

    ordered: bool = True  # inputs of large second moment first; where a layer has groups of channels, as they come
    sweeps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweeps < 0:
            raise RecipeError(f"GPTQ with {self.sweeps} sweeps", next="use 0 or more")

    def rows(self, grid: Candidates, weights: Tensor, gram: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        rounded = compensated(weights, gram, grid.nearest, self.ordered)
        parameters = grid.parameters
        for sweep in range(self.sweeps):
            if sweep and "scale" in parameters and len(gram) == 1:
                grid, rounded = rescaled(grid, weights, rounded, gram)
                parameters = grid.parameters
            rounded = swept(weights, rounded, gram, grid.nearest)
        return rounded, parameters


@dataclass(frozen=True, repr=False)
class AdaRound(Rounding):
    """Each weight goes up or down to a number next to it, learnt by gradient descent.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, arXiv 2004.10568, with
    the layer's damage in place of batches.
    """

    steps: int = 1000
    lr: float = 0.02
    weight: float = 0.01  # of the term that drives choices to one side; the damage of plain rounding counts 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise RecipeError(f"{type(self).__name__} of {self.steps} steps", next="use 1 or more")

    def rows(self, grid: Candidates, weights: Tensor, gram: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        below, above = grid.brackets(weights)
        exact, gram = weights.float(), gram.float()
        choice = UpOrDown(exact, below.float(), above.float())
        plain = damage(exact, choice.nearest, gram).clamp(min=1e-30)
        decide({"": choice}, lambda step: damage(exact, choice.soft(), gram) / plain, self.steps, self.lr, self.weight)
        return torch.where(choice.logit.detach() > 0, above, below), grid.parameters


@dataclass(frozen=True, repr=False)
class BRECQ(AdaRound):
    """Each weight of a block goes up or down, all learnt together so that the block gives what it gave.

    Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", 2021, arXiv
    2102.05426, by squared error, with the biases learnt beside the roundings where `bias_correction` is on. Each step
    sees one calibration batch. Weights in no block are rounded as `AdaRound` does.

    >>> BRECQ(blocks="layers.*")
    BRECQ(blocks='layers.*')
    """

    weight: float = 0.1
    blocks: str | tuple[str, ...] = ()  # module paths, as where=; (): repeated modules of lists and sequences

    def block(
        self,
        weights: Mapping[str, Tensor],
        encodings: Mapping[str, Encoding],
        parameters: Mapping[str, Mapping[str, Tensor]],
        entry: BlockStop,
    ) -> dict[str, Tensor]:
        """The weights of a block, moved to numbers that their encodings offer, and its biases, by their paths."""
        calls, choices, biases = entry.block.calls, {}, {}
        for path, call in calls.items():
            x, encoding = weights[path].float(), encodings[path]
            kept = x != 0 if isinstance(encoding, Sparse) else None
            grid = Candidates(self.numbers(encoding), parameters[path], tuple(x.shape), kept)
            choices[f"{call.value}@1"] = UpOrDown(x, *grid.brackets(x))
            if path in entry.block.biased and call.bias:
                biases[f"{call.value}@2"] = entry.biases[call.bias], x.square().mean().sqrt()
        targets = entry.targets(self.correct)
        try:
            found, moved = reconstruct(choices, biases, entry.answer, targets, self.steps, self.lr, self.weight)
        except InputError as error:
            raise InputError(error.what, where=entry.block.path, why=error.why, next=error.next) from None
        rounded = {path: found[f"{call.value}@1"].to(weights[path].dtype) for path, call in calls.items()}
        return rounded | {str(calls[path].bias): moved[f"{calls[path].value}@2"] for path in entry.block.biased}


# tensors to tensors; weights are [groups, rows, K], gram matrices [groups, K, K]


def damage(weights: Tensor, rounded: Tensor, gram: Tensor) -> Tensor:
    """E|(W - Q) x|², summed over all outputs."""
    error = weights - rounded
    return ((error @ gram) * error).sum()


def least_squared(weights: Tensor, gram: Tensor, cross: Tensor) -> Callable[[Tensor], Tensor]:
    """E|W o - Q x|² as a function of Q, but for what does not depend on it; `cross` is E[o xᵀ]."""
    wanted = weights @ cross
    return lambda rounded: (rounded @ gram * rounded).sum() - 2 * (wanted * rounded).sum()


def chatter(seen: Moments) -> Tensor:
    """The variance of inputs that differ by little more than sums in float32 are rounded by, [groups, 1]."""
    squares = seen.varying.diagonal(dim1=1, dim2=2) + seen.mean.square()
    return _CHATTER**2 * squares.double().mean(1, keepdim=True)


def with_damp(gram: Tensor, share: float, least: Tensor | float = 0.0) -> Tensor:
    """The matrix with a share of the mean of its diagonal added to that, at `least` so much, or 1 if both are 0."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    added = (share * diagonal.mean(1, keepdim=True)).clamp(min=least)
    return gram + torch.diag_embed(torch.where(added > 0, added, 1.0).expand_as(diagonal))


def shrunk(gram: Tensor, share: float) -> Tensor:
    """The matrix with that share of all off its diagonal taken away."""
    return (1 - share) * gram + share * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))


def compensated(weights: Tensor, gram: Tensor, nearest: Nearest, ordered: bool) -> Tensor:
    """GPTQ: the columns rounded in turn, the error of each made up for by those after it."""
    count = weights.shape[-1]
    order = torch.arange(count)
    if ordered and len(gram) == 1:
        order = gram[0].diagonal().argsort(descending=True, stable=True)
    left, gram = weights[..., order].clone(), gram[:, order][..., order]
    factor = torch.linalg.cholesky(torch.cholesky_inverse(factored(gram)), upper=True)
    rounded = torch.empty_like(left)
    for first in range(0, count, _COLUMNS):
        last = min(first + _COLUMNS, count)
        block, errors = left[..., first:last].clone(), torch.empty_like(left[..., first:last])
        for i in range(last - first):
            row = factor[:, first + i, first:last]
            found = nearest(block[..., i], int(order[first + i]))
            rounded[..., first + i] = found
            errors[..., i] = (block[..., i] - found) / row[:, i : i + 1]
            block[..., i + 1 :] -= errors[..., i : i + 1] * row[:, None, i + 1 :]
        left[..., last:] -= errors @ factor[:, first:last, last:]
    return rounded[..., order.argsort()]


def factored(gram: Tensor) -> Tensor:
    """The lower factor of a damped matrix, damped further where sums were rounded by more than its damp."""
    more = gram.diagonal(dim1=1, dim2=2).abs().mean(1, keepdim=True).expand(-1, gram.shape[-1])
    found: Tensor
    found, failed = torch.linalg.cholesky_ex(gram)
    share = 0.01
    while bool(failed.any()) and share < 1e6:
        found, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(share * more))
        share *= 10
    return found


def swept(weights: Tensor, rounded: Tensor, gram: Tensor, nearest: Nearest) -> Tensor:
    """Each column at the number nearest to its best value, all others as they are: damage never grows."""
    rounded, diagonal = rounded.clone(), gram.diagonal(dim1=1, dim2=2)
    pull = (weights - rounded) @ gram
    for first in range(0, weights.shape[-1], _COLUMNS):
        last = min(first + _COLUMNS, weights.shape[-1])
        block, moved = pull[..., first:last].clone(), torch.empty_like(pull[..., first:last])
        for i in range(last - first):
            j = first + i
            best = rounded[..., j] + block[..., i] / diagonal[:, j : j + 1]
            found = nearest(best, j)
            moved[..., i] = rounded[..., j] - found
            rounded[..., j] = found
            block += moved[..., i : i + 1] * gram[:, None, j, first:last]
        pull += moved @ gram[:, first:last]
    return rounded


def rescaled(grid: Candidates, weights: Tensor, rounded: Tensor, gram: Tensor) -> tuple[Candidates, Tensor]:
    """Scales by which the numbers that were chosen do least damage, row by row, and those numbers by them."""
    scale = grid.parameters["scale"]
    rows, count = rounded.shape[1:]
    if scale.dim() == 0 or scale.shape[0] != rows or grid.encoding.axis != 0:
        return grid, rounded
    old = scale.double().reshape(rows, -1)
    groups = old.shape[1]
    least = grid.parameters.get("minimum", torch.zeros_like(scale)).double().reshape(rows, groups, 1)
    numbers = (rounded[0].reshape(rows, groups, -1) - least) / old[..., None]
    wanted = (weights[0].reshape(rows, groups, -1) - least).reshape(rows, 1, count)
    spread = torch.zeros(rows, groups, count, dtype=torch.float64)
    for g, part in enumerate(torch.arange(count).chunk(groups)):
        spread[:, g, part] = numbers[:, g]
    products = spread @ gram[0]  # [rows, groups, K]
    left = products @ spread.transpose(1, 2)
    right = (products * wanted).sum(2)
    ridge = torch.diag_embed(left.diagonal(dim1=1, dim2=2) * 1e-6 + 1e-30)
    found = torch.linalg.solve(left + ridge, right)
    new = torch.where((found > 0.5 * old) & (found < 2 * old), found, old).float()
    held = grid.encoding.nested().get("scale")
    if held is not None:
        new = held.hold(new).decode()
        new = torch.where(new > 0, new, old.float())
    changed = Candidates(grid.encoding, {**grid.parameters, "scale": new.reshape(scale.shape)}, grid.shape, grid.kept)
    return changed, (numbers * new.double()[..., None] + least).reshape(rounded.shape)


ROUNDINGS: dict[str, type[Rounding]] = {"GPTQ": GPTQ, "AdaRound": AdaRound, "BRECQ": BRECQ}
