"""What a runtime makes of a file: its operators, the layers that they belong to, and what each takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import onnx

from lilliput.model.carrier.encoded_tensor import SUFFIX

_MULTIPLY = ("conv", "gemm", "matmul", "lstm", "gru", "rnn", "fullyconnected", "gather", "rnnseq", "embedding")
_INTEGER = ("integer", "dynamicquantize", "qlinear", "qgemm", "quantizelinear", "fakequantize")
_RUNS, _LEAST_RUNS = 30, 3  # of a network whose operators are timed


@dataclass(frozen=True)
class Operator:
    """One operator as it runs: its kind in the runtime's words, and the milliseconds of a call of the network."""

    name: str
    kind: str
    ms: float
    layer: str  # path of the weight of the layer that it is, or comes after; empty before the first
    gives_integers: bool = False
    reads: tuple[int, ...] = ()  # positions, in the list of all, of the operators whose output it reads

    @property
    def multiplies(self) -> bool:
        """Whether it is a layer, not what stands around one."""
        return any(word in self.kind.lower() for word in _MULTIPLY)


def on_integers(operators: Sequence[Operator]) -> list[bool]:
    """Which operators take or give integers that flow, those at the borders included."""
    return [
        one.gives_integers
        or any(operators[i].gives_integers for i in one.reads)
        or any(word in one.kind.lower() for word in _INTEGER)
        for one in operators
    ]


def regions(operators: Sequence[Operator]) -> list[list[Operator]]:
    """The operators on integers, those together that pass integers to one another: they go to float together, or a
    border comes between them.
    """
    integer, root = on_integers(operators), list(range(len(operators)))

    def found(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for i, one in enumerate(operators):
        for source in one.reads:
            if integer[i] and integer[source] and operators[source].gives_integers:
                root[found(i)] = found(source)
    groups: dict[int, list[Operator]] = defaultdict(list)
    for i, one in enumerate(operators):
        if integer[i]:
            groups[found(i)].append(one)
    return list(groups.values())


class Owners:
    """Which layer each operator of a file belongs to, found by names that runtimes keep: of nodes and what they give.

    A node is of the layer whose weight it reads, decoded or turned as it may be; any other of the one before.
    """

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        constants = {tensor.name: (layer_of(tensor.name),) for tensor in graph.initializer}
        flows: dict[str, str] = {value.name: "" for value in graph.input if value.name not in constants}
        self._by_name: dict[str, str] = {}
        for node in graph.node:
            given = [name for name in node.input if name]
            if all(name in constants for name in given):  # decoded weights, and other constants
                held = tuple(layer for name in given for layer in constants[name] if layer)
                constants.update({name: held for name in node.output})
                continue
            weights = [layer for name in given if name in constants for layer in constants[name] if layer]
            before = next((flows[name] for name in given if flows.get(name)), "")
            own = next((layer for layer in weights if not _is_bias(layer)), "") or before
            flows.update({name: own for name in node.output})
            self._by_name.update({name: own for name in (node.name, *node.output) if name})

    def of(self, names: Iterable[str]) -> str | None:
        """The layer of an operator that goes by any of these names, or begins with one; None where none is known."""
        given = [name.partition("/")[0] for name in names]
        for name in (*given, *(shorter for whole in given for shorter in _shorter(whole))):
            if name in self._by_name:
                return self._by_name[name]
        return None


def _shorter(name: str) -> Iterator[str]:
    """The name without its last words, one by one: runtimes add theirs to names of nodes."""
    while "_" in name:
        name = name.rpartition("_")[0]
        yield name


def layer_of(initializer: str) -> str:
    """The path of a parameter, by what its constants are called in a file; empty for other constants.

    >>> layer_of("2.weight_encoded.codes"), layer_of("2.weight"), layer_of("constant_12")
    ('2.weight', '2.weight', '')
    """
    path = initializer.partition(f"{SUFFIX}.")[0]
    return path if "." in path or path != initializer else ""


def _is_bias(path: str) -> bool:
    return path.rpartition(".")[2].startswith("bias")


def by_layer(operators: Iterable[Operator]) -> Mapping[str, float]:
    """Milliseconds of each layer with what comes after it, up to the next."""
    taken: dict[str, float] = defaultdict(float)
    for one in operators:
        taken[one.layer] += one.ms
    return taken


def called(call: Callable[[], object], seconds: float) -> None:
    """Call a few times, at most for about so long, so that a runtime that counts has something to tell."""
    began, runs = perf_counter(), 0
    while runs < _LEAST_RUNS or (runs < _RUNS and perf_counter() - began < seconds):
        call()
        runs += 1


@dataclass(frozen=True)
class LayerTimes:
    """What a layer, with what comes after it up to the next, takes in two files, in ms, and the operators it is now."""

    layer: str
    before_ms: float
    after_ms: float
    kinds: tuple[str, ...]


def slower_layers(before: Sequence[Operator], after: Sequence[Operator]) -> list[LayerTimes]:
    """The layers that take longer now, those that lose most first."""
    was, now = by_layer(before), by_layer(after)
    shares = [
        LayerTimes(
            layer, was.get(layer, 0.0), ms, tuple(dict.fromkeys(one.kind for one in after if one.layer == layer))
        )
        for layer, ms in now.items()
        if ms > was.get(layer, 0.0)
    ]
    return sorted(shares, key=lambda share: share.before_ms - share.after_ms)


def unpaying(before: Sequence[Operator], after: Sequence[Operator]) -> dict[str, float]:
    """The layers of those regions on integers that take longer than in float, borders included; how many times longer.

    All of a region or nothing: what stays in float between two layers on integers would cost two borders more.
    """
    was, now, found = by_layer(before), by_layer(after), dict[str, float]()
    for region in regions(after):
        layers = {one.layer for one in region if one.multiplies and was.get(one.layer)}
        borders = sum(one.ms for one in region if one.layer not in layers)
        old, new = (sum(taken[layer] for layer in layers) for taken in (was, now))
        if layers and new + borders > old:
            found.update(dict.fromkeys(sorted(layers), (new + borders) / old))
    return found
