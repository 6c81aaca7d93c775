"""What calibration sees does not depend on how images lie in memory, and never harms a model to which that matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional

import lilliput as lp
from lilliput.encodings import Int
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.feeding import Batches
from lilliput.model.carrier.parameters import read
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs
from lilliput.progress import silent
from lilliput.techniques.observe import observed
from lilliput.techniques.ranges import MSE
from lilliput.techniques.statistics import Observe, Statistics

WANTED = {"conv:conv2d#0": Observe(channel_axis=1)}


class Images(nn.Module):
    """A convolution, of which `then` reads what it gives; it notes how its inputs lay."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 8, 3), then
        self.channels_last: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.channels_last.append(not x.is_contiguous())
        return self.then(self.conv(x))


def merged(x: Tensor) -> Tensor:
    """Of one image a view in any layout, of several only where rows follow each other."""
    return x.view(-1, *x.shape[2:])


def raw(x: Tensor) -> Tensor:
    """The numbers as they lie in memory, as a kernel reads them that never asks."""
    return x.as_strided((len(x), x[0].numel()), (x[0].numel(), 1))


def statistics(model: Images, after: Callable[..., None] | None = None) -> Statistics:
    """Of what the convolution gives, which `after` sees as a hook, as the calibration batches run."""
    torch.manual_seed(0)
    images = list(torch.randn(12, 3, 9, 9).split(4))
    example = Inputs.of(images[0][:1])
    batches = Batches.checked(images, "calibrate", example, {})
    view = capture(model, example, {})
    if after is not None:
        model.conv.register_forward_hook(after)
    return observed(model, view, WANTED, batches, example, silent)["conv:conv2d#0"]


@pytest.mark.parametrize(
    ("then", "last"),
    [(torch.relu, True), (lambda x: x.view(len(x), -1), False), (merged, False), (raw, False)],
    ids=["indifferent", "view", "view of several", "memory"],
)
def test_images_lie_channels_last_unless_it_matters(then: Callable[[Tensor], Tensor], last: bool) -> None:
    torch.manual_seed(1)
    model = Images(then).eval()
    found = statistics(model)
    assert model.channels_last[-3:] == [last] * 3
    torch.manual_seed(0)
    with torch.no_grad():
        given = model.conv(torch.randn(12, 3, 9, 9))
    assert int(found.counts.sum()) == given.numel()
    close(torch.tensor([found.low, found.high]), torch.stack([given.min(), given.max()]))
    close(found.mean, given.mean((0, 2, 3)))


def read_again(x: Tensor) -> Tensor:
    return functional.relu(x) + x


def seen_through(x: Tensor) -> Tensor:
    y = x[:, :1]
    return functional.relu(x) + y


def given_too(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, functional.relu(x)


@pytest.mark.parametrize(
    ("then", "over"),
    [
        (functional.relu, True),
        (functional.hardswish, True),
        (read_again, False),
        (seen_through, False),
        (given_too, False),
    ],
    ids=["relu", "hardswish", "read again", "seen through a view", "an output"],
)
def test_activations_write_over_what_nobody_else_reads(then: Callable[[Tensor], Any], over: bool) -> None:
    torch.manual_seed(1)
    given: list[tuple[Tensor, Tensor]] = []
    found = statistics(Images(then).eval(), lambda module, args, out: given.append((out, out.clone())))
    assert [torch.equal(now, then) for now, then in given[-3:]] == [not over] * 3
    assert found.low == min(float(then.min()) for _, then in given)


def test_activations_do_not_write_over_inputs() -> None:
    model, batch = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3)).eval(), torch.randn(4, 3, 9, 9)
    was, example = batch.clone(), Inputs.of(batch[:1])
    batches = Batches.checked([batch], "calibrate", example, {})
    observed(model, capture(model, example, {}), {"1:conv2d#0": Observe()}, batches, example, silent)
    assert torch.equal(batch, was)


@pytest.mark.parametrize("shape", [(4, 6, 9, 10), (16, 8, 96, 97)])
def test_statistics_are_the_same_in_any_layout(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    both = [Statistics(Observe(channel_axis=1, magnitudes=True)) for _ in range(2)]
    for seen, layout in zip(both, (torch.contiguous_format, torch.channels_last), strict=True):
        seen.update(x.contiguous(memory_format=layout))
    a, b = both
    assert (a.low, a.high, a.limit, int(a.counts.sum())) == (b.low, b.high, b.limit, int(b.counts.sum()))
    close(a.mean, b.mean, rtol=1e-6, atol=1e-6)
    close(a.mean_magnitude, b.mean_magnitude, rtol=1e-6, atol=0)
    assert torch.equal(a.largest_magnitude, b.largest_magnitude)
    counted = a.counts.cumsum(0) / a.counts.sum(), b.counts.cumsum(0) / b.counts.sum()
    close(*counted, atol=5e-3, rtol=0)


def one_by_one(points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[float, float]:
    """The ends of one block's points [points], every pair tried by itself."""
    shares = torch.linspace(1.0, 0.2, 24)
    low, high = points.min().clamp(max=0), points.max().clamp(min=0)
    two = encoding.symmetric is False and bool(low < 0)
    least, best = float("inf"), (low, high)
    for a, b in [(a, b) for a in shares for b in shares] if two else zip(shares, shares, strict=True):
        given = encoding.from_range((low * a)[None], (high * b)[None], (1,))
        squares = (encoding.nearest(points[None], given) - points).double().square()
        error = float((squares if counts is None else squares * counts).sum())
        if error < least:
            least, best = error, (low * a, high * b)
    return float(best[0]), float(best[1])


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("encoding", [Int(4).for_weight(), Int(4, symmetric=False, per="channel")])
def test_ranges_tried_together_are_those_tried_one_by_one(encoding: Int, counted: bool) -> None:
    torch.manual_seed(0)
    points = torch.randn(3, 40000 if encoding.symmetric else 500)  # the former not all at once
    counts = torch.randint(1, 9, points.shape).double() if counted else None
    found = torch.stack(MSE().find(points, counts, encoding), 1)
    slow = [one_by_one(x, None if counts is None else counts[i], encoding) for i, x in enumerate(points)]
    close(found, torch.tensor(slow))


class Single(nn.Module):
    """A convolution of images with or without a batch around them."""

    def __init__(self, *, batched: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.batched = nn.Conv2d(8, 5, 3), batched

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.batched else self.conv(x[0])[None]  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    "step", [lp.Quantize(weights=Int(3)), lp.Quantize(activations=lp.formats.Blockwise(4, group=4))], ids=repr
)
def test_a_convolution_of_one_image_is_corrected_by_its_channels(step: lp.Quantize, size: int) -> None:
    images = [torch.randn(1, 8, size, 9) + torch.linspace(0, 6, 8).view(1, 8, 1, 1) for _ in range(3)]
    answers = []
    for batched in (True, False):
        driver, _ = begin(lp.Task(Single(batched=batched), calibrate=images), lp.targets.OnnxRuntime(), Store(), silent)
        follow(lp.Recipe([step]), driver)
        answers.append((read(driver.model, "conv.bias"), driver.model(images[0])))
    close(answers[0], answers[1])
