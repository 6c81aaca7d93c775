"""Make a trained neural network small and fast, measurably, without losing what it learned."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "Response": "techniques.distill",
    "Relation": "techniques.distill",
    "Hint": "techniques.distill",
    "Decoupled": "techniques.distill",
    "Correlation": "techniques.distill",
    "Attention": "techniques.distill",
    "BFloat16": "encodings",
    "Finetune": "techniques.finetune",
    "Float16": "encodings",
    "Int": "encodings",
    "Levels": "encodings",
    "Log": "encodings",
    "MiniFloat": "encodings",
    "NF4": "encodings",
    "Signs": "encodings",
    "Sparse": "encodings",
    "mxfp4": "encodings",
    "LilliputError": "errors",
    "MSE": "techniques.ranges",
    "MinMax": "techniques.ranges",
    "OnnxRuntime": "targets",
    "Percentile": "techniques.ranges",
    "Prune": "techniques.prune",
    "Quantize": "techniques.quantize",
    "Recipe": "recipe",
    "Result": "verbs",
    "Task": "task",
    "compress": "verbs",
    "freeze": "model.carrier",
    "load": "file.lil",
    "open": "verbs",
    "save": "file.lil",
    "to_dense": "model.carrier",
    "train": "verbs",
    "unfreeze": "model.carrier",
}
_MODULES = ("metrics",)

__all__ = [*_PLACES, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: importing lilliput alone loads nothing heavy."""
    if name in _MODULES:
        return import_module(f"lilliput.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'lilliput' has no attribute {name!r}")
    value = getattr(import_module(f"lilliput.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
