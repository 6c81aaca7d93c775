"""onnxruntime-web, the runtime of pages: WebAssembly on one thread, which Node.js runs here.

What it makes faster, and what slower, was measured: docs/web.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from lilliput.encodings import Encoding, Int
from lilliput.errors import InputError
from lilliput.exporters.profiles import profile
from lilliput.measure import Latencies
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import Call, View
from lilliput.recipe import Recipe
from lilliput.runtimes.loaded import Loaded, Runner, opened
from lilliput.targets.kernels import INTEGER_CONVOLUTIONS
from lilliput.targets.onnx import OnnxSession, OnnxWriter
from lilliput.targets.onnxruntime import OnnxRuntime, OrtPreferences
from lilliput.targets.operators import Operator, Owners
from lilliput.targets.target import Target
from lilliput.techniques.quantize import Quantize
from lilliput.web.node import Node
from lilliput.web.package import node_program, package

_PROFILE = "ort-web"
_ROUNDS, _ROUND_S, _SETTLE_S = 20, 0.1, 0.03
_WARM_CALLS, _WARM_S = 50, 1.0  # V8 first compiles for a quick start; integer kernels are then up to twice as slow
_FAST = 0.25  # quantile of the calls of a round, and of the runs of an operator: other work makes them longer only
_SUFFIX = "_kernel_time"
_FEW_CHANNELS = 4  # of one group, in a convolution whose float kernel is the faster
_RUNS = 30  # calls of which each operator is told


@dataclass(frozen=True)
class WebPreferences(OrtPreferences):
    """Integers where WebAssembly multiplies them faster than floats: linear layers, and convolutions over all channels.

    Weights have 8 bits on any machine, for its kernels sum products in 32.
    """

    profile: str | None = _PROFILE
    safe: bool = False

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """As for ONNX Runtime on a CPU; of a network with depthwise convolutions weights alone.

        Those are slower on integers, and left in float between integers ONNX Runtime rounds them by itself.
        """
        if any(map(_depthwise, view.calls)):
            return Recipe([Quantize(weights=Int(8))])
        return super().recipe(view, calibrated)

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        told = super().remark(call, weight, activation, others)
        return f"{told}, slower than float" if told.startswith("int8 kernel") and _depthwise(call) else told


@dataclass(frozen=True)
class NodeSession(OnnxSession):
    """onnxruntime-web in Node.js: the WebAssembly that a page runs, on the same compiler as Chromium's."""

    runtime: str | Path | None  # the folder of the package; None: where Node.js finds it

    title: ClassVar[str] = "onnxruntime-web"

    def load(self, built: Path | bytes) -> Loaded:
        return _loaded(Node(package(self.runtime), built))

    def open(self, built: Path | bytes, signature: Signature, module: Any = None) -> Runner:
        """The file as a callable; what is timed of it is the runtime's work, not the way to another process."""
        held: list[Node] = []

        def load(given: Path | bytes) -> Loaded:
            held.append(Node(package(self.runtime), given))
            return _loaded(held[0])

        return _InNode(opened(load, built, signature, self.title), held[0], signature)

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        """Rounds in turns, by the clock in Node.js and by its processor's time."""
        began, rounds_s = perf_counter(), 0.0
        timed: dict[str, _InNode] = {}
        for name, run in runs.items():
            assert isinstance(run, _InNode)
            timed[name] = run
            run.node.take([x.detach().numpy() for x in run.signature.arguments(example)])
            run.node.time(min(_WARM_S, seconds / 8), 1 if seconds < _WARM_S else _WARM_CALLS)
        taken: dict[str, list[list[float]]] = {name: [] for name in runs}
        processor: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(_ROUNDS):
            if index and perf_counter() - began + rounds_s > seconds:
                break
            round_began = perf_counter()
            for name in list(timed)[:: -1 if index % 2 else 1]:
                timed[name].node.time(_SETTLE_S)
                ms, own = timed[name].node.time(_ROUND_S)
                taken[name].append(ms)
                processor[name].append(own)
            rounds_s = perf_counter() - round_began
        return Latencies(
            {name: tuple(float(np.quantile(ms, _FAST)) for ms in rounds) for name, rounds in taken.items()},
            processor_ms={name: tuple(ms) for name, ms in processor.items()},
            threads=1,
            calls={name: sum(map(len, rounds)) for name, rounds in taken.items()},
        )

    def accounts(self, built: Path, arrays: Sequence[np.ndarray], seconds: float) -> Sequence[Operator]:
        """By the runtime's profile. It does not tell which operator reads which: each is taken to read the last."""
        held = Node(package(self.runtime), built, profiled=True)
        held.take(arrays)
        held.time(seconds / 2, 3)
        return list(_operators(held.account(), Owners(built)))


@dataclass(frozen=True)
class _InNode:
    """What was built, loaded in Node.js."""

    call: Runner
    node: Node
    signature: Signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


@dataclass(frozen=True)
class Web(Target):
    """A page in a browser, by onnxruntime-web: its WebAssembly is compared and timed in Node.js, on one thread.

    `runtime` is the folder of the npm package onnxruntime-web; without it, the one that Node.js finds from the working
    directory (`node_modules`), or npm's global one. `lilliput web OUT` makes a page of the result.

    >>> Web(seconds=0).prefers.profile
    'ort-web'
    """

    opset: int = 20
    runtime: str | Path | None = None

    name: ClassVar[str] = "web"

    @property
    def threads_used(self) -> int:
        return 1

    def check(self) -> None:
        """Refuse, before any work, more threads than a page has, and what is not there to run the result.

        Raises InputError.
        """
        super().check()
        if self.threads not in (None, 1):
            raise InputError(f"is {self.threads}", where="threads", next="leave it out: a page runs it on one")
        package(self.runtime)
        node_program()

    @property
    def prefers(self) -> WebPreferences:
        return WebPreferences()

    @property
    def writes(self) -> OnnxWriter:
        return OnnxWriter(self.opset, profile(_PROFILE), OnnxRuntime.name)

    @property
    def runs(self) -> NodeSession:
        return NodeSession(1, self.runtime)


def _loaded(node: Node) -> Loaded:
    return Loaded(len(node.inputs), len(node.outputs), node)


def _depthwise(call: Call) -> bool:
    """Whether a convolution sums over a few channels of many groups."""
    grouped = call.window is not None and call.window.groups > 1
    return call.op in INTEGER_CONVOLUTIONS and grouped and call.weight_shape[1] <= _FEW_CHANNELS


def _operators(events: Sequence[Mapping[str, Any]], owners: Owners) -> Iterator[Operator]:
    """The operators of a profile, in the order in which they ran, with the lower quartile of what each took."""
    taken: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            taken.setdefault(name.removesuffix(_SUFFIX), []).append(event)
    layer = ""
    for index, (name, ran) in enumerate(taken.items()):
        known = owners.of((name, name.removeprefix("fused ")))  # a Gemm with the ReLU after it, say
        layer = layer if known is None else known
        ms = float(np.quantile([event["dur"] / 1e3 for event in ran[-_RUNS:]], _FAST))
        given = ran[0]["args"].get("output_type_shape", [])
        integers = any(kind in ("uint8", "int8") for one in given for kind in one)
        yield Operator(name, ran[0]["args"]["op_name"], ms, layer, integers, (index - 1,) if index else ())
