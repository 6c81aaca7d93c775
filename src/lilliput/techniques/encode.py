"""How weights and values get their encodings: what is asked of the run, and what is computed where it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.encodings.encoding import tensor_digest
from lilliput.errors import EncodingError, LilliputError
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.carrier.parameters import held_at, read
from lilliput.model.edits.edits import EncodeTensor, EncodeValue, SetTensor, check_encodable
from lilliput.model.views.values import value_encodings
from lilliput.techniques.choice import NEAREST, Choice, Fit, JointChoice
from lilliput.techniques.run import Answer, Placed, Rough, Run, Wanted

_SAMPLE = 1 << 16  # elements of a tensor by which it is told what fitting all of it takes


def prepare(run: Run) -> None:
    """Make the edits that the target needs before anything is encoded (folding of normalisations)."""
    for edit, given in run.target.prefers.prepare(run.view(), run.model):
        run.apply(edit, given)


def place(run: Run, activations: Mapping[str, Encoding], weights: Mapping[str, Encoding]) -> Placed:
    """The values that the target wants encoded if `weights` are: what each of their layers reads, or why not."""
    flowing = {name: one.encoding for name, one in value_encodings(run.model).items()}
    return run.target.prefers.place(run.view(), Wanted(activations, weights, flowing))


def encode(run: Run, path: str, encoding: Encoding, choice: Choice = NEAREST) -> None:
    """Represent a parameter by the numbers that are chosen so."""
    with told_where(path):
        asked = Asked.of(run.model, path, encoding, choice.values)
        question: tuple[Any, ...] = ("encode", tensor_digest(asked.x), asked.encoding, choice.fit, asked.grid)
        flowing = choice.rounding is not None and run.calibrate is not None  # which follows from model and batches
        if flowing:
            question = (*question, choice.rounding, path)
        found = run.ask(
            question,
            lambda: asked.chosen(choice),
            model=flowing,
            data=flowing,
            rough=lambda: Rough(asked.nearest(), None if flowing else asked.fitting_s(choice.fit)),
        )
        _take(run, asked, found.data, found.tensors)


@dataclass(frozen=True)
class Shared:
    """Parameters that several tensors share, and the parts that hold them: those that the first was given."""

    parameters: Mapping[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict)


def together(run: Run, encodings: Mapping[str, Encoding], fit: Fit) -> Shared:
    """What fits all of these weights at once, as one tensor; each encoding has one block."""
    weights = {path: read(run.model, path).detach().float().flatten() for path in encodings}
    digests, some = {path: tensor_digest(x) for path, x in weights.items()}, next(iter(encodings.values()))

    def compute() -> Answer:
        return Answer(tensors=fit.fit(torch.cat([*weights.values()]), some))

    return Shared(run.ask(("together", digests, dict(encodings), fit), compute, model=False, data=False).tensors)


def encode_shared(run: Run, path: str, encoding: Encoding, shared: Shared) -> None:
    """Represent a parameter by the nearest of numbers that others share, which are held once."""
    with told_where(path):
        asked = Asked.of(run.model, path, encoding)
        parts = replace(asked, kept=shared.parameters).nearest().tensors
    own = {name: shared.parts.setdefault(name, x.clone()) if name != "codes" else x for name, x in parts.items()}
    run.apply(asked.edit, own)


def encode_block(run: Run, encodings: Mapping[str, Encoding], choice: JointChoice) -> None:
    """Represent the weights of a block by numbers chosen together; the biases that may move are set beside them."""
    asked = {}
    for path, encoding in encodings.items():
        with told_where(path):
            asked[path] = Asked.of(run.model, path, encoding)
    block = choice.entry.block
    grids = {path: (one.encoding, one.grid) for path, one in asked.items()}

    def nearest() -> Rough:
        each = {f"{path}|{name}": x for path, one in asked.items() for name, x in one.nearest().tensors.items()}
        return Rough(Answer("", each))

    answer = run.ask(
        ("block", block.path, sorted(block.biased), grids, choice.fit, choice.rounding),
        lambda: _together(asked, choice),
        rough=nearest,
    )
    for path, one in asked.items():
        _take(run, one, answer.data, within(answer.tensors, path))
    for path in choice.entry.biases:
        if path in answer.tensors:
            set_tensor(run, path, answer.tensors[path])


def encode_value(run: Run, value: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
    """Represent a value that flows."""
    run.apply(EncodeValue(value, encoding), parameters)


def remembered(run: Run, question: Sequence[Any], compute: Callable[[], Tensor]) -> Tensor:
    """A tensor that is found from what flows, computed once; zero in a dry run."""
    nothing = Rough(Answer(tensors={"found": torch.zeros(())}))
    return run.ask(question, lambda: Answer(tensors={"found": compute()}), rough=lambda: nothing).tensors["found"]


def set_tensor(run: Run, path: str, x: Tensor) -> None:
    """Give a parameter new values."""
    paths, held = held_at(run.model, path)
    if isinstance(held, EncodedTensor):
        encode(run, path, held.encoding, Choice(x))
    else:
        run.apply(SetTensor(paths[0]), {"value": x})


def _take(run: Run, asked: Asked, told: str, parts: Mapping[str, Tensor]) -> None:
    run.apply(asked.edit, {name: part.clone() for name, part in parts.items()})  # equal ones are no tie
    if told:
        run.note(asked.paths[0], told)


@dataclass(frozen=True)
class Asked:
    """A tensor to encode, under all its paths, and the parameters that an earlier encoding leaves no choice of."""

    paths: tuple[str, ...]
    x: Tensor
    encoding: Encoding
    kept: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, model: nn.Module, path: str, encoding: Encoding, values: Tensor | None = None) -> Asked:
        """A parameter of `model`, or values in its place; what an earlier encoding has established is carried on.

        Raises EncodingError for a tensor that cannot be represented so.
        """
        paths, held = held_at(model, path)
        x, kept = read(model, path) if values is None else values, None
        check_encodable(encoding, path, x)
        if isinstance(held, EncodedTensor):
            frozen = held.encoded()
            x, encoding = frozen.encoding.enforce(x, frozen), encoding.keeping(frozen.encoding)
            encoding = encoding.dividing(tuple(x.shape)) or encoding
            kept = encoding.kept_parameters(frozen)
        return cls(paths, x, encoding, kept)

    @property
    def grid(self) -> dict[str, str] | None:
        return None if self.kept is None else {name: tensor_digest(part) for name, part in self.kept.items()}

    @property
    def edit(self) -> EncodeTensor:
        dtype = str(self.x.dtype).removeprefix("torch.")
        return EncodeTensor(self.paths, self.encoding, tuple(self.x.shape), dtype)

    def chosen(self, choice: Choice) -> Answer:
        """The parts that represent it; the data is what is to be told."""
        rounded, parameters, told = choice.numbers(self.x, self.encoding, self.kept)
        return Answer(told, self.encoding.represent(rounded, parameters).tensors())

    def nearest(self) -> Answer:
        """The parts that represent it by the nearest numbers, of parameters that are found soon."""
        return self.chosen(NEAREST)

    def fitting_s(self, fit: Fit | None) -> float:
        """Seconds that fitting takes, told by some rows."""
        x = self.x
        if fit is None or self.kept is not None or not x.dim():
            return 0.0
        some = x[: max(1, len(x) * _SAMPLE // max(1, x.numel()))]
        began = perf_counter()
        try:
            self.encoding.represent(some, fit.fit(some, self.encoding))
        except LilliputError:  # such rows alone cannot be; the run tells if the whole cannot
            return 0.0
        return (perf_counter() - began) * x.numel() / max(1, some.numel())


def _together(asked: Mapping[str, Asked], choice: JointChoice) -> Answer:
    """The parts of the weights of a block, named path|part, and the biases that moved, by their paths."""
    found, parameters, told = choice.numbers(
        {path: one.x for path, one in asked.items()},
        {path: one.encoding for path, one in asked.items()},
        {path: one.kept for path, one in asked.items()},
    )
    parts = {
        f"{path}|{name}": part
        for path, one in asked.items()
        for name, part in one.encoding.represent(found[path], parameters[path]).tensors().items()
    }
    return Answer(told, {**parts, **{path: x for path, x in found.items() if path not in asked}})


def within(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Of tensors named path|part, the parts of one."""
    split = {tuple(name.rpartition("|")[::2]): x for name, x in tensors.items()}
    return {part: x for (of, part), x in split.items() if of == path}


@contextmanager
def told_where(path: str) -> Iterator[None]:
    """Errors of encodings, which know no names, tell the tensor that they are about."""
    try:
        yield
    except EncodingError as error:
        if error.where:
            raise
        left_out = f'where="!{path.rpartition(".")[0] or path}"'
        remedy = f"{error.next}, or {left_out}" if error.next else f"leave it out with {left_out}"
        raise EncodingError(error.what, where=path, why=error.why, next=remedy) from None
