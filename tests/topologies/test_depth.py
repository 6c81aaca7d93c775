"""Layers and blocks that are left out: those that matter least, and the file tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compared import close
from shrunken import answers, driven, same_after_loading
from torch import Tensor, nn
from zoo import subject

import lilliput as lp
from lilliput.errors import InputError, RecipeError
from lilliput.measure import parameters
from lilliput.model.edits.edit import structure
from lilliput.model.edits.stand_in import StandIn
from lilliput.model.edits.structure import KeepChildren, LeaveOut
from lilliput.model.surgery.depth import blocks, layers
from lilliput.model.views.inputs import Inputs

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def faint(module: nn.Module) -> None:
    """Weights so small that the module adds next to nothing."""
    for path, x in module.named_parameters():
        if x.dim() > 1 and min(x.shape) > 1:
            x.data *= 1e-3 if "norm" not in path.lower() else 1


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "resnet-20", "transformer encoder", "vit, fused qkv"])
def test_the_layer_that_changes_least_goes(name: str, tmp_path: Path) -> None:
    model, inputs = subject(name).build()
    found = layers(model, [Inputs.of(inputs)])
    faint(model.get_submodule(max(one.path for one in found)))
    least = min(layers(model, [Inputs.of(inputs)]), key=lambda one: one.change).path
    driver = driven(model, inputs, lp.Prune("layers", 1 / len(found)))
    assert parameters(driver.model) < parameters(model) and least not in driver.told.skipped
    assert [x.shape for x in answers(driver.model, inputs)] == [x.shape for x in answers(model, inputs)]
    assert same_after_loading(driver.model, name, inputs, tmp_path / "net.lil")


BLOCKS = {"llama": {"self_attn", "mlp"}, "gpt2": {"attn", "mlp"}, "vit, fused qkv": {"attn"}}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_without_which_answers_turn_least_goes(name: str, tmp_path: Path) -> None:
    model, inputs = subject(name).build()
    found = blocks(model, [Inputs.of(inputs)])
    assert {one.path.rpartition(".")[2] for one in found} == BLOCKS[name]
    for x in model.get_submodule(found[1].path).parameters():
        x.data *= 1e-3
    before = answers(model, inputs)
    driver = driven(model, inputs, lp.Prune("blocks", 1 / len(found)))
    stands = driver.model.get_submodule(found[1].path)
    assert isinstance(stands, StandIn) and stands.zeros  # it was added to what goes past it
    assert parameters(driver.model) < parameters(model)
    for one, other in zip(answers(driver.model, inputs), before, strict=True):
        close(one, other, atol=1e-2 * float(other.abs().max()))
    assert [gone["path"] for gone in driver.told.facts["removed"]] == [found[1].path]
    assert "changes the answers by" in driver.told.facts["removed"][0]["told"]
    assert driver.told.skipped.keys() <= {"config"}
    assert same_after_loading(driver.model, name, inputs, tmp_path / "net.lil")


def test_a_block_that_holds_its_own_shortcut_gives_on_what_it_is_given() -> None:
    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)  # type: ignore[no-any-return]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Residual(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.body(x))

    torch.manual_seed(0)
    model, x = nn.Sequential(Layer(), Layer(), nn.Linear(8, 3)).eval(), torch.randn(4, 8)
    faint(model[1].body)
    small = driven(model, (x,), lp.Prune("blocks", 0.5)).model
    assert repr(small.get_submodule("1.body")) == "StandIn(zeros=False, outputs=0)"
    assert torch.equal(small(x), model[2](torch.tanh(model[0](x))))


@pytest.mark.parametrize("unit", ["layers", "blocks"])
def test_a_threshold_takes_what_changes_less(unit: str) -> None:
    model, inputs = subject("llama").build()
    found = (layers if unit == "layers" else blocks)(model, [Inputs.of(inputs)])
    limit = sorted(one.change for one in found)[1]  # one of them changes less
    driver = driven(model, inputs, lp.Prune(unit, threshold=limit))
    assert sum(isinstance(edit, KeepChildren | LeaveOut) for edit in structure(driver.model)) == 1
    assert (
        len(driver.told.facts["removed"]) == 1
        and driver.told.facts["removed"][0]["score"] < limit
        and driver.told.skipped.keys() <= {"config"}
    )


def test_layers_then_channels_then_bits(tmp_path: Path) -> None:
    model, inputs = subject("resnet-20").build()
    steps = (lp.Prune("layers", 0.3), lp.Prune("channels", 0.5, multiple=1), lp.Quantize(activations=None))
    small = driven(model, inputs, *steps).model
    assert parameters(small) < 0.25 * parameters(model)
    assert same_after_loading(small, "resnet-20", inputs, tmp_path / "net.lil")


def test_layers_then_blocks_then_channels(tmp_path: Path) -> None:
    model, inputs = subject("llama").build()
    steps = (lp.Prune("layers", 0.3), lp.Prune("blocks", 0.3), lp.Prune("channels", 0.3, multiple=1))
    small = driven(model, inputs, *steps).model
    assert parameters(small) < 0.7 * parameters(model)
    assert same_after_loading(small, "llama", inputs, tmp_path / "net.lil")


@pytest.mark.parametrize("unit", ["layers", "blocks"])
def test_they_are_left_out_before_anything_shrinks(unit: str) -> None:
    model, inputs = subject("llama").build()
    with pytest.raises(RecipeError, match="make the widths stale"):
        driven(model, inputs, lp.Prune("channels", 0.5), lp.Prune(unit, 0.5))
    small = driven(model, inputs, lp.Prune("channels", 0.5)).model
    with pytest.raises(InputError, match="before channels"):
        driven(small, inputs, lp.Prune(unit, 0.5))


@pytest.mark.parametrize("unit", ["layers", "blocks"])
def test_where_there_are_none_nothing_is_left_out(unit: str) -> None:
    model, inputs = subject("generator").build()
    with pytest.raises(InputError, match=f"no {unit} to leave out"):
        driven(model, inputs, lp.Prune(unit, 0.3))
