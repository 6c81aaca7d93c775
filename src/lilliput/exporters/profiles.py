"""Who accepts an ONNX file: the rules of each runtime as data, and one walk that lists the nodes that break them.

Accepted means: the file is read, and nothing in it is known to keep what is written as integers from running as
integers. The rules of ONNX Runtime and OpenVINO were found by running them; those of TensorRT and XNNPACK are taken
from their documentation and were not run (docs/profiles.md names the sources).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lilliput.errors import FormatError, InputError, nearest, reason
from lilliput.exporters.nodes import RUNTIME
from lilliput.external import array, read

_STANDARD = ("", "ai.onnx")
_MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OLD_INTEGERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
_RUN_TIME = {op: "ranges found at run time are not taken" for op in ("DynamicQuantizeLinear", *_OLD_INTEGERS[:2])}
_ALL = frozenset(
    (
        *("bool", "float16", "bfloat16", "float32", "float64"),
        *("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint32", "uint64"),
    )
)


@dataclass(frozen=True)
class Profile:
    """What a runtime wants of a file with integers in it; the defaults refuse least."""

    name: str
    ran: bool  # whether the rules were found by running it
    opsets: tuple[int, int]  # the first and the last
    refused: Mapping[str, str] = field(default_factory=dict)  # operator -> why
    own: frozenset[str] = frozenset()  # operators of the domain of ONNX Runtime's own that are taken
    constants: frozenset[str] = _ALL  # types of initializers
    activations: frozenset[str] = frozenset({"int8", "uint8"})  # types that QuantizeLinear may write
    weights: frozenset[str] = frozenset({"int8", "uint8"})  # types behind a DequantizeLinear
    zero_points: bool = True  # of activations; False: they must be 0
    weight_zero_points: bool = True
    integer_bias: bool = True  # whether a DequantizeLinear may read int32
    same_type: bool = False  # whether weights must have the type of the activations beside them
    unsigned_per_channel: bool = True  # whether weights of uint8 may have a scale for each channel
    convolutions: frozenset[int] = frozenset({1, 2, 3})  # dimensions of what is convolved
    largest_code: int = 255  # |weight code|, beside activations of 8 bits

    @property
    def signed(self) -> bool:
        """Whether activations must be int8 beside the int8 weights that are written here."""
        return self.same_type or "uint8" not in self.activations

    @property
    def dynamic(self) -> bool:
        """Whether ranges may be found at run time."""
        return "DynamicQuantizeLinear" not in self.refused


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("ort-cpu", ran=True, opsets=(7, 26), own=frozenset({"DynamicQuantizeLSTM", "MatMulNBits"})),
        Profile("ort-web", ran=True, opsets=(7, 26), own=frozenset({"DynamicQuantizeLSTM"})),
        Profile(
            "openvino",
            ran=True,
            opsets=(7, 26),
            refused=_RUN_TIME,
            weights=frozenset({"int8"}),
            weight_zero_points=False,
        ),
        Profile(
            "tensorrt",
            ran=False,
            opsets=(9, 24),
            refused={**_RUN_TIME, **{op: "only Q/DQ pairs are taken" for op in _OLD_INTEGERS[2:]}},
            constants=frozenset({"bool", "float16", "bfloat16", "float32", "int4", "int8", "int32", "int64"}),
            activations=frozenset({"int8"}),
            weights=frozenset({"int8"}),
            zero_points=False,
            weight_zero_points=False,
            integer_bias=False,
            convolutions=frozenset({2, 3}),
        ),
        Profile(
            "xnnpack",
            ran=False,
            opsets=(7, 26),
            refused=_RUN_TIME,
            same_type=True,
            unsigned_per_channel=False,
            convolutions=frozenset({2}),
        ),
    )
}


@dataclass(frozen=True)
class Breach:
    """A node, or the file where it is no node's, and the rule it breaks."""

    node: str
    rule: str
    next: str = "leave what stands there out with where="

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}"


