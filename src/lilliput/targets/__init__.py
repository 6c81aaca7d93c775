"""Where results run, or are written for: one file each."""

from typing import Any

from lilliput.errors import InputError, nearest
from lilliput.exporters.profiles import check
from lilliput.targets.device import Device
from lilliput.targets.eager import Eager
from lilliput.targets.edge import ExecuTorch, LiteRt
from lilliput.targets.gguf import Gguf
from lilliput.targets.onnx_file import OnnxFile
from lilliput.targets.onnxruntime import OnnxRuntime
from lilliput.targets.openvino import OpenVino
from lilliput.targets.target import Preferences, Runtime, Target, Writer
from lilliput.targets.web import Web

TARGETS: dict[str, type[Target]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "eager": Eager,
    "onnx": OnnxFile,
    "gguf": Gguf,
    "web": Web,
    "executorch": ExecuTorch,
    "litert": LiteRt,
}


def target(name: str | Target) -> Target:
    """A target by its name, or as it is given."""
    if isinstance(name, Target):
        return name
    given: Any = name
    if isinstance(given, type) and issubclass(given, Target):
        raise InputError(f"the class {given.__name__} for a target", next=f"make one of it: {given.__name__}()")
    if not isinstance(given, str):
        raise InputError(f"a target of type {type(given).__name__}", next=f"known: {', '.join(TARGETS)}")
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}", next=nearest(name, TARGETS))
    return TARGETS[name]()


__all__ = [
    "TARGETS",
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
    "Target",
    "Web",
    "Writer",
    "check",
    "target",
]
