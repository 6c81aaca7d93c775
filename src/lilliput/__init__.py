"""Make a trained neural network small and fast, measurably, without losing what it learned."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that editors and type checkers see what `__getattr__` gives
    from lilliput import metrics as metrics
    from lilliput.blame.diagnosis import Diagnosis as Diagnosis
    from lilliput.delivery import Result as Result
    from lilliput.encodings import NF4 as NF4
    from lilliput.encodings import BFloat16 as BFloat16
    from lilliput.encodings import Fixed as Fixed
    from lilliput.encodings import Float16 as Float16
    from lilliput.encodings import Int as Int
    from lilliput.encodings import Levels as Levels
    from lilliput.encodings import Log as Log
    from lilliput.encodings import LowRank as LowRank
    from lilliput.encodings import MiniFloat as MiniFloat
    from lilliput.encodings import Signs as Signs
    from lilliput.encodings import Sparse as Sparse
    from lilliput.encodings import Tiles as Tiles
    from lilliput.encodings import mxfp4 as mxfp4
    from lilliput.errors import LilliputError as LilliputError
    from lilliput.exporters.profiles import check as check
    from lilliput.file.lil import load as load
    from lilliput.model.carrier.carrier import freeze as freeze
    from lilliput.model.carrier.carrier import to_dense as to_dense
    from lilliput.model.carrier.carrier import unfreeze as unfreeze
    from lilliput.recipe import Recipe as Recipe
    from lilliput.registry import register as register
    from lilliput.targets import Device as Device
    from lilliput.targets import Eager as Eager
    from lilliput.targets import OnnxRuntime as OnnxRuntime
    from lilliput.targets import OpenVino as OpenVino
    from lilliput.task import Task as Task
    from lilliput.techniques.assignment import Assignment as Assignment
    from lilliput.techniques.distill import Attention as Attention
    from lilliput.techniques.distill import Correlation as Correlation
    from lilliput.techniques.distill import Decoupled as Decoupled
    from lilliput.techniques.distill import Hint as Hint
    from lilliput.techniques.distill import Relation as Relation
    from lilliput.techniques.distill import Response as Response
    from lilliput.techniques.equalize import Equalize as Equalize
    from lilliput.techniques.factorize import Factorize as Factorize
    from lilliput.techniques.finetune import Finetune as Finetune
    from lilliput.techniques.gradual import Gradual as Gradual
    from lilliput.techniques.group_lasso import GroupLasso as GroupLasso
    from lilliput.techniques.hqq import HQQ as HQQ
    from lilliput.techniques.l2sp import L2SP as L2SP
    from lilliput.techniques.plugin import Plugin as Plugin
    from lilliput.techniques.prune import Prune as Prune
    from lilliput.techniques.quantize import Quantize as Quantize
    from lilliput.techniques.ranges import MSE as MSE
    from lilliput.techniques.ranges import Entropy as Entropy
    from lilliput.techniques.ranges import Intervals as Intervals
    from lilliput.techniques.ranges import MinMax as MinMax
    from lilliput.techniques.ranges import Percentile as Percentile
    from lilliput.techniques.ranges import Quantiles as Quantiles
    from lilliput.techniques.rounding import BRECQ as BRECQ
    from lilliput.techniques.rounding import GPTQ as GPTQ
    from lilliput.techniques.rounding import AdaRound as AdaRound
    from lilliput.techniques.scalings import AWQ as AWQ
    from lilliput.techniques.scalings import Ranges as Ranges
    from lilliput.techniques.scalings import Smooth as Smooth
    from lilliput.techniques.scores import Magnitude as Magnitude
    from lilliput.techniques.scores import Random as Random
    from lilliput.techniques.share import Share as Share
    from lilliput.verbs import apply as apply
    from lilliput.verbs import compress as compress
    from lilliput.verbs import diagnose as diagnose
    from lilliput.verbs import export as export
    from lilliput.verbs import open as open
    from lilliput.verbs import save as save
    from lilliput.verbs import train as train

_PLACES = {
    "AdaRound": "techniques.rounding",
    "BRECQ": "techniques.rounding",
    "apply": "verbs",
    "Attention": "techniques.distill",
    "AWQ": "techniques.scalings",
    "BFloat16": "encodings",
    "check": "exporters.profiles",
    "compress": "verbs",
    "Correlation": "techniques.distill",
    "Decoupled": "techniques.distill",
    "Device": "targets",
    "diagnose": "verbs",
    "Diagnosis": "blame.diagnosis",
    "Eager": "targets",
    "Entropy": "techniques.ranges",
    "Equalize": "techniques.equalize",
    "export": "verbs",
    "Factorize": "techniques.factorize",
    "Finetune": "techniques.finetune",
    "Fixed": "encodings",
    "Float16": "encodings",
    "freeze": "model.carrier",
    "GPTQ": "techniques.rounding",
    "Gradual": "techniques.gradual",
    "GroupLasso": "techniques.group_lasso",
    "Hint": "techniques.distill",
    "HQQ": "techniques.hqq",
    "Int": "encodings",
    "Intervals": "techniques.ranges",
    "L2SP": "techniques.l2sp",
    "Levels": "encodings",
    "LilliputError": "errors",
    "load": "file.lil",
    "Log": "encodings",
    "LowRank": "encodings",
    "Magnitude": "techniques.scores",
    "MiniFloat": "encodings",
    "MinMax": "techniques.ranges",
    "MSE": "techniques.ranges",
    "mxfp4": "encodings",
    "NF4": "encodings",
    "OnnxRuntime": "targets",
    "open": "verbs",
    "OpenVino": "targets",
    "Percentile": "techniques.ranges",
    "Assignment": "techniques.assignment",
    "Plugin": "techniques.plugin",
    "Prune": "techniques.prune",
    "Quantiles": "techniques.ranges",
    "Quantize": "techniques.quantize",
    "Random": "techniques.scores",
    "Ranges": "techniques.scalings",
    "Recipe": "recipe",
    "register": "registry",
    "Relation": "techniques.distill",
    "Response": "techniques.distill",
    "Result": "delivery",
    "save": "verbs",
    "Share": "techniques.share",
    "Signs": "encodings",
    "Smooth": "techniques.scalings",
    "Sparse": "encodings",
    "Task": "task",
    "Tiles": "encodings",
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
