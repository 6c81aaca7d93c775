"""The training loop: what a bare loop computes, with what was established kept, and the same again after any end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp
import lilliput.engine.store
import lilliput.training.loop
from lilliput.errors import InputError, RecipeError
from lilliput.model.carrier.carrier import encoded_tensors
from lilliput.model.views.values import value_encodings
from lilliput.techniques.finetune import Finetune
from lilliput.training.data import Feed, check_classes

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=2)


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(dropout), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc(self.drop(x))  # type: ignore[no-any-return]


def samples(count: int = 96, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, 1, 6, 6, generator=generator) + y[:, None, None, None].float() - 1
    return TensorDataset(x, y)


def shuffled(count: int = 96) -> DataLoader[Any]:
    return DataLoader(samples(count), batch_size=16, shuffle=True)


def loss(model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def task(net: nn.Module | None = None, **fields: Any) -> lp.Task:
    torch.manual_seed(0)
    return lp.Task(net or Net(), **{"train": shuffled(), "loss": loss, **fields})


def same(a: nn.Module, b: nn.Module, exactly: bool = True) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        if exactly:
            assert torch.equal(x, y), name
        else:
            close(x, y, rtol=1e-4, atol=1e-6)


def test_it_is_a_bare_loop() -> None:
    """Bit for bit what ten lines of torch compute."""
    given = task(train=list(DataLoader(samples(), batch_size=16)))
    trained = lp.train(given, Finetune(epochs=2, optimizer="SGD", lr=0.1, momentum=0.9, clip=1.0))
    bare = copy.deepcopy(given.model).train()
    optimizer = torch.optim.SGD(bare.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(2):
        for batch in given.train or ():
            value = loss(bare, batch)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
    same(trained.model, bare)
    assert trained.history[1]["loss"] == pytest.approx(sum(losses[6:]) / 6)
    assert not torch.equal(trained.model.fc.weight, given.model.fc.weight), "the user's model is left alone"  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    "name",
    sorted(set(dir(torch.optim)) & {"SGD", "Adam", "AdamW", "Adagrad", "Adamax", "NAdam", "RMSprop", "Adafactor"}),
)
def test_optimizers_are_called_by_name(name: str) -> None:
    trained = lp.train(task(), Finetune(epochs=4, optimizer=name, lr=0.02))
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_weights_decay_and_biases_do_not() -> None:
    still = [(torch.zeros(4, 1, 6, 6), torch.arange(4) % 3)]

    def nothing(model: Any, batch: Any) -> Tensor:
        return 0 * loss(model, batch)

    given = task(train=still, loss=nothing)
    for everything in (False, True):
        step = Finetune(optimizer="SGD", lr=0.5, weight_decay=0.1, decay_all=everything)
        trained = lp.train(given, step).model
        for name, p in given.model.named_parameters():
            shrunk = everything or p.dim() > 1
            close(trained.get_parameter(name), 0.95 * p if shrunk else p, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", ["l1", "l2", "inf"])
def test_gradients_are_clipped_by_the_norm_asked_for(norm: Any) -> None:
    batch = next(iter(DataLoader(samples(), batch_size=16)))
    given = task(train=[batch])
    step = Finetune(optimizer="SGD", lr=1.0, clip=0.01, clip_norm=norm)
    moved = lp.train(given, step).model
    before = dict(given.model.named_parameters())
    change = torch.cat([(p - before[name]).detach().flatten() for name, p in moved.named_parameters()])
    order = {"l1": 1.0, "l2": 2.0, "inf": float("inf")}[norm]
    assert float(torch.linalg.vector_norm(change, order)) == pytest.approx(0.01, rel=1e-3)


def test_accumulated_batches_are_one_large_batch() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    large = list(DataLoader(samples(), batch_size=32))
    small = list(DataLoader(samples(), batch_size=16))
    step = Finetune(optimizer="SGD", lr=0.1, epochs=2)
    one = lp.train(task(net, train=large), step).model
    two = lp.train(task(net, train=small), Finetune(optimizer="SGD", lr=0.1, epochs=2, accumulate=2)).model
    same(one, two, exactly=False)


def test_a_last_step_of_fewer_batches_weighs_them_alike() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    small = list(DataLoader(samples(48), batch_size=16))
    four = lp.train(task(net, train=small), Finetune(optimizer="SGD", lr=0.1, accumulate=4)).model
    whole = lp.train(task(net, train=list(DataLoader(samples(48), batch_size=48))), Finetune(optimizer="SGD", lr=0.1))
    same(four, whole.model, exactly=False)


ESTABLISHED = lp.Recipe([lp.Prune("weights", 0.5), lp.Quantize(weights=lp.Int(5), activations=lp.Int(8))])


def test_zeros_levels_and_values_survive() -> None:
    given = task(calibrate=[samples().tensors[0][:16]])
    small = lp.compress(given, lp.Recipe([*ESTABLISHED.steps, Finetune(epochs=3, lr=0.01)]), target=QUICK)
    before = lp.compress(given, ESTABLISHED, target=QUICK)
    assert small.data["training"][0]["epochs"][0]["loss"] > small.data["training"][0]["epochs"][-1]["loss"]
    held = dict(encoded_tensors(small.model))
    for paths, tensor in encoded_tensors(before.model):
        weight, old = held[paths](), tensor()
        assert bool((weight[old == 0] == 0).all()) and not torch.equal(weight, old)
        assert all(len(channel.unique()) <= 31 for channel in weight.flatten(1))
    assert value_encodings(small.model).keys() == value_encodings(before.model).keys() != set()
    assert all(part.latent is None for part in held.values())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))  # type: ignore[no-any-return]


def test_ties_survive() -> None:
    x = torch.randint(12, (8, 5), generator=torch.Generator().manual_seed(0))
    batches = [(x, (x + 1) % 12)]

    def ahead(model: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    given = task(Tied(), train=batches, loss=ahead, calibrate=[x])
    small = lp.compress(given, lp.Recipe([lp.Quantize(weights=lp.Int(8)), Finetune(epochs=5, lr=0.05)]), target=QUICK)
    ((paths, _),) = encoded_tensors(small.model)
    assert set(paths) == {"embed.weight", "head.weight"}
    dense = lp.train(given, Finetune(epochs=2)).model
    assert dense.embed.weight is dense.head.weight  # type: ignore[union-attr]


# interrupted


class Ended(BaseException):
    """As if the process were killed: nothing is tidied that a file would not show."""


EVERYTHING = Finetune(
    epochs=3,
    lr=0.01,
    schedule="cosine",
    warmup=0.1,
    accumulate=2,
    ema=0.9,
    patience=2,
    clip=1.0,
    recalibrate_norms=True,
)


@dataclass
class Watch:
    """Notes what is told of a training, and ends it at a moment."""

    moment: tuple[str, int] | None = None
    stages: dict[str, list[int]] = field(default_factory=dict)  # what was done of each

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.setdefault(stage, []).append(done)
        if (stage, done) == self.moment:
            raise Ended


MOMENTS = [("training", i) for i in (1, 2, 5, 6, 7, 11, 12, 17, 18)]


@pytest.mark.parametrize("moment", [*MOMENTS, ("validating", 4), ("re-estimating", 2)])
def test_ended_at_any_batch_it_goes_on_to_the_same_bits(
    moment: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lilliput.training.loop, "SAVE_S", 0.0)
    given = task(Net(dropout=0.3), validate=DataLoader(samples(48, seed=1), batch_size=16))
    whole = lp.train(given, EVERYTHING)
    first, second, third = Watch(moment), Watch(), Watch()
    with pytest.raises(Ended):
        lp.train(given, EVERYTHING, folder=tmp_path, progress=first)
    again = lp.train(given, EVERYTHING, folder=tmp_path, progress=second)
    same(again.model, whole.model)
    assert again.history == whole.history
    trained = second.stages.get("training", [19])  # of 18
    assert first.stages["training"][-1] - 1 <= trained[0] <= first.stages["training"][-1] + 1, "it began anew"
    assert [path.suffix for path in tmp_path.iterdir()] == [".answer"]
    assert lp.train(given, EVERYTHING, folder=tmp_path, progress=third).history == whole.history
    assert set(third.stages) == {"reading train", "reading validate"}


def test_ended_before_the_result_is_stored_nothing_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, step = task(Net(dropout=0.3)), Finetune(epochs=2, lr=0.01)
    whole, watch = lp.train(given, step), Watch()

    def ended(*args: Any) -> None:
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr(lilliput.engine.store, "write", ended)
        with pytest.raises(Ended):
            lp.train(given, step, folder=tmp_path)
    (left,) = tmp_path.iterdir()
    held = left.read_bytes()
    again = lp.train(given, step, folder=tmp_path, progress=watch)
    same(again.model, whole.model)
    assert again.history == whole.history and "training" not in watch.stages
    assert [path.suffix for path in tmp_path.iterdir()] == [".answer"]
    left.write_bytes(held)  # as if it had ended after that, before the checkpoint was removed
    same(lp.train(given, step, folder=tmp_path, progress=watch).model, whole.model)
    assert "training" not in watch.stages and not left.exists()


class Restless:
    """Gives the batches of the next of some seeds each time it is read."""

    def __init__(self, *seeds: int) -> None:
        self.seeds = list(seeds)

    def __iter__(self) -> Iterator[Any]:
        seed = self.seeds.pop(0)
        same = list(DataLoader(samples(), batch_size=16))
        return iter([same[0], *list(DataLoader(samples(seed=seed), batch_size=16))[1:]])


def test_other_data_after_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lilliput.training.loop, "SAVE_S", 0.0)

    def end(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", 3):
            raise Ended

    with pytest.raises(Ended):
        lp.train(task(train=Restless(1, 2)), Finetune(), folder=tmp_path, progress=end)
    with pytest.raises(InputError, match="train: gave other batches in epoch 1"):
        lp.train(task(train=Restless(1, 3)), Finetune(), folder=tmp_path)


def test_data_that_changes_at_once_is_refused() -> None:
    loader = DataLoader(samples(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="train: gave another first batch"):
        lp.train(task(train=loader), Finetune())


class Shrinking:
    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(list(DataLoader(samples(), batch_size=16))[: 7 - self.times])


def test_a_source_that_ends_early_is_refused() -> None:
    with pytest.raises(InputError, match="train: gave 5 batches in epoch 1 and 6 when it was first read"):
        lp.train(task(train=Shrinking()), Finetune())


# stopping


def test_it_stops_when_validation_gets_no_better_and_keeps_the_best() -> None:
    given = task(validate=list(DataLoader(samples(48, seed=1), batch_size=16)))
    trained = lp.train(given, Finetune(epochs=30, optimizer="SGD", lr=3.0, patience=2))
    losses = [epoch["validation_loss"] for epoch in trained.history]
    assert len(losses) < 30 and losses.index(min(losses)) == len(losses) - 3
    with torch.no_grad():
        found = [float(loss(trained.model.eval(), batch)) for batch in given.validate or ()]
    assert sum(found) / len(found) == pytest.approx(min(losses), rel=1e-4)


def test_a_class_that_validation_lacks_is_told() -> None:
    x, y = samples(48).tensors
    given = task(validate=[(x[y < 2], y[y < 2])])
    with pytest.raises(InputError, match="validate: has no sample of class 2"):
        lp.train(given, Finetune(patience=1))


def test_a_loss_that_is_no_number_stops_it_and_the_model_is_kept() -> None:
    calls: list[int] = []

    def fails(model: Any, batch: Any) -> Tensor:
        calls.append(0)
        return loss(model, batch) * (float("nan") if len(calls) == 9 else 1.0)

    given = task(loss=fails)
    with pytest.raises(InputError, match=r"train, epoch 2, batch 3: the loss is nan .*went well is gone.*; lower lr"):
        lp.train(given, Finetune(epochs=3, lr=0.01))


def test_want_of_memory_suggests_smaller_batches() -> None:
    def fails(model: Any, batch: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(InputError, match="halve the batches of about 16 samples, and give accumulate=4"):
        lp.train(task(loss=fails), Finetune(accumulate=2))


# averages and statistics


def test_statistics_are_estimated_anew() -> None:
    given = task(train=list(DataLoader(samples(), batch_size=16)))
    trained = lp.train(given, Finetune(lr=0.01, recalibrate_norms=True)).model
    plain = lp.train(given, Finetune(lr=0.01)).model
    with torch.no_grad():
        means = [plain.conv(x).mean((0, 2, 3)) for x, _ in given.train or ()]  # type: ignore[operator]
    close(trained.norm.running_mean, torch.stack(means).mean(0))  # type: ignore[union-attr]
    assert trained.norm.momentum == 0.1  # type: ignore[union-attr]


def test_the_average_of_weights_is_kept() -> None:
    given = task(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), train=list(DataLoader(samples(), batch_size=16)))
    held = [p.detach().clone() for p in given.model.parameters()]
    bare = copy.deepcopy(given.model)
    optimizer = torch.optim.SGD(bare.parameters(), 0.1)
    for n, batch in enumerate(given.train or (), 1):
        loss(bare, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.5, (1 + n) / (10 + n))
        held = [decay * a + (1 - decay) * p.detach() for a, p in zip(held, bare.parameters(), strict=True)]
    trained = lp.train(given, Finetune(optimizer="SGD", lr=0.1, ema=0.5)).model
    for a, p in zip(held, trained.parameters(), strict=True):
        close(a, p.detach())


def test_half_precision() -> None:
    trained = lp.train(task(), Finetune(epochs=3, lr=0.01, precision="bf16"))
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())


# bad input


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"epochs": 0}, "0 epochs"),
        ({"lr": 0.0}, "learning rate of 0"),
        ({"optimizer": "adamw"}, "did you mean 'AdamW'"),
        ({"optimizer": "LBFGS"}, "LBFGS"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"momentum": 0.9}, "AdamW has no momentum"),
        ({"ema": 1.0}, "moving average of 1"),
        ({"warmup": 1.0}, "warm-up of 1"),
        ({"task_loss": 0.0}, "no loss at all"),
    ],
)
def test_bad_knobs(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        lp.train(task(), Finetune(**fields))


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"train": None}, "give train= and loss="),
        ({"train": []}, "train: holds no batches"),
        ({"train": [(torch.full((2, 1, 6, 6), float("nan")), torch.zeros(2))]}, r"train\[0\]: holds NaN"),
        ({"train": ["text"]}, r"train\[0\]: holds no tensor"),
        ({"loss": None}, "nothing to train by"),
        ({"loss": lambda model, batch: model(batch)}, "the loss failed"),
        ({"loss": lambda model, batch: model(batch[0])}, "return one number"),
    ],
)
def test_bad_tasks(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        lp.train(task(**fields), Finetune())


def test_patience_needs_validation() -> None:
    with pytest.raises(InputError, match="give validate="):
        lp.train(task(), Finetune(patience=1))


def test_a_step_survives_toml() -> None:
    recipe = lp.Recipe([lp.Prune("weights", 0.5), EVERYTHING])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe


# progress


def test_every_stage_is_told() -> None:
    given = task(Net(), validate=DataLoader(samples(48, seed=1), batch_size=16))
    told: list[tuple[str, int, int]] = []
    lp.train(given, Finetune(epochs=2, recalibrate_norms=True), progress=lambda *report: told.append(report))
    assert told == [
        *(("reading train", i, 6) for i in (0, 1, 2, 3, 4, 5, 5, 6)),
        *(("reading validate", i, 3) for i in (0, 1, 2, 2, 3)),
        *(("training", i, 12) for i in range(1, 7)),
        *(("validating", i, 6) for i in range(1, 4)),
        *(("training", i, 12) for i in range(7, 13)),
        *(("validating", i, 6) for i in range(4, 7)),
        *(("re-estimating", i, 6) for i in range(1, 7)),
    ]


class Stream:
    """Batches whose number is not known, or wrong."""

    def __init__(self, length: Callable[[], int]) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length()

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(samples(48), batch_size=16))


def unknown() -> int:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("length", "done"),
    [(unknown, [0, 0, 0, 0, 1]), (lambda: 2, [0, 1, 1, 1, 2]), (lambda: 5, [0, 1, 2, 3, 5])],
    ids=["unknown", "too short", "too long"],
)
def test_a_source_of_unknown_length_is_told_to_its_end(length: Callable[[], int], done: list[int]) -> None:
    told: list[tuple[int, int]] = []
    Feed.known(Stream(length), "train", 0, lambda stage, done, total: told.append((done, total)))
    assert told == [(i, done[-1]) for i in done]


def test_labels_that_no_loss_looks_at_are_no_class() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, -100, 1])
    train, validate = Feed.known([(x, y)], "train", 0), Feed.known([(x[:2], y[:2])], "validate", 0)
    check_classes(train, validate)
    with pytest.raises(InputError, match="no sample of class 1"):
        check_classes(train, Feed.known([(x[:1], y[:1])], "validate", 0))