def profile(name: str) -> Profile:
    """A profile by its name."""
    if name not in PROFILES:
        raise InputError(f"unknown profile {name!r}", next=nearest(name, PROFILES))
    return PROFILES[name]


def check(built: str | Path | bytes, *names: str) -> dict[str, list[Breach]]:
    """For each profile (all when none is named), what in an ONNX file breaks its rules: nothing where it is accepted.

    Raises InputError for a file that is no ONNX, and for an unknown profile.

    >>> import tempfile, torch, lilliput
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = lilliput.export(f"{folder}/net.onnx", torch.nn.Linear(4, 2), torch.zeros(1, 4))
    ...     check(path)
    {'ort-cpu': [], 'ort-web': [], 'openvino': [], 'tensorrt': [], 'xnnpack': []}
    """
    wanted = [profile(name) for name in names or PROFILES]
    return {one.name: list(breaches(built, one)) for one in wanted}


def breaches(built: str | Path | bytes, rules: Profile) -> Iterator[Breach]:
    """What in an ONNX file breaks `rules`, in the order of its nodes."""
    where = "graph" if isinstance(built, bytes) else str(built)
    try:
        model = onnx.load_from_string(built) if isinstance(built, bytes) else read(Path(built))
        onnx.checker.check_model(built if isinstance(built, bytes) else str(built))
    except FormatError as error:
        raise InputError(error.what, where=error.where, why=error.why, next=error.next) from None
    except Exception as error:  # onnx and protobuf raise many kinds
        raise InputError("is no sound ONNX file", where=where, why=reason(error)) from None
    yield from _Walk(model, rules, None if isinstance(built, bytes) else Path(built)).all()


