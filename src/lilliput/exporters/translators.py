"""torch's translators to ONNX, read once and as they are needed: an export reads and parses its whole library of them.

That is most of what exporting a small network takes. Where a torch keeps its translators elsewhere, it goes on so.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

_read: dict[Any, Any] = {}  # by the arguments, what torch has read
_BY_NAME = ("2.13.",)  # torchs that find a translator by its name alone, and look at its signature where it is used


@contextmanager
def translators_kept() -> Iterator[None]:
    """Inside, `torch.onnx.export` is given copies of the translators that the first export has read."""
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        yield
        return
    registries: Any = getattr(_registration, "ONNXRegistry", object)
    torchs: Any = vars(registries).get("from_torchlib")
    if not isinstance(torchs, classmethod):
        yield
        return

    def kept(cls: Any, *args: Any, **kwargs: Any) -> Any:
        key = (cls, args, tuple(sorted(kwargs.items())))
        if key not in _read:
            with _unparsed(_registration):
                _read[key] = torchs.__func__(cls, *args, **kwargs)
        registry = copy.copy(_read[key])  # an export adds translators of its own
        registry.functions = {target: list(known) for target, known in registry.functions.items()}
        return registry

    registries.from_torchlib = classmethod(kept)
    try:
        yield
    finally:
        registries.from_torchlib = torchs


@contextmanager
def _unparsed(registration: Any) -> Iterator[None]:
    """Inside, translators are listed and not parsed: each is, where it is used."""
    if not torch.__version__.startswith(_BY_NAME):
        yield
        return
    kept = {name: getattr(registration, name) for name in ("OnnxDecompMeta", "onnxscript_apis")}
    try:
        from onnxscript.function_libs.torch_lib import ops  # noqa: F401  # which `ops` fills
        from onnxscript.function_libs.torch_lib import registration as library

        entry = functools.partial(kept["OnnxDecompMeta"], skip_signature_inference=True)  # the builder infers it
        listed = _listed(library.default_registry)
    except (ImportError, AttributeError):
        yield
        return
    registration.OnnxDecompMeta = entry
    registration.onnxscript_apis = SimpleNamespace(get_torchlib_ops=lambda: listed)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(registration, name, value)


def _listed(library: Any) -> list[SimpleNamespace]:
    """What torch asks of the library's translators, but for what has to be parsed."""
    return [
        SimpleNamespace(qualified_name=name, function=function, is_complex=is_complex)
        for name, translators in library.items()
        if not name.startswith("internal::")
        for functions, is_complex in ((translators.overloads, False), (translators.complex, True))
        for function in functions
    ]
