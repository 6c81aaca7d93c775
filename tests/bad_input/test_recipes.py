"""Recipes that name what is not there, that cannot be followed, or that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.errors import EncodingError, InputError, LilliputError, RecipeError
from lilliput.model.carrier.parameters import encoding_of
from lilliput.progress import silent

Refused = Callable[..., Any]
Tasks = Callable[..., lp.Task]


def _step(text: str) -> str:
    return f"[[steps]]\n{text}\n"


# TOML, words of the message
UNKNOWN = {
    "no steps": ("", "[[steps]]"),
    "no TOML": ("steps: Quantize", "not TOML"),
    "steps is a table": ('[steps]\nkind = "Quantize"', "[[steps]]"),
    "another word for steps": ('[[step]]\nkind = "Quantize"', "['step']"),
    "a step without kind": (_step("amount = 0.5"), "without `kind`"),
    "a technique": (_step('kind = "Quantise"'), "did you mean 'Quantize'?"),
    "a field": (_step('kind = "Quantize"\nweight = 8'), "did you mean 'weights'?"),
    "an encoding": (_step('kind = "Quantize"\nweights = {kind = "Itn"}'), "did you mean 'Int'?"),
    "a field of an encoding": (
        _step('kind = "Quantize"\nweights = {kind = "Int", bit = 8}'),
        "did you mean 'bits'?",
    ),
    "an encoding as a step": (
        _step('kind = "Int"'),
        "known techniques: Equalize, Factorize, Finetune, Prune, Quantize, Share",
    ),
    "a fit": (_step('kind = "Quantize"\nfit = {kind = "MinMaks"}'), "did you mean 'MinMax'?"),
    "a unit": (_step('kind = "Prune"\nunit = "filters"\namount = 0.5'), "known units"),
    "a scope": (_step('kind = "Prune"\nunit = "weights"\namount = 0.5\nscope = "net"'), "known scopes"),
    "a field that is missing": (_step('kind = "Prune"\nunit = "weights"'), "amount"),
    "bits": (_step('kind = "Quantize"\nweights = {kind = "Int", bits = 12}'), "2 to 8 bits"),
    "activations": (_step('kind = "Quantize"\nactivations = {kind = "Float16"}'), "use one of Int, Fixed, PowerOfTwo"),
    "a list": ("steps = [1]", "known techniques"),
}

MISTYPED = {
    "weights": 'weights = "Int"',
    "where": "where = 3",
    "fit": 'fit = "MSE"',
    "an encoding as fit": 'fit = {kind = "Int"}',
    "a fractional group": 'weights = {kind = "Int", group = 1.5}',
    "per": 'weights = {kind = "Int", per = "row"}',
    "yes": 'bias_correction = "yes"',
    "scale": 'weights = {kind = "Int", scale = 3}',
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names(name: str) -> None:
    text, words = UNKNOWN[name]
    with pytest.raises(LilliputError) as caught:
        lp.Recipe.from_toml(text)
    assert isinstance(caught.value, RecipeError | EncodingError)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", MISTYPED)
def test_mistyped_fields(name: str) -> None:
    with pytest.raises((RecipeError, EncodingError)):
        lp.Recipe.from_toml(_step(f'kind = "Quantize"\n{MISTYPED[name]}'))


@pytest.mark.parametrize("amount", [0, 1, -0.1, 1.5, 30, float("nan"), True], ids=str)
def test_amounts_that_are_no_fraction(amount: float) -> None:
    with pytest.raises(RecipeError, match="between 0 and 1"):
        lp.Prune("weights", amount)


@pytest.mark.parametrize(
    "steps",
    [
        lambda: [lp.Quantize(activations=lp.Int(8)), lp.Prune("weights", 0.5)],
        lambda: [lp.Quantize(activations=lp.Int(8)), lp.techniques.Equalize(lp.rescaling.CrossLayer())],
        lambda: [lp.Quantize(activations=lp.Int(8)), lp.techniques.Factorize(8)],
    ],
    ids=["Prune last", "Equalize last", "Factorize last"],
)
def test_an_order_that_cannot_work(steps: Callable[[], list[Any]]) -> None:
    with pytest.raises(RecipeError, match="put Quantize last") as caught:
        lp.Recipe(steps())
    assert caught.value.what.startswith("step 2, ") and "ranges stale" in caught.value.why


@pytest.mark.parametrize("step", [lp.Int(8), "Quantize", nn.Linear(2, 2)], ids=repr)
def test_a_step_that_is_none(step: Any) -> None:
    with pytest.raises(RecipeError, match="known techniques: Equalize, Factorize, Finetune, Prune, Quantize, Share"):
        lp.Recipe([step])


@pytest.mark.parametrize("recipe", ["recipe.toml", [lp.Quantize()], lp.Quantize()], ids=repr)
def test_no_recipe(recipe: Any, task: Tasks, refused: Refused) -> None:
    assert refused(InputError, task(), recipe).next == "give lp.Recipe([…])"


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_recipe_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        lp.Recipe.read(tmp_path / name)
    assert caught.value.where == str(tmp_path / name) and caught.value.why


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError):
        lp.Recipe.read(tmp_path / "recipe.toml")


@pytest.mark.parametrize("where", ["fcc", "!*", ("conv", "!conv"), ""], ids=repr)
@pytest.mark.parametrize("technique", ["Quantize", "Prune"])
def test_where_matches_nothing(technique: str, where: Any, task: Tasks, refused: Refused) -> None:
    step = lp.Quantize(where=where) if technique == "Quantize" else lp.Prune("weights", 0.5, where=where)
    error = refused(RecipeError, task(), lp.Recipe([step]))
    assert f"where={where!r} matches no layer" in error.what
    assert "layers are called conv, fc" in error.next


@pytest.mark.parametrize(
    ("weights", "what", "remedy"),
    [
        (lp.Int(8, axis=9), "axis 9 of a tensor with 4 axes", 'where="!conv"'),
    ],
    ids=repr,
)
def test_an_encoding_that_does_not_fit_a_layer(
    weights: lp.Int, what: str, remedy: str, task: Tasks, refused: Refused
) -> None:
    error = refused(EncodingError, task(), lp.Recipe([lp.Quantize(weights=weights)]))
    assert error.where == "conv.weight"
    assert what in error.what and remedy in error.next


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"activations": lp.Int(8, per="channel")}, 'per="tensor"'),
        ({"activations": lp.formats.PowerOfTwo(4, group=8)}, "dynamic=True"),
        ({"activations": lp.formats.Fixed(3, 8)}, "at most 8"),
        (
            {"activations": lp.formats.Codebook(16)},
            "use one of Int, Fixed, PowerOfTwo, Signs, NF4, MiniFloat, Blockwise",
        ),
        ({"activations": lp.formats.Sparse(lp.Int(8))}, "use one of Int"),
        (
            {"activations": lp.formats.PowerOfTwo(4), "calibration": lp.ranges.Entropy()},
            "use MinMax() or Percentile() or MSE()",
        ),
        ({"activations": lp.formats.Blockwise(4), "calibration": lp.ranges.MinMax()}, "leave calibration= out"),
        ({"weights": lp.formats.Codebook(16), "fit": lp.ranges.MinMax()}, "use MSE() or Quantiles() or Intervals()"),
        (
            {"weights": lp.formats.Sparse(lp.formats.Codebook(16)), "fit": lp.ranges.MinMax()},
            "use MSE() or Quantiles() or Intervals()",
        ),
        ({"weights": lp.Int(8), "fit": lp.ranges.Entropy()}, "use MinMax() or Percentile() or MSE()"),
        ({"weights": lp.formats.Float16(), "fit": lp.ranges.MinMax()}, "use MSE()"),
        ({"weights": lp.Int(8, dynamic=True)}, "activations only"),
    ],
    ids=repr,
)
def test_what_makes_no_sense_together_is_refused_before_work(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(RecipeError) as caught:
        lp.Quantize(**fields)
    assert remedy in caught.value.next


def test_ranges_without_calibration(net: nn.Module, batches: list[Tensor], refused: Refused) -> None:
    task = lp.Task(net, example=batches[0])
    error = refused(InputError, task, lp.Recipe([lp.Quantize(activations=lp.Int(8))]))
    assert "needs calibration batches" in error.what and "calibrate=" in error.next


def test_weights_alone_need_no_calibration(
    net: nn.Module, batches: list[Tensor], quick: lp.targets.OnnxRuntime
) -> None:
    small = lp.compress(lp.Task(net, example=batches[0]), lp.Recipe([lp.Quantize()]), target=quick)
    rows = small.data["layers"]
    assert rows and all(row["encoding"].startswith("int8") and row["activations"] == "float32" for row in rows)
    assert all(30 < row["sqnr_db"] < 60 for row in rows)


def test_a_recipe_that_changes_no_layer(refused: Refused) -> None:
    """Every weight of the only layer is among the smallest, so it is left as it is."""
    task = lp.Task(nn.Linear(2, 2), calibrate=[torch.ones(2, 2)])
    error = refused(InputError, task, lp.Recipe([lp.Prune("weights", 0.99)]))
    assert error.what == "the recipe changed no layer"
    assert "weight: all of its weights are among the smallest" in error.why


class Mixed(nn.Module):
    """A layer that can be compressed, one left out, and one that no step knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(64, 64), nn.Linear(64, 8)
        self.table = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(x))) @ self.table  # type: ignore[no-any-return]


