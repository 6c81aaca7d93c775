"""Teachers: what they show reaches the student, nothing of them stays in it, saved answers are as good as live ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp
import lilliput.training.loop
from lilliput.errors import FormatError, InputError, RecipeError
from lilliput.techniques.distill import DIST, DKD, TERMS, AttentionTransfer, FitNet, LogitKD, RelationalKD
from lilliput.techniques.finetune import Finetune

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=2)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.deep(torch.relu(self.conv(x))))
        return self.fc(self.drop(x.mean((2, 3))))  # type: ignore[no-any-return]


def samples(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    return TensorDataset(torch.randn(count, 1, 6, 6, generator=generator) + 2 * (y[:, None, None, None].float() - 1), y)


def shuffled() -> DataLoader[Any]:
    return DataLoader(samples(), batch_size=16, shuffle=True)


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(1)
    return lp.train(lp.Task(Net(16), train=shuffled(), loss=loss), Finetune(epochs=6, lr=0.01)).model


def task(teacher: Any, **fields: Any) -> lp.Task:
    torch.manual_seed(0)
    return lp.Task(Net(4), **{"train": shuffled(), "loss": loss, "teacher": teacher, **fields})


def apart(student: nn.Module, teacher: nn.Module) -> float:
    x = samples().tensors[0]
    with torch.no_grad():
        ours, theirs = (model.eval()(x).log_softmax(1) for model in (student, teacher))
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())


ALL = [
    LogitKD(temperature=2.0),
    LogitKD(by="mse"),
    DKD(beta=2.0),
    DIST(),
    FitNet("deep"),
    RelationalKD("deep"),
    RelationalKD("deep", by="angles"),
    RelationalKD("deep", by="similarities"),
    AttentionTransfer(("conv", "deep")),
]


@pytest.mark.parametrize("term", ALL, ids=repr)
def test_every_term_trains_and_leaves_nothing_behind(term: Any, teacher: nn.Module) -> None:
    before = copy.deepcopy(teacher.state_dict())
    trained = lp.train(task(teacher), Finetune(epochs=4, lr=0.01, distill=(term,)))
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert trained.model.state_dict().keys() == Net(4).state_dict().keys()
    assert not any(part._forward_hooks for part in (*trained.model.modules(), *teacher.modules()))
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_student_follows_without_labels(teacher: nn.Module) -> None:
    unlabelled = [x for x, _ in shuffled()]
    step = Finetune(epochs=8, lr=0.01, distill=(LogitKD(temperature=1.0),))
    given = task(teacher, train=unlabelled, loss=None)
    student = lp.train(given, step).model
    assert apart(student, teacher) < 0.3 * apart(given.model, teacher)


def test_several_teachers_are_named(teacher: nn.Module) -> None:
    terms = (LogitKD(weight=0.5), FitNet("deep", teacher=1))
    trained = lp.train(task([teacher, Net(8)]), Finetune(distill=terms))
    assert len(trained.history) == 1
    with pytest.raises(InputError, match=r"FitNet names teacher 1.*there are 1"):
        lp.train(task(teacher), Finetune(distill=terms))


def test_the_original_teaches_after_compression() -> None:
    torch.manual_seed(0)
    net = lp.train(lp.Task(Net(8), train=shuffled(), loss=loss), Finetune(epochs=4, lr=0.01)).model
    given = lp.Task(net, train=[x for x, _ in shuffled()], calibrate=[samples().tensors[0][:16]])
    steps = [lp.Prune("weights", 0.7), Finetune(epochs=6, lr=0.01, distill=(LogitKD(temperature=1.0),)), lp.Quantize()]
    without = lp.compress(given, lp.Recipe([steps[0], steps[2]]), target=QUICK)
    small = lp.compress(given, lp.Recipe(steps), target=QUICK)
    assert apart(small.model, net) < 0.5 * apart(without.model, net)
    assert float((small.model.deep.weight == 0).float().mean()) > 0.69  # type: ignore[union-attr,operator]


def test_saved_answers_train_the_same(teacher: nn.Module, tmp_path: Path) -> None:
    terms = (LogitKD(temperature=2.0), DKD())
    live = lp.train(task(teacher), Finetune(epochs=3, lr=0.01, distill=terms))
    saved = lp.train(task(teacher), Finetune(epochs=3, lr=0.01, distill=terms, save_teacher=True), folder=tmp_path)
    for x, y in zip(live.model.parameters(), saved.model.parameters(), strict=True):
        close(x, y, rtol=1e-4, atol=1e-6)  # a teacher answers other batches to rounding
    (answers,) = tmp_path.glob("*.teachers")
    calls: list[int] = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(0))
    lp.train(task(teacher), Finetune(epochs=2, lr=0.02, distill=terms, save_teacher=True), folder=tmp_path)
    hook.remove()
    assert not calls, "the saved answers were not used"
    data = bytearray(answers.read_bytes())
    data[len(data) // 2] ^= 1
    answers.write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        lp.train(task(teacher), Finetune(epochs=1, distill=terms, save_teacher=True), folder=tmp_path)


def test_stale_answers_are_refused(teacher: nn.Module, tmp_path: Path) -> None:
    step = Finetune(distill=(LogitKD(),), save_teacher=True)
    lp.train(task(teacher), step, folder=tmp_path)
    (answers,) = tmp_path.glob("*.teachers")
    other = Net(16)
    lp.train(task(other), step, folder=tmp_path)
    (new,) = set(tmp_path.glob("*.teachers")) - {answers}
    new.write_bytes(answers.read_bytes())
    with pytest.raises(FormatError, match=r"other teachers.*delete it"):
        lp.train(task(other), Finetune(distill=(LogitKD(),), save_teacher=True, lr=1e-3), folder=tmp_path)


def test_samples_that_the_saved_epoch_left_out_are_asked(teacher: nn.Module) -> None:
    given = task(teacher, train=DataLoader(samples(), batch_size=36, shuffle=True, drop_last=True))
    step = Finetune(epochs=4, optimizer="SGD", lr=0.1, distill=(LogitKD(),))
    live, saved = lp.train(given, step), lp.train(given, replace(step, save_teacher=True))
    for x, y in zip(live.model.parameters(), saved.model.parameters(), strict=True):
        close(x, y, atol=1e-5)


class Noisy(DataLoader[Any]):
    """Changes its samples at random, as augmentation does."""

    def __iter__(self) -> Any:
        return ((x + torch.randn(()), y) for x, y in super().__iter__())


def test_samples_that_change_have_no_saved_answers(teacher: nn.Module) -> None:
    given = task(teacher, train=Noisy(samples(), batch_size=16))
    lp.train(given, Finetune(epochs=2, distill=(LogitKD(),)))
    with pytest.raises(InputError, match=r"lack many samples.*save_teacher=False"):
        lp.train(given, Finetune(epochs=2, distill=(LogitKD(),), save_teacher=True))


class Ended(BaseException):
    pass


@pytest.mark.parametrize("moment", [3, 8, 12])
def test_ended_at_any_batch_it_goes_on_to_the_same_bits(
    moment: int, teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lilliput.training.loop, "SAVE_S", 0.0)
    step = Finetune(epochs=2, lr=0.01, distill=(FitNet(("conv", "deep")), LogitKD()))
    whole = lp.train(task(teacher), step)

    def end(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", moment):
            raise Ended

    with pytest.raises(Ended):
        lp.train(task(teacher), step, folder=tmp_path, progress=end)
    again = lp.train(task(teacher), step, folder=tmp_path)
    assert all(torch.equal(x, y) for x, y in zip(whole.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("term", "error", "hint"),
    [
        (FitNet("dep"), RecipeError, "FitNet, student: there is no module 'dep'; did you mean 'deep'"),
        (FitNet("deep", teacher_layers="dep"), RecipeError, "FitNet, teacher: there is no module 'dep'"),
    ],
)
def test_taps_that_are_not_there(term: Any, error: Any, hint: str, teacher: nn.Module) -> None:
    with pytest.raises(error, match=hint):
        lp.train(task(teacher), Finetune(distill=(term,)))


def test_outputs_that_do_not_fit(teacher: nn.Module) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(InputError, match=r"\(16, 3\).*\(16, 5\)|\[16, 3\].*\[16, 5\]"):
        lp.train(task(other), Finetune(distill=(LogitKD(),)))
    with pytest.raises(InputError, match="looks inside the teacher"):
        lp.train(task(teacher), Finetune(distill=(FitNet("deep"),), save_teacher=True))


def test_a_loss_that_does_not_call_the_model(teacher: nn.Module) -> None:
    given = task(teacher, loss=lambda model, batch: torch.zeros((), requires_grad=True))
    with pytest.raises(InputError, match="the loss did not call the model"):
        lp.train(given, Finetune(distill=(LogitKD(),)))


def test_terms_are_written_in_recipes() -> None:
    recipe = lp.Recipe([lp.Prune("weights", 0.5), Finetune(distill=tuple(ALL))])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe
    assert {type(term).__name__ for term in ALL} == set(TERMS)
