"""What goes wrong in training is told with its place and a remedy, and nothing is lost by it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
import lilliput.training.loop
from lilliput.encodings import tensor_digest
from lilliput.errors import InputError
from lilliput.model.carrier.carrier import attach
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.techniques.distill import FitNet, LogitKD
from lilliput.techniques.finetune import Finetune
from lilliput.training.data import Feed
from lilliput.training.lessons import LAST_GOOD

TOO_MUCH = 1 << 60  # bytes
STEP = Finetune(epochs=3, lr=0.01)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))


def labelled() -> list[Any]:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(16), x[:, :4].argmax(1).split(16), strict=True))


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def task(**fields: Any) -> lp.Task:
    return lp.Task(**{"model": network(), "train": labelled(), "loss": cross_entropy, **fields})


def digests(model: nn.Module) -> dict[str, str]:
    return {name: tensor_digest(x) for name, x in model.state_dict().items()}


# nothing is lost


@dataclass
class Source:
    """Four batches; the third time they are read, which is in the second epoch, as `spoil` leaves them."""

    spoil: Callable[[list[Any]], Any]
    times: int = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(self.spoil(labelled()) if self.times == 3 else labelled())


@dataclass
class Loss:
    """Cross-entropy; the one of batch `when`, counted from 1 over all epochs, as `spoil` leaves it."""

    spoil: Callable[[Tensor, nn.Module], Tensor]
    when: int = 7
    times: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # no number, which would be another loss

    def __call__(self, model: Any, batch: Any) -> Tensor:
        loss = cross_entropy(model, batch)
        return self.spoil(loss, model) if next(self.times) == self.when else loss


class Heavy(torch.autograd.Function):
    """Wants more memory on the way back than there is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad + torch.empty(TOO_MUCH)


class Steep(torch.autograd.Function):
    """A number whose gradient is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * float("nan")


def breaks_off(batches: list[Any]) -> Iterator[Any]:
    yield batches[0]
    raise OSError("the disk is gone")


def raises(error: Exception) -> Any:
    raise error


def third(x: Tensor) -> Callable[[list[Any]], list[Any]]:
    return lambda batches: [*batches[:2], (x, batches[2][1]), batches[3]]


THERE = "train, epoch 2, batch 3: "
HALVE = ".*; halve the batches of about 16 samples, and give accumulate=2"
TROUBLES: dict[str, tuple[dict[str, Any], str]] = {
    "the loader ends early": ({"train": Source(lambda batches: batches[:3])}, "train: gave 3 batches in epoch 2 and 4"),
    "the loader goes on": ({"train": Source(lambda batches: batches * 2)}, "train: gave 5 batches in epoch 2 and 4"),
    "the loader fails": ({"train": Source(breaks_off)}, r"train\[1\]: cannot be read \(OSError: the disk"),
    "a batch of NaN": ({"train": Source(third(torch.full((16, 8), torch.nan)))}, f"{THERE}the loss is nan"),
    "a batch of another shape": ({"train": Source(third(torch.zeros(16, 5)))}, f"{THERE}the loss failed"),
    "a loss of NaN": ({"loss": Loss(lambda loss, model: loss * torch.nan)}, f"{THERE}the loss is nan.*; lower lr"),
    "an infinite loss": ({"loss": Loss(lambda loss, model: loss / 0)}, f"{THERE}the loss is inf.*; lower lr"),
    "a gradient of NaN": (
        {"loss": Loss(lambda loss, model: Steep.apply(loss))},
        r"train, epoch 2: 0\.weight has become",
    ),
    "a gradient of NaN at the end": (
        {"loss": Loss(lambda loss, model: Steep.apply(loss), when=8)},
        "epoch 2: 0.weight has",
    ),
    "a loss that raises": ({"loss": Loss(lambda loss, model: raises(KeyError("x")))}, f"{THERE}the loss failed"),
    "a loss that calls nothing": ({"loss": Loss(lambda loss, model: torch.zeros(2))}, "return one number"),
    "no memory": ({"loss": Loss(lambda loss, model: loss + torch.empty(TOO_MUCH))}, f"{THERE}out of memory{HALVE}"),
    "no memory on the way back": (
        {"loss": Loss(lambda loss, model: Heavy.apply(loss))},
        f"{THERE}out of memory{HALVE}",
    ),
    "no memory for NumPy": (
        {"loss": Loss(lambda loss, model: loss + np.ones(TOO_MUCH >> 10))},
        f"{THERE}out of memory{HALVE}",
    ),
    "no memory on Windows": (
        {"loss": Loss(lambda loss, model: raises(RuntimeError("not enough memory: you tried to allocate 8 bytes.")))},
        f"{THERE}out of memory{HALVE}",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_when_the_trouble_is_over_it_goes_on_to_the_same_bits(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after every batch, and the trouble in the second epoch: none of them may hold any of it."""
    monkeypatch.setattr(lilliput.training.loop, "SAVE_S", 0.0)
    fields, message = TROUBLES[trouble]
    given = task(**copy.deepcopy(fields))
    before = digests(given.model)
    with pytest.raises(InputError, match=message):
        lp.train(given, STEP, folder=tmp_path)
    assert digests(given.model) == before
    good = tmp_path / LAST_GOOD
    assert [path.suffix for path in tmp_path.iterdir() if path != good] == [".training"]
    if good.exists():
        assert digests(lp.load(good, into=network())) == digests(lp.train(task(), replace(STEP, epochs=1)).model)
    assert good.exists() == any(words in message for words in ("the loss is", "has"))
    seen: list[int] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "training":
            seen.append(done)

    again = lp.train(given, STEP, folder=tmp_path, progress=note)
    whole = lp.train(task(), STEP)
    assert digests(again.model) == digests(whole.model) and again.history == whole.history
    assert seen[0] > 4, "it began anew"