class _Walk:
    """One graph, walked by the rules of one profile."""

    def __init__(self, model: onnx.ModelProto, rules: Profile, path: Path | None) -> None:
        self.model, self.rules, self.path = model, rules, path
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.makers = {name: node for node in self.nodes for name in node.output}

    @cached_property
    def readers(self) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
        found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                found.setdefault(name, []).append((node, position))
        return found

    def all(self) -> Iterator[Breach]:
        first, last = self.rules.opsets
        for used in self.model.opset_import:
            if used.domain in _STANDARD and not first <= used.version <= last:
                yield Breach("the file", f"opset {used.version}, where {first} to {last} are read")
        for node in self.nodes:
            label = f"{node.op_type} {node.name or node.output[0]}"
            for rule in self._of(node):
                yield Breach(label, rule)
            yield from self._codes(label, node)
        for name, tensor in self.constants.items():
            if _kind(tensor) not in self.rules.constants:
                yield Breach(f"constant {name}", f"holds {_kind(tensor)}")

    def _of(self, node: onnx.NodeProto) -> Iterator[str]:
        if node.domain not in _STANDARD:
            if node.domain != RUNTIME or node.op_type not in self.rules.own:
                yield f"of the domain {node.domain!r}"
        elif node.op_type in self.rules.refused:
            yield self.rules.refused[node.op_type]
        elif node.op_type == "QuantizeLinear":
            yield from self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            yield from self._dequantize(node)
        elif node.op_type in _MULTIPLY:
            yield from self._multiply(node)

    def _quantize(self, node: onnx.NodeProto) -> Iterator[str]:
        yield from self._parameters(node, self.rules.zero_points)
        kind = self._stored(node)
        if kind not in self.rules.activations:
            yield f"activations of {kind}, where {_listed(self.rules.activations)} are taken"
        if self._scales(node) > 1:
            yield "activations with a scale for each channel"

    def _dequantize(self, node: onnx.NodeProto) -> Iterator[str]:
        held = self.constants.get(node.input[0])
        if held is None:
            yield from self._parameters(node, self.rules.zero_points)
            return
        kind = _kind(held)
        if kind == "int32":
            if not self.rules.integer_bias:
                yield "a bias of int32, which must be a float"
            return
        yield from self._parameters(node, self.rules.weight_zero_points)
        if kind not in self.rules.weights:
            yield f"weights of {kind}, where {_listed(self.rules.weights)} are taken"
        if _attribute(node, "block_size"):
            yield "scales of groups"
        elif self._scales(node) > 1:
            if kind == "uint8" and not self.rules.unsigned_per_channel:
                yield "weights of uint8 with a scale for each channel"
            yield from self._axis(node, len(held.dims))

    def _codes(self, label: str, node: onnx.NodeProto) -> Iterator[Breach]:
        """A weight code that is too large: one of fewer bits is not."""
        place = {"DequantizeLinear": 0, "ConvInteger": 1, "MatMulInteger": 1}.get(node.op_type)
        held = None if place is None else self.constants.get(node.input[place])
        if held is None or _kind(held) == "int32":
            return
        largest, safe = (
            int(np.abs(array(held, self.path).astype(np.int64)).max(initial=0)),
            self.rules.largest_code,
        )
        if largest > safe:
            rule = f"a weight code of {largest}, where {safe} is the largest that is safe"
            yield Breach(label, rule, f"use weights=Int({(safe + 1).bit_length()})")

    def _parameters(self, node: onnx.NodeProto, zero_points: bool) -> Iterator[str]:
        for name in node.input[1:]:
            if name and name not in self.constants:
                yield f"{name} is no constant"
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and not zero_points and np.any(array(zero, self.path).astype(np.float32)):
            yield "a zero point other than 0"

    def _axis(self, node: onnx.NodeProto, rank: int) -> Iterator[str]:
        """Scales must lie along the outputs of whatever multiplies by the weight."""
        axis = _attribute(node, "axis", 1) % rank
        for user, position in self.readers.get(node.output[0], []):
            turned = user.op_type == "Transpose"
            after = self.readers.get(user.output[0], []) if turned else [(user, position)]
            for multiply, _ in after:
                wanted = _output_axis(multiply, rank)
                if wanted is not None and axis != (rank - 1 - wanted if turned else wanted):
                    yield f"scales along axis {axis}, which is not that of the outputs of {multiply.op_type}"

    def _multiply(self, node: onnx.NodeProto) -> Iterator[str]:
        pair = [self._behind(name) for name in node.input[:2]]
        weight = self.constants.get(node.input[1]) or (self.constants.get(pair[1].input[0]) if pair[1] else None)
        if node.op_type.startswith("Conv") and weight is not None:
            dimensions = len(weight.dims) - 2
            if dimensions not in self.rules.convolutions:
                yield f"a convolution over {dimensions} dimension{'s' if dimensions > 1 else ''}"
        if self.rules.same_type and pair[0] is not None and pair[1] is not None:
            kinds = [self._stored(side) for side in pair if side is not None]
            if kinds[0] != kinds[1]:
                yield f"weights of {kinds[1]} beside activations of {kinds[0]}"

    def _behind(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that a value comes from, through a Transpose perhaps."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            maker = self.makers.get(maker.input[0])
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def _stored(self, node: onnx.NodeProto) -> str:
        """The type of the integers that a QuantizeLinear writes or a DequantizeLinear reads."""
        held = self.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        known = held or zero
        if known is not None:
            return _kind(known)
        kind = _attribute(node, "output_dtype")
        return "uint8" if not kind else onnx.TensorProto.DataType.Name(kind).lower()

    def _scales(self, node: onnx.NodeProto) -> int:
        scale = self.constants.get(node.input[1])
        return 1 if scale is None else int(np.prod(scale.dims, dtype=np.int64))


def _kind(tensor: onnx.TensorProto) -> str:
    name = str(onnx.TensorProto.DataType.Name(tensor.data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    found: Any = next((held.i for held in node.attribute if held.name == name), default)
    return int(found)


def _output_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of a weight along which the outputs of a multiplication lie."""
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB") else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type)


def _listed(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(kinds))
