"""A part that several tensors share: one list of numbers for a stage, held, stored and trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings.codebook import lloyd
from lilliput.errors import RecipeError
from lilliput.file.container import Reader
from lilliput.model.carrier.carrier import freeze, unfreeze
from lilliput.model.edits.copies import as_it_stands, private_copy

ORT = lp.targets.OnnxRuntime(threads=1, seconds=0)
X = [torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(i)) for i in range(3)]
STAGE = ("stage.0.weight", "stage.2.weight")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stage(torch.relu(self.stem(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]


def task() -> lp.Task:
    return lp.Task(Net().eval(), calibrate=X, train=X, loss=loss)


SHARE = lp.techniques.Share(6, where="stage*", together=True)


def lists(net: nn.Module) -> list[Tensor]:
    return [net.get_buffer(f"{path}_encoded.levels") for path in STAGE]


def one(net: nn.Module) -> bool:
    first, *others = lists(net)
    return all(first.data_ptr() == other.data_ptr() for other in others)


@pytest.mark.parametrize("held", [None, lp.formats.Float16()])
def test_one_list_serves_a_stage(held: lp.formats.Float16 | None, tmp_path: Path) -> None:
    step = lp.techniques.Share(6, where="stage*", together=True, held=held)
    small = lp.compress(task(), lp.Recipe([step]), target=ORT)  # the file is held against the module
    weights = torch.cat([Net().get_parameter(path).detach().flatten() for path in STAGE])
    numbers = torch.cat([small.model.get_submodule(path[:-7]).weight.flatten() for path in STAGE]).unique()  # type: ignore[operator,union-attr]
    assert len(numbers) <= 6 and set(numbers.tolist()) <= set(step.fit.parameters(
        weights[None], None, lp.formats.Codebook(6, held=held), ())["levels"].flatten().tolist())  # fmt: skip
    if held is None:
        assert torch.equal(numbers, lloyd(weights[None], 6, True)[0].unique())
    small.save(tmp_path / "net.lil")
    names = [name for name in Reader(tmp_path / "net.lil").names() if ".levels" in name]
    assert len(names) == 1
    again = lp.load(tmp_path / "net.lil", into=Net())
    assert torch.equal(again(X[0]), small.model(X[0]))
    assert held is not None or (one(small.model) and one(again))


def test_biases_take_up_the_error_as_for_other_lists() -> None:
    net, exact = lp.apply(task(), lp.Recipe([SHARE]), target=ORT), Net()
    moved = net.get_parameter("stage.2.bias") - exact.stage[2].bias
    assert float(moved.detach().abs().max()) > 1e-4 and torch.equal(net.get_parameter("head.bias"), exact.head.bias)


def test_another_list_is_not_taken_for_one_that_is_remembered(tmp_path: Path) -> None:
    found = set()
    for n in (4, 6):
        for fit in (lp.ranges.MSE(), lp.ranges.Quantiles()):
            step = lp.techniques.Share(n, where="stage*", together=True, fit=fit)
            found.add(tuple(lists(lp.apply(task(), lp.Recipe([step]), target=ORT, folder=tmp_path))[0].tolist()))
    assert sorted(map(len, found)) == [4, 4, 6, 6]


def test_copies_share_too() -> None:
    net = lp.apply(task(), lp.Recipe([SHARE]), target=ORT)
    assert one(net)
    for copied in (private_copy(net), as_it_stands(net)):
        assert one(copied) and lists(copied)[0].data_ptr() != lists(net)[0].data_ptr()


@pytest.mark.parametrize("held", [None, lp.formats.Float16()])
@pytest.mark.parametrize("learn", [False, True])
def test_what_is_one_stays_one_in_training(learn: bool, held: lp.formats.Float16 | None, tmp_path: Path) -> None:
    net = lp.apply(task(), lp.Recipe([lp.techniques.Share(6, where="stage*", together=True, held=held)]), target=ORT)
    before = numbers(net)
    unfreeze(net, learn=learn)
    learnt = [name for name, _ in net.named_parameters() if "learnt" in name]
    assert len(learnt) == int(learn)
    loss(net, X[0]).backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.5 * p.grad
    seen = net(X[1])
    freeze(net)
    assert torch.equal(net(X[1]), seen) and (numbers(net) == before) is not learn and stored(net, tmp_path) == 1
    trained = lp.train(lp.Task(net, train=X, loss=loss), lp.Finetune(epochs=1, lr=0.01, learn_encodings=learn)).model
    assert len(numbers(trained)) <= 6 and stored(trained, tmp_path) == 1


def numbers(net: nn.Module) -> set[float]:
    """All that the weights of the stage are."""
    return {x for path in STAGE for x in net.get_submodule(path[:-7]).weight.detach().flatten().tolist()}  # type: ignore[operator,union-attr]


def stored(net: nn.Module, folder: Path) -> int:
    """How many lists a file of it holds."""
    lp.save(folder / "net.lil", net)
    return len([name for name in Reader(folder / "net.lil").names() if ".levels" in name])


def test_one_list_and_many_is_refused() -> None:
    for given in ({"group": 8}, {"per": "channel"}):
        with pytest.raises(RecipeError, match="one list for all tensors"):
            lp.techniques.Share(4, together=True, **given)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"one list for all tensors of Int.*drop together="):
        lp.Quantize(together=True)