@pytest.mark.parametrize("trouble", ["a loss of NaN", "a gradient of NaN at the end"])
def test_the_last_good_state_is_kept(trouble: str) -> None:
    given, net = task(**copy.deepcopy(TROUBLES[trouble][0])), network()
    feed = Feed.known(given.train or (), "train", 0)
    with pytest.raises(InputError, match="kept as it was after the last epoch that went well"):
        lilliput.training.loop.train(net, STEP, lilliput.training.loop.Material(feed, given.loss))
    assert digests(net) == digests(lp.train(task(), replace(STEP, epochs=1)).model)


def test_random_numbers_of_the_user_go_on() -> None:
    given = task()
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    found = [torch.randn(1)]
    lp.train(given, STEP)
    assert torch.equal(torch.cat([*found, torch.randn(1)]), wanted)


# validation


@pytest.mark.parametrize(
    ("batch", "hint"),
    [
        ((torch.zeros(4, 8), torch.full((4,), -100)), r"validate\[1\]: the loss is nan"),
        ((torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)), r"validate\[1\]: the loss failed"),
        ((torch.full((4, 8), torch.inf), torch.zeros(4)), r"validate\[1\]: holds NaN or infinity"),
    ],
)
def test_a_batch_of_validation_is_named(batch: Any, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        lp.train(task(validate=[labelled()[0], batch]), replace(STEP, patience=1))


# teachers


class Greedy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.empty(TOO_MUCH)


@pytest.mark.parametrize("saved", [False, True])
def test_want_of_memory_for_a_teacher_is_told(saved: bool) -> None:
    step = replace(STEP, distill=(LogitKD(),), save_teacher=saved)
    with pytest.raises(InputError, match=r"out of memory.*DefaultCPUAllocator.*; halve the batches"):
        lp.train(task(teacher=Greedy()), step)


def test_taps_of_a_compressed_network_are_looked_for_by_name() -> None:
    net = network()
    attach(net, ("0.weight",), lp.Int(8).represent(net.get_parameter("0.weight")))
    assert lp.train(task(model=net, teacher=network()), replace(STEP, distill=(FitNet("3"),))).history
    with pytest.raises(lp.errors.RecipeError, match=r"FitNet, student: there is no module '4'.*known: .*3"):
        lp.train(task(model=net), replace(STEP, distill=(FitNet("4"),)))


class Sometimes(nn.Module):
    """Every other batch goes past the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.times = nn.Linear(8, 8), nn.Linear(8, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return self.out(self.hidden(x) if self.times % 2 else x)  # type: ignore[no-any-return]


def test_what_an_earlier_batch_showed_is_not_taken_for_this_one() -> None:
    with pytest.raises(InputError, match=r"FitNet, student: 'hidden' showed nothing"):
        lp.train(task(model=Sometimes(), teacher=Sometimes()), replace(STEP, distill=(FitNet("hidden"),)))
    times = iter(range(100))

    def passed_over(model: Any, batch: Any) -> Tensor:
        called = next(times) != 3
        return cross_entropy(model, batch) if called else sum(p.sum() for p in model.parameters())

    with pytest.raises(InputError, match="batch 3: the loss did not call the model"):
        lp.train(task(loss=passed_over), replace(STEP, distill=(LogitKD(),)))


# what is given to it


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: lp.train(network()), r"train of a Sequential; give lp\.Task"),  # type: ignore[arg-type]
        (lambda: lp.train(task(model="net")), r"the model is a str; give a torch\.nn\.Module"),
        (lambda: lp.train(task(), lp.Prune("weights", 0.5)), r"train by a Prune; give lp\.Finetune"),  # type: ignore[arg-type]
        (lambda: lp.train(task(train=iter(labelled()))), "train: gave 0 batches in epoch 1 and 4"),
        (lambda: lp.train(task(train=3)), "train: is of type int; give a list of batches"),
        (lambda: lp.train(task(train=labelled()[0][0])), r"train: is one tensor; give a list of batches: \[tensor\]"),
        (lambda: lp.train(task(loss="mse")), "train, epoch 1, batch 1: the loss failed"),
        (lambda: lp.train(task(model=network().requires_grad_(False))), "model: no parameter is trainable"),
    ],
)
def test_what_cannot_be_trained(call: Callable[[], Any], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        call()


def test_a_compressed_network_all_of_which_is_frozen() -> None:
    net = network().requires_grad_(False)
    attach(net, ("0.weight",), lp.Int(8).represent(net.get_parameter("0.weight")))
    assert any(isinstance(part, EncodedTensor) for part in net.modules())
    with pytest.raises(InputError, match="model: no parameter is trainable"):
        lp.train(task(model=net))


def test_another_loss_is_another_training(tmp_path: Path) -> None:
    """Even where it has the same name; the same one, defined anew, is answered from the folder."""

    def losses(share: float, judge: nn.Module, power: int) -> list[Any]:
        def loss(model: Any, batch: Any) -> Tensor:
            return share * nn.functional.cross_entropy(judge(model(batch[0])), batch[1]) ** power

        return [loss]

    torch.manual_seed(0)
    judge, other = nn.Linear(3, 3), nn.Linear(3, 3)
    batches = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(2)]
    net, taken = nn.Linear(4, 3), []
    for share, judged, power in ((1.0, judge, 1), (1.0, judge, 1), (0.5, judge, 1), (1.0, other, 1), (1.0, judge, 2)):
        steps: list[str] = []
        (loss,) = losses(share, judged, power)
        given = lp.Task(net, train=batches, loss=loss)
        lp.train(
            given, lp.Finetune(), folder=tmp_path, progress=lambda stage, done, total, steps=steps: steps.append(stage)
        )
        taken.append("training" in steps)
    assert taken == [True, False, True, True, True]
