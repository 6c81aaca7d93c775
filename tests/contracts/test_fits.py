"""What combines with what, cell by cell, and each fit beside a slow and obvious version of itself."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import ENCODINGS, Blockwise, Codebook, Encoding, Int, PowerOfTwo
from lilliput.encodings.codebook import interval_levels, lloyd, quantile_levels
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import RecipeError
from lilliput.feeding import Batches
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.values import value_encodings
from lilliput.techniques.combinations import FITS, formats, table
from lilliput.techniques.ranges import Use
from lilliput.techniques.rounding import ROUNDINGS, Rounding
from lilliput.techniques.statistics import Observe, Statistics

SAMPLES: dict[str, Encoding] = {
    "Float16": lp.formats.Float16(),
    "BFloat16": lp.formats.BFloat16(),
    "Int": lp.Int(4),
    "Fixed": lp.formats.Fixed(2, 5),
    "Codebook": lp.formats.Codebook(8),
    "PowerOfTwo": lp.formats.PowerOfTwo(4),
    "Signs": lp.formats.Signs(3),
    "NF4": lp.formats.NF4(),
    "MiniFloat": lp.formats.MiniFloat("e2m1"),
    "Blockwise": lp.formats.Blockwise(4, group=8),
    "LowRank": lp.formats.LowRank(4),
    "Sparse": lp.formats.Sparse(lp.Int(4)),
    "Exponent8": ENCODINGS["Exponent8"](),
}
assert SAMPLES.keys() == ENCODINGS.keys(), "a format that no combination is checked on"


def driven(step: lp.Quantize) -> Driver:
    """A small network after a step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    inputs = [torch.randn(32, 8)]
    example = Inputs.of(inputs[0])
    axes = dynamic_axes(example, None)
    driver = Driver.start(
        net,
        example=example,
        dynamic=axes,
        calibrate=Batches.checked(inputs, "calibrate", example, axes),
        target=lp.targets.OnnxRuntime(threads=1),
        store=Store(),
        environment="",
    )
    step.apply(driver)
    return driver


def cells() -> Iterator[Any]:
    heading, *rows = table()
    told = {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows}
    for name in SAMPLES:
        for use in ("weights", "values"):
            allowed = [fit for fit in FITS if use in told.get(name, {}).get(fit, "").split(", ")]
            yield pytest.param(name, use, allowed, id=f"{name}-{use}")


@pytest.mark.parametrize(("name", "use", "allowed"), list(cells()))
def test_what_is_in_the_table_works_and_all_else_is_refused_by_name(name: str, use: Use, allowed: list[str]) -> None:
    encoding = SAMPLES[name]
    for fit, kind in FITS.items():
        fields: dict[str, Any] = (
            {"weights": encoding, "fit": kind()}
            if use == "weights"
            else {"weights": Int(8), "activations": encoding, "calibration": kind()}
        )
        inner = encoding.values if isinstance(encoding, lp.formats.Sparse) else encoding
        if fit in allowed or (name == "Sparse" and use == "weights" and fit in ("MinMax", "Percentile", "MSE", "HQQ")):
            model = driven(lp.Quantize(**fields)).model
            if use == "weights":
                held = model[0]._modules["weight_encoded"].encoding  # type: ignore[index,union-attr]
                assert type(held) is type(encoding)
            else:
                assert {type(held.encoding) for held in value_encodings(model).values()} == {type(encoding)}
            assert bool(torch.isfinite(model(torch.randn(4, 8))).all())
        else:
            with pytest.raises(RecipeError) as caught:
                lp.Quantize(**fields)
            known = [*FITS, *formats(use), "calibration="]
            assert any(word in caught.value.next for word in known) and repr(inner) in caught.value.what


@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
@pytest.mark.parametrize("name", SAMPLES)
def test_what_rounding_cannot_choose_from_is_refused_by_name(name: str, rounding: type[Rounding]) -> None:
    told = {row[0]: row[-1] for row in table()}
    if told.get(name) or name == "Sparse":
        assert lp.Quantize(weights=SAMPLES[name], rounding=rounding()).rounding == rounding()
    else:
        with pytest.raises(RecipeError):
            lp.Quantize(weights=SAMPLES[name], rounding=rounding())


