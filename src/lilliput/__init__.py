"""Make a trained neural network small and fast, measurably, without losing what it learned.

At the top are the verbs, and what nearly every task and recipe is made of. The rest stands in namespaces:
`lilliput.techniques`, `formats`, `ranges`, `rounding`, `rescaling`, `scores`, `distill`, `plugins`, `targets`,
`metrics`, `results`, `errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that editors and type checkers see what `__getattr__` gives
    from lilliput import distill as distill
    from lilliput import errors as errors
    from lilliput import formats as formats
    from lilliput import metrics as metrics
    from lilliput import plugins as plugins
    from lilliput import ranges as ranges
    from lilliput import rescaling as rescaling
    from lilliput import results as results
    from lilliput import rounding as rounding
    from lilliput import scores as scores
    from lilliput import targets as targets
    from lilliput import techniques as techniques
    from lilliput.encodings import Encoding as Encoding
    from lilliput.encodings import Int as Int
    from lilliput.file.lil import load as load
    from lilliput.opened import open as open
    from lilliput.recipe import Recipe as Recipe
    from lilliput.registry import register as register
    from lilliput.streaming.stream import stream as stream
    from lilliput.targets import Target as Target
    from lilliput.task import Task as Task
    from lilliput.techniques import Finetune as Finetune
    from lilliput.techniques import Prune as Prune
    from lilliput.techniques import Quantize as Quantize
    from lilliput.techniques import Technique as Technique
    from lilliput.verbs import Trained as Trained
    from lilliput.verbs import apply as apply
    from lilliput.verbs import compress as compress
    from lilliput.verbs import diagnose as diagnose
    from lilliput.verbs import export as export
    from lilliput.verbs import save as save
    from lilliput.verbs import train as train

_PLACES = {
    "apply": "verbs",
    "compress": "verbs",
    "diagnose": "verbs",
    "Encoding": "encodings",
    "export": "verbs",
    "Finetune": "techniques",
    "Int": "encodings",
    "load": "file.lil",
    "open": "opened",
    "Prune": "techniques",
    "Quantize": "techniques",
    "Recipe": "recipe",
    "register": "registry",
    "save": "verbs",
    "stream": "streaming.stream",
    "Target": "targets",
    "Task": "task",
    "Technique": "techniques",
    "train": "verbs",
    "Trained": "verbs",
}
_NAMESPACES: dict[str, tuple[str, ...]] = {  # and what is in them that is not here: so much is known without a look
    "distill": (
        "AttentionTransfer",
        "DIST",
        "DKD",
        "FitNet",
        "LogitKD",
        "RelationalKD",
        "Term",
    ),
    "formats": (
        "Assignment",
        "BFloat16",
        "Blockwise",
        "Codebook",
        "Exponent8",
        "Fixed",
        "Float16",
        "LowRank",
        "MiniFloat",
        "NF4",
        "PowerOfTwo",
        "Signs",
        "Sparse",
        "freeze",
        "from_onnx",
        "mxfp4",
        "save_gguf",
        "save_page",
        "save_pretrained",
        "to_dense",
        "unfreeze",
    ),
    "plugins": (
        "Gradual",
        "GroupLasso",
        "L2SP",
        "Moment",
        "Plugin",
    ),
    "ranges": (
        "Entropy",
        "HQQ",
        "Intervals",
        "MSE",
        "MinMax",
        "Percentile",
        "Quantiles",
        "Range",
    ),
    "rescaling": (
        "AWQ",
        "CrossLayer",
        "Scaling",
        "SmoothQuant",
    ),
    "results": (
        "Diagnosis",
        "Result",
    ),
    "rounding": (
        "AdaRound",
        "BRECQ",
        "GPTQ",
        "Rounding",
    ),
    "scores": (
        "Fisher",
        "Magnitude",
        "Random",
        "Score",
        "Sensitivity",
        "Taylor",
    ),
    "targets": (
        "Device",
        "Eager",
        "ExecuTorch",
        "Gguf",
        "LiteRt",
        "OnnxFile",
        "OnnxRuntime",
        "OpenVino",
        "Preferences",
        "Runtime",
        "Web",
        "Writer",
        "check",
    ),
    "techniques": (
        "Equalize",
        "Factorize",
        "Share",
    ),
    "errors": (),
    "metrics": (),
}

__all__ = [*_PLACES, *sorted(_NAMESPACES)]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: importing lilliput alone loads nothing heavy."""
    if name not in _NAMESPACES and name not in _PLACES:
        raise AttributeError(_missing(name))
    try:
        module = import_module(f"lilliput.{_PLACES.get(name, name)}")
    except ModuleNotFoundError as error:
        from lilliput.errors import lacking

        raise lacking(error, where=f"lilliput.{name}") from None
    if name in _NAMESPACES:
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def _missing(name: str) -> str:
    """What to say of a name that is not here: where it is, if it is in a namespace."""
    where = [space for space, names in _NAMESPACES.items() if name in names]
    found = f"; it is lilliput.{where[0]}.{name}" if where else ""
    return f"module 'lilliput' has no attribute {name!r}{found}"


def __dir__() -> list[str]:
    return sorted(__all__)
