from __future__ import annotations

import json
import math

import pytest

from lilliput.measure import Measurement


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.92, 1.85, 2.01, "1.92 [1.85, 2.01]"),
        (0.98312, 0.98310, 0.98315, "0.983120 [0.983100, 0.983150]"),
        (12345.6, 12000.0, 13000.0, "12346 [12000, 13000]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (2.0, -math.inf, math.inf, "about 2.00"),
    ],
)
def test_text_shows_the_figure_and_the_width_of_its_interval(value: float, low: float, high: float, text: str) -> None:
    assert str(Measurement(value, low, high, samples=3)) == text


def test_json_keeps_the_fields_and_is_strict_json() -> None:
    figures = Measurement(1.0, -math.inf, 2.0, samples=7, unit="ms").to_json()
    assert json.loads(json.dumps(figures, allow_nan=False)) == {
        "value": 1.0,
        "low": None,
        "high": 2.0,
        "samples": 7,
        "unit": "ms",
    }
    assert "unit" not in Measurement(1.0, 0.0, 2.0, samples=7).to_json()
