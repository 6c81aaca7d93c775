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
    dynamic = _ranges_at_run_time(module)
    _weights_rounded_there(module)
    settings = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = pt2e_quantizer.PT2EQuantizer().set_global(settings)
    config = quant_config.QuantConfig(pt2e_quantizer=quantizer)
    litert_torch.convert(module, args, kwargs, quant_config=config).export(path)
    return {}


def _ranges_at_run_time(module: Any) -> bool:
    """Whether there are such; then the calls that round so are left out, for kernels do it by themselves."""
    import torch

    coded = torch.ops.quantized_decomposed
    found = False
    for node in list(module.graph.nodes):
        if node.target in (coded.quantize_per_tensor.tensor, coded.dequantize_per_tensor.tensor):
            node.replace_all_uses_with(node.args[0])
            found = True
    module.graph.eliminate_dead_code()
    module.recompile()
    return found


def _weights_rounded_there(module: Any) -> None:
    """Weights as floats that are rounded in the graph, to the codes that they had: so the converter wants them."""
    import torch

    coded = torch.ops.quantized_decomposed
    for node in list(module.graph.nodes):
        if node.target is not coded.dequantize_per_channel.default:
            continue
        codes, scale, zero, *rest = node.args
        held = [functools.reduce(getattr, one.target.split("."), module) for one in (codes, scale, zero)]
        name = f"{node.name}_floats"
        module.register_buffer(name, coded.dequantize_per_channel.default(*held, *rest))
        with module.graph.inserting_before(node):
            floats = module.graph.get_attr(name)
            rounded = module.graph.call_function(coded.quantize_per_channel.default, (floats, scale, zero, *rest))
        node.args = (rounded, *node.args[1:])
    module.recompile()


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
