"""LiteRT, where `serving.py` asks for it: nothing of Lilliput's is there."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

_threads = 1


def begin(threads: int) -> None:
    """Import the runtime, with so many threads."""
    global _threads
    import ai_edge_litert.interpreter  # noqa: F401  # to fail now where it cannot be

    warnings.simplefilter("ignore")
    _threads = threads


def build(program: str, path: str) -> dict[str, Any]:
    """Convert a saved program to a `.tflite`, int8 in and out where its first and last values are."""
    import litert_torch
    import torch
    import torch.ao.quantization.fx._decomposed
    from litert_torch.quantize import pt2e_quantizer, quant_config

    with open(program, "rb") as file:  # by a path, torch would ask for another ending
        saved = torch.export.load(file)
    args, kwargs = saved.example_inputs
    module = saved.module()
    coded = _weights_as_floats(module)
    settings = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    config = quant_config.QuantConfig(pt2e_quantizer=pt2e_quantizer.PT2EQuantizer().set_global(settings))
    litert_torch.convert(module, args, kwargs, quant_config=config).export(path)
    _codes_back(path, coded)
    return {}


def _weights_as_floats(module: Any) -> dict[bytes, tuple[np.ndarray, np.ndarray]]:
    """Weights beside calibrated ranges rounded in the graph, as the converter wants them, to the codes that they had.

    The converter knows ranges found at run time for a whole network alone, and would round what is float as well. So
    those are taken out, and the codes of their weights with scales given back, by the bytes of the floats.
    """
    import torch

    ops = torch.ops.quantized_decomposed
    coded = {}
    for node in list(module.graph.nodes):
        if node.target is not ops.dequantize_per_channel.default:
            continue
        codes, scale, zero, *rest = node.args
        held = [functools.reduce(getattr, one.target.split("."), module) for one in (codes, scale, zero)]
        floats = ops.dequantize_per_channel.default(*held, *rest)
        module.register_buffer(f"{node.name}_floats", floats)
        (layer,) = node.users
        with module.graph.inserting_before(node):
            decoded = module.graph.get_attr(f"{node.name}_floats")
            if layer.args[0].target is ops.dequantize_per_tensor.tensor:
                coded[floats.numpy().tobytes()] = (held[0].numpy(), held[1].numpy())
                node.replace_all_uses_with(decoded)
            else:
                rounded = module.graph.call_function(ops.quantize_per_channel.default, (decoded, scale, zero, *rest))
                node.args = (rounded, *node.args[1:])
    for node in list(module.graph.nodes):
        if node.target in (ops.quantize_per_tensor.tensor, ops.dequantize_per_tensor.tensor):
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return coded


def _codes_back(path: str, coded: dict[bytes, tuple[np.ndarray, np.ndarray]]) -> None:
    """Codes in place of the floats of some weights; their layers then find the range of what they read at each run."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    if not coded:
        return
    with open(path, "rb") as file:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(file.read()), 0))
    left = dict(coded)
    for graph in model.subgraphs:
        for op in graph.operators:
            if model.operatorCodes[op.opcodeIndex].builtinCode != schema.BuiltinOperator.FULLY_CONNECTED:
                continue
            weight = graph.tensors[op.inputs[1]]
            data = model.buffers[weight.buffer].data
            key = b"" if data is None else np.asarray(data, np.uint8).tobytes()
            if key not in coded:
                continue
            codes, scale = coded[key]
            model.buffers[weight.buffer].data = np.frombuffer(codes.tobytes(), np.uint8)
            weight.type, weight.quantization = schema.TensorType.INT8, schema.QuantizationParametersT()
            weight.quantization.scale = scale
            weight.quantization.zeroPoint = np.zeros(len(scale), np.int64)
            op.builtinOptions.asymmetricQuantizeInputs = True
            left.pop(key, None)
    if left:
        raise ValueError(f"{len(left)} layers with ranges found at run time are no FULLY_CONNECTED in the file")
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    with open(path, "wb") as file:
        file.write(builder.Output())


class File:
    """A `.tflite`: the shapes that it takes, and how it is called."""

    def __init__(self, path: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(path, num_threads=_threads)
        self.interpreter.allocate_tensors()
        self.inputs, self.outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.takes = [list(map(int, one["shape"])) for one in self.inputs]

    def ready(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The arrays as the file takes them: as codes, where it takes those."""
        return [_coded(x, one) for x, one in zip(arrays, self.inputs, strict=True)]

    def run(self, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        for x, one in zip(given, self.inputs, strict=True):
            self.interpreter.set_tensor(one["index"], x)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(one["index"]) for one in self.outputs]

    def read(self, found: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the file gives, as numbers."""
        return [_decoded(x, one) for x, one in zip(found, self.outputs, strict=True)]


def _coded(x: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    scale, zero = told["quantization"]
    kind = np.dtype(told["dtype"])
    if not scale or kind.kind not in "iu":
        return np.ascontiguousarray(x, kind)
    ends = np.iinfo(kind)
    codes: np.ndarray = np.clip(np.rint(x / np.float32(scale)) + zero, ends.min, ends.max).astype(kind)
    return codes


def _decoded(x: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    scale, zero = told["quantization"]
    return np.asarray(x if not scale else (x.astype(np.float32) - np.float32(zero)) * np.float32(scale))


def opened(path: str) -> File:
    return File(path)
