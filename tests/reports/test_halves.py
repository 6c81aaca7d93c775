"""Models in half precision through all verbs: computed in float32, given back as they came, sizes told honestly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.halves import given_back
from lilliput.errors import InputError

HALVES = [torch.float16, torch.bfloat16]
WEIGHTS = lp.Recipe([lp.Quantize(weights=lp.Int(8))])


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)


def batches(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 64).to(dtype) for _ in range(2)]


def compressed(model: nn.Module, given: Any, target: str = "eager", **fields: Any) -> lp.results.Result:
    return lp.compress(lp.Task(model, calibrate=given, **fields), WEIGHTS, target=target, measure=False)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
def test_compress_gives_back_and_stores_what_came(target: str, dtype: torch.dtype) -> None:
    model, given = net(dtype).train(), batches(dtype)
    before = copy.deepcopy(model.state_dict())
    small = compressed(model, given, target)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items()) and model.training
    right = compressed(copy.deepcopy(model).float(), [x.float() for x in given], target)
    loaded = lp.load(small.folder / "net.lil", into=net(dtype)).eval()
    kinds = {name: x.dtype for name, x in before.items() if name in small.model.state_dict()}
    assert kinds == {name: small.model.state_dict()[name].dtype for name in kinds} and dtype in kinds.values()
    with torch.no_grad():
        assert torch.equal(loaded(given[0]), small.model(given[0]))
        close(small.model(given[0]).float(), right.model(given[0].float()), share=0.02)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sizes_are_beside_two_bytes_a_weight_and_a_built_file_in_float32(dtype: torch.dtype) -> None:
    model, given = net(dtype), batches(dtype)
    small = compressed(model, given, "onnxruntime")
    was = {one["format"]: one["bytes"] for one in small.data["before"]["artifacts"]}
    held = sum(x.nbytes for x in model.state_dict().values())
    assert was["tensors"] == held
    assert small.data["ratio"]["smaller_file"] == held / (small.folder / "net.lil").stat().st_size
    assert was["onnx"] > 1.8 * held
    told = str(small)
    assert f"came in {str(dtype)[6:]} was computed in float32, and the .onnx file is beside one in float32" in told
    assert "computed in float32" not in str(compressed(net(torch.float32), batches(torch.float32), "onnxruntime"))


def test_layers_that_stay_are_told_in_the_type_that_they_are_stored_in() -> None:
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(8), where=("0",))])
    small = lp.compress(
        lp.Task(net(torch.bfloat16), calibrate=batches(torch.bfloat16)), recipe, target="eager", measure=False
    )
    rows = {row["path"]: row for row in small.data["layers"]}
    assert (rows["3.weight"]["encoding"], rows["3.weight"]["nominal_bits"]) == ("bfloat16", 16)


def test_a_baseline_in_half_is_weighed_as_it_came() -> None:
    small = compressed(net(torch.float32), batches(torch.float32), baseline=net(torch.bfloat16))
    held = sum(x.nbytes for x in net(torch.bfloat16).state_dict().values())
    assert small.data["before"]["artifacts"][0]["bytes"] == held


def test_a_metric_may_ask_in_half() -> None:
    model, given = net(torch.bfloat16), batches(torch.bfloat16)
    with torch.no_grad():
        right = model.eval()(given[0]).float()

    def nearness(run: Any) -> Tensor:
        return -(torch.as_tensor(run(given[0])).float() - right).norm(dim=1)

    told = compressed(model, given, "onnxruntime", metric=nearness).data["metric"]
    assert told["name"] == "nearness" and abs(told["change"]["value"]) < 0.05 * float(right.norm(dim=1).mean())


def test_diagnose_finds_what_it_finds_in_float32() -> None:
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(4))])
    model, given = net(torch.bfloat16), batches(torch.bfloat16)
    found = lp.diagnose(lp.Task(model, calibrate=given), recipe, target="eager")
    right = lp.diagnose(
        lp.Task(copy.deepcopy(model).float(), calibrate=[x.float() for x in given]), recipe, target="eager"
    )
    assert found.rows and found.to_json()["rows"] == right.to_json()["rows"]


def test_save_and_export_build_in_float32(tmp_path: Path) -> None:
    model, given = net(torch.bfloat16).eval(), batches(torch.bfloat16)
    small = lp.apply(model, WEIGHTS, calibrate=given)
    lp.save(tmp_path / "net.lil", small, example=given[0])
    run = lp.open(tmp_path / "net.lil")
    loaded = lp.load(tmp_path / "net.lil", into=net(torch.bfloat16))
    with torch.no_grad():
        close(torch.as_tensor(run(given[0].float())), small(given[0]).float(), share=0.02)
    assert loaded[0].bias.dtype == torch.bfloat16
    assert lp.export(tmp_path / "net.onnx", small, given[0]).stat().st_size > 0


@pytest.mark.parametrize("verb", ["train", "compress", "apply"])
def test_training_in_half_is_refused_with_a_remedy_that_works(verb: str) -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        return model(batch).square().mean()

    model, given, step = net(torch.bfloat16), batches(torch.bfloat16), lp.Finetune(epochs=1)

    def run(model: nn.Module, given: list[Tensor]) -> Any:
        task = lp.Task(model, calibrate=given, train=given, loss=loss)
        if verb == "train":
            return lp.train(task, step)
        return getattr(lp, verb)(task, lp.Recipe([step]), target="eager")

    with pytest.raises(InputError, match="bfloat16, and is to be trained") as caught:
        run(model, given)
    assert "model.float()" in caught.value.next
    run(copy.deepcopy(model).float(), [x.float() for x in given])


class _Default:
    """Sets a default for all of torch, and takes it back."""

    def __init__(self, setter: Any, inside: Any, after: Any) -> None:
        self.setter, self.inside, self.after = setter, inside, after

    def __enter__(self) -> None:
        self.setter(self.inside)

    def __exit__(self, *why: Any) -> None:
        self.setter(self.after)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a default type": lambda: _Default(torch.set_default_dtype, torch.float64, torch.float32),
    "a default device": lambda: _Default(torch.set_default_device, "meta", None),
    "a device's context": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_in_force_around_the_call_is_of_no_consequence(around: str) -> None:
    model, given = net(torch.bfloat16), batches(torch.bfloat16)
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(4), rounding=lp.rounding.GPTQ())])
    right = lp.apply(model, recipe, calibrate=given, target="onnxruntime")
    with AROUND[around]():
        found = lp.apply(model, recipe, calibrate=given, target="onnxruntime")
    assert all(torch.equal(x, right.state_dict()[name]) for name, x in found.state_dict().items())


@pytest.mark.parametrize("around", AROUND)
def test_training_learns_the_same_whatever_is_in_force(around: str) -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        return model(batch).square().mean()

    task = lp.Task(net(torch.float32), train=batches(torch.float32), loss=loss)
    step = lp.Finetune(epochs=2, lr=0.01)
    right = lp.train(task, step)
    with AROUND[around]():
        found = lp.train(task, step)
    assert found.history == right.history and right.history[1]["loss"] < right.history[0]["loss"]


def test_a_transformer_in_bfloat16() -> None:
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).bfloat16()
    tokens = [{"input_ids": torch.randint(100, (2, 8))}]
    small = compressed(model, tokens)
    assert {x.dtype for x in small.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        right = copy.deepcopy(model).float().eval()(**tokens[0]).last_hidden_state
        close(small.model(**tokens[0]).last_hidden_state.float(), right, share=0.05)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_batches_that_can_be_read_once_are_converted_too(dtype: torch.dtype) -> None:
    """Values that flow are calibrated by the same numbers, whatever gives them."""
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))])
    listed = lp.apply(lp.Task(net(dtype), calibrate=batches(dtype)), recipe, target="eager")
    streamed = lp.apply(lp.Task(net(dtype), calibrate=(x for x in batches(dtype))), recipe, target="eager")
    x = batches(dtype)[1]
    assert torch.equal(listed(x), streamed(x)) and not torch.equal(listed(x), net(dtype).eval()(x))


def test_numbers_that_its_type_does_not_hold_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).half()
    with torch.no_grad():
        model[0].weight.fill_(6e4)
    grown = copy.deepcopy(model).float()
    with torch.no_grad():
        grown[0].weight.mul_(2)
    with pytest.raises(InputError, match=r"0\.weight: has come to 1\.2e\+05, more than float16 holds.*bfloat16"):
        given_back(grown, model)
    assert given_back(grown, copy.deepcopy(model).bfloat16())[0].weight.dtype is torch.bfloat16
