"""What loading and running costs, in the report: told in its sentence where it is worse than before."""

from __future__ import annotations

from typing import Any

from lilliput.measure.loading import Loading

_WORSE = 1.25  # times what it was before
_LEAST_BYTES, _LEAST_S = 8 << 20, 0.05  # differences that are worth a word


def with_loading(data: dict[str, Any], before: Loading | None, after: Loading | None) -> dict[str, Any]:
    """The report with what loading takes on both sides, and a sentence that says what has become worse."""
    sides = {name: {**data[name], "loading": _plain(side)} for name, side in (("before", before), ("after", after))}
    told = worse(before, after)
    sentence = f"{data['sentence'].removesuffix('.')}; {told}." if told else data["sentence"]
    return {**data, **sides, "loading": told, "sentence": sentence}


def worse(before: Loading | None, after: Loading | None) -> str:
    """What is more than 1.25 times what it was, in words; "" where nothing is, or it is not known.

    >>> worse(Loading(0.4, 143 << 20), Loading(0.9, 444 << 20))
    'it needs 3.10× the memory to load and run (466 MB for 150 MB) and 2.25× the time to load (0.90 s for 0.40 s)'
    >>> worse(Loading(0.4, None), Loading(0.4, None)), worse(None, None)
    ('', '')
    """
    if before is None or after is None:
        return ""
    parts = []
    was, now = before.peak_bytes or 0, after.peak_bytes or 0
    if was and now > _WORSE * was and now - was > _LEAST_BYTES:
        parts.append(f"{now / was:.2f}× the memory to load and run ({now / 1e6:.0f} MB for {was / 1e6:.0f} MB)")
    slow, fast = after.seconds, before.seconds
    if fast and slow > _WORSE * fast and slow - fast > _LEAST_S:
        parts.append(f"{slow / fast:.2f}× the time to load ({slow:.2f} s for {fast:.2f} s)")
    return "it needs " + " and ".join(parts) if parts else ""


def _plain(side: Loading | None) -> dict[str, Any] | None:
    return None if side is None else {"seconds": side.seconds, "peak_bytes": side.peak_bytes}
