"""What loading and running costs, in the report; loading is told in its sentence where it is worse than before."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lilliput.engine.costs import Costs
from lilliput.measure.loading import Loading

_WORSE = 1.25  # times what it was before
_LEAST_BYTES, _LEAST_S = 8 << 20, 0.05  # differences that are worth a word


def cost_figures(costs: Costs, side: str) -> dict[str, Any]:
    """Of "before" or "after", as JSON holds them; null where something was not measured, or cannot be told."""
    taken, batches, loaded = costs.taken, costs.batches, costs.loading[side]
    return {
        "latency_ms": taken.ms(side).to_json() if taken.known else None,
        "calls": {"count": taken.calls.get(side, 0), **{f"{name}_ms": ms for name, ms in taken.tail_ms(side).items()}},
        "joules": taken.joules.get(side),
        "throughput": None if batches is None or batches.untold else batches.a_second(side).to_json(),
        "loading": None if loaded is None else asdict(loaded),
    }


def batch_figures(costs: Costs) -> dict[str, Any] | None:
    """What the throughput of both sides was taken with, and how many times faster the result is there."""
    batches = costs.batches
    if batches is None:
        return None
    faster = None if batches.untold else batches.taken.ratio("before", "after").to_json()
    return {"samples": batches.samples, "threads": batches.threads, "faster": faster, "untold": batches.untold}


def worse(before: Loading | None, after: Loading | None) -> str:
    """What is more than 1.25 times what it was, in words; "" where nothing is, or it is not known.

    >>> worse(Loading(0.4, 143 << 20, 0.1, None), Loading(0.9, 444 << 20, 0.1, None))
    'it needs 3.10× the memory to load and run (466 MB for 150 MB) and 2.25× the time to load (0.90 s for 0.40 s)'
    >>> worse(Loading(0.4, None, 0.1, None), Loading(0.4, None, 0.1, None)), worse(None, None)
    ('', '')
    """
    if before is None or after is None:
        return ""
    parts = []
    was, now = before.most_bytes or 0, after.most_bytes or 0
    if was and now > _WORSE * was and now - was > _LEAST_BYTES:
        parts.append(f"{now / was:.2f}× the memory to load and run ({now / 1e6:.0f} MB for {was / 1e6:.0f} MB)")
    slow, fast = after.seconds, before.seconds
    if fast and slow > _WORSE * fast and slow - fast > _LEAST_S:
        parts.append(f"{slow / fast:.2f}× the time to load ({slow:.2f} s for {fast:.2f} s)")
    return "it needs " + " and ".join(parts) if parts else ""
