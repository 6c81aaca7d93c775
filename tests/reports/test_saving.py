"""What a library saves of a compressed model by itself, it loads again with the same weights.

Found in use: `save_pretrained` of a quantized model wrote tensors under names that its class does not know, and
`from_pretrained` filled what it missed with random numbers, with no error: 81.3 became 46.7 %. Right: the dense
weights under the names that the class knows, or a refusal.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from compared import close
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.model.carrier.carrier import attach, plain_class, tensors, to_dense
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.values import attach_value
from lilliput.progress import silent

transformers = pytest.importorskip("transformers")

TEXT: dict[str, Any] = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION: dict[str, Any] = {**TEXT, "intermediate_size": 80, "image_size": 32, "patch_size": 8}
T5: dict[str, Any] = {"vocab_size": 97, "d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4}


def ids(tokens: int = 9) -> Tensor:
    return torch.randint(3, 97, (2, tokens), generator=torch.Generator().manual_seed(1))


def of_text() -> dict[str, Tensor]:
    return {"input_ids": ids()}


MODELS: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**TEXT, "intermediate_size": 80}, of_text),
    "bert, tied": ("BertForMaskedLM", "BertConfig", {**TEXT, "intermediate_size": 80}, of_text),
    "gpt2, tied": ("GPT2LMHeadModel", "GPT2Config", GPT2, of_text),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "intermediate_size": 80}, of_text),
    "t5, tied": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        lambda: {"input_ids": ids(), "decoder_input_ids": ids(5)},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION, lambda: {"pixel_values": torch.randn(2, 3, 32, 32)}),
}


def encoded(net: nn.Module) -> nn.Module:
    """A copy with four bits for every matrix."""
    small = copy.deepcopy(net).eval()
    for paths, held in list(tensors(small).items()):
        if held.dim() == 2:  # type: ignore[operator]
            attach(small, paths, lp.Int(4, per="channel").for_weight(0).represent(held.detach()))  # type: ignore[operator]
    assert any(isinstance(module, EncodedTensor) for module in small.modules())
    return small


def made(name: str) -> tuple[Any, dict[str, Tensor]]:
    kind, config, sizes, inputs = MODELS[name]
    torch.manual_seed(0)
    net = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # so that nothing is as a constructor makes it
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net, inputs()


def logits(net: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return net(**inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_computes_what_was_saved(name: str, tmp_path: Path) -> None:
    net, inputs = made(name)
    small: Any = encoded(net)
    before = {key: (x.data_ptr(), x.dtype) for key, x in small.state_dict().items()}
    small.save_pretrained(tmp_path)
    assert before == {key: (x.data_ptr(), x.dtype) for key, x in small.state_dict().items()}
    again, told = type(net).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and type(again) is type(net)
    expected = logits(small, inputs)
    close(logits(again.eval(), inputs), expected, rtol=1e-6, atol=1e-6)
    assert (logits(net, inputs) - expected).abs().max() > 1e-3, "four bits change something"
    assert len({id(x) for x in again.parameters()}) == len({id(x) for x in net.parameters()}), "ties last"


def test_parts_shards_and_given_tensors_are_saved_alike(tmp_path: Path) -> None:
    net, inputs = made("bert")
    small: Any = encoded(net)
    expected = logits(small, inputs)
    small.bert.save_pretrained(tmp_path / "part")
    part = type(net.bert).from_pretrained(tmp_path / "part")
    close(part.embeddings.word_embeddings.weight, small.bert.embeddings.word_embeddings.weight)
    small.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    close(logits(type(net).from_pretrained(tmp_path / "shards").eval(), inputs), expected)
    gathered = {key: x.clone() for key, x in small.state_dict().items()}
    small.save_pretrained(tmp_path / "given", state_dict=gathered)
    close(logits(type(net).from_pretrained(tmp_path / "given").eval(), inputs), expected)
    small.save_pretrained(tmp_path / "third", True, to_dense(small).state_dict())
    close(logits(type(net).from_pretrained(tmp_path / "third").eval(), inputs), expected)
    with pytest.raises(InputError, match=r"state_dict: the tensors to save .*give all of model.state_dict\(\)"):
        small.save_pretrained(tmp_path / "wrong", state_dict={"other": torch.ones(1)})


def test_copies_and_pickles_save_alike_and_a_dense_copy_is_plain(tmp_path: Path) -> None:
    net, inputs = made("bert")
    small: Any = encoded(net)
    for i, other in enumerate((copy.deepcopy(small), pickle.loads(pickle.dumps(small)))):
        other.save_pretrained(tmp_path / str(i))
        close(logits(type(net).from_pretrained(tmp_path / str(i)).eval(), inputs), logits(small, inputs))
    assert isinstance(small, type(net)) and plain_class(small) is type(net)
    assert all(type(module) is plain_class(module) for module in to_dense(small).modules())


def test_what_is_uploaded_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs = made("bert")
    small: Any = encoded(net)
    kept = tmp_path / "kept"

    def upload(self: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
        type(net).from_pretrained(folder).save_pretrained(kept)

    monkeypatch.setattr(type(net), "_upload_modified_files", upload)
    monkeypatch.setattr("transformers.utils.hub.hf_api", _Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: _Hub())
    small.push_to_hub("x/y")
    close(logits(type(net).from_pretrained(kept).eval(), inputs), logits(small, inputs))


class _Hub:
    repo_id = "x/y"

    def create_repo(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def save(self, path: str) -> None:
        """Of the card of the model."""


def test_what_a_checkpoint_cannot_hold_is_warned_of(tmp_path: Path) -> None:
    net, _ = made("bert")
    small: Any = encoded(net)
    attach_value(small, "classifier:linear#0", lp.Int(8, dynamic=True), {})
    with pytest.warns(UserWarning, match="activations are not rounded .* lilliput.save keeps it"):
        small.save_pretrained(tmp_path)
    assert "value_encodings" not in str(sorted(safetensors.torch.load_file(tmp_path / "model.safetensors")))
    training: Any = lp.formats.unfreeze(encoded(net))
    with pytest.warns(UserWarning, match="resumed from this checkpoint goes on from rounded weights"):
        training.save_pretrained(tmp_path)


class Mixed(nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())  # type: ignore[no-any-return]


def test_the_hubs_mixin_saves_what_it_loads(tmp_path: Path) -> None:
    small, x = encoded(Mixed(width=20)), torch.randn(4, 8)
    for other in (small, copy.deepcopy(small)):
        other.save_pretrained(tmp_path)
        close(Mixed.from_pretrained(tmp_path)(x), small(x), rtol=1e-6, atol=1e-6)


def test_the_trainer_saves_what_the_class_loads(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    net, inputs = made("bert")
    small = encoded(net)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    transformers.Trainer(small, arguments).save_model(str(tmp_path / "saved"))
    close(logits(type(net).from_pretrained(tmp_path / "saved").eval(), inputs), logits(small, inputs))


def test_codes_do_not_pass_for_weights_elsewhere(tmp_path: Path) -> None:
    """`state_dict` lists the codes, for training and files: a plain class refuses them, a compressed one does not."""
    net, inputs = made("bert")
    small = encoded(net)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(small.state_dict())
    safetensors.torch.save_model(small, str(tmp_path / "codes.safetensors"))
    with pytest.raises(RuntimeError, match="Missing key"):
        safetensors.torch.load_model(net, tmp_path / "codes.safetensors")
    other = encoded(made("bert")[0])
    safetensors.torch.load_model(other, tmp_path / "codes.safetensors")
    assert torch.equal(logits(other, inputs), logits(small, inputs))
    safetensors.torch.save_model(lp.formats.to_dense(small), str(tmp_path / "dense.safetensors"))
    safetensors.torch.load_model(net, tmp_path / "dense.safetensors")
    close(logits(net, inputs), logits(small, inputs))


def test_a_pruned_and_quantized_model_is_loaded_by_its_new_config(tmp_path: Path) -> None:
    net, inputs = made("bert")
    recipe = lp.Recipe([lp.Prune("layers", 0.5), lp.Quantize(weights=lp.Int(4))])
    driver, _ = begin(lp.Task(net, example=inputs), lp.targets.OnnxRuntime(threads=1, seconds=1), Store(), silent)
    follow(recipe, driver)
    small: Any = driver.model
    small.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 1 and net.config.num_hidden_layers == 2
    close(logits(again.eval(), inputs), logits(small, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", ["", "bert"])
def test_one_whose_config_cannot_tell_its_sizes_is_refused(path: str, tmp_path: Path) -> None:
    """BERT's config has no number for heads of another width."""
    net, inputs = made("bert")
    small = lp.compress(
        lp.Task(net, example=inputs), lp.Recipe([lp.Prune("heads", 0.5)]), target=lp.targets.OnnxRuntime(seconds=0)
    )
    saved: Any = small.model.get_submodule(path)
    for model in (saved, lp.formats.to_dense(saved), copy.deepcopy(saved)):
        with pytest.raises(InputError, match="from_pretrained would make another") as caught:
            model.save_pretrained(tmp_path)
        assert "lilliput.save" in caught.value.next and "query" in str(caught.value.why)
    assert not list(tmp_path.iterdir())
    lp.save(tmp_path / "net.lil", small.model)
    again: Any = lp.load(tmp_path / "net.lil", into=made("bert")[0])
    assert torch.equal(logits(again, inputs), logits(small.model, inputs))
    with pytest.raises(InputError, match="from_pretrained would make another"):
        again.get_submodule(path).save_pretrained(tmp_path)
