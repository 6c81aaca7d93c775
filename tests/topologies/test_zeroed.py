"""The oracle believes what is right and refuses what is wrong, and shares no code with what it judges."""

from __future__ import annotations

import ast
import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zeroed
from shrunken import driven, kept
from torch import Tensor, nn
from torch.nn import functional as F
from zeroed import TOLERANCE, departure

import lilliput as lp

Lost = dict[str, dict[int, Tensor]]


class Attending(nn.Module):
    """A norm over channels that go, and attention whose scale torch takes from the width of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.read(x)))
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


@functools.cache
def shrunk() -> tuple[nn.Module, nn.Module, Lost]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attending().eval()
        for x in model.parameters():
            nn.init.normal_(x, 0.5, 0.5)
        driver = driven(model, (torch.randn(2, 5, 6),), lp.Prune("channels", 0.5, multiple=1))
    return model, driver.model, kept(driver)


def inputs() -> list[tuple[Tensor]]:
    return [(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(seed)),) for seed in (1, 2, 3)]


def one_more(small: nn.Module, lost: Lost) -> None:
    """The channels of the norm that the edits tell are one more than there are."""
    told = lost["norm.weight"][0]
    more = torch.cat([told, next(i for i in torch.arange(16) if i not in told)[None]]).sort().values
    for axes in lost.values():
        axes.update({axis: more for axis, places in axes.items() if places.equal(told)})


def other_channels(small: nn.Module, lost: Lost) -> None:
    """As many as there are, and not the same."""
    lost["out.weight"][1] = (lost["out.weight"][1] + 1) % 16


def order(small: nn.Module, lost: Lost) -> None:
    small.out.weight.data = small.out.weight.roll(1, 1)  # type: ignore[union-attr,operator]


def gains(small: nn.Module, lost: Lost) -> None:
    small.norm.weight.data *= math.sqrt(len(lost["norm.weight"][0]) / 16)  # type: ignore[union-attr,operator]


def scale(small: nn.Module, lost: Lost) -> None:
    for x in (small.q.weight, small.q.bias):  # type: ignore[union-attr]
        x.data *= math.sqrt(16 / len(lost["q.weight"][0]))  # type: ignore[union-attr]


def louder(small: nn.Module, lost: Lost) -> None:
    for x in small.out.parameters():  # type: ignore[union-attr,operator]
        x.data *= 1.3


def silent(small: nn.Module, lost: Lost) -> None:
    small.out.weight.data.zero_()  # type: ignore[union-attr,operator]


def test_what_is_right_is_believed() -> None:
    model, small, lost = shrunk()
    assert {"norm.weight", "q.weight"} <= set(lost)  # what the faults below are planted in
    assert departure(model, small, lost, inputs()) <= TOLERANCE


@pytest.mark.parametrize("fault", [one_more, other_channels, order, gains, scale, louder, silent])
def test_what_is_wrong_is_refused(fault: Callable[[nn.Module, Lost], None]) -> None:
    model, small, lost = shrunk()
    small, lost = copy.deepcopy(small), {path: dict(axes) for path, axes in lost.items()}
    fault(small, lost)
    assert departure(model, small, lost, inputs()) > 1000 * TOLERANCE


def test_gains_that_were_scaled_are_not_told_to_have_stayed() -> None:
    model, small, lost = shrunk()
    assert departure(model, small, lost, inputs(), unscaled={"norm"}) > 1000 * TOLERANCE


@pytest.mark.parametrize("answer", [torch.full((4,), math.nan), torch.zeros(3), torch.zeros(4)])
def test_answers_that_tell_nothing_are_as_far_as_can_be(answer: Tensor) -> None:
    assert zeroed.apart(answer, torch.zeros(4)) == math.inf


def test_the_users_module_is_left_as_it_is() -> None:
    model, small, lost = shrunk()
    before = copy.deepcopy(model.state_dict())
    departure(model, small, lost, inputs())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(x, after[name]) for name, x in before.items())
    assert torch.get_default_dtype() == torch.float32 and "forward" not in vars(model.norm)


def test_it_imports_nothing_of_what_it_judges() -> None:
    tree = ast.parse(Path(zeroed.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in modules}
    assert tops == {"__future__", "collections", "contextlib", "copy", "math", "torch", "typing"}
