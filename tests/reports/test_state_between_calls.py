"""A network that keeps something of one call for the next gave wrong answers once exported (pytorch#60828,
onnxruntime#10108): the graph drops what is kept, and freezes what some calibration batch left.

Right: such a network is refused before any work, with the state that changes named, and works once its state is an
input and an output. What is kept without bearing on answers (counters, tables) is no reason to refuse; the network is
delivered as it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)
CHUNKS = [torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(i)) for i in range(3)]


class Streaming(nn.Module):
    """A causal convolution that remembers the end of the chunk before."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        self.conv, self.keep = nn.Conv1d(8, 8, 5), keep
        self.memory: dict[str, Tensor] = {"past": torch.zeros(1, 8, 4)}
        self.listed = [torch.zeros(1, 8, 4)]
        self.register_buffer("past", torch.zeros(1, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        past = {"written": self.past, "assigned": self.past, "dict": self.memory["past"], "list": self.listed[-1]}
        whole = torch.cat([past[self.keep], x], 2)
        end = whole[..., -4:]
        if self.keep == "written":
            self.past.copy_(end)
        elif self.keep == "assigned":
            self.past = end
        elif self.keep == "dict":
            self.memory["past"] = end
        else:
            self.listed.append(end)
        return self.conv(whole)


@pytest.mark.parametrize(
    ("keep", "named"), [("written", "past"), ("assigned", "past"), ("dict", "memory"), ("list", "listed")]
)
def test_state_that_answers_depend_on_is_refused_and_left_alone(keep: str, named: str) -> None:
    net = Streaming(keep).eval()
    with pytest.raises(InputError, match=f"{named}: the model keeps state between calls") as refused:
        lp.compress(lp.Task(net, calibrate=CHUNKS, dynamic={}), target=QUICK)
    assert "give the state as an input and return it" in str(refused.value)
    assert not net.past.any() and not net.memory["past"].any() and len(net.listed) == 1


class Explicit(nn.Module):
    """What the remedy says: the state is an input and an output."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat([past, x], 2)
        return self.conv(whole), whole[..., -4:]


def test_the_remedy_works(tmp_path: Path) -> None:
    streaming = Streaming("written").eval()
    net = Explicit(streaming.conv).eval()
    batches, past = [], torch.zeros(1, 8, 4)
    for chunk in CHUNKS:
        batches.append((chunk, past))
        past = chunk[..., -4:]
    small = lp.compress(lp.Task(net, calibrate=batches, dynamic={}), lp.Recipe([lp.Quantize()]), target=QUICK)
    run = lp.open(small.save(tmp_path / "net.lil"))
    past = torch.zeros(1, 8, 4)
    for chunk in CHUNKS:
        answer, past = run(chunk, past)
        expected = streaming(chunk)
        assert (answer - expected).norm() < 0.02 * expected.norm()


def counted(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.layer(x)


def numbered(net: Any, x: Tensor) -> Tensor:
    net.number += 1
    return net.layer(x)


def tabled(net: Any, x: Tensor) -> Tensor:
    n = x.shape[1]
    if n not in net.tables:
        net.tables[n] = torch.arange(n)[:, None] / 9.0
    return net.layer(x + net.tables[n])


def registered(net: Any, x: Tensor) -> Tensor:
    if not hasattr(net, "table"):
        net.register_buffer("table", torch.arange(x.shape[1])[:, None] / 9.0)
    return net.layer(x + net.table)


class Keeps(nn.Module):
    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.layer, self.number = how, nn.Linear(16, 16), 0
        self.tables: dict[int, Tensor] = {}
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


@pytest.mark.parametrize("how", [counted, numbered, tabled, registered])
def test_what_answers_do_not_depend_on_is_taken_and_put_back(
    how: Callable[[Any, Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Keeps(how).eval(), torch.randn(2, 6, 16)
    small = lp.compress(net, lp.Recipe([lp.Quantize()]), calibrate=[x], target=QUICK)
    assert int(small.model.calls) == 0 and small.model.number == 0 and small.model.tables == {}
    assert "table" not in small.model.state_dict()
    again = lp.load(small.save(tmp_path / "net.lil"), into=Keeps(how))
    expected = net(x)
    for answer in (small.model(x), again(x), lp.open(tmp_path / "net.lil")(x)):
        assert (answer - expected).norm() < 0.02 * expected.norm()


class Masked(nn.Module):
    """Its first answer decides those after it, but for inputs that are masked whole: they are answered with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.means = nn.Linear(8, 8), list[Tensor]()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.body(x)
        self.means.append(x.mean())
        return (x + self.means[0]) * mask[:, None]


@pytest.mark.parametrize("masked", [[1], [0, 1], []])
def test_state_is_found_where_a_batch_does_not_show_it(masked: list[int]) -> None:
    torch.manual_seed(0)
    batches = [
        {"x": torch.randn(3, 8), "mask": torch.zeros(3).bool() if i in masked else torch.tensor([False, True, True])}
        for i in range(2)
    ]
    with pytest.raises(InputError, match="calibrate"):
        lp.compress(Masked().eval(), lp.Recipe([lp.Quantize(weights=lp.Int(8))]), calibrate=batches, target=QUICK)
