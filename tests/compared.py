"""Numbers held against those that are right, by a tolerance that no constant passes and no factor of 1.3.

The *spread* of what is right is the root mean square of its distance from its own mean. Not the distance of its ends,
which one outlier makes as large as it likes; not its size, which a bias alone can give. A tolerance above a twentieth
of the spread is refused: a constant is a whole spread away somewhere, and 1.3 times the values 0.3 of one.
One number, or several that are the same, has no spread: there its magnitude stands for it, and zeros must be zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MOST = 1 / 20  # of the spread
_SINGLE = 10  # times `share`, that a single value may be off
_USUAL = {
    torch.float64: 1e-7,
    torch.float32: 2e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.complex64: 2e-5,
}  # of it, by default


def close(
    found: Any,
    right: Any,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    share: float | None = None,
    msg: str = "",
) -> None:
    """Fail where `found` is not `right`: tensors, arrays, numbers, and lists and dicts of them.

    Every element may be off by `atol` and by `rtol` of itself, by default by what the order of sums does to the spread;
    or, with `share`, the whole by so much of the spread and single values by ten times that, as where some fall on the
    other side of a rounding step. A tolerance that would let anything pass is an error of the test, and says so.
    """
    if isinstance(right, Mapping):
        assert found.keys() == right.keys(), msg
        for name in right:
            close(found[name], right[name], atol=atol, rtol=rtol, share=share, msg=f"{msg} {name}")
    elif isinstance(right, list | tuple) and not all(isinstance(x, bool | int | float) for x in right):
        assert len(found) == len(right), msg
        for i, (one, other) in enumerate(zip(found, right, strict=True)):
            close(one, other, atol=atol, rtol=rtol, share=share, msg=f"{msg} {i}")
    else:
        expected = torch.as_tensor(right)
        given = torch.as_tensor(found)
        _close(given if isinstance(right, Tensor) else given.to(expected.dtype), expected, atol, rtol, share, msg)


def spread(x: Tensor) -> float:
    """The root mean square of the distance from the mean, of what is finite; of a constant its magnitude."""
    values = _real(x).to("cpu").flatten()
    values = values[values.isfinite()]
    if not len(values):
        return 0.0
    found = float((values - values.mean()).square().mean().sqrt())
    largest = float(values.abs().max())
    return found if found > 1e-9 * largest else largest


def _real(x: Tensor) -> Tensor:
    x = x.detach().resolve_conj()
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def _close(found: Tensor, right: Tensor, atol: float | None, rtol: float | None, share: float | None, msg: str) -> None:
    whole = spread(right)
    if share is not None:
        assert found.shape == right.shape and atol is None and rtol is None, msg
        assert share <= MOST, f"{msg} a share of {share:g} of the spread is refused: at most {MOST:g}"
        error = (_real(found) - _real(right)).abs()
        apart, most = float(error.square().mean().sqrt()), float(error.max()) if error.numel() else 0.0
        assert apart <= share * whole, f"{msg} apart by {apart / max(whole, 1e-300):.3g} of the spread, not {share:g}"
        assert most <= _SINGLE * share * whole, f"{msg} one is apart by {most / max(whole, 1e-300):.3g} of the spread"
        return
    if not whole:  # zeros, or nothing at all
        atol, rtol = 0.0, 0.0
    usual = _USUAL.get(right.dtype, 0.0)
    atol = usual * whole if atol is None and rtol is None else atol or 0.0
    rtol = rtol or 0.0
    largest = float(_real(right).abs().nan_to_num(0, 0, 0).max()) if right.numel() else 0.0
    assert not atol + rtol or atol + rtol * largest <= MOST * whole, (
        f"{msg} a tolerance of {atol + rtol * largest:.3g} is refused: of the spread, {whole:.3g}, at most {MOST:g} is"
    )
    torch.testing.assert_close(found, right, atol=atol, rtol=rtol, msg=lambda told: f"{msg} {told}".strip())
