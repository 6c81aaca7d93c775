"""Causes that no processor at hand or no small network shows, on facts made up."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lilliput.blame.blame import _even, _Found
from lilliput.blame.causes import of_runtime, of_value, of_weight
from lilliput.blame.facts import ValueFacts, WeightFacts, weight_facts
from lilliput.blame.places import Place
from lilliput.encodings import Encoding, Int, LowRank
from lilliput.model.carrier.carrier import attach

PLACE = Place("conv.weight", "conv2d", "conv.weight", None, (), (), ())


def value(**fields: float) -> ValueFacts:
    plain = {"low": -3.0, "high": 3.0, "grid_low": -3.0, "grid_high": 3.0, "outside": 0.0, "clipping": 0.0}
    more = {"spread": 1.2, "widest": 0, "peak": 4.0, "codes": 256, "db": 40.0, "bits": 8}
    return ValueFacts(name="conv:conv2d#0", label="uint8", dynamic=False, **{**plain, **more, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoded", "may_saturate", "kind"),
    [(True, True, "saturation"), (True, False, "another kernel"), (False, True, "rounded by the runtime")],
)
def test_what_the_runtime_adds_is_named(encoded: bool, may_saturate: bool, kind: str) -> None:
    assert [cause.kind for cause in of_runtime(PLACE, encoded, 6.0, may_saturate)] == [kind]
    assert not of_runtime(PLACE, encoded, 1.0, may_saturate)


def test_a_value_is_blamed_only_for_what_is_out_of_the_ordinary() -> None:
    assert not of_value(PLACE, value())
    assert not of_value(PLACE, value(high=3.2, clipping=0.9, outside=0.001))  # as the fit of a range chose
    assert of_value(PLACE, value(high=9.0, clipping=0.9, outside=0.1))[0].kind == "clipped range"
    assert of_value(PLACE, value(grid_high=90.0, codes=9))[0].kind == "unused codes"
    assert of_value(PLACE, value(spread=40.0))[0].kind == "outlier channel"
    assert of_value(PLACE, value(peak=60.0))[0].kind == "long tail"
    assert of_value(PLACE, value(bits=4))[0].kind == "few bits"


@pytest.mark.parametrize(
    ("encoding", "kinds"),
    [
        (LowRank(2), ["low rank"]),
        (LowRank(2, Int(4)), ["low rank"]),  # more bits would change next to nothing
        (LowRank(12, Int(3)), ["few bits"]),
        (LowRank(12, Int(8)), []),
        (Int(4), ["few bits"]),
    ],
    ids=repr,
)
def test_a_low_rank_is_blamed_where_more_bits_would_not_help(encoding: Encoding, kinds: list[str]) -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Conv2d(4, 12, 3))
    place = Place("0.weight", "conv2d", "0.weight", None, (), (), ())
    small = copy.deepcopy(exact)
    x = exact[0].weight.detach()
    attach(small, ("0.weight",), encoding.for_weight().represent(x))
    facts = weight_facts(exact, small, place)
    assert isinstance(facts, WeightFacts)
    found = of_weight(place, facts)
    assert [cause.kind for cause in found] == kinds
    if kinds == ["low rank"]:
        squares = torch.linalg.svdvals(x.flatten(1)).square()
        left_out = float(squares[2:].sum() / squares.sum())
        assert f"leaves out {100 * left_out:.0f} % of its sum of squares" in found[0].says
        assert 'Factorize(4, where="0")' in found[0].remedies[0]
        assert not any("bits" in remedy for cause in found for remedy in cause.remedies)


def test_where_no_layer_is_to_blame_it_is_said() -> None:
    def found(*own: float) -> list[_Found]:
        return [_Found(PLACE, True, 0.0, None, own=x) for x in own]

    assert "the worst makes 10 % of the noise, the worst 3 together 30 %" in _even(found(*[0.1] * 10))[0]
    assert not _even(found(0.9, *[0.1] * 9)) and not _even(found(0.1, 0.1)) and not _even([])
