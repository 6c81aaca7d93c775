"""Means and medians with intervals that still hold when samples are few, alike or unanimous."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lilliput.errors import MeasureError
from lilliput.measure.measurement import Measurement

Floats: TypeAlias = NDArray[np.float64]
Clusters: TypeAlias = Sequence[Any] | NDArray[Any]

_RESAMPLES = 2000
_SEED = 0
_FEW_CLUSTERS = 1000  # up to here they are resampled; beyond, their mean is normal and its formula is used


def mean(scores: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95) -> Measurement:
    """The mean of one score a sample, where samples of one cluster may resemble one another.

    - Scores that are all 0 or 1: Wilson's interval, its sample size being the effective one,
      `p (1 - p) / standard_error²` (at most the samples; the number of clusters when all scores agree),
      so 200 of 200 right reads [0.98, 1] and not [1, 1].
    - Others: the percentile bootstrap over whole clusters, 2000 resamples, fixed seed, percentiles widened by
      Student's t for few clusters (Hesterberg 2015); over 1000 clusters, mean ± t · standard error.
      Equal scores that are not all 0 or 1 show no spread: their interval has no width.

    `scores` [samples], `clusters` [samples] (any labels; without them each sample is its own cluster). One
    cluster alone has the widest interval there is. Raises MeasureError for no, NaN, infinite or unmatched
    scores.

    >>> print(mean([1, 1, 1, 0] * 25))
    0.750 [0.655, 0.826]
    """
    groups = _grouped(scores, clusters)
    binary = bool(np.isin(groups.scores, (0, 1)).all())
    low, high = (_wilson if binary else _spread)(groups, confidence)
    return _measured(groups, low, high)


def paired_difference(
    before: ArrayLike, after: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95
) -> Measurement:
    """The mean of `after - before`, both scored on the same samples.

    When all scores are 0 or 1: Bonett and Price's interval (2012), which adds one sample won and one lost,
    so that no sample changed among 200 reads 0 ± 0.014; sample sizes as in `mean`. Others: as `mean`.

    >>> print(paired_difference([1, 1, 1, 1] * 50, [1, 1, 1, 0] * 50))
    -0.250 [-0.309, -0.186]
    """
    first, second = _finite(before), _finite(after)
    if first.size != second.size:
        raise MeasureError(f"{first.size} scores before and {second.size} after cannot be paired")
    groups = _grouped(second - first, clusters)
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    low, high = (_bonett_price if binary else _spread)(groups, confidence)
    return _measured(groups, low, high)


def median(values: ArrayLike, confidence: float = 0.95) -> Measurement:
    """The median of independent values, between the order statistics that the binomial law names.

    Too few values for any order statistic (under six at 95 %): the median ± Student's t · the mean's
    standard error.

    >>> print(median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
    4.00 [1.00, 7.00]
    """
    ordered = np.sort(_finite(values))
    middle, n = float(np.median(ordered)), int(ordered.size)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_chance = log_factorial[-1] - log_factorial - log_factorial[::-1] - n * math.log(2)
    trimmed = int(np.searchsorted(np.cumsum(np.exp(log_chance)), (1 - confidence) / 2, side="right"))
    if trimmed:
        return Measurement(middle, float(ordered[trimmed - 1]), float(ordered[n - trimmed]), n)
    half = _student(n - 1, confidence) * float(ordered.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Measurement(middle, middle - half, middle + half, n)


def median_ratio(numerators: ArrayLike, denominators: ArrayLike, confidence: float = 0.95) -> Measurement:
    """The median of `numerators / denominators` of paired rounds, so that what slows both does not count.

    Its interval is that of `median`; of few rounds, Student's t on logarithms, so that no ratio is below 0.

    >>> median_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value
    2.0
    """
    above, below = _finite(numerators), _finite(denominators)
    if above.size != below.size:
        raise MeasureError(f"{above.size} numerators and {below.size} denominators cannot be paired")
    if (below == 0).any():
        raise MeasureError("a denominator is 0, so there is no ratio")
    ratios = above / below
    found = median(ratios, confidence)
    if found.low >= ratios.min() or not (ratios > 0).all() or ratios.size == 1:
        return found
    logs = median(np.log(ratios), confidence)  # too few for order statistics: Student's t, where nothing is below 0
    return Measurement(found.value, min(_exp(logs.low), found.value), max(_exp(logs.high), found.value), found.samples)


def _exp(log: float) -> float:
    """e to that power; infinity where it is too large for a float."""
    return math.exp(log) if log < 700 else math.inf


@dataclass(frozen=True, eq=False)
class _Grouped:
    scores: Floats  # [samples]
    sums: Floats  # [clusters]
    counts: Floats  # [clusters]

    @property
    def value(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Of a ratio of sums over clusters (linearised)."""
        residual = self.sums - self.value * self.counts
        n = self.sums.size
        return math.sqrt(n / (n - 1) * float(residual @ residual)) / self.scores.size

    def effective_samples(self, variance: float) -> float:
        """How many independent samples of that variance would have this standard error."""
        error = self.standard_error
        if variance <= 0 or error == 0:
            return float(self.sums.size)
        return min(variance / error**2, float(self.scores.size))


def _grouped(scores: ArrayLike, clusters: Clusters | None) -> _Grouped:
    values = _finite(scores)
    if clusters is None:
        return _Grouped(values, values, np.ones_like(values))
    if len(clusters) != values.size:
        raise MeasureError(f"{values.size} scores and {len(clusters)} cluster labels cannot be matched")
    ids = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, counts = np.bincount(ids, weights=values), np.bincount(ids)
    return _Grouped(values, sums.astype(np.float64), counts.astype(np.float64))


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise MeasureError(f"one score a sample is a row of numbers, not an array of shape {array.shape}")
    if not array.size:
        raise MeasureError("there is nothing to measure: no samples")
    if bad := int((~np.isfinite(array)).sum()):
        raise MeasureError(f"{bad} of {array.size} values are NaN or infinite")
    return array


def _measured(groups: _Grouped, low: float, high: float) -> Measurement:
    value = groups.value
    return Measurement(value, min(low, value), max(high, value), int(groups.scores.size))


def _spread(groups: _Grouped, confidence: float) -> tuple[float, float]:
    n = int(groups.sums.size)
    if n == 1:
        return -math.inf, math.inf
    width = _student(n - 1, confidence)
    if n > _FEW_CLUSTERS:
        return groups.value - width * groups.standard_error, groups.value + width * groups.standard_error
    picks = np.random.default_rng(_SEED).integers(n, size=(_RESAMPLES, n))
    means = groups.sums[picks].sum(axis=1) / groups.counts[picks].sum(axis=1)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * width)
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def _wilson(groups: _Grouped, confidence: float) -> tuple[float, float]:
    if groups.sums.size == 1:
        return 0.0, 1.0
    p = groups.value
    n = groups.effective_samples(p * (1 - p))
    t = _student(int(groups.sums.size) - 1, confidence)
    center = (p + t * t / (2 * n)) / (1 + t * t / n)
    half = t / (1 + t * t / n) * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)


def _bonett_price(groups: _Grouped, confidence: float) -> tuple[float, float]:
    if groups.sums.size == 1:
        return -1.0, 1.0
    won, lost = float((groups.scores > 0).mean()), float((groups.scores < 0).mean())
    n = groups.effective_samples(won + lost - (won - lost) ** 2)
    won, lost = (n * won + 1) / (n + 2), (n * lost + 1) / (n + 2)
    error = math.sqrt((won + lost - (won - lost) ** 2) / (n + 2))
    half = _student(int(groups.sums.size) - 1, confidence) * error
    return max(won - lost - half, -1.0), min(won - lost + half, 1.0)


def _student(freedom: int, confidence: float) -> float:
    """The two-sided quantile of Student's t = √freedom · tan(a), where a has density cos(a)^(freedom - 1)."""
    if freedom > 1000:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    angle = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, area / area[-1], angle)))
