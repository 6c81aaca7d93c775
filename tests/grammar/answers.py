"""Answers side by side, leaf by leaf: how they are put together, and how far their numbers are apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Leaf = tuple[str, Any]


def leaves(out: Any, path: str = "") -> Iterator[Leaf]:
    """Each leaf with where it stands: named tuples are tuples, dataclasses and models' outputs are dicts."""
    if dataclasses.is_dataclass(out) and not isinstance(out, type):
        out = {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    if isinstance(out, Mapping):
        for key, value in out.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(out, tuple | list):
        yield f"{path} is a {'list' if isinstance(out, list) else 'tuple'}", len(out)
        for i, value in enumerate(out):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, out


def apart(reference: Any, other: Any, tolerance: float) -> str:
    """How `other` departs from `reference`; nothing where it does not, by more than `tolerance` of each leaf's length.

    A leaf of whole numbers may differ where the floats may, in a share of its places.
    """
    ours, theirs = dict(leaves(reference)), dict(leaves(other))
    if list(ours) != list(theirs):
        return f"put together otherwise: {list(theirs)} for {list(ours)}"
    for path, a in ours.items():
        b = theirs[path]
        where = path or "the answer"
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return f"{where} is {_short(b)} for {_short(a)}"
        if not isinstance(a, Tensor):
            if a is not b and a != b:
                return f"{where} is {_short(b)} for {_short(a)}"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where} is {_short(b)} for {_short(a)}"
        found = distance(a, b)
        if not found <= tolerance:
            return f"{where} is {found:.2g} of its length apart (at most {tolerance:g})"
    return ""


def distance(a: Tensor, b: Tensor) -> float:
    """The length of the difference as a share of the first's; of whole numbers the share of places that differ."""
    if a.is_sparse or a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if not a.numel() or torch.equal(a, b):
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b).double().mean())
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.detach().to(wide), b.detach().to(wide)
    odd = ~(a.isfinite() & b.isfinite())
    if not torch.equal(a[odd].nan_to_num(0, 1, -1), b[odd].nan_to_num(0, 1, -1)):
        return math.inf
    a, b = a[~odd], b[~odd]
    return float((a - b).abs().square().sum().sqrt() / (a.abs().square().sum().sqrt() + 1e-6 * a.numel() ** 0.5))


def sqnr(reference: Any, other: Any) -> float:
    """Decibels of all floats of the answers together; infinite where there are none."""
    pairs = [(a, b) for (_, a), (_, b) in zip(leaves(reference), leaves(other), strict=True) if _floats(a)]
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    signal = sum(float(a.double().square().sum()) for a, _ in pairs)
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf


def _floats(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _short(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else f"{type(x).__name__} {x!r:.60}"
