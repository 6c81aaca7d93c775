"""A planted bad layer comes first, and its cause is named; in brief on the module, in full on the target."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.blame.blame import brief
from lilliput.blame.exact import with_encodings
from lilliput.blame.places import places
from lilliput.blame.simulation import Case, alone, divided, pieces_of, with_places
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver, silent
from lilliput.engine.store import Store
from lilliput.feeding import Batches
from lilliput.measure import Noise
from lilliput.targets.kernels import exact_here
from lilliput.targets.onnx import OnnxWriter
from lilliput.techniques.encode import prepare

TARGET = lp.targets.OnnxRuntime(threads=1)
EXACT = exact_here()
STATIC = lp.Quantize(weights=EXACT, activations=lp.Int(8))
SHARED = lp.Quantize(weights=replace(EXACT, per="tensor"), activations=lp.Int(8))
DYNAMIC = lp.Quantize(weights=EXACT, activations=lp.Int(8, dynamic=True))


class Images(nn.Module):
    """A stem with a norm, a depthwise layer, a layer called twice, a residual sum, an answer by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide, self.twice = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.classes = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        x = torch.relu(self.wide(x))
        x = x + torch.relu(self.twice(torch.relu(self.twice(x))))
        return {"logits": self.classes(x.mean((2, 3)))}


