"""Networks of every kind lose half their width, and compute what they computed with the same slices masked."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from shrunken import answers, driven, kept, unscaled
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zeroed import TOLERANCE, departure
from zoo import subject

import lilliput as lp
from lilliput.engine.begin import follow
from lilliput.engine.run import Driver
from lilliput.errors import InputError, RecipeError
from lilliput.measure import parameters
from lilliput.model.edits.edit import structure
from lilliput.model.surgery.coupling import Shrinking, coupling
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.outputs import flatten_outputs

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

HALVED = {  # of the parameters, at most so many are left
    **{"mlp": 0.4, "resnet-20": 0.3, "mobilenet v2, plain": 0.35, "densenet": 0.3, "u-net": 0.3, "inception": 0.3},
    **{"squeeze-and-excite": 0.6, "resnext": 0.3, "group norm": 0.3, "super-resolution": 0.3, "vae": 0.7},
    **{"generator": 0.4, "graph network": 0.4, "lstm classifier": 0.35, "projected lstm": 0.35, "gru tagger": 0.4},
    **{"vit, fused qkv": 0.4, "transformer encoder": 0.4, "llama, plain": 0.4, "tied embedding": 0.4, "bert": 0.4},
    **{"gpt2": 0.4, "t5": 0.4, "shufflenet": 0.7, "hard view": 0.6},
}
every = pytest.mark.parametrize("name", HALVED)


@functools.cache
def pruned(name: str) -> Driver:
    return driven(*subject(name).build(), lp.Prune("channels", 0.5, multiple=1))


def halved(name: str) -> tuple[nn.Module, tuple[Tensor, ...], nn.Module]:
    return *subject(name).build(), pruned(name).model


@every
def test_it_is_smaller_and_an_ordinary_module(name: str) -> None:
    model, inputs, small = halved(name)
    assert parameters(small) <= HALVED[name] * parameters(model)
    assert type(small) is type(model)
    small = copy.deepcopy(small)
    sum(x.sum() for x in tree_leaves(small.train()(*inputs))).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in small.parameters())
    assert any(p.grad is not None for p in small.parameters())


# Kinds beside those: standardised weights, a mean over channels, norms without gains of their own to scale up.
JUDGED = [*HALVED, "bit", "convnext v2", "gemma", "mixer", "experts"]
UNSCALED = {"graph network": 1, "gemma": 5}  # norms that are called twice, or multiply by 1 + their gains
# Heads get narrower, and rows make up for what the source divides by: multiplied, they are rounded as float32.
ROUNDED = dict.fromkeys(["vit, fused qkv", "transformer encoder", "llama, plain", "t5", "bert", "gpt2"], TOLERANCE)


@pytest.mark.parametrize("name", JUDGED)
def test_it_computes_what_the_original_does_with_the_same_slices_zero(name: str) -> None:
    driver = pruned(name)
    unseen = [subject(name).build(seed)[1] for seed in (1, 2, 3)]
    told = unscaled(driver)
    found = departure(subject(name).build()[0], driver.model, kept(driver), unseen, told)
    assert found <= ROUNDED.get(name, 1e-12) and len(told) == UNSCALED.get(name, 0)


# Groups that cannot lose half of their slices alone: the source ties their length to another, or writes it down.
REFUSED = {"vae": 1, "vit, fused qkv": 2, "transformer encoder": 2, "gpt2": 1}


@pytest.mark.parametrize("name", REFUSED)
def test_groups_stay_where_the_source_ties_their_length(name: str) -> None:
    model, inputs = subject(name).build()
    given = Inputs.of(inputs)
    coupled = coupling(model, given)
    alone = [group for group in coupled.groups if not group.normalised and not group.heads]
    going = {group: group.atoms[: group.size // 2] for group in alone}
    assert len(Shrinking(model, coupled, given).refused(going)) == REFUSED[name]


@every
def test_a_file_gives_it_back_to_the_constructor(name: str, tmp_path: Path) -> None:
    _, inputs, small = halved(name)
    lp.save(tmp_path / "net.lil", small)
    again = lp.load(tmp_path / "net.lil", into=subject(name).build(seed=1)[0])
    for one, other in zip(answers(again, inputs), answers(small, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["resnet-20", "bert", "lstm classifier"])
def test_it_can_be_pruned_again_and_quantized(name: str, tmp_path: Path) -> None:
    _, inputs, small = halved(name)
    driver = driven(small, inputs, lp.Prune("channels", 0.5, multiple=1))
    assert parameters(driver.model) < 0.6 * parameters(small)
    follow(lp.Recipe([lp.Quantize(activations=None)]), driver)
    lp.save(tmp_path / "net.lil", driver.model)
    again = lp.load(tmp_path / "net.lil", into=subject(name).build(seed=1)[0])
    for one, other in zip(answers(again, inputs), answers(driver.model, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["bert", "llama, plain", "t5"])
def test_heads_go(name: str) -> None:
    model, inputs = subject(name).build()
    driver = driven(model, inputs, lp.Prune("heads", 0.5))
    unseen = [subject(name).build(seed)[1] for seed in (1, 2, 3)]
    assert departure(model, driver.model, kept(driver), unseen, unscaled(driver)) <= TOLERANCE
    assert parameters(driver.model) < 0.9 * parameters(model)
    assert any("heads left" in note for note in driver.told.notes.values())


def test_numbers_of_channels_are_multiples() -> None:
    model, inputs = subject("resnet-20").build()
    small = driven(model, inputs, lp.Prune("channels", 0.4)).model
    sizes = {m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)}
    assert sizes and all(size % 8 == 0 for size in sizes)


@pytest.mark.parametrize("name", ["t5", "swin"])
def test_attention_is_exported_though_torch_alone_cannot(name: str, tmp_path: Path) -> None:
    model, inputs = subject(name).build()
    lp.export(tmp_path / "net.onnx", model, inputs)
    with torch.no_grad():
        signature = Signature.of(Inputs.of(inputs), model(*inputs))
    run = lp.targets.OnnxRuntime().runs.open(tmp_path / "net.onnx", signature)
    for one, other in zip(flatten_outputs(run(*inputs)), answers(model, inputs), strict=True):
        close(one, other, atol=1e-5)


@pytest.mark.parametrize("step", [lp.Prune("channels", 0.99, multiple=1), lp.Prune("channels", threshold=100.0)])
def test_nothing_is_emptied(step: lp.Prune) -> None:
    model, inputs = subject("vgg").build()
    small = driven(model, inputs, step).model
    assert all(0 not in p.shape for p in small.parameters()) and parameters(small) < parameters(model)
    answers(small, inputs)


def test_global_scope_and_threshold_take_the_weakest() -> None:
    model, inputs = subject("vgg").build()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        convolutions[1].weight[:10] *= 1e-3
    for step in (
        lp.Prune("channels", 0.05, scope="global", multiple=1),
        lp.Prune("channels", threshold=0.7, multiple=1),
    ):
        small = [m for m in driven(model, inputs, step).model.modules() if isinstance(m, nn.Conv2d)]
        assert small[1].out_channels < convolutions[1].out_channels


def test_where_spares_what_it_excludes() -> None:
    model, inputs = subject("resnet-20").build()
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    small = driven(model, inputs, lp.Prune("channels", 0.5, where=("*", f"!{names[1]}"))).model
    assert small.get_submodule(names[1]).weight.shape == model.get_submodule(names[1]).weight.shape
    assert parameters(small) < parameters(model)


def test_what_is_not_removed_is_told_with_its_reason() -> None:
    model, inputs = subject("hard view").build()
    driver = driven(model, inputs, lp.Prune("channels", 0.5, multiple=1))
    assert "along axis 0 all stay: RuntimeError: mat1 and mat2 shapes" in driver.told.notes["conv3.weight"]
    assert driver.told.notes["conv1.weight"] == "10 of 20 channels left along axis 0 (50% removed, asked 50%)"


def test_what_was_removed_is_told_after_quantization_too() -> None:
    model, inputs = subject("vgg").build()
    driver = driven(model, inputs, lp.Prune("channels", 0.5))
    removed = dict(driver.told.notes)
    assert removed and all("removed, asked 50%)" in text for text in removed.values())
    follow(lp.Recipe([lp.Quantize(activations=None)]), driver)
    assert driver.told.notes == removed


def test_the_users_model_is_not_touched() -> None:
    model, inputs = subject("bert").build()
    before = copy.deepcopy(model.state_dict())
    driven(model, inputs, lp.Prune("channels", 0.5))
    close(model.state_dict(), before, rtol=0, atol=0)
    assert not structure(model)


def test_what_is_encoded_is_left_alone_and_told() -> None:
    model, inputs = subject("vgg").build()
    steps = lp.Quantize(activations=None, where=("*", "!features.0*", "!features.2*")), lp.Prune("channels", 0.5)
    driver = driven(model, inputs, *steps)
    assert len(driver.model.get_parameter("features.0.0.weight")) < len(model.get_parameter("features.0.0.weight"))
    assert "encoded already" in driver.told.skipped["classifier.0.weight"]


def test_where_all_is_encoded_there_is_nothing_to_remove() -> None:
    model, inputs = subject("vgg").build()
    with pytest.raises(InputError, match=r"no channels to remove(.|\n)*encoded already: prune first"):
        driven(model, inputs, lp.Quantize(activations=None), lp.Prune("channels", 0.5))


def test_where_there_is_no_attention_there_are_no_heads_to_remove() -> None:
    model, inputs = subject("vgg").build()
    with pytest.raises(InputError, match=r"no heads to remove(.|\n)*prune channels"):
        driven(model, inputs, lp.Prune("heads", 0.5))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"unit": "filters", "amount": 0.5}, "known units: 'weights', 'channels', 'heads', 'layers'"),
        ({"unit": "channels"}, "one of amount="),
        ({"unit": "channels", "amount": 0.5, "threshold": 1.0}, "by amount and threshold"),
        ({"unit": "channels", "macs": 1.5}, "between 0 and 1"),
        ({"unit": "channels", "amount": 1.0}, "between 0 and 1"),
        ({"unit": "weights", "threshold": 1.0}, "give amount="),
        ({"unit": "channels", "amount": 0.5, "multiple": 0}, "1 or more"),
        ({"unit": "channels", "amount": 0.5, "scope": "each"}, "'layer', 'global'"),
    ],
)
def test_knobs_that_make_no_sense(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lp.Prune(**knobs)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)], ids=["layer", "rms"])
def test_a_pruned_norm_answers_as_with_the_same_channels_zero(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 3)).eval()
    x = torch.randn(64, 5)
    with torch.no_grad():  # the last four are small, and their mean is nothing: a layer norm sees the zeros in it
        model[0].weight[4:] *= 1e-3
        model[0].weight[:4] -= model[0].weight[:4].mean(0)
        model[0].bias[:] = 0
        small = driven(model, (x,), lp.Prune("channels", 0.5, multiple=1)).model
        model[0].weight[4:] = 0
        close(small(x), model(x), share=1e-3)
