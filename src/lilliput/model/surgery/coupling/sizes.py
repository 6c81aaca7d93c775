"""The whole numbers that modules hold beside their tensors: those of torch's own layers, those that forwards read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.model.views.inputs import Inputs
from lilliput.modes import eval_mode

Link = tuple[str, str]  # a module and an attribute of it


def sizes(
    model: nn.Module, resized: Mapping[str, tuple[int, ...]], known: Mapping[Link, tuple[int, ...]]
) -> dict[Link, tuple[int, ...]]:
    """What torch's own layers hold of the shapes of their tensors."""
    found: dict[Link, tuple[int, ...]] = {}
    owners: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for path, shape in resized.items():
        owners[path.rpartition(".")[0]][path.rpartition(".")[2]] = shape
    for path in owners:
        module = model.get_submodule(path)
        held: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        shapes = {name: tuple(x.shape) for name, x in held.items() if x is not None}
        groups = known.get((path, "groups"), (getattr(module, "groups", 1),))[0]
        for name, value in numbers_of(module, {**shapes, **owners[path]}, groups).items():
            now = vars(module).get(name)
            if now is not None and _tuple(now) != _tuple(value):
                found[path, name] = _tuple(value)
    return found


def _tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def numbers_of(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], groups: int) -> dict[str, Any]:
    """By name, what attributes a layer of torch has of these shapes of its tensors; {} of any other module."""
    known = (shapes[name] for name in ("weight", "weight_orig", "running_mean") if name in shapes)
    weight = next(known, ())  # `torch.nn.utils.prune` calls it weight_orig
    if isinstance(module, nn.Linear):
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return {"in_channels": weight[0], "out_channels": weight[1] * groups}
    if isinstance(module, nn.modules.conv._ConvNd):
        return {"out_channels": weight[0], "in_channels": weight[1] * groups}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": weight[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": weight}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": weight[0]}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight[0]}
    if isinstance(module, nn.MultiheadAttention):
        rows, width = shapes.get("in_proj_weight", (0, 0))
        return {"embed_dim": width, "kdim": width, "vdim": width} if rows == 3 * width > 0 else {}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        sizes = {"input_size": shapes["weight_ih_l0"][1], "hidden_size": shapes["weight_hh_l0"][0] // gates}
        return sizes | ({"proj_size": shapes["weight_hr_l0"][0]} if "weight_hr_l0" in shapes else {})
    return {}


def numbers_read(model: nn.Module, inputs: Inputs) -> dict[str, dict[str, int]]:
    """The whole numbers that each module's forward reads of its own attributes, in one run."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    with torch.no_grad(), eval_mode(model), _watched_attributes(model, found):
        inputs.call(model)
    return dict(found)


@contextmanager
def _watched_attributes(model: nn.Module, found: dict[str, dict[str, int]]) -> Iterator[None]:
    classes = {path: type(module) for path, module in model.named_modules()}

    def watching(path: str, cls: type[nn.Module]) -> type[nn.Module]:
        def read(self: nn.Module, name: str) -> Any:
            value = cls.__getattribute__(self, name)
            if type(value) is int and name in vars(self):
                found[path][name] = value
            return value

        watched = type(cls.__name__, (cls,), {"__getattribute__": read, "__module__": cls.__module__})
        return watched

    try:
        for path, cls in classes.items():
            model.get_submodule(path).__class__ = watching(path, cls)
        yield
    finally:
        for path, cls in classes.items():
            model.get_submodule(path).__class__ = cls
