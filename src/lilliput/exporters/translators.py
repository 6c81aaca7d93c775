"""torch's translators to ONNX, read once: for each export it reads and parses its whole library of them anew.

That is most of what exporting a small network takes. Where a torch keeps its translators elsewhere, it goes on so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_read: dict[Any, Any] = {}  # by the arguments, what torch has read


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
            _read[key] = torchs.__func__(cls, *args, **kwargs)
        registry = copy.copy(_read[key])  # an export adds translators of its own
        registry.functions = {target: list(known) for target, known in registry.functions.items()}
        return registry

    registries.from_torchlib = classmethod(kept)
    try:
        yield
    finally:
        registries.from_torchlib = torchs
