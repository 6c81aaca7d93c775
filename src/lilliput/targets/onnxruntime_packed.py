"""By which packed codes ONNX Runtime multiplies: what its `MatMulNBits` takes here, and what is said of a layer."""

from __future__ import annotations

import functools

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lilliput.encodings import Encoding, Int, Sparse
from lilliput.encodings.integer import Uniform
from lilliput.errors import raise_own
from lilliput.exporters.nbits import block_of, multiplies
from lilliput.exporters.nodes import RUNTIME
from lilliput.external import packed_rows
from lilliput.model.views.view import Call
from lilliput.runtimes.session import session
from lilliput.targets.kernels import at_run_time, no_kernel_finds

_ALL = frozenset({4, 8})  # bits that versions of it know
_INPUTS, _OUTPUTS, _BLOCK = 32, 3, 16
_NEAR = 0.05  # of the largest answer: kernels may round what flows to 8 bits


@functools.cache
def packed_here() -> frozenset[int]:
    """The bits of weights that it multiplies by as they lie packed; none where it has no `MatMulNBits`."""
    return frozenset(bits for bits in sorted(_ALL) if _multiplies(bits))


def _multiplies(bits: int) -> bool:
    """Whether a small layer is computed right."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**bits, (_OUTPUTS, _INPUTS)).astype(np.uint8)
    zeros = rng.integers(0, 2**bits, (_OUTPUTS, _INPUTS // _BLOCK)).astype(np.uint8)
    scales = rng.uniform(0.5, 1.0, zeros.shape).astype(np.float32)
    bias, x = rng.normal(size=_OUTPUTS).astype(np.float32), rng.normal(size=(2, _INPUTS)).astype(np.float32)
    offset, scale = (np.repeat(part, _BLOCK, axis=1).astype(np.float32) for part in (zeros, scales))
    right = x @ ((codes - offset) * scale).T + bias
    packed = packed_rows(codes, bits).reshape(_OUTPUTS, _INPUTS // _BLOCK, -1)
    held: dict[str, np.ndarray] = {"codes": packed, "scales": scales, "zeros": packed_rows(zeros, bits), "bias": bias}
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales", "zeros", "", "bias"],
        ["y"],
        domain=RUNTIME,
        K=_INPUTS,
        N=_OUTPUTS,
        bits=bits,
        block_size=_BLOCK,
        accuracy_level=1 if bits == 4 else 4,
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    ends[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    graph = helper.make_graph(
        [node], "packed", ends[:1], ends[1:], [numpy_helper.from_array(part, name) for name, part in held.items()]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(RUNTIME, 1)]
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        (found,) = session(model.SerializeToString(), 1).run(None, {"x": x})
    except Exception as error:  # an older one, or one built without it, says so in its own words
        raise_own(error)
        return False
    return bool(np.abs(found - right).max() <= _NEAR * np.abs(right).max())


def told_packed(call: Call, weight: Encoding | None, activation: Encoding | None, known: frozenset[int]) -> str:
    """What is to be said of a layer that is multiplied by packed codes of `known` bits; empty where it is not."""
    bits = _bits(call, weight, activation, known)
    flowing = "products in float" if activation is None else "integers, ranges of blocks found at each run"
    return f"{bits}-bit kernel, {flowing}" if bits else ""


def why_not_packed(call: Call, weight: Encoding | None, known: frozenset[int]) -> str:
    """Why it is not, where layers with weights of as few bits are; empty for all others."""
    held = _uniform(weight)
    if call.op != "linear" or held is None or held.bits > 4 or _bits(call, weight, None, known):
        return ""
    if held.minimum is None and _bits(call, weight, None, _ALL):
        return "this version has no 4-bit kernel"
    wants = "groups of 16 inputs, 32, 48 …" if held.minimum is None else "whole offsets"
    return f"the 4-bit kernel wants {wants}"


def _bits(call: Call, weight: Encoding | None, activation: Encoding | None, known: frozenset[int]) -> int:
    """How many bits the codes of a layer have as the kernel multiplies by them; 0 where it does not."""
    held = _uniform(weight)
    at_run = isinstance(activation, Int) and at_run_time(activation) and not no_kernel_finds(activation)
    if call.op != "linear" or held is None or held.minimum is not None or (held.axis and not held.one_block):
        return 0
    if activation is not None and not (at_run and held.group):
        return 0  # simulated, or integers of whole channels
    block = block_of(call.weight_shape[1], held.group)
    return multiplies(held.bits, at_run_time=at_run, known=known) if block else 0


def _uniform(weight: Encoding | None) -> Uniform | None:
    held = weight.values if isinstance(weight, Sparse) else weight
    return held if isinstance(held, Uniform) else None
