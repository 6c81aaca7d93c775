"""Which encoding each weight and each value gets: one object, by path, that a search or a file gives as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import RecipeError
from lilliput.model.carrier.parameters import encoding_of, read
from lilliput.model.views.values import value_encodings
from lilliput.progress import silent
from lilliput.techniques import observe

ORT = lp.targets.OnnxRuntime(threads=1, seconds=0)
X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A stem whose answer two convolutions read, a sum of both, two linear layers, one tied to the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.wide, self.head, self.tied = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 16)
        self.tied.weight = self.wide.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(x) + self.right(x)).mean((2, 3))
        return self.head(torch.relu(self.tied(torch.relu(self.wide(x)))))  # type: ignore[no-any-return]


def task() -> lp.Task:
    return lp.Task(Net().eval(), calibrate=[X[:8], X[8:]])


def applied(*steps: lp.Quantize, **how: Any) -> nn.Module:
    return lp.apply(task(), lp.Recipe(steps), target=ORT, **how)


def weights_of(model: nn.Module) -> dict[str, str]:
    return {path: str(one) for path, one in lp.formats.Assignment.of(model).weights.items()}


def flowing(model: nn.Module) -> dict[str, int]:
    return {name: one.encoding.bits for name, one in value_encodings(model).items()}  # type: ignore[attr-defined]


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


def test_each_weight_gets_what_the_longest_pattern_says() -> None:
    given = {
        "*": lp.Int(8),
        "*ft": lp.Int(6),
        "right.weight": lp.formats.Codebook(16),
        "head": None,
    }
    for order in (given, dict(reversed(given.items()))):
        net = applied(lp.Quantize(weights=order))
        kinds = {name: encoding_of(net, f"{name}.weight") for name in ("stem", "left", "right", "wide", "head")}
        assert [getattr(kinds[name], "bits", None) for name in ("stem", "left", "wide", "head")] == [8, 6, 8, None]
        assert isinstance(kinds["right"], lp.formats.Codebook) and kinds["head"] is None


def test_what_flows_into_each_layer_has_bits_of_its_own() -> None:
    calibrated, at_run = lp.Int(8), lp.Int(8, dynamic=True)
    rule = {"*": calibrated, "right": lp.Int(4), "head": at_run, "wide": None, "tied": None}
    small = lp.compress(task(), lp.Recipe([lp.Quantize(activations=rule)]), target=ORT)
    bits = flowing(small.model)
    assert bits["right:conv2d#0@0"] == 4 and bits["left:conv2d#0@0"] == 8, bits  # each rounds what both read
    assert value_encodings(small.model)["head:linear#0@0"].encoding.dynamic  # type: ignore[attr-defined]
    assert not any(name.startswith(("wide:", "tied:")) for name in bits)
    told = {row["path"]: row["note"] for row in small.data["layers"] if row.get("note")}
    assert "left in float by activations=" in told["wide.weight"]


def test_two_calibrated_steps_are_one_with_an_assignment() -> None:
    """Statistics are those of the floats, so that which step comes first makes no difference either."""
    stem = ("stem", "left", "right")
    steps = [
        lp.Quantize(weights=lp.Int(8), activations=lp.Int(8), where=stem),
        lp.Quantize(weights=lp.Int(5), activations=lp.Int(7), where=("*", *(f"!{name}" for name in stem))),
    ]
    rule = {"wide": lp.Int(7), "tied": lp.Int(7), "head": lp.Int(7), "*": lp.Int(8)}
    fewer = {"wide": lp.Int(5), "tied": lp.Int(5), "head": lp.Int(5), "*": lp.Int(8)}
    whole = applied(lp.Quantize(weights=fewer, activations=rule))
    two, turned = applied(*steps), applied(*reversed(steps))
    assert same(two, whole) and same(turned, whole)
    assert not same(whole, applied(lp.Quantize(weights=fewer, activations=lp.Int(8))))


def test_what_an_earlier_step_has_encoded_stays() -> None:
    first = lp.Quantize(activations=lp.Int(8, dynamic=True), where="head")
    net = applied(first, lp.Quantize(activations=lp.Int(8), where=("*", "!head")))
    encodings = {name: one.encoding for name, one in value_encodings(net).items()}
    assert encodings["head:linear#0@0"].dynamic  # type: ignore[attr-defined]
    assert not encodings["wide:linear#0@0"].dynamic  # type: ignore[attr-defined]


def test_a_second_candidate_calibrates_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = list[set[str]]()
    really = observe.observed

    def counted(model: nn.Module, view: Any, wanted: Any, *rest: Any) -> Any:
        passes.append(set(wanted))
        return really(model, view, wanted, *rest)

    monkeypatch.setattr(observe, "observed", counted)
    driver = begin(task(), ORT, Store(), silent)[0]

    def tried(recipe: lp.Recipe) -> Driver:
        fork = driver.fork()
        follow(recipe, fork)
        return fork

    one = tried(lp.Recipe([lp.Quantize(activations=lp.Int(8))]))
    tried(lp.Recipe([lp.Quantize(weights=lp.Int(4), activations={"*": lp.Int(6), "head": lp.Int(4)})]))
    assert len(passes) == 1
    tried(lp.Recipe([lp.Quantize(activations={"*": lp.Int(8), "stem:conv2d#0": lp.Int(5)})]))
    assert passes[1:] in ([], [{"stem:conv2d#0"}])  # what is new alone
    tried(lp.Recipe([lp.Quantize(where="stem"), lp.Quantize(where="!stem", activations=lp.Int(8))]))
    assert len(passes) <= 2 and value_encodings(one.model)


def test_a_value_is_named_by_itself() -> None:
    named = "right:conv2d#0"
    net = applied(lp.Quantize(activations={named: lp.Int(3)}))
    assert flowing(net) == {named: 3}
    assert named not in flowing(applied(lp.Quantize(activations={"*": lp.Int(8), named: None})))


def test_a_module_may_have_a_colon_in_its_name() -> None:
    net = nn.Sequential()
    net.add_module("a:b", nn.Linear(16, 16))
    net.add_module("c", nn.Linear(16, 4))
    given = lp.Quantize(weights={"*": lp.Int(8), "a:b": lp.Int(4)}, activations={"*": lp.Int(8), "a:b.weight": None})
    small = lp.apply(lp.Task(net.eval(), calibrate=[torch.randn(4, 16)]), lp.Recipe([given]), target=ORT)
    assert encoding_of(small, "a:b.weight").bits == 4  # type: ignore[union-attr]
    assert flowing(small) == {"c:linear#0@0": 8}


def test_it_is_read_off_a_network_and_given_again(tmp_path: Path) -> None:
    net = applied(
        lp.Quantize(weights={"*": lp.Int(8), "left": lp.Int(4, group=16), "head": None}, activations=lp.Int(8))
    )
    found = lp.formats.Assignment.of(net)
    path = found.save(tmp_path / "which.toml")
    again = lp.formats.Assignment.read(path)
    assert again == found and "left.weight" in str(again) and len(str(again).splitlines()) == len(found)
    step = lp.Quantize(weights=again.weights, activations=again.activations)
    assert same(applied(step), net)
    assert lp.Recipe.from_toml(lp.Recipe([step]).to_toml()) == lp.Recipe([step])


def test_a_function_says_it_for_each_tensor() -> None:
    rule = lp.formats.Assignment.by(Net(), lambda path, x: lp.Int(4) if x.numel() > 1000 else None)
    net = applied(lp.Quantize(weights=rule))
    assert weights_of(net).keys() == {"left.weight", "right.weight"} and set(rule.weights) > {"head.weight"}


def test_a_tied_tensor_takes_what_one_of_its_paths_is_told() -> None:
    net = applied(lp.Quantize(weights={"*": lp.Int(8), "tied": lp.Int(4)}))
    assert encoding_of(net, "wide.weight") == encoding_of(net, "tied.weight")
    assert encoding_of(net, "wide.weight").bits == 4  # type: ignore[union-attr]
    assert torch.equal(read(net, "wide.weight"), read(net, "tied.weight"))
    named = applied(lp.Quantize(weights={"*": lp.Int(8), "tied.weight": lp.Int(4)}))
    assert encoding_of(named, "wide.weight").bits == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"*": lp.Int(8), "haed": lp.Int(4)}, "'haed' names no layer.*did you mean 'head'"),
        ({"wide": lp.Int(8), "tied": lp.Int(4)}, "one tensor gets.*wide.*tied"),
        ({"wide.weight": None, "tied.weight": lp.Int(4)}, "one tensor gets.*float"),
        ({"l*ft": lp.Int(8), "le*t": lp.Int(4)}, "as long, and mean one layer"),
        ({"!head": lp.Int(8)}, "begins with !"),
        ({"head": 4}, "head: is 4.*give an encoding"),
        ({3: lp.Int(4)}, "3 is no path"),
        ({"*": lp.Int(8, group=32), "head": lp.Int(8, dynamic=True)}, "no run-time range"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: Any, said: str) -> None:
    with pytest.raises(lp.errors.LilliputError, match=f"(?s){said}"):
        applied(lp.Quantize(weights=given))


def test_values_that_are_not_there_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"'stem:conv3d#0' names no value.*did you mean 'stem:conv2d#0'"):
        applied(lp.Quantize(activations={"stem:conv3d#0": lp.Int(8)}))
    with pytest.raises(RecipeError, match="activations: 'nothing' names no layer"):
        applied(lp.Quantize(activations={"nothing": lp.Int(8)}))


def test_what_flows_into_a_tied_layer_may_be_told_by_either_path() -> None:
    bits = flowing(applied(lp.Quantize(activations={"*": lp.Int(8), "tied": lp.Int(5)})))
    assert bits["wide:linear#0@0"] == bits["tied:linear#0@0"] == 5 and bits["head:linear#0@0"] == 8
    with pytest.raises(RecipeError, match="one tensor gets"):
        applied(lp.Quantize(activations={"wide": lp.Int(8), "tied": lp.Int(5)}))


def test_a_value_by_its_name_has_no_groups() -> None:
    with pytest.raises(RecipeError, match=r"right:conv2d#0: Blockwise.*name the layer that reads it"):
        applied(lp.Quantize(activations={"right:conv2d#0": lp.formats.Blockwise(4)}))


def test_what_is_none_comes_back_from_text() -> None:
    recipe = lp.Recipe([lp.Quantize(weights={"*": lp.formats.Blockwise(4, group=None), "head": None})])
    assert 'group = "none"' in recipe.to_toml() and 'head = "float"' in recipe.to_toml()
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_file_that_says_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('"head" = {kind = "Imt"}')
    with pytest.raises(RecipeError, match="Int"):
        lp.formats.Assignment.read(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        lp.formats.Assignment.read(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="not TOML"):
        lp.formats.Assignment.from_toml("a = = 3")
    with pytest.raises(RecipeError, match="give an encoding"):
        lp.Recipe.from_toml('[[steps]]\nkind = "Quantize"\nweights = {bits = 4}')
