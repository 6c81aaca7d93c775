"""Teachers beside a student: what both show for the same inputs, and answers that were saved once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lilliput.errors import FormatError, InputError, LilliputError, reason
from lilliput.file.container import Part, Reader, write
from lilliput.model.carrier.arrays import to_array, to_tensor
from lilliput.modes import eval_mode
from lilliput.nested import mapped
from lilliput.outputs import judged
from lilliput.structures import leaves
from lilliput.techniques.distill import Seen, Term, attention_of
from lilliput.training.data import samples
from lilliput.training.memory import starved


class Watcher:
    """Remembers the last call of a module: its arguments, its first output, and those of the tapped modules in it."""

    def __init__(self, model: nn.Module, taps: Iterable[str]) -> None:
        self.model, self.paths = model, tuple(dict.fromkeys(taps))
        self.called: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.output: Any = None
        self.taps: dict[str, Tensor] = {}
        self.attention: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        with ExitStack() as stack:
            stack.callback(self.model.register_forward_pre_hook(self._begun, with_kwargs=True).remove)
            stack.callback(self.model.register_forward_hook(self._ended).remove)
            for path in self.paths:
                stack.callback(self.model.get_submodule(path).register_forward_hook(self._tap(path)).remove)
            yield self

    def seen(self, where: str) -> Seen:
        """What the last call showed; it is told once, so that no later one is taken for it."""
        if self.output is None:
            raise InputError(
                "the loss did not call the model", where=where, next="call the model that loss(model, batch) is given"
            )
        seen = Seen(first_output(self.output), self.taps, self.attention)
        self.output, self.taps, self.attention = None, {}, {}
        return seen

    def _begun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.called = own_tensors(args), own_tensors(kwargs)  # as they were: a forward may write over them

    def _ended(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.output = output

    def _tap(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.taps[path] = first_output(output)
            attention = attention_of(output)
            if attention is not None:
                self.attention[path] = attention

        return hook


def first_output(output: Any) -> Tensor:
    """The tensor of what a module returned that says what it answers, with its graph: logits, or the first."""
    held = {place: leaf for place, leaf in leaves(output) if isinstance(leaf, Tensor)}
    if held:
        return held[judged(held)]
    raise InputError(
        f"an output of type {type(output).__name__} holds no tensor",
        where="distill",
        next="return a tensor, or a tuple, list or dict that holds one",
    )


def own_tensors(given: Any) -> Any:
    """The same arguments, their tensors in memory of their own."""
    return mapped(lambda x: x.clone() if isinstance(x, Tensor) else x, given)


class Live:
    """Teachers that are asked at every step."""

    def __init__(self, teachers: Sequence[nn.Module], terms: Sequence[Term]) -> None:
        self.watchers = [
            Watcher(model, [path for term in terms if term.teacher == i for path in term.teacher_taps])
            for i, model in enumerate(teachers)
        ]

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Seen]:
        """What each shows for these arguments."""
        seen = []
        for i, watcher in enumerate(self.watchers):
            with torch.no_grad(), eval_mode(watcher.model), watcher.watching():
                _ask(watcher.model, own_tensors(args), own_tensors(kwargs), f"teacher {i}")
            seen.append(watcher.seen("teacher"))
        return seen


def _ask(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> None:
    try:
        model(*args, **kwargs)
    except LilliputError:
        raise
    except Exception as error:  # the user's own code
        if starved(error):
            raise
        raise InputError(
            "fails on what the loss calls the model with",
            where=where,
            why=reason(error),
            next="give a teacher that takes what the model takes",
        ) from error


class Saved:
    """First outputs of teachers, read from a file: each sample's is found by the sample's content, in any order.

    The file belongs to the teachers and the data it was made with: their digests stand in it. Samples that it does not
    know, for the epoch that was saved left them out, are asked of the teachers one by one, so that an answer depends on
    its sample alone; many of them are an error.
    """

    def __init__(self, path: Path, key: str, live: Live) -> None:
        self.path, self.live = path, live
        reader = Reader(path)
        if json.loads(reader.header.get("data", "{}")).get("key") != key:
            raise FormatError(
                "holds answers of other teachers, or to other data", where=str(path), next="delete it: it is made again"
            )
        reader.check_digest()
        outputs = [to_tensor(reader.read(f"outputs.{i}")) for i in range(len(reader.entries) - 1)]
        names = map(bytes, reader.read("samples"))
        self.known = dict(zip(names, zip(*outputs, strict=True), strict=True))  # of each sample, a row of each teacher
        self.most = len(self.known) + len(self.known) // 2

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Seen]:
        keys = samples(args, kwargs)
        for i, key in enumerate(keys):
            if key not in self.known:
                self.known[key] = self._asked(i, len(keys), args, kwargs)
        rows = zip(*(self.known[key] for key in keys), strict=True)
        return [Seen(torch.stack(outputs)) for outputs in rows]

    def _asked(self, i: int, size: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """What each teacher answers to sample `i` of so many."""
        if len(self.known) >= self.most:
            raise InputError(
                "the teachers' saved answers lack many samples of these batches",
                where=str(self.path),
                why="the data changes from epoch to epoch",
                next="leave save_teacher=False where samples are changed at random",
            )

        def one(x: Any) -> Any:
            return x[i : i + 1] if isinstance(x, Tensor) and x.dim() and len(x) == size else x

        one_args, one_kwargs = tree_map(one, (args, dict(kwargs)))
        return tuple(seen.output[0].cpu() for seen in self.live.answer(one_args, one_kwargs))


def save_answers(path: Path, key: str, live: Live, calls: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> None:
    """Ask the teachers once for every sample, and keep their first outputs."""
    known: dict[bytes, None] = {}
    outputs: list[list[Tensor]] = [[] for _ in live.watchers]
    for args, kwargs in calls:
        keys = samples(args, kwargs)
        fresh = [i for i, key_ in enumerate(keys) if key_ not in known]
        known.update(dict.fromkeys(keys))
        for held, seen in zip(outputs, live.answer(args, kwargs), strict=True):
            if len(seen.output) != len(keys):
                raise InputError(
                    f"a teacher answers {len(keys)} samples with {len(seen.output)} rows",
                    next="its first output must have one row a sample to be saved",
                )
            held.append(seen.output[fresh].detach().clone())
    names = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
    parts = [Part.of(f"outputs.{i}", to_array(torch.cat(held))) for i, held in enumerate(outputs)]
    write(path, {"kind": "answer", "data": json.dumps({"key": key})}, [Part.of("samples", names), *parts], "fast")