def test_the_guide_shows_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    found = re.search(r"^\| format \|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
    assert [tuple(lines[0]), *(tuple(line) for line in lines[2:])] == table()


def of(points: Tensor, counts: Tensor) -> Statistics:
    """What would be known of a value with these points."""
    seen = Statistics(Observe())
    for x, n in zip(points.tolist(), counts.tolist(), strict=True):
        seen.update(torch.full((int(n),), x))
    return seen


@pytest.mark.parametrize(
    "grid",
    [lp.formats.PowerOfTwo(4), lp.formats.NF4(), lp.formats.MiniFloat("e4m3"), lp.formats.Blockwise(4, group=None)],
    ids=repr,
)
def test_the_largest_element_meets_the_largest_number(grid: Any) -> None:
    x = torch.randn(4, 64)
    top = max(number for number in (grid.table() if hasattr(grid, "table") else (1.0,)) if not math.isnan(number))
    scale = lp.ranges.MinMax().fit(x, grid)["scale"]
    close(scale * top, x.abs().amax(1))
    assert bool((lp.ranges.Percentile(90).fit(x, grid)["scale"] < scale).all())


@pytest.mark.parametrize("name", ["Int", "PowerOfTwo", "Signs", "NF4", "MiniFloat", "Blockwise"])
def test_no_range_has_less_error_than_the_squared_error_fit(name: str) -> None:
    x = torch.randn(8, 64)
    encoding = SAMPLES[name].for_weight()

    def error(fit: Any) -> float:
        return float((encoding.represent(x, fit.fit(x, encoding)).decode() - x).square().sum())

    assert error(lp.ranges.MSE()) <= min(
        error(lp.ranges.MinMax()), error(lp.ranges.Percentile(99)), error(lp.ranges.Percentile(95))
    )


def test_a_histogram_is_fitted_as_its_points_are() -> None:
    points, counts = torch.tensor([-2.0, -0.5, 0.25, 1.0, 4.0]), torch.tensor([3, 40, 50, 20, 1])
    whole = points.repeat_interleave(counts)[None]
    for grid in (
        lp.formats.PowerOfTwo(4, per="tensor"),
        lp.formats.Signs(2, per="tensor"),
        lp.formats.NF4(per="tensor"),
    ):
        mine = lp.ranges.MSE().of_value(of(points, counts), grid)["scale"]
        errors = [
            float((grid.represent(whole, {"scale": scale}).decode() - whole).square().sum())
            for scale in (mine, lp.ranges.MSE().fit(whole, grid)["scale"])
        ]
        assert errors[0] == pytest.approx(errors[1], rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_levels_of_equal_shares_are_the_means_of_the_shares(n: int) -> None:
    x = torch.randn(3, 80)
    levels = quantile_levels(x, n, zero=False)
    for row, mine in zip(x, levels, strict=True):
        ordered = sorted(row.tolist())
        borders = [round(i * 80 / n) for i in range(n + 1)]
        parts = [ordered[a:b] for a, b in itertools.pairwise(borders)]
        close(mine, torch.tensor([sum(part) / len(part) for part in parts]))
    assert bool((quantile_levels(x, n, zero=True) == 0).any(1).all())


def squared(x: Tensor, levels: Tensor) -> Tensor:
    return (x[..., None] - levels[:, None]).abs().amin(-1).square().sum(1)


@pytest.mark.parametrize("zero", [False, True])
def test_clipped_intervals_lie_between_one_clip_and_the_best_levels(zero: bool) -> None:
    x = torch.randn(4, 200) ** 3
    clips = torch.linspace(1.0, 0.2, 24).tolist()
    found = squared(x, interval_levels(x, 8, zero, clips))
    for clip in (1.0, 0.5):
        assert bool((found <= squared(x, interval_levels(x, 8, zero, [clip])) + 1e-4).all())
    assert bool((squared(x, lloyd(x, 8, zero)) <= 1.05 * found).all())
    assert bool((interval_levels(x, 8, zero, clips).diff(dim=1) >= 0).all())


def divergence(points: list[float], counts: list[float], low: float, high: float, codes: int) -> float:
    """Of a histogram over positive points from the codes that are left of it, as the paper writes it."""
    scale = (high - low) / (codes - 1)
    kept = [(p, c) for p, c in zip(points, counts, strict=True) if low <= p <= high and c]
    there = [c for _, c in kept]
    for p, c in zip(points, counts, strict=True):
        if p > high:
            there[-1] += c
    shares: dict[int, list[int]] = {}
    for i, (p, _) in enumerate(kept):
        shares.setdefault(round((p - low) / scale), []).append(i)
    left = [0.0] * len(kept)
    for members in shares.values():
        for i in members:
            left[i] = sum(kept[j][1] for j in members) / len(members)
    total, other = sum(there), sum(left)
    return sum(p / total * math.log((p / total) / (q / other)) for p, q in zip(there, left, strict=True))


def test_entropy_takes_the_range_of_least_divergence() -> None:
    points = torch.linspace(0.01, 6.0, 600)
    counts = (1e5 * torch.exp(-points) * (points < 4)).round()
    counts[-1] = 3  # far away
    fit = lp.ranges.Entropy(steps=16, smallest=0.2)
    encoding = Int(3, symmetric=False, per="tensor")
    low, high = fit.find(points[None], counts[None].double(), encoding)
    tried = [6.0 * share for share in torch.linspace(1.0, 0.2, 16).tolist()]
    by_hand = min(tried, key=lambda end: divergence(points.tolist(), counts.tolist(), 0.0, end, 8))
    assert low.item() == 0 and high.item() == pytest.approx(by_hand, rel=1e-5)
    assert high.item() < 6


def test_entropy_is_not_swayed_by_what_is_zero() -> None:
    x = torch.relu(torch.randn(20000))
    few, many = Statistics(Observe()), Statistics(Observe())
    few.update(x)
    many.update(torch.cat([x, torch.zeros(200000)]))
    encoding = Int(8, symmetric=False, per="tensor")
    assert lp.ranges.Entropy().of_value(few, encoding)["scale"] == lp.ranges.Entropy().of_value(many, encoding)["scale"]


def test_values_that_never_lie_below_zero_get_powers_of_two_above_it() -> None:
    model = driven(lp.Quantize(activations=PowerOfTwo(4, terms=2))).model
    signed = {name: held.encoding.signed for name, held in value_encodings(model).items()}  # type: ignore[attr-defined]
    assert signed == {"0:linear#0@0": True, "2:linear#0@0": False}


def test_shared_levels_are_levels_by_another_name() -> None:
    step = lp.techniques.Share(5, per="channel", fit=lp.ranges.Quantiles())
    same = lp.Quantize(weights=Codebook(5, per="channel"), fit=lp.ranges.Quantiles())
    recipe = lp.Recipe([step])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe
    ours, theirs = (driven(of).model.state_dict() for of in (step, same))  # type: ignore[arg-type]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(RecipeError, match="Codebook"):
        lp.techniques.Share(4, fit=lp.ranges.MinMax())


def test_a_tile_takes_the_grid_that_errs_less() -> None:
    steps, powers = (
        torch.arange(-7.0, 8.0),
        torch.tensor([0.0, *(2.0**-i for i in range(7)), *(-(2.0**-i) for i in range(7))]),
    )
    x = torch.stack([steps, powers])
    encoded = Blockwise(4, group=15).represent(x)
    assert encoded.parts["choice"].tolist() == [[0], [1]]  # type: ignore[union-attr]
    close(encoded.decode(), x)


@pytest.mark.parametrize(("shape", "axis"), [((4, 6, 9, 10), 1), ((4, 7, 6), -1), ((5, 6), 1), ((5, 6), -1)])
def test_channel_means_are_those_of_all_elements(shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    seen = Statistics(Observe(histogram=False, channel_axis=axis, magnitudes=True))
    for part in x.split(2):
        seen.update(part)
    rows = x.movedim(axis, 0).flatten(1)
    close(seen.mean, rows.mean(1))
    close(seen.mean_magnitude, rows.abs().mean(1))
    close(seen.largest_magnitude, rows.abs().amax(1))


def test_something_is_counted_however_small_a_share_a_batch_is() -> None:
    seen = Statistics(Observe(channel_axis=-1))
    for part in torch.arange(24.0).reshape(4, 2, 3):
        seen.update(part, share=1e-9)
    assert seen.reached and int(seen.counts.sum()) == 24 and (seen.low, seen.high) == (0.0, 23.0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_means_of_large_batches_are_near_those_of_all(layout: torch.memory_format) -> None:
    x = torch.randn(8, 12, 64, 64, generator=torch.Generator().manual_seed(0)) + torch.arange(12.0)[:, None, None]
    x = x.contiguous(memory_format=layout)
    seen = Statistics(Observe(histogram=False, channel_axis=1))
    for part in x.split(4):
        seen.update(part, share=1 / 32)
    assert (seen.elements < x.numel() // 12 // 3) == (layout == torch.channels_last)
    close(seen.mean, x.mean((0, 2, 3)), atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [1, 4, 32])
def test_what_is_counted_does_not_depend_on_the_size_of_batches(size: int) -> None:
    x = torch.randn(32, 16, 96, 96, generator=torch.Generator().manual_seed(0))
    whole, parts = Statistics(Observe()), Statistics(Observe())
    whole.update(x)
    for part in x.split(size):
        parts.update(part, share=size / len(x))
    assert int(parts.counts.sum()) == pytest.approx(int(whole.counts.sum()), rel=0.5)
    encoding = Int(8, per="tensor")
    found = [lp.ranges.MSE().of_value(seen, encoding) for seen in (whole, parts)]
    errors = [float((encoding.represent(x, fit).decode() - x).square().mean()) for fit in found]
    best = float((encoding.represent(x, lp.ranges.MSE().fit(x, encoding)).decode() - x).square().mean())
    assert errors == pytest.approx([best, best], rel=0.05)


def test_large_batches_are_counted_in_part_from_all_places() -> None:
    """Each channel and column has its share of what is counted, and the ends are those of all."""
    x = torch.arange(8.0).reshape(1, 8, 1, 1).expand(16, 8, 96, 96).clone()
    x[3, 2, 50, 50] = 100.0
    seen = Statistics(Observe())
    seen.update(x, share=0.125)
    points, counts = seen.points()
    assert int(counts.sum()) < x.numel() // 3 and (seen.low, seen.high) == (0.0, 100.0)
    assert points[0, -1] == 100.0 and 0 < float(counts[0, -1]) <= 1  # one of all, though it may be passed over
    shares = torch.stack([counts[(points - value).abs() < 0.5].sum() for value in range(8)]) / counts.sum()
    close(shares, torch.full((8,), 0.125, dtype=torch.float64), atol=1e-3, rtol=0)