class Block(nn.Module):
    """Two linear layers beside a residual stream, as in a transformer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def images() -> nn.Module:
    torch.manual_seed(0)
    return Images().eval()


def tokens() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), Block(), nn.Linear(32, 8)).eval()


def batches(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 8, 8, 8) if isinstance(model, Images) else torch.randn(8, 5, 32) for _ in range(2)]


def driven(task: lp.Task, *steps: Any, store: Store | None = None) -> tuple[Driver, Batches | None]:
    driver, evaluate = begin(task, TARGET, store or Store(), silent)
    follow(lp.Recipe(list(steps)), driver)
    return driver, evaluate or driver.calibrate


def briefly(task: lp.Task, *steps: Any) -> dict[str, Any]:
    driver, looked_at = driven(task, *steps)
    found = brief(driver, task.model, looked_at, "net")
    assert found["rows"], found["notes"]
    return found


def weight_outlier(model: Any) -> lp.Task:
    """A large weight that reads next to nothing, so that it costs the others their codes and changes no output."""
    layer = model.wide if isinstance(model, Images) else model[1].down
    source = model.depthwise if isinstance(model, Images) else model[1].up
    source.weight.data[3], source.bias.data[3] = 0.0, 0.0
    layer.weight.data[2, 3] = 30.0
    return lp.Task(model, calibrate=batches(model))


def activation_outlier(model: Any) -> lp.Task:
    """One channel a hundred times as large, and the weights that read it a hundred times as small."""
    if isinstance(model, Images):
        model.norm.weight.data[5] *= 100
        model.norm.bias.data[5] *= 100
        model.depthwise.weight.data[5] /= 100
    else:
        model[1].norm.weight.data[5] *= 100
        model[1].up.weight.data[:, 5] /= 100
    return lp.Task(model, calibrate=batches(model))


def tame(model: Any) -> lp.Task:
    """Some of the inputs to judge by are far larger than those that ranges were found with."""
    given = batches(model)
    wild = [x * torch.where(torch.arange(8) % 2 == 0, 12.0, 1.0).reshape(-1, *[1] * (x.dim() - 1)) for x in given]
    return lp.Task(model, calibrate=given, evaluate=wild)


def uneven_depthwise(model: Any) -> lp.Task:
    """Channels of a depthwise layer over four orders of magnitude, made up for by the weights that read them."""
    factors = torch.logspace(-3, 1, 16)
    model.depthwise.weight.data *= factors[:, None, None, None]
    model.depthwise.bias.data *= factors
    model.wide.weight.data /= factors[None, :, None, None]
    return lp.Task(model, calibrate=batches(model))


def plain(model: Any) -> lp.Task:
    return lp.Task(model, calibrate=batches(model))


PLANTED: list[tuple[str, Callable[[], nn.Module], Callable[[Any], lp.Task], list[Any], str, str]] = [
    ("weight, images", images, weight_outlier, [SHARED], "wide.weight", "one scale for all channels"),
    (
        *("weight, tokens", tokens, weight_outlier),
        *([lp.Quantize(weights=lp.Int(8, per="tensor"))], "1.down.weight", "one scale for all channels"),
    ),
    ("activation, images", images, activation_outlier, [STATIC], "stem.weight", "outlier channel"),
    ("activation, tokens", tokens, activation_outlier, [DYNAMIC], "1.up.weight", "outlier channel"),
    ("range, images", images, tame, [STATIC], "stem.weight", "clipped range"),
    ("depthwise", images, uneven_depthwise, [lp.Quantize(weights=lp.Int(8, per="tensor"))], "depthwise.weight", ""),
    (
        *("bits, images", images, plain),
        *([lp.Quantize(weights=lp.Int(2), where="twice"), lp.Quantize(activations=lp.Int(8), where=("*", "!twice"))],),
        *("twice.weight", "few bits"),
    ),
    (
        *("bits, tokens", tokens, plain),
        *([lp.Quantize(weights=lp.Int(2), where="2.down"), lp.Quantize(where=("*", "!2.down"))],),
        *("2.down.weight", "few bits"),
    ),
    (
        *("pruned", tokens, plain),
        *([lp.Prune("weights", 0.9, where="0.up"), lp.Quantize()], "0.up.weight", "pruned"),
    ),
]


@pytest.mark.parametrize(
    ("make", "plant", "steps", "culprit", "kind"),
    [case[1:] for case in PLANTED],
    ids=[case[0] for case in PLANTED],
)
def test_a_planted_layer_comes_first_and_its_cause_is_named(
    make: Callable[[], nn.Module], plant: Callable[[Any], lp.Task], steps: list[Any], culprit: str, kind: str
) -> None:
    found = briefly(plant(make()), *steps)
    first = found["rows"][0]
    assert first["name"] == culprit, [(row["name"], row["own_db"]) for row in found["rows"]]
    assert first["own_on"] == "module" and first["causes"][0]["remedies"]
    assert first["causes"][0]["kind"] == (kind or "one scale for all channels"), first["causes"]


def test_the_damage_of_places_adds_up_to_that_of_the_network() -> None:
    """Every encoding belongs to one place: noises that do not know of each other add."""
    task = plain(images())
    driver, looked_at = driven(task, STATIC)
    model = driver.afresh(task.model)
    prepare(model)
    found = places(driver.view(), driver.model)
    owned = [name for place in found for name in place.values]
    assert len(owned) == len(set(owned))
    case = Case(
        driver, model.model, driver.model, found, pieces_of(looked_at or [], driver, 8, spread=True), "calibrate"
    )
    assert divided(case) == ""
    together = Noise()
    with torch.no_grad():
        for inputs in case.pieces:
            together.add(inputs.call(case.exact), inputs.call(case.small))
    assert len(case.pieces) > 1
    assert with_places(case, found) == pytest.approx(together.ratio, rel=1e-6)
    assert sum(alone(case, place) for place in found) == pytest.approx(together.ratio, rel=0.3)
    some = found[1:]
    made = with_encodings(case.exact, case.small, some)
    as_real = Noise()
    with torch.no_grad():
        for inputs in case.pieces:
            as_real.add(inputs.call(case.exact), inputs.call(made))
    assert with_places(case, some) == pytest.approx(as_real.ratio, rel=1e-6)


def test_nothing_is_left_changed() -> None:
    task = activation_outlier(images())
    driver, looked_at = driven(task, STATIC)
    before = {name: x.clone() for name, x in driver.model.state_dict().items()}
    kinds = [type(module) for module in driver.model.modules()]
    brief(driver, task.model, looked_at, "net")
    assert all(torch.equal(x, before[name]) for name, x in driver.model.state_dict().items())
    assert kinds == [type(module) for module in driver.model.modules()]


def test_after_training_no_layer_is_judged_alone() -> None:
    """The weights that belong together were found together: the noise that has arrived is told, and why no more."""
    model, given = tokens(), batches(tokens())
    task = lp.Task(
        model,
        calibrate=given,
        train=[(x, x[..., :8]) for x in given],
        loss=lambda m, b: (m(b[0]) - b[1]).square().mean(),
    )
    found = briefly(task, lp.Quantize(weights=lp.Int(4)), lp.Finetune(epochs=1, lr=1e-2))
    assert all(row["own_db"] is None and row["reached_db"] for row in found["rows"])
    assert any("trained or changed" in note for note in found["notes"])


def test_what_the_model_raises_is_told_and_loses_no_run() -> None:
    class Fickle(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            if self.calls == 1:
                raise ValueError("no more")
            return super().forward(x)

    model = nn.Sequential(Fickle(32, 8)).eval()
    task = lp.Task(model, calibrate=batches(tokens()))
    driver, looked_at = driven(task, lp.Quantize())
    Fickle.calls = 1
    found = brief(driver, task.model, looked_at, "net")
    assert not found["rows"] and "no more" in found["notes"][0]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[lp.results.Diagnosis, Path]:
    folder = tmp_path_factory.mktemp("full")
    task = activation_outlier(images())
    return lp.diagnose(task, lp.Recipe([STATIC]), target=TARGET, folder=folder, samples=8, worst=1), folder


def test_in_full_the_planted_layer_is_measured_on_the_target(full: tuple[lp.results.Diagnosis, Path]) -> None:
    found = full[0]
    first = found.rows[0]
    assert first.name == "stem.weight" and first.own_on == "target" and found.on == "target"
    assert first.causes[0].kind == "outlier channel" and "channel 5" in first.causes[0].says
    assert first.own_db is not None and found.output_db is not None and first.without_db is not None
    assert abs(first.own_db - found.output_db) < 1.5  # nearly all is lost there
    assert first.without_db > found.output_db + 6  # and comes back where it is left out
    assert {row.name for row in found.rows} >= {"twice.weight", "classes.weight", "depthwise.weight", "wide.weight"}
    assert not any("giving values out" in note for note in found.notes)
    shares = [row.share for row in found.rows]
    assert shares == sorted(shares, reverse=True) and sum(share or 0 for share in shares) == pytest.approx(1, abs=0.05)


def test_it_is_shown_and_written(full: tuple[lp.results.Diagnosis, Path], tmp_path: Path) -> None:
    found = full[0]
    text = str(found)
    assert (
        text.index("stem.weight") < text.index("twice.weight")
        and "Try: leave it in float" in text
        and "* found with" in text
    )
    assert json.loads(found.save(tmp_path / "a.json").read_text())["rows"][0]["name"] == "stem.weight"
    page = found.save(tmp_path / "a.html").read_text()
    assert "Where it loses" in page and "outlier channel" in page and "<script" not in page
    with pytest.raises(lp.errors.LilliputError, match=r"as \.txt; write \.html or \.json"):
        found.save(tmp_path / "a.txt")


def test_it_resumes_from_its_folder(full: tuple[lp.results.Diagnosis, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_build(*args: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(OnnxWriter, "build", no_build)
    again = lp.diagnose(
        activation_outlier(images()), lp.Recipe([STATIC]), target=TARGET, folder=full[1], samples=8, worst=1
    )
    assert again == full[0]


def test_a_model_with_one_layer() -> None:
    found = lp.diagnose(nn.Linear(64, 8), calibrate=[torch.randn(4, 64)], target=TARGET, worst=0)
    assert [row.name for row in found.rows] == ["weight"] and found.rows[0].share == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples: is 0; give a whole number from 1 on"),
        ({"worst": -1}, "worst: is -1; give a whole number from 0 on"),
        ({"recipe": lp.Recipe([lp.Quantize(where="nowhere")])}, "matches no layer"),
        ({"recipe": 3}, "a recipe of type int"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lp.errors.LilliputError, match=message):
        lp.diagnose(plain(tokens()), target=TARGET, **arguments)


def test_nothing_encoded_is_said() -> None:
    given = batches(tokens())
    task = lp.Task(
        copy.deepcopy(tokens()),
        calibrate=given,
        train=[(x, x[..., :8]) for x in given],
        loss=lambda m, b: (m(b[0]) - b[1]).square().mean(),
    )
    found = lp.diagnose(task, lp.Recipe([lp.Finetune(epochs=1, lr=1e-4)]), target=TARGET)
    assert not found.rows and "nothing is encoded" in found.notes[0] and "nothing is encoded" in str(found)
