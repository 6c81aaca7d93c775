"""Runtimes that run the result: one file each."""

from lilliput.errors import InputError, nearest
from lilliput.targets.device import Device
from lilliput.targets.onnxruntime import OnnxRuntime
from lilliput.targets.openvino import OpenVino
from lilliput.targets.target import Target

TARGETS: dict[str, type[Target]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def target(name: str | Target) -> Target:
    """A target by its name, or as it is given."""
    if isinstance(name, Target):
        return name
    if isinstance(name, type) and issubclass(name, Target):
        raise InputError(f"the class {name.__name__} for a target", next=f"make one of it: {name.__name__}()")
    if not isinstance(name, str):
        raise InputError(f"a target of type {type(name).__name__}", next=f"known: {', '.join(TARGETS)}")
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}", next=nearest(name, TARGETS))
    return TARGETS[name]()


__all__ = ["TARGETS", "Device", "OnnxRuntime", "OpenVino", "Target", "target"]
