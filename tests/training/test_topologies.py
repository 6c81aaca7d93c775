"""Every kind of network, compressed in every way, is trained: what was established lasts, and nothing else changes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional as F

import lilliput as lp
import lilliput.training.loop
from lilliput.encodings import Sparse, tensor_digest
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.carrier.carrier import encoded_tensors, tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.values import value_encodings
from lilliput.progress import silent
from lilliput.targets.kernels import exact_here
from lilliput.techniques.distill import FitNet, LogitKD, Term
from lilliput.techniques.finetune import Finetune

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1.0)
STEP = Finetune(epochs=12, lr=0.04)
PRUNE = lp.Prune("weights", 0.5)
COMPRESSIONS: dict[str, list[Any]] = {
    "pruned": [PRUNE],
    "weights": [lp.Quantize(weights=lp.Int(4))],
    "activations": [lp.Quantize(activations=lp.Int(8))],
    "pruned, then both": [PRUNE, lp.Quantize(weights=lp.Int(5), activations=lp.Int(8, dynamic=True))],
}
torch.manual_seed(1)
JUDGE = networks.Discriminator().eval().requires_grad_(False)  # fixed, as between two turns of a GAN's training


def answer(model: Any, given: Any) -> Any:
    return model(**given) if isinstance(given, dict) else model(given)


def given(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def classify(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(answer(model, batch[0]).flatten(0, -2), batch[1].flatten())


def deceiving(judge: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    return lambda model, noise: (judge(model(noise)) - 1).square().mean()


def unmask(model: Any, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def rebuild(model: Any, x: Tensor) -> Tensor:
    again, mean, spread = model(x)
    return F.mse_loss(again, x) + 0.01 * (mean.square() + spread.exp() - spread - 1).mean()


def vectors() -> Any:
    x = torch.randn(16, 8)
    return x, x[:, :4].argmax(1)


def pictures() -> Any:
    brightness = torch.arange(16) % 4
    return torch.randn(16, 3, 8, 8) + brightness[:, None, None, None] - 1.5, brightness


def remembered() -> Any:
    tokens = torch.randint(12, (16, 5))
    return tokens, tokens[:, -1] % 4


def following() -> Any:
    tokens = torch.randint(12, (16, 5))
    return tokens, (tokens + 1) % 12


def forged() -> Any:
    real = (torch.arange(16) % 2).float()[:, None]
    return torch.randn(16, 3, 8, 8) * (1 - 0.8 * real[..., None, None]), real


def nodes() -> Any:
    x = torch.randn(16, 5, 8)
    return {"nodes": x, "edges": torch.rand(16, 5, 5) / 5}, x[..., :3].argmax(-1)


@dataclass(frozen=True)
class Lesson:
    """What a kind of network can learn in a second."""

    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor]
    term: Term  # by which the original teaches
    still: str  # a part that a user may freeze


LESSONS = {
    "mlp": Lesson(vectors, classify, LogitKD(temperature=2.0), "0"),
    "cnn": Lesson(pictures, classify, LogitKD(temperature=2.0), "stem"),
    "lstm": Lesson(remembered, classify, LogitKD(temperature=2.0), "embed"),
    "gru": Lesson(remembered, classify, LogitKD(temperature=2.0), "cell"),
    "transformer": Lesson(following, classify, LogitKD(temperature=2.0), "embed"),
    "generator": Lesson(lambda: torch.randn(16, 8), deceiving(JUDGE), LogitKD(by="mse"), "fc"),
    "discriminator": Lesson(forged, unmask, LogitKD(by="mse"), "down1"),
    "vae": Lesson(
        lambda: torch.randn(16, 2) @ torch.linspace(-1, 1, 16).reshape(2, 8), rebuild, FitNet("decode"), "mean"
    ),
    "graph": Lesson(nodes, classify, LogitKD(temperature=2.0), "message"),
}
assert LESSONS.keys() == networks.TOPOLOGIES.keys(), "a network that is never trained"


@dataclass(frozen=True)
class Small:
    """A network, compressed by the engine alone, for a build and its timing would take seconds."""

    name: str
    how: str
    original: nn.Module
    driver: Driver
    batches: list[Any]

    @classmethod
    def made(cls, name: str, how: str, original: nn.Module | None = None) -> Small:
        task, begun = begun_by(name, original)
        driver = begun.fork()
        follow(lp.Recipe(COMPRESSIONS[how]), driver)
        return cls(name, how, task.model, driver, list(task.train or ()))

    @property
    def model(self) -> nn.Module:
        return self.driver.model

    def task(self, model: nn.Module | None = None) -> lp.Task:
        return lp.Task(model or self.model, train=self.batches, loss=LESSONS[self.name].loss)


@functools.cache
def begun_by(name: str, original: nn.Module | None) -> tuple[lp.Task, Driver]:
    """What all compressions of a network begin with: it is captured once."""
    task = task_for(name, original)
    return task, begin(task, QUICK, Store(), silent)[0]


def task_for(name: str, original: nn.Module | None = None) -> lp.Task:
    torch.manual_seed(0)
    lesson, original = LESSONS[name], original or networks.TOPOLOGIES[name].make()
    batches = [lesson.batch() for _ in range(2)]
    return lp.Task(original, calibrate=list(map(given, batches)), train=batches, loss=lesson.loss)


@dataclass(frozen=True)
class Case:
    small: Small
    before: Any  # of all that is the user's
    trained: lp.verbs.Trained


@pytest.fixture(scope="module", params=[(name, how) for name in LESSONS for how in COMPRESSIONS], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    small = Small.made(*request.param)
    return Case(small, users(small), lp.train(small.task(), STEP))


def users(small: Small) -> Any:
    """All that must not change: every bit of every tensor, classes, modes, hooks, gradients."""
    return [
        (
            {name: tensor_digest(x) for name, x in model.state_dict().items()},
            [(type(part), part.training, len(part._forward_hooks)) for part in model.modules()],
            [(p.requires_grad, p.grad) for p in model.parameters()],
        )
        for model in (small.original, small.model, JUDGE)
    ]


def outputs(model: nn.Module, batches: list[Any]) -> Tensor:
    """First outputs for all batches, flat."""
    quiet = copy.deepcopy(model).eval()
    with torch.no_grad():
        found = [answer(quiet, given(batch)) for batch in batches]
    return torch.cat([(x[0] if isinstance(x, tuple) else x).flatten() for x in found])


def loss_of(model: nn.Module, small: Small) -> float:
    quiet = copy.deepcopy(model).eval()
    with torch.no_grad():
        return sum(float(LESSONS[small.name].loss(quiet, batch)) for batch in small.batches)


def same(a: nn.Module, b: nn.Module) -> None:
    assert type(a) is type(b) and a.state_dict().keys() == b.state_dict().keys()
    for name, x in a.state_dict().items():
        assert torch.equal(x, b.state_dict()[name]), name


def check_established(before: nn.Module, after: nn.Module) -> None:
    """The encoded tensors are other ones, of the same encodings, zeros, levels and ranges."""
    earlier, later = dict(encoded_tensors(before)), dict(encoded_tensors(after))
    assert earlier.keys() == later.keys() != set()
    for paths, held in later.items():
        old, new = earlier[paths](), held()
        assert not torch.equal(old, new), f"{paths} was not trained"
        assert held.encoding == earlier[paths].encoding and held.latent is None
        inner = held.encoding
        if isinstance(inner, Sparse):
            assert bool((old == 0).any()) and bool((new[old == 0] == 0).all()), f"{paths} lost zeros"
            inner = inner.values
        if isinstance(inner, lp.Int):
            rows = new.movedim(inner.axis, 0).flatten(1)
            assert all(len(row.unique()) < 2**inner.bits for row in rows), f"{paths} has more levels than its bits"
    for name, x in before.state_dict().items():
        if name.endswith((".scale", ".offset")):
            assert torch.equal(x, after.state_dict()[name]), name


def test_the_loss_falls(case: Case) -> None:
    losses = [epoch["loss"] for epoch in case.trained.history]
    assert losses[-1] < 0.8 * losses[0]


def test_zeros_levels_and_ranges_last(case: Case) -> None:
    check_established(case.small.model, case.trained.model)


def test_values_that_flow_are_still_encoded(case: Case) -> None:
    before, after = value_encodings(case.small.model), value_encodings(case.trained.model)
    assert bool(before) == (case.small.how in ("activations", "pruned, then both"))
    assert [(name, held.encoding) for name, held in before.items()] == [(name, after[name].encoding) for name in after]


def test_ties_last(case: Case) -> None:
    def ties(model: nn.Module) -> set[tuple[str, ...]]:
        return {paths for paths in tensors(model) if len(paths) > 1}

    tied = {("embed.weight", "head.weight")} if case.small.name == "transformer" else set()
    assert ties(case.trained.model) == ties(case.small.original) == tied


def test_what_the_user_gave_is_as_it_was(case: Case) -> None:
    assert users(case.small) == case.before


def test_what_was_trained_is_stored_and_trained_again(case: Case, tmp_path: Path) -> None:
    trained, small = case.trained.model, case.small
    lp.save(tmp_path / "net.lil", trained)
    loaded = lp.load(tmp_path / "net.lil", into=networks.TOPOLOGIES[small.name].make())
    same(loaded, trained)
    assert torch.equal(outputs(loaded, small.batches), outputs(trained, small.batches))
    again = [lp.train(small.task(model), replace(STEP, epochs=2)) for model in (loaded, trained)]
    same(again[0].model, again[1].model)
    assert again[0].history == again[1].history
    assert again[0].history[-1]["loss"] < 0.8 * case.trained.history[0]["loss"]


def test_the_original_teaches_beside_the_loss(case: Case) -> None:
    """Without being named: in a recipe, the network as the user gave it is the teacher."""
    small = case.small
    driver = small.driver.fork()
    replace(STEP, distill=(replace(LESSONS[small.name].term, weight=3.0),)).apply(driver)
    wanted = outputs(small.original, small.batches)
    taught, alone = (F.mse_loss(outputs(x, small.batches), wanted) for x in (driver.model, case.trained.model))
    assert taught < 0.75 * alone and loss_of(driver.model, small) < loss_of(small.model, small)
    assert users(small) == case.before


def test_a_generator_and_its_judge_are_trained_in_turns() -> None:
    small = Small.made("generator", "pruned, then both")
    generator, judge, noise = small.model, networks.Discriminator(), []
    real = torch.randn(1, 3, 8, 8).expand(16, -1, -1, -1)
    for _ in range(2):
        noise.append(torch.randn(16, 8))
        judge.requires_grad_(False)
        generator = falls(lp.train(lp.Task(generator, train=noise[-1:], loss=deceiving(judge)), STEP))
        judge.requires_grad_(True)
        with torch.no_grad():
            shown = torch.cat([real, generator(noise[-1])])
        turn = lp.Task(judge, train=[(shown, (torch.arange(32) < 16).float()[:, None])], loss=unmask)
        judge = falls(lp.train(turn, STEP))
    check_established(small.model, generator)
    assert not torch.equal(*noise), "training sets the user's random numbers back"


def falls(trained: lp.verbs.Trained) -> nn.Module:
    assert trained.history[-1]["loss"] < 0.9 * trained.history[0]["loss"]
    return trained.model


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_codes_in_a_recurrent_cell_are_trained(cell: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    small = Small.made("lstm" if cell is nn.LSTM else "gru", "pruned, then both", networks.RNN(cell))
    held = {paths[0]: tensor.encoding for paths, tensor in encoded_tensors(small.model)}
    for name in ("cell.weight_ih_l0", "cell.weight_hh_l0"):
        assert isinstance(held[name], Sparse) and isinstance(held[name].values, lp.Int)
    trained = lp.train(small.task(), STEP)
    check_established(small.model, falls(trained))


# ended and begun again


class Ended(BaseException):
    """As if the process were killed."""


DROPPING = {
    "cnn": networks.CNN,
    "lstm": lambda: networks.RNN(layers=2, dropout=0.3),
    "transformer": networks.Transformer,
}


@pytest.mark.parametrize("name", DROPPING)
def test_ended_at_any_batch_it_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lilliput.training.loop, "SAVE_S", 0.0)
    small = Small.made(name, "pruned, then both", DROPPING[name]())
    task = replace(small.task(), teacher=small.original)
    step = Finetune(epochs=3, lr=0.03, distill=(LESSONS[name].term,))
    whole = lp.train(task, step)
    for moment in (2, 3):  # at the end of an epoch, in the middle of one
        folder = tmp_path / str(moment)

        def end(stage: str, done: int, total: int, moment: int = moment) -> None:
            if (stage, done) == ("training", moment):
                raise Ended

        with pytest.raises(Ended):
            lp.train(task, step, folder=folder, progress=end)
        again = lp.train(task, step, folder=folder)
        same(again.model, whole.model)
        assert again.history == whole.history


# frozen parts


@pytest.mark.parametrize("name", ["cnn", "gru", "transformer", "generator", "graph"])
def test_only_what_is_not_frozen_is_trained(name: str) -> None:
    original, part = networks.TOPOLOGIES[name].make(), LESSONS[name].still
    original.get_submodule(part).requires_grad_(False)
    small = Small.made(name, "weights", original)
    trained = lp.train(small.task(), STEP).model
    earlier, later = (
        {paths: x() if isinstance(x, EncodedTensor) else x for paths, x in tensors(model).items()}
        for model in (small.model, trained)
    )
    still = {paths for paths in earlier if any(path.startswith(f"{part}.") for path in paths)}
    assert {paths for paths in earlier if torch.equal(earlier[paths], later[paths])} == still != set()
    dense = lp.formats.to_dense(trained)
    assert {paths for paths, x in tensors(dense).items() if not x.requires_grad} == still


@pytest.mark.parametrize("how", ["pruned", "pruned, then both"])
def test_parts_of_a_compressed_network_are_frozen_while_it_is_unfrozen(how: str) -> None:
    small = Small.made("mlp", how)
    net = lp.formats.unfreeze(copy.deepcopy(small.model))
    part = net.get_submodule("2").requires_grad_(False)
    held = outputs(part, [torch.eye(16)])
    for model in (net, lp.formats.freeze(copy.deepcopy(net))):
        trained = lp.train(small.task(model), STEP).model
        assert torch.equal(outputs(trained.get_submodule("2"), [torch.eye(16)]), held)
        assert not torch.equal(outputs(trained, small.batches), outputs(net, small.batches))
        assert all(x.latent is None for _, x in encoded_tensors(trained))


def test_a_network_that_is_still_unfrozen_is_compressed_as_it_stands() -> None:
    net = lp.formats.unfreeze(copy.deepcopy(Small.made("mlp", "weights").model))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.7)
    small = Small.made("mlp", "pruned", net)
    assert float(F.mse_loss(outputs(small.model, small.batches), outputs(net, small.batches))) < 0.02
    assert all(x.latent is not None for _, x in encoded_tensors(net)), "the user's model is left alone"


def test_with_a_frozen_part_it_is_another_training(tmp_path: Path) -> None:
    """What the folder remembers is the answer to one question."""
    small = Small.made("mlp", "weights")
    whole = lp.train(small.task(), STEP, folder=tmp_path).model
    net = lp.formats.unfreeze(copy.deepcopy(small.model))
    net.get_submodule("2").requires_grad_(False)
    part = lp.train(small.task(net), STEP, folder=tmp_path).model
    for name in ("2.bias", "2.weight_encoded.codes"):
        assert torch.equal(part.state_dict()[name], small.model.state_dict()[name])
        assert not torch.equal(part.state_dict()[name], whole.state_dict()[name])


@pytest.mark.parametrize(
    "norm",
    [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm, nn.utils.spectral_norm],
    ids=["new", "weight", "spectral"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_normalised_tensor_that_is_frozen_stays(norm: Any) -> None:
    batches = [vectors()]
    net = nn.Sequential(norm(nn.Linear(8, 8)), nn.Linear(8, 4))
    net[0].requires_grad_(False)
    net(batches[0][0])  # or an old norm holds a tensor that still has a graph
    trained = lp.train(lp.Task(net, train=batches, loss=classify), STEP).model
    close(outputs(trained[0], batches), outputs(net[0], batches), atol=1e-6)  # type: ignore[index]
    assert [name for name, p in trained.named_parameters() if p.requires_grad] == ["1.weight", "1.bias"]


# end to end


@pytest.mark.parametrize("name", ["generator", "vae"])
def test_a_recipe_that_trains_is_delivered(name: str, tmp_path: Path) -> None:
    task, term = task_for(name), replace(LESSONS[name].term, weight=0.1)
    before = {key: tensor_digest(x) for key, x in task.model.state_dict().items()}
    steps = [PRUNE, replace(STEP, distill=(term,)), lp.Quantize(weights=exact_here(), activations=lp.Int(8))]
    small = lp.compress(task, lp.Recipe(steps), target=QUICK, folder=tmp_path)
    (training,) = small.data["training"]
    assert training["epochs"][-1]["loss"] < 0.8 * training["epochs"][0]["loss"]
    assert {key: tensor_digest(x) for key, x in task.model.state_dict().items()} == before
    pruned = [held() for _, held in encoded_tensors(small.model) if isinstance(held.encoding, Sparse)]
    assert pruned and all(float((x == 0).float().mean()) >= 0.5 for x in pruned)
    loaded = lp.load(small.save(tmp_path / "copy.lil"), into=networks.TOPOLOGIES[name].make())
    same(loaded, small.model)
    run = lp.open(tmp_path / "copy.lil")
    built = torch.cat([(x[0] if isinstance(x, tuple) else x).flatten() for x in map(run, task.calibrate or ())])
    close(built, outputs(loaded, list(task.train or ())), share=0.05)