def test_what_is_skipped_is_reported(quick: lp.targets.OnnxRuntime) -> None:
    torch.manual_seed(0)
    task = lp.Task(Mixed(), calibrate=[torch.randn(4, 64)])
    recipe = lp.Recipe([lp.Quantize(activations=lp.Int(8, dynamic=True), where="!head")])
    report = lp.compress(task, recipe, target=quick).data
    skipped = {entry["path"]: entry["reason"] for entry in report["skipped"]}
    assert skipped == {
        "head.weight": "left out by where='!head'",
        "table": "it is read by matmul, not by a convolution, linear or recurrent layer, or embedding",
    }
    assert {row["path"]: row["encoding"] == "float32" for row in report["layers"]} == {
        "fc.weight": False,
        "head.weight": True,
    }


class Hidden(nn.Module):
    """Weights that are no parameters: a buffer, a plain attribute, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("kept", torch.randn(6, 6))
        self.plain = torch.randn(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.linear(torch.relu(self.layer(x)), self.kept)
        x = nn.functional.linear(torch.relu(x), self.plain)
        return nn.functional.linear(torch.relu(x), self.layer.weight.T * 2.0)


@pytest.mark.parametrize(
    "step", [lp.Quantize(), lp.Prune("weights", 0.5), lp.Quantize(rounding=lp.rounding.GPTQ())], ids=repr
)
def test_weights_that_are_no_parameters_are_named(step: Any) -> None:
    task = lp.Task(Hidden().eval(), calibrate=[torch.randn(8, 6)])
    driver, _ = begin(task, lp.targets.OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([step]), driver)
    assert encoding_of(driver.model, "layer.weight") is not None
    assert driver.told.skipped["kept"] == "a buffer, not a parameter: make it an nn.Parameter"
    assert any("computed or no parameter" in reason for reason in driver.told.skipped.values())


class Multiplied(nn.Module):
    """Buffers that products other than a layer's read, as they are and turned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        for name in ("added", "plain", "turned", "property"):
            self.register_buffer(name, torch.randn(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.addmm(self.added, self.layer(x), self.plain)  # type: ignore[arg-type]
        return x @ self.turned.t() @ self.property.T  # type: ignore[no-any-return,operator]


def test_buffers_that_are_multiplied_by_are_named() -> None:
    task = lp.Task(Multiplied().eval(), calibrate=[torch.randn(6, 6)], dynamic={})
    driver, _ = begin(task, lp.targets.OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([lp.Quantize()]), driver)
    assert driver.told.skipped == dict.fromkeys(
        ("plain", "turned", "property"), "a buffer that is multiplied by: make it the weight of a linear layer"
    )
