from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from lilliput.errors import MeasureError
from lilliput.measure import Measurement, mean, median, median_ratio, paired_difference
from lilliput.measure.statistics import _student

Draw = Callable[[np.random.Generator], tuple[Any, ...]]


def coverage(draw: Draw, measure: Callable[..., Measurement], truth: float, repeats: int = 400) -> float:
    """How often the interval holds the truth, over fresh draws of data."""
    rng = np.random.default_rng(7)
    found = [measure(*draw(rng)) for _ in range(repeats)]
    return sum(m.low <= truth <= m.high for m in found) / repeats


def clustered_successes(rng: np.random.Generator) -> tuple[Any, ...]:
    """40 clusters of 5, each with its own chance of success; the mean chance is 0.9."""
    ids = np.repeat(np.arange(40), 5)
    return rng.random(200) < rng.beta(0.9, 0.1, 40)[ids], ids


def clustered_figures(rng: np.random.Generator) -> tuple[Any, ...]:
    """30 clusters of unequal sizes around 3."""
    ids = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    return 3 + rng.normal(size=30)[ids] + rng.normal(size=ids.size), ids


def changed_answers(rng: np.random.Generator) -> tuple[Any, ...]:
    """200 samples: 5 % become right, 7 % become wrong."""
    chance = rng.random(200)
    return (chance >= 0.05) & (chance < 0.9), ((chance < 0.9) & (chance >= 0.12)) | (chance < 0.05)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [20, 200])
def test_proportions_are_covered(p: float, n: int) -> None:
    assert coverage(lambda rng: (rng.random(n) < p,), mean, p) > 0.92


@pytest.mark.parametrize(("draw", "truth"), [(clustered_successes, 0.9), (clustered_figures, 3.0)])
def test_clustered_means_are_covered_only_when_the_clusters_are_known(draw: Draw, truth: float) -> None:
    assert 0.91 < coverage(draw, mean, truth) < 0.99
    assert coverage(lambda rng: draw(rng)[:1], mean, truth) < 0.88


def test_many_clusters_use_the_formula_and_are_covered() -> None:
    assert 0.92 < coverage(lambda rng: (rng.exponential(size=1001),), mean, 1.0) < 0.98


def test_the_formula_and_the_resamples_agree() -> None:
    scores = np.random.default_rng(3).normal(size=1000)
    resampled, formula = mean(scores), mean(np.append(scores, scores.mean()))
    assert resampled.low == pytest.approx(formula.low, abs=0.006)
    assert resampled.high == pytest.approx(formula.high, abs=0.006)


def test_paired_answers_are_covered() -> None:
    assert 0.92 < coverage(changed_answers, paired_difference, -0.02) < 0.99


def test_pairing_is_narrower_than_two_means() -> None:
    before, after = changed_answers(np.random.default_rng(0))
    paired = paired_difference(before, after)
    assert paired.value == pytest.approx(mean(after).value - mean(before).value)
    assert paired.high - paired.low < mean(after).high - mean(after).low


@pytest.mark.parametrize("n", [6, 15, 200])
def test_medians_are_covered(n: int) -> None:
    assert coverage(lambda rng: (rng.lognormal(size=n),), median, 1.0) > 0.92


def test_the_mean_weighs_samples_not_clusters() -> None:
    assert mean([1, 1, 1, 0], clusters=["a", "a", "a", "b"]).value == 0.75


def test_unanimous_scores_are_not_certain() -> None:
    wilson_low = 1 / (1 + NormalDist().inv_cdf(0.975) ** 2 / 200)
    assert mean(np.ones(200)).high == mean(np.ones(200)).value == 1.0
    assert mean(np.ones(200)).low == pytest.approx(wilson_low, abs=5e-4)
    assert mean(np.zeros(200)).high == pytest.approx(1 - wilson_low, abs=5e-4)
    assert mean(np.ones(200), clusters=np.arange(200) // 20).low < 0.7


def test_one_cluster_alone_has_the_widest_interval() -> None:
    assert (mean([1, 1, 0], clusters=[4, 4, 4]).low, mean([1, 1, 0], clusters=[4, 4, 4]).high) == (0.0, 1.0)
    assert mean([0.3]).low == -math.inf
    assert paired_difference([1], [0]).low == -1.0
    assert median([2.0]).high == math.inf


def test_paired_difference_of_identical_scores_is_exactly_zero() -> None:
    figures = np.random.default_rng(0).normal(size=50).astype(np.float32)
    same = paired_difference(figures, figures)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    answers = figures > 0
    unchanged = paired_difference(answers, answers)
    assert unchanged.value == 0.0
    assert unchanged.low == pytest.approx(-unchanged.high)
    assert 0 < unchanged.high < 0.06


def test_the_sign_of_a_difference_is_after_minus_before() -> None:
    assert paired_difference([1, 1], [0, 1]).value == -0.5


def test_more_confidence_is_wider_and_repeats_are_equal() -> None:
    scores = np.random.default_rng(0).normal(size=40)
    assert mean(scores, confidence=0.99).low < mean(scores).low
    assert mean(scores) == mean(scores)
    assert mean(torch.from_numpy(scores)) == mean(scores)


def test_median_ratio_pairs_the_rounds() -> None:
    drift = np.linspace(1, 5, 21)
    ratio = median_ratio(2 * drift, drift)
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_median_is_between_the_order_statistics_of_the_binomial_law() -> None:
    found = median(np.arange(1.0, 21.0))
    assert (found.value, found.low, found.high) == (10.5, 6.0, 15.0)  # the 6th and 15th of 20: 95.9 %


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (10, 2.22814), (100, 1.98397), (5000, 1.9604)]
)
def test_student_quantiles(freedom: int, quantile: float) -> None:
    assert _student(freedom, 0.95) == pytest.approx(quantile, rel=5e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean([]), "no samples"),
        (lambda: mean([1.0, math.nan]), "1 of 2 values are NaN"),
        (lambda: mean([[1.0]]), r"shape \(1, 1\)"),
        (lambda: mean([1.0, 2.0], clusters=[1]), "2 scores and 1 cluster labels"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "cannot be paired"),
        (lambda: median_ratio([1.0], [0.0]), "denominator is 0"),
        (lambda: median_ratio([1.0], [1.0, 2.0]), "cannot be paired"),
    ],
)
def test_unusable_scores_are_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        call()
