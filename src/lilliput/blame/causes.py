"""Likely causes, one function each: from facts to a sentence and what to try, or None where it does not apply."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lilliput.blame.facts import ValueFacts, WeightFacts
from lilliput.blame.places import Place
from lilliput.report.figures import digits

_SHARED_SPREAD = 3.0  # channels' ranges by which one scale for all costs some ten dB
_VALUE_SPREAD = 8.0
_PEAK_WEIGHT, _PEAK_VALUE = 12.0, 30.0  # over the root mean square; of normal numbers about 4
_CLIPPING = 0.6  # share of the noise: ranges that are fitted to the square error clip up to about half
_REACH = 1.5  # of what flows over the calibrated range
_NARROW = 0.25  # of the calibrated range
_FEW_PRODUCTS = 32  # summed for one output: errors hardly average out
_ZEROS = 0.3
_CUT = 0.5  # of a weight's noise, that its rank makes
_RUNTIME_DB = 3.0  # that the runtime may add to what the module itself loses


@dataclass(frozen=True)
class Cause:
    """Why a place loses, and what to try."""

    kind: str  # "clipped range", "outlier channel", …
    says: str
    remedies: tuple[str, ...]  # what to try, the first first
    strength: float  # to put several in order, largest first


def of_weight(place: Place, facts: WeightFacts) -> list[Cause]:
    """The causes that lie in a weight, the likeliest first."""
    if cut := _low_rank(place, facts):
        return [cut]  # what more bits leave as it is
    found = (_one_scale(place, facts), _emptied(facts), _few_bits(place, facts), _peak(place, facts), _pruned(facts))
    known = _ordered(found)
    return known or _ordered([_depthwise(place, facts)])


def of_value(place: Place, facts: ValueFacts) -> list[Cause]:
    """The causes that lie in a value that a place reads or gives, the likeliest first."""
    return _ordered(
        (_clipped(place, facts), _outlier(place, facts), _unused(facts), _few_levels(facts), _tail(place, facts))
    )


def of_runtime(place: Place, encoded: bool, extra_db: float, may_saturate: bool) -> list[Cause]:
    """Why the runtime computes something else here than the module does; `extra_db` is by how much it loses more."""
    if extra_db < _RUNTIME_DB:
        return []
    if not encoded:
        return [
            Cause(
                "rounded by the runtime",
                f"it was left in float, but between integers the runtime rounds it to int8 all the same "
                f"({extra_db:.0f} dB lost that the module does not lose)",
                ('leave its neighbours out as well: where="!…"', f'encode it: where="{place.pattern}"'),
                extra_db,
            )
        ]
    if may_saturate:
        return [
            Cause(
                "saturation",
                f"this processor has no VNNI, where sums of u8 · s8 products saturate at 16 bits "
                f"({extra_db:.0f} dB lost)",
                ("weights=Int(7)",),
                extra_db,
            )
        ]
    return [
        Cause(
            "another kernel",
            f"the runtime loses {extra_db:.0f} dB here that the module does not lose",
            (leave_out(place), "please report it"),
            extra_db,
        )
    ]


def rounding(place: Place, part: str) -> Cause:
    """What is left to say where nothing is out of the ordinary."""
    more = "more bits" if part == "weight" else "ranges from more calibration batches"
    return Cause(
        "rounding",
        f"nothing unusual in the {part}: rounding alone",
        (leave_out(place), more),
        0.0,
    )


# in a weight


def _one_scale(place: Place, facts: WeightFacts) -> Cause | None:
    if not facts.shared or facts.spread < _SHARED_SPREAD:
        return None
    depthwise = f", and sums only {facts.products} products" if facts.products <= _FEW_PRODUCTS else ""
    return Cause(
        "one scale for all channels",
        f"channel {facts.widest} ranges {_times(facts.spread)} as far as the median channel, and all share one scale"
        f"{depthwise}",
        ('one scale a channel: Int(8, per="channel"), the default',),
        math.log2(facts.spread / _SHARED_SPREAD) + 3,
    )


def _low_rank(place: Place, facts: WeightFacts) -> Cause | None:
    share = facts.cut * 10 ** ((math.inf if facts.db is None else facts.db) / 10)
    if facts.rank is None or facts.db is None or share < _CUT:
        return None
    return Cause(
        "low rank",
        f"a product of rank {facts.rank} leaves out {_percent(facts.cut)} of its sum of squares, which makes "
        f"{_percent(min(share, 1.0))} of the error",
        (f'a higher rank here: a Factorize({2 * facts.rank}, where="{place.pattern}") of its own', leave_out(place)),
        4 * min(share, 1.0),
    )


def _few_bits(place: Place, facts: WeightFacts) -> Cause | None:
    if facts.bits >= 7:
        return None
    return Cause(
        "few bits",
        f"its weight has {facts.bits} bits, which leave {_db(facts.db)}",
        (f'more bits here: a Quantize(weights=Int(8), where="{place.pattern}") of its own',),
        (8 - facts.bits) * 0.8,
    )


def _peak(place: Place, facts: WeightFacts) -> Cause | None:
    if facts.peak < _PEAK_WEIGHT or facts.bits > 8:
        return None
    return Cause(
        "outlier weight",
        f"one weight is {_times(facts.peak)} the root mean square of those it shares a scale with",
        (leave_out(place), "for the size alone, smaller groups: Int(8, group=32)"),
        math.log2(facts.peak / _PEAK_WEIGHT),
    )


def _emptied(facts: WeightFacts) -> Cause | None:
    if not facts.emptied:
        return None
    return Cause(
        "dead channels",
        f"{facts.emptied} of {facts.channels} channels became nothing but zeros",
        ('one scale a channel: Int(8, per="channel")',) if facts.shared else ("more bits", "less pruning"),
        math.log2(1 + 8 * facts.emptied / facts.channels),
    )


def _pruned(facts: WeightFacts) -> Cause | None:
    if "sparse" not in facts.label or facts.zeros < _ZEROS:
        return None
    return Cause(
        "pruned",
        f"{_percent(facts.zeros)} of its weights are zero",
        ('a smaller Prune amount here, or scope="global"', "a Finetune after the Prune"),
        3 + 4 * facts.zeros,
    )


def _depthwise(place: Place, facts: WeightFacts) -> Cause | None:
    if facts.products > _FEW_PRODUCTS or "conv" not in place.op:
        return None
    return Cause(
        "few products",
        f"an output sums only {facts.products} products, as in depthwise convolutions: errors do not average out",
        (leave_out(place), "train on: Finetune"),
        0.5,
    )


# in a value


def _clipped(place: Place, facts: ValueFacts) -> Cause | None:
    reach = max(
        facts.high / facts.grid_high if facts.grid_high > 0 else 1.0,
        facts.low / facts.grid_low if facts.grid_low < 0 else 1.0,
    )
    if facts.dynamic or facts.clipping < _CLIPPING or reach < _REACH:
        return None
    at_run_time = ("ranges found at run time: Int(8, dynamic=True)",) if place.op == "linear" else ()
    return Cause(
        "clipped range",
        f"{_percent(facts.outside)} of what it {_verb(facts)} lies outside the calibrated range "
        f"{_span(facts.grid_low, facts.grid_high)}, up to {_times(reach)} as far, and makes "
        f"{_percent(facts.clipping)} of the error",
        ("calibrate with inputs like these", "calibration=MinMax(), which keeps all that they hold", *at_run_time),
        4 + math.log2(max(1.0, reach)),
    )


def _outlier(place: Place, facts: ValueFacts) -> Cause | None:
    if facts.spread < _VALUE_SPREAD:
        return None
    return Cause(
        "outlier channel",
        f"channel {facts.widest} of what it {_verb(facts)} ranges {_times(facts.spread)} as far as the median channel, "
        "and all share one scale",
        (
            leave_out(place),
            "move the outliers into the weights before: divide that channel, and multiply the weights that read it",
        ),
        math.log2(facts.spread / _VALUE_SPREAD) + 1,
    )


def _unused(facts: ValueFacts) -> Cause | None:
    flows = max(0.0, facts.high) - min(0.0, facts.low)
    if flows > _NARROW * (facts.grid_high - facts.grid_low) or facts.bits < 6:
        return None
    return Cause(
        "unused codes",
        f"what it {_verb(facts)} takes {facts.codes} of {2**facts.bits} codes: the calibrated range "
        f"{_span(facts.grid_low, facts.grid_high)} is wider than what flows, {_span(facts.low, facts.high)}",
        ("calibrate with inputs like these", "calibration=Percentile(99.9)"),
        math.log2(2**facts.bits / facts.codes),
    )


def _few_levels(facts: ValueFacts) -> Cause | None:
    if facts.bits >= 7:
        return None
    return Cause(
        "few bits",
        f"what it {_verb(facts)} has {facts.bits} bits, which leave {_db(facts.db)}",
        ("activations=Int(8)",),
        (8 - facts.bits) * 0.8,
    )


def _tail(place: Place, facts: ValueFacts) -> Cause | None:
    if facts.peak < _PEAK_VALUE:
        return None
    cut = () if facts.dynamic else ("cut the tail: calibration=Percentile(99.99)",)
    return Cause(
        "long tail",
        f"the largest of what it {_verb(facts)} is {_times(facts.peak)} the root mean square",
        (leave_out(place), *cut),
        math.log2(facts.peak / _PEAK_VALUE) + 0.5,
    )


def _ordered(found: Iterable[Cause | None]) -> list[Cause]:
    return sorted((cause for cause in found if cause is not None), key=lambda cause: -cause.strength)


def leave_out(place: Place) -> str:
    """The remedy that is always there."""
    return f'leave it in float: where="!{place.pattern}"' if place.weight else "leave the layers around it in float"


def _verb(facts: ValueFacts) -> str:
    return "reads" if facts.read else "gives"


def _times(ratio: float) -> str:
    return f"{digits(ratio, 2)}×"


def _span(low: float, high: float) -> str:
    return f"{digits(low)} to {digits(high)}"


def _db(db: float | None) -> str:
    return "it exact" if db is None else f"{db:.0f} dB"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{digits(100 * share, 2)} %"
