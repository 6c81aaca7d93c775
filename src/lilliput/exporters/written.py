"""The program that a file for a mobile runtime was made of, kept beside it, for torch to compute what the file says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import GraphModule
from torch.utils._pytree import tree_unflatten

_coded = torch.ops.quantized_decomposed


def program_of(built: Path) -> Path:
    """The program beside a built file, which is never delivered.

    >>> program_of(Path("net.pte")).name
    'net.pte.program'
    """
    return built.with_name(f"{built.name}.program")


def keep(captured: ExportedProgram, built: Path) -> Path:
    """Write the program that `built` is to be made of; returns where."""
    path = program_of(built)
    with open(path, "wb") as file:  # by a path, torch would ask for another ending
        torch.export.save(captured, file)
    return path


def as_written(built: Path, *, rounded: bool) -> tuple[list[tuple[int, ...]], Callable[[Sequence[Tensor]], Any]] | None:
    """The shapes that the program takes, and what computes it; None where there is no program.

    Without `rounded`, what flows is cut to its range and keeps its fractions.
    """
    path = program_of(built)
    if not path.exists():
        return None
    with open(path, "rb") as file:
        held = torch.export.load(file)
    given = [spec.arg for spec in held.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    names = {arg.name for arg in given if isinstance(arg, TensorArgument)}
    takes = [tuple(node.meta["val"].shape) for node in held.graph.nodes if node.name in names]
    module, shaped = held.module(), held.call_spec.in_spec
    assert isinstance(module, GraphModule) and shaped is not None
    if not rounded:
        _unround(module)

    def run(tensors: Sequence[Tensor]) -> Any:
        left = iter(tensors)
        args, kwargs = tree_unflatten(
            [next(left) if isinstance(arg, TensorArgument) else getattr(arg, "value", None) for arg in given], shaped
        )
        with torch.no_grad():
            return module(*args, **kwargs)

    return takes, run


def _unround(module: GraphModule) -> None:
    """Exchange the calls that round values for such as only scale, shift and cut."""
    for node in list(module.graph.nodes):
        if node.target in (_coded.quantize_per_tensor.tensor, _coded.dequantize_per_tensor.tensor):
            node.replace_all_uses_with(node.args[0])  # of ranges found at run time nothing is cut
        elif node.target is _coded.quantize_per_tensor.default:
            node.target = _cut
        elif node.target is _coded.dequantize_per_tensor.default:
            node.target = _back
    module.graph.eliminate_dead_code()
    module.recompile()


def _cut(x: Tensor, scale: float, zero: int, low: int, high: int, kind: Any) -> Tensor:
    return (x / scale + zero).clamp(low, high)


def _back(codes: Tensor, scale: float, zero: int, low: int, high: int, kind: Any) -> Tensor:
    return (codes - zero) * scale
