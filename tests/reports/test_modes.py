"""Modes that are set around a call: inference mode, no_grad, another default type, autocast.

Reported as brevitas#1245: steps that learn by gradients trust the mode they find, and fail in autograd under
`torch.inference_mode()`, or with a forward that is decorated so. Right is: the same result as without, or, where the
forward itself computes without gradients and a step trains, an error before any work that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.modes import ordinary_modes

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
Batch = tuple[Tensor, Tensor]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad disabled": lambda: torch.set_grad_enabled(False),
    "float64 by default": float64,
    "autocast": autocast,
}
INT4 = lp.Int(4)


def net() -> nn.Module:
    made, generator = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), torch.Generator().manual_seed(0)
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float32) / 4
    return made


def drawn() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(4, (8,), generator=generator) for _ in range(3)]
    return [(torch.randn(8, 16, generator=generator, dtype=torch.float32), y) for y in labels]


def loss(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def learnt() -> dict[str, Tensor]:
    """The tensors after all steps that use gradients; model and batches are made in whatever mode is set."""
    batches = drawn()
    trained = lp.train(lp.Task(net(), train=batches, loss=loss), lp.Finetune(epochs=2, lr=1e-2))
    assert trained.history[1]["loss"] < trained.history[0]["loss"]
    calibrate = [x for x, _ in batches]
    return {**trained.model.state_dict(), **rounded(trained.model, calibrate)}


def rounded(model: nn.Module, calibrate: list[Tensor]) -> dict[str, Tensor]:
    found = {}
    for rounding in (lp.rounding.AdaRound(steps=9), lp.rounding.BRECQ(steps=9, blocks="*")):
        small = stepped(model, calibrate, lp.Quantize(weights=INT4, rounding=rounding))
        found |= {f"{type(rounding).__name__} {name}": x for name, x in small.state_dict().items()}
    return found


@ordinary_modes()
def stepped(model: nn.Module, calibrate: list[Tensor], *steps: Any) -> nn.Module:
    """What the steps make of a model, as `compress` takes them but without building anything."""
    driver, _ = begin(lp.Task(model, calibrate=calibrate), TARGET, Store(None), lambda *told: None)
    follow(lp.Recipe(steps), driver)
    return driver.model


@pytest.fixture(scope="module")
def right() -> dict[str, Tensor]:
    return learnt()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_comes_out_in_any_mode(mode: str, right: dict[str, Tensor]) -> None:
    with MODES[mode]():
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
        found = learnt()
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    assert found.keys() == right.keys()
    for name, x in right.items():
        assert torch.equal(found[name], x), name
        assert not found[name].is_inference()


def test_the_whole_of_compress_and_what_is_read_again(tmp_path: Any) -> None:
    with torch.inference_mode():
        model, x = net(), drawn()[0][0]
        small = lp.compress(lp.Task(model, example=x), lp.Recipe([lp.Quantize(weights=INT4)]), target=TARGET)
        again = lp.load(small.save(tmp_path / "m.lil"), into=net())
        run = lp.open(tmp_path / "m.lil")
        assert torch.equal(again(x), small.model(x))
        close(run(x), small.model(x), atol=1e-5)
        assert float((run(x) - model(x)).norm() / model(x).norm()) < 0.2
    small.model(x.clone()).sum().backward()
    assert small.model[0].bias.grad is not None  # type: ignore[index,union-attr]


class NoGrad(nn.Sequential):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[no-any-return]


class Inference(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [NoGrad, Inference])
def test_a_forward_without_gradients(kind: type[nn.Sequential], right: dict[str, Tensor]) -> None:
    model, batches = kind(*net()), drawn()  # type: ignore[arg-type]
    calibrate = [x for x, _ in batches]
    recipe = lp.Recipe([lp.Prune("weights", 0.5), lp.Finetune()])
    told: list[str] = []
    task = lp.Task(model, calibrate=calibrate, train=batches, loss=loss)
    with pytest.raises(InputError, match=rf"{kind.__name__}\.forward: .*take that away"):
        lp.compress(task, recipe, target=TARGET, progress=lambda stage, *_: told.append(stage))
    assert told == ["trying the training"]  # before any work
    with pytest.raises(InputError, match=rf"{kind.__name__}\.forward"):
        lp.train(lp.Task(model, train=batches, loss=loss))
    with pytest.raises(InputError, match="0: is computed without gradients"):
        stepped(
            nn.Sequential(model), calibrate, lp.Quantize(weights=INT4, rounding=lp.rounding.BRECQ(steps=3, blocks="0"))
        )
    plain = stepped(kind(*net()), calibrate, lp.Quantize(weights=INT4, rounding=lp.rounding.AdaRound(steps=9)))  # type: ignore[arg-type]
    same = stepped(net(), calibrate, lp.Quantize(weights=INT4, rounding=lp.rounding.AdaRound(steps=9)))
    assert all(torch.equal(x, plain.state_dict()[name]) for name, x in same.state_dict().items())
    model.__class__ = nn.Sequential  # the remedy
    lp.train(lp.Task(model, train=batches, loss=loss))
