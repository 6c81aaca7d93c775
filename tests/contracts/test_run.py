"""What a technique may ask of a run: few things, remembered, and a fork that goes on by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import nn

import lilliput as lp
from lilliput.engine import run as engine_run
from lilliput.engine.begin import begin
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.model.carrier.parameters import encoding_of, read
from lilliput.model.edits.edits import SetTensor, Train
from lilliput.progress import silent
from lilliput.recipe import TECHNIQUES
from lilliput.targets import OnnxRuntime
from lilliput.techniques.encode import encode
from lilliput.techniques.run import Answer, Rough, Run

ENGINE = Path(engine_run.__file__).parent
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def started(store: Store | None = None) -> Driver:
    return begin(lp.Task(net(), calibrate=[X]), OnnxRuntime(), store or Store(), silent)[0]


def test_it_has_few_methods() -> None:
    methods = [name for name, held in vars(Run).items() if callable(held) and not name.startswith("_")]
    assert 0 < len(methods) <= 9, methods
    assert all(callable(getattr(Driver, name)) or name == "progress" for name in methods)


def test_the_engine_knows_no_technique() -> None:
    for path in ENGINE.glob("*.py"):
        words = set(re.findall(r"[A-Za-z]\w+", path.read_text(encoding="utf-8")))
        assert not words & {*TECHNIQUES, "finetune", "prune", "quantize", "equalize"}, path.name


def asked(driver: Driver, found: list[float], **how: Any) -> float:
    def compute() -> Answer:
        found.append(len(found) + 1.0)
        return Answer(found[-1])

    return float(driver.ask(("what",), compute, **how).data)


def test_an_answer_holds_for_the_model_as_it_stands_and_its_batches() -> None:
    driver, found = started(), list[float]()
    assert asked(driver, found) == asked(driver, found) == 1.0
    always = asked(driver, found, model=False, data=False)
    driver.apply(SetTensor("0.bias"), {"value": torch.zeros(16)})
    assert asked(driver, found) == 3.0
    assert asked(driver, found, model=False, data=False) == always


def test_what_does_not_last_is_asked_again_by_the_next_process(tmp_path: Path) -> None:
    found = list[float]()
    for lasting, expected in ((False, 1.0), (True, 2.0), (True, 2.0)):
        assert asked(started(Store(tmp_path)), found, lasting=lasting) == expected


def test_a_fork_goes_on_by_itself() -> None:
    driver, found = started(), list[float]()
    asked(driver, found)
    before = read(driver.model, "2.weight")
    fork = driver.fork()
    assert asked(fork, found) == 1.0  # remembered
    assert fork.model[2].weight.data_ptr() == driver.model[2].weight.data_ptr()
    encode(fork, "2.weight", lp.Int(2))
    fork.skip("0.weight", "left")
    fork.note("0.weight", "noted")
    fork.tell("kind", {"x": 1}, path="0")
    assert encoding_of(driver.model, "2.weight") is None and torch.equal(read(driver.model, "2.weight"), before)
    assert not driver.told.skipped and not driver.told.notes and not driver.told.facts["kind"]
    assert fork.told.facts["kind"] == [{"path": "0", "x": 1}]
    assert asked(driver, found) == 1.0 and asked(fork, found) == 2.0
    encode(driver, "0.weight", lp.Int(8))
    assert encoding_of(fork.model, "0.weight") is None
    trained = {name: x + 1 for name, x in fork.model.state_dict().items() if x.is_floating_point()}
    fork.apply(Train("how"), {**fork.model.state_dict(), **trained})
    assert torch.equal(read(fork.model, "2.bias"), read(driver.model, "2.bias") + 1)


class Cached(nn.Module):
    """Keeps a table that its first call makes, on which no answer depends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(16, 4), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table = torch.ones(4) if self.table is None else self.table
        return self.layer(x) * self.table


def test_a_fork_puts_back_what_its_own_runs_left() -> None:
    driver = begin(lp.Task(Cached().eval(), calibrate=[X]), OnnxRuntime(), Store(), silent)[0]
    fork = driver.fork()
    assert driver.model.table is not None and fork.model.table is not None
    fork.settle()
    assert fork.model.table is None and driver.model.table is not None


def test_a_dry_run_takes_what_is_rough() -> None:
    from lilliput.engine.plan import Plan

    driver = started()
    driver.plan = Plan(step="step 1")
    rough = Rough(Answer(7.0), 2.0)
    assert asked(driver, [], rough=lambda: rough) == 7.0
    assert driver.plan.seconds == {"encoding": 2.0} and not driver.plan.apart
    asked(driver, [], rough=lambda: Rough(Answer(7.0)))
    assert driver.plan.apart == ["step 1"]
    assert asked(driver, []) == 1.0  # what has no rough answer is asked for good


# lp.apply


def test_apply_gives_what_compress_gives() -> None:
    model, recipe = net(), lp.Recipe([lp.Prune("weights", 0.5), lp.Quantize(activations=lp.Int(8))])
    exact = {name: x.clone() for name, x in model.state_dict().items()}
    applied = lp.apply(model, recipe, calibrate=[X])
    compressed = lp.compress(model, recipe, calibrate=[X], target=OnnxRuntime(seconds=0)).model
    assert isinstance(applied, nn.Sequential) and not applied.training
    assert applied.state_dict().keys() == compressed.state_dict().keys()
    assert torch.equal(applied(X), compressed(X))
    assert all(torch.equal(x, exact[name]) for name, x in model.state_dict().items())
    assert not torch.equal(applied(X), model(X))


class Untraceable(nn.Module):
    """What no graph holds: it asks what it has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.second(x if float(x.detach().sum()) > 0 else -x)


def test_apply_takes_a_model_that_no_graph_holds_whole() -> None:
    model = Untraceable().eval()
    small = lp.apply(lp.Task(model, example=X), lp.Recipe([lp.Quantize(weights=lp.Int(8), bias_correction=False)]))
    assert all(encoding_of(small, f"{name}.weight") is not None for name in ("first", "second"))
    close(small(X), model(X), share=0.05)
    with pytest.raises(lp.errors.LilliputError, match="captured only by"):
        lp.compress(lp.Task(model, example=X), target=OnnxRuntime(seconds=0))


def test_apply_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(InputError, match="nothing to apply"):
        lp.apply(net(), None, calibrate=[X])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="apply of a dict"):
        lp.apply({}, lp.Recipe([lp.Quantize()]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="calibration batches"):
        lp.apply(lp.Task(net(), example=X), lp.Recipe([lp.Quantize(activations=lp.Int(8))]))
