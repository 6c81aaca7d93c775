"""How tensors are encoded: what is asked of the store, and what is computed where it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.encodings.encoding import tensor_digest
from lilliput.engine.store import Answer, Store
from lilliput.errors import EncodingError
from lilliput.model.edits import EncodeTensor, check_encodable
from lilliput.model.encoded_tensor import EncodedTensor
from lilliput.model.parameters import held_at, read
from lilliput.techniques.choice import Choice, JointChoice


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
            kept = encoding.kept_parameters(frozen)
        return cls(paths, x, encoding, kept)

    @property
    def grid(self) -> dict[str, str] | None:
        return None if self.kept is None else {name: tensor_digest(part) for name, part in self.kept.items()}

    @property
    def edit(self) -> EncodeTensor:
        dtype = str(self.x.dtype).removeprefix("torch.")
        return EncodeTensor(self.paths, self.encoding, tuple(self.x.shape), dtype)


@dataclass(frozen=True)
class Known:
    """Where answers are remembered, and what they depend on beside the question."""

    store: Store
    environment: str
    state: str  # of the model, as digests
    data: str | None  # of the calibration batches

    def alone(self, path: str, asked: Asked, choice: Choice) -> Answer:
        """The parts that represent a tensor; the data is what is to be told."""
        question: tuple[Any, ...] = (
            "encode",
            self.environment,
            tensor_digest(asked.x),
            asked.encoding,
            choice.fit,
            asked.grid,
        )
        if choice.rounding is not None and self.data is not None:  # what flows follows from model and batches
            question = (*question, choice.rounding, self.state, self.data, path)

        def compute() -> Answer:
            rounded, parameters, told = choice.numbers(asked.x, asked.encoding, asked.kept)
            return Answer(told, asked.encoding.represent(rounded, parameters).tensors())

        return self.store.answer(question, compute)

    def together(self, asked: Mapping[str, Asked], choice: JointChoice) -> Answer:
        """The parts that represent the weights of a block, named path|part, and the biases that moved, by their paths.

        The data is what is to be told.
        """
        block = choice.entry.block
        grids = {path: (one.encoding, one.grid) for path, one in asked.items()}
        known = (self.environment, self.state, self.data)
        question = ("block", *known, block.path, sorted(block.biased), grids, choice.fit, choice.rounding)

        def compute() -> Answer:
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

        return self.store.answer(question, compute)


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
