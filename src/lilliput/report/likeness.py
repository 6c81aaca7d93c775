"""How far answers agree with those before, in words that a factor of ten would change, whatever an answer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lilliput.report.figures import digits

Data = Mapping[str, Any]

_NAMED = 3  # outputs that are told one by one


def agreement(outputs: Sequence[Data]) -> str:
    """A clause for the result's sentence; of many outputs, on the one that is furthest off."""
    if len(outputs) == 1:
        return _clause(outputs[0])
    if len(outputs) <= _NAMED:
        return "; ".join(f"{one['place']}: {_clause(one)}" for one in outputs)
    one = furthest(outputs)
    return f"of {len(outputs)} outputs, {one['place']} is furthest off: {_clause(one)}"


def furthest(outputs: Sequence[Data]) -> Data:
    """The output with the least SQNR; of those alike, the first."""
    return min(outputs, key=lambda one: float("inf") if one["sqnr_db"] is None else one["sqnr_db"])


def doubts(outputs: Sequence[Data]) -> list[str]:
    """What makes the comparison say less than it seems to, and what to do."""
    same = [one["place"] or "the answer" for one in outputs if one["constant"]]
    if not same:
        return []
    told = f"{', '.join(same)} {'is' if len(same) == 1 else 'are'} the same for every sample: nothing is judged by that"
    return [f"{told}; give evaluation batches that it differs on, or mend the network"]


def _clause(one: Data) -> str:
    return _CLAUSES[one["kind"]](one)


def _classes(one: Data) -> str:
    return f"{_share(one['figures']['same_answer']['value'])} of samples get the same answer ({_db(one)})"


def _values(one: Data) -> str:
    if one["sqnr_db"] is None:
        return "answers are the same"
    return f"answers keep an {_db(one)}, the worst sample is off by {percent_off(one['worst_error'])}"


def _embedding(one: Data) -> str:
    cosine, ratio = (one["figures"][name]["value"] for name in ("cosine", "norm_ratio"))
    return f"embeddings keep a cosine of {cosine:.4f} and {ratio:.3f} of their length ({_db(one)})"


def _tokens(one: Data) -> str:
    same, divergence = (one["figures"][name]["value"] for name in ("same_token", "divergence"))
    return f"{_share(same)} of tokens are the same, with a KL divergence of {divergence:.2g} nats"


_CLAUSES: Mapping[str, Callable[[Data], str]] = {
    "classes": _classes,
    "values": _values,
    "embedding": _embedding,
    "tokens": _tokens,
}


def _db(one: Data) -> str:
    return "no noise" if one["sqnr_db"] is None else f"SQNR of {one['sqnr_db']:.1f} dB"


def _share(share: float) -> str:
    """In percent, which reads 100.0 only where it is that."""
    return f"{min(100 * share, 99.9) if share < 1 else 100:.1f} %"


def percent_off(share: float) -> str:
    """The length of an error, over that of an output.

    >>> percent_off(0.0123), percent_off(9.0)
    ('1.2 %', '9.0 times its length')
    """
    return f"{digits(100 * share, 2)} %" if share < 1 else f"{share:.1f} times its length"
