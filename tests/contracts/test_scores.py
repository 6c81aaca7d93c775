"""Scores by gradients: each against its formula, written out with torch's own autograd; what is asked of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import lilliput as lp
from lilliput.engine.store import Store
from lilliput.errors import InputError, RecipeError
from lilliput.scores import Fisher, Magnitude, Random, Sensitivity, Taylor

X = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (4, 8), generator=torch.Generator().manual_seed(1))
SCORES: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {  # of a weight, and its gradients batch by batch
    "sensitivity": (Sensitivity, lambda w, g: g.abs().mean(0)),
    "taylor": (Taylor, lambda w, g: w.abs() * g.abs().mean(0)),
    "fisher": (Fisher, lambda w, g: w.square() * g.square().mean(0) / 2),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 3)).eval()


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def task(model: nn.Module, **more: Any) -> lp.Task:
    return lp.Task(model, **{"calibrate": list(X), "train": list(zip(X, Y, strict=True)), "loss": loss, **more})


def gradients(model: nn.Sequential, to: str) -> Tensor:
    """Of the first weight, batch by batch."""
    found = []
    for x, y in zip(X, Y, strict=True):
        told = loss(model, (x, y)) if to == "loss" else model(x).square().sum(1).mean()
        found.append(torch.autograd.grad(told, model[0].weight)[0])
    return torch.stack(found)


@pytest.mark.parametrize("to", ["loss", "output"])
@pytest.mark.parametrize("score", SCORES)
def test_single_weights_go_by_the_formula(score: str, to: str) -> None:
    kind, formula = SCORES[score]
    model = net()
    small: Any = lp.apply(task(model), lp.Recipe([lp.Prune("weights", 0.5, score=kind(to), where="0.*")]))
    right = formula(model[0].weight.detach(), gradients(model, to).double())
    gone = small[0].weight == 0
    assert int(gone.sum()) == right.numel() // 2
    assert right[gone].max() <= right[~gone].min()  # what a constant, or another score, would not give
    other = model[0].weight.detach().abs()
    assert other[gone].max() > other[~gone].min()


@pytest.mark.parametrize("score", SCORES)
def test_channels_go_by_the_sum_over_their_slices(score: str) -> None:
    kind, formula = SCORES[score]
    model = net()
    small: Any = lp.apply(task(model), lp.Recipe([lp.Prune("channels", 0.5, score=kind(), multiple=1)]))
    out = []
    for x, y in zip(X, Y, strict=True):
        out.append(torch.autograd.grad(loss(model, (x, y)), model[2].weight)[0])
    into = formula(model[0].weight.detach(), gradients(model, "loss")).sum(1)
    after = formula(model[2].weight.detach(), torch.stack(out)).sum(0)
    right = into / into.mean() + after / after.mean()
    kept = right.argsort(descending=True)[:16].sort().values
    close(small[0].weight, model[0].weight[kept])


@pytest.mark.parametrize("unit", ["weights", "channels"])
def test_each_batch_is_passed_once_however_many_tensors_are_scored(unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what is gathered is more than memory is to hold."""
    monkeypatch.setattr(Store.__init__, "__defaults__", (None, 0))
    losses = []

    def counted(model: Any, batch: Any) -> Tensor:
        losses.append(1)
        return loss(model, batch)

    deep = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)).eval()
    lp.apply(task(deep, loss=counted), lp.Recipe([lp.Prune(unit, 0.5, score=Taylor())]))
    assert len(losses) == len(X)


def test_taylor_keeps_more_than_chance_of_a_trained_network() -> None:
    """Of a network that was trained a little: the loss without what goes, over ten draws by chance."""
    model = net()
    trained: Any = lp.train(task(model), lp.Finetune(epochs=40, lr=1e-2)).model

    def left(score: Any) -> float:
        small = lp.apply(task(trained), lp.Recipe([lp.Prune("channels", 0.5, score=score, multiple=1)]))
        with torch.no_grad():
            return float(sum(loss(small, pair) for pair in zip(X, Y, strict=True)))

    assert left(Taylor()) < min(left(Random(seed)) for seed in range(10))


def test_a_network_of_somebody_else() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).eval()
    batches = [{"input_ids": torch.randint(0, 50, (4, 9)), "labels": torch.tensor([0, 1, 2, 0])} for _ in range(3)]
    given = lp.Task(bert, calibrate=batches, train=batches, loss=lambda model, batch: model(**batch).loss)
    before = {name: p.detach().clone() for name, p in bert.named_parameters()}
    small: Any = lp.apply(given, lp.Recipe([lp.Prune("channels", 0.5, score=Fisher())]))
    assert small.config.intermediate_size == 32
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in bert.named_parameters())


def test_what_is_encoded_is_scored_by_what_it_decodes_to() -> None:
    recipe = lp.Recipe([lp.Quantize(lp.Int(8), activations=None), lp.Prune("weights", 0.5, score=Taylor("output"))])
    small: Any = lp.apply(task(net()), recipe)
    assert float((small[0].weight == 0).double().mean()) == 0.5


def test_what_is_asked_of_a_task() -> None:
    prune = lp.Recipe([lp.Prune("channels", 0.5, score=Taylor())])
    for missing in ("train", "loss"):
        with pytest.raises(InputError, match=missing):
            lp.apply(task(net(), **{missing: None}), prune)
    with pytest.raises(InputError, match="calibrate"):
        lp.apply(lp.Task(net(), example=X[0]), lp.Recipe([lp.Prune("channels", 0.5, score=Taylor("output"))]))
    with pytest.raises(RecipeError, match="known: 'loss', 'output'"):
        Taylor("labels")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="whole number"):
        Fisher(batches=0)
    cut = lp.Task(net(), calibrate=list(X), train=[(X[0], Y[0])], loss=lambda model, batch: torch.tensor(1.0))
    with pytest.raises(InputError, match="gradient"):
        lp.apply(cut, prune)
    nan = lp.Task(net(), calibrate=list(X), train=[(X[0], Y[0])], loss=lambda m, b: loss(m, b) * float("nan"))
    with pytest.raises(InputError, match="its gradient is no number"):
        lp.apply(nan, prune)


def test_a_recipe_with_a_score_is_read_again() -> None:
    recipe = lp.Recipe([lp.Prune("channels", 0.5, score=Taylor("output", batches=3)), lp.Prune("weights", 0.2)])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe and recipe.steps[1].score == Magnitude()  # type: ignore[attr-defined]
