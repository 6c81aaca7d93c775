"""A file gives back everything: in the module bit for bit, and without the module's source what the module computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from compared import close
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.errors import FormatError, InputError
from lilliput.file.container import Part, Reader, write
from lilliput.file.graph import restored
from lilliput.progress import silent
from lilliput.targets.kernels import exact_here

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=2)


class Odd(nn.Module):
    """Holds tensors in every way that a module can, made at random by the constructor."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(width, 32), nn.Linear(32, 5)
        self.register_buffer("projection", torch.randn(width, width), persistent=False)
        self.register_buffer("never", None, persistent=False)
        self.plain = torch.randn(width)
        self.several = [torch.randn(width), {"a": torch.randn(32), 3: (torch.randn(32), 1.5)}]
        self.inner = nn.Module()
        self.inner.gain = torch.rand(32) + 1  # type: ignore[assignment]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x = x @ self.projection + self.plain + self.several[0]  # type: ignore[operator]
        x = torch.relu(self.fc(x)) * self.inner.gain + self.several[1]["a"] * self.several[1][3][0]  # type: ignore[index,operator]
        return self.head(x), {"hidden": x, "none": None}


def test_tensors_that_no_state_dict_has_come_back(tmp_path: Path) -> None:
    net, x = Odd().eval(), torch.randn(3, 12)
    lp.save(tmp_path / "net.lil", net)
    loaded = lp.load(tmp_path / "net.lil", into=Odd())
    assert torch.equal(loaded(x)[0], net(x)[0]) and torch.equal(loaded(x)[1]["hidden"], net(x)[1]["hidden"])
    assert loaded.state_dict().keys() == net.state_dict().keys()
    header = Reader(tmp_path / "net.lil").header
    assert header["buffers"] == ["projection"] and len(header["attributes"]) == 5


def test_an_attribute_that_only_a_run_makes_comes_back(tmp_path: Path) -> None:
    net = nn.Linear(4, 4).eval()
    net.cache = torch.randn(3)  # type: ignore[assignment]
    lp.save(tmp_path / "net.lil", net)
    assert torch.equal(lp.load(tmp_path / "net.lil", into=nn.Linear(4, 4)).cache, net.cache)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    lp.save(tmp_path / "net.lil", Odd())
    other = Odd()
    other.plain = torch.zeros(3)
    with pytest.raises(FormatError, match="plain"):
        lp.load(tmp_path / "net.lil", into=other)
    less = Odd()
    less.several.pop()
    with pytest.raises(FormatError, match=r"several\.1"):
        lp.load(tmp_path / "net.lil", into=less)
    with pytest.raises(FormatError, match=r"lacks 'fc\.bias'"):
        lp.load(tmp_path / "net.lil", into=nn.Identity())


class Extra(nn.Module):
    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"_extra_state.*dict"):
        lp.save(tmp_path / "net.lil", nn.Sequential(Extra()))
    assert list(tmp_path.iterdir()) == []


def text(tokens: int = 12) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 64, (2, tokens)), "attention_mask": torch.ones(2, tokens, dtype=torch.long)}


SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
HUGGING: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "bert": (lambda: BertModel(BertConfig(vocab_size=64, **SMALL)), text),
    "gpt2, tied": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
        text,
    ),
    "llama, rotary": (
        lambda: LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **SMALL)),
        text,
    ),
    "vit": (
        lambda: ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **SMALL)),
        lambda: {"pixel_values": torch.randn(2, 3, 32, 32)},
    ),
}


@pytest.mark.parametrize("name", HUGGING)
def test_hugging_face_models_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    make, inputs = HUGGING[name]
    net, x = make().eval(), inputs()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.01 * torch.randn_like(p))
    lp.save(tmp_path / "net.lil", net, assets={"config.json": net.config.to_json_string().encode()})  # type: ignore[operator,union-attr]
    loaded = lp.load(tmp_path / "net.lil", into=make())
    with torch.no_grad():
        assert torch.equal(loaded(**x)[0], net(**x)[0])
    assert len({id(p) for p in loaded.parameters()}) == len({id(p) for p in net.parameters()})
    assert "config.json" in Reader(tmp_path / "net.lil").header["assets"]


def test_a_compressed_hugging_face_model_comes_back_and_opens(tmp_path: Path) -> None:
    _, inputs = HUGGING["bert"]

    def make() -> nn.Module:
        return BertModel(BertConfig(vocab_size=64, **{**SMALL, "num_hidden_layers": 1}))

    task = lp.Task(make().eval(), calibrate=[inputs()], dynamic={k: {0: "batch", 1: "tokens"} for k in text()})
    small = lp.compress(task, target=QUICK)
    path, x = small.save(tmp_path / "net.lil"), inputs()
    loaded, run = lp.load(path, into=make()), lp.open(path, threads=1)
    with torch.no_grad():
        expected = small.model(**x)
        assert torch.equal(loaded(**x).last_hidden_state, expected.last_hidden_state)
    for out in (run(**x), run(**dict(reversed(x.items())))):  # keywords in any order
        assert list(out) == list(expected)
        close(out.last_hidden_state, expected.last_hidden_state, share=0.02)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def small() -> lp.results.Result:
    torch.manual_seed(0)
    net = cnn().train()
    for x in images(4):
        net(x)
    recipe = lp.Recipe([lp.Quantize(weights=exact_here(), activations=lp.Int(8))])
    return lp.compress(lp.Task(net.eval(), calibrate=images(4), assets={"a.txt": b"hello"}), recipe, target=QUICK)


@pytest.mark.parametrize(
    "recipe",
    [
        lp.Recipe([lp.Quantize(weights=lp.Int(8))]),
        lp.Recipe([lp.Quantize(weights=lp.Int(4, group=8, scale=lp.formats.Float16()), where=("*", "!0"))]),
        lp.Recipe([lp.Quantize(weights=lp.formats.Float16())]),
        lp.Recipe([lp.Quantize(weights=lp.formats.BFloat16())]),
        lp.Recipe([lp.Quantize(weights=lp.formats.Codebook(16))]),
        lp.Recipe([lp.Quantize(weights=lp.formats.Codebook(12, per="channel"), where=("*", "!0"))]),
        lp.Recipe([lp.Quantize(weights=lp.formats.PowerOfTwo(5))]),
        lp.Recipe([lp.Quantize(weights=lp.formats.MiniFloat("e5m2", group=8), where=("*", "!0"))]),
        lp.Recipe([lp.Prune("weights", 0.5)]),
        lp.Recipe([lp.Quantize(weights=lp.Int(5, symmetric=False))]),
    ],
    ids=str,
)
def test_float_kernels_compute_what_the_module_does(recipe: lp.Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    driver, _ = begin(lp.Task(cnn().eval(), calibrate=images(1)), QUICK, Store(), silent)
    follow(recipe, driver)
    lp.save(tmp_path / "net.lil", driver.model, example=images(1)[0])
    run, x = lp.open(tmp_path / "net.lil", threads=1), images(2)[1]
    with torch.no_grad():
        expected = driver.model(x)
    close(run(x), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(run(x).argmax(1), expected.argmax(1))


def test_integer_kernels_answer_alike(small: lp.results.Result, tmp_path: Path) -> None:
    run, x = lp.open(small.save(tmp_path / "net.lil"), threads=1), images(2)[1]
    with torch.no_grad():
        expected = small.model(x)
    assert torch.equal(run(x).argmax(1), expected.argmax(1))
    assert float((run(x) - expected).abs().max() / expected.abs().max()) < 0.02


def test_a_last_layer_on_integers_leaves_an_output_with_a_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, recipe = nn.Linear(32, 8), lp.Recipe([lp.Quantize(weights=exact_here(), activations=lp.Int(8, dynamic=True))])
    small = lp.compress(net, recipe, calibrate=[torch.randn(4, 32)], target=QUICK)
    (out,) = onnx.load(small.export(tmp_path / "net.onnx")).graph.output
    assert out.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    x = torch.randn(5, 32)
    close(lp.open(small.save(tmp_path / "net.lil"))(x), small.model(x).detach(), atol=1e-4, rtol=0)


def test_the_graph_inside_is_the_file_that_runs(small: lp.results.Result, tmp_path: Path) -> None:
    reader = Reader(small.save(tmp_path / "net.lil"))
    inside, outside = onnx.load_from_string(restored(reader)), onnx.load(small.export(tmp_path / "net.onnx"))
    assert [node.SerializeToString() for node in inside.graph.node] == [
        n.SerializeToString() for n in outside.graph.node
    ]
    tensors = zip(inside.graph.initializer, outside.graph.initializer, strict=True)
    assert all(np.array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b)) for a, b in tensors)
    references = reader.header["graph"]["initializers"].values()
    assert {"product", "quotient", "tensor"} <= {kind for reference in references for kind in reference}
    assert not any(name.startswith(":graph:") for name in reader.entries), "a tensor is stored twice"


def test_nothing_of_where_it_was_made_is_inside(small: lp.results.Result, tmp_path: Path) -> None:
    reader = Reader(small.save(tmp_path / "net.lil"))
    told = restored(reader) + repr(reader.header).encode()
    for secret in (str(Path.cwd()), str(Path.home()), "site-packages", "test_open", os.uname().nodename):
        assert secret.encode() not in told
    model = onnx.load_from_string(restored(reader))
    assert not model.metadata_props and not model.doc_string and not any(node.doc_string for node in model.graph.node)


def test_a_loaded_module_is_trained_compressed_and_saved_again(small: lp.results.Result, tmp_path: Path) -> None:
    loaded, x = lp.load(small.save(tmp_path / "net.lil"), into=cnn()), images(1)[0]
    lp.save(tmp_path / "again.lil", loaded)
    assert torch.equal(lp.load(tmp_path / "again.lil", into=cnn())(x), loaded(x))
    lp.formats.unfreeze(loaded).train()
    optimizer = torch.optim.SGD(loaded.parameters(), 0.1)
    loaded(x).square().mean().backward()
    optimizer.step()
    lp.formats.freeze(loaded).eval()
    assert not torch.equal(loaded(x), small.model(x))
    lp.save(tmp_path / "trained.lil", loaded)
    trained = lp.load(tmp_path / "trained.lil", into=cnn())
    assert torch.equal(trained(x), loaded(x))
    fewer = lp.compress(trained, lp.Recipe([lp.Quantize(weights=lp.Int(4))]), calibrate=images(1), target=QUICK)
    path = fewer.save(tmp_path / "fewer.lil")
    assert torch.equal(lp.load(path, into=cnn())(x), fewer.model(x))
    assert lp.open(path)(x).shape == (8, 10)


def test_a_fresh_process_gives_the_same_bits(small: lp.results.Result, tmp_path: Path) -> None:
    path, x = small.save(tmp_path / "net.lil"), images(1)[0]
    np.save(tmp_path / "x.npy", x.numpy())
    lp.save(tmp_path / "odd.lil", odd := Odd().eval())
    source = Path(__file__).read_text(encoding="utf-8")
    theirs = source[source.index("class Odd(") : source.index("def test_tensors_that_no")]
    theirs += source[source.index("def cnn()") : source.index("def images(")]
    head = "from __future__ import annotations\nfrom typing import Any\nimport torch\nfrom torch import Tensor, nn\n"
    (tmp_path / "theirs.py").write_text(head + theirs)
    code = (
        "import numpy as np, torch; from theirs import Odd, cnn; import lilliput as lp\n"
        "torch.set_num_threads(1); x = torch.from_numpy(np.load('x.npy')); torch.set_grad_enabled(False)\n"
        "np.save('a.npy', lp.load('net.lil', into=cnn())(x)); np.save('b.npy', lp.open('net.lil', threads=1)(x))\n"
        "np.save('c.npy', lp.load('odd.lil', into=Odd())(torch.ones(3, 12))[0])"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            assert np.array_equal(np.load(tmp_path / "a.npy"), small.model(x))
            assert np.array_equal(np.load(tmp_path / "b.npy"), lp.open(path, threads=1)(x))
            assert np.array_equal(np.load(tmp_path / "c.npy"), odd(torch.ones(3, 12))[0])
    finally:
        torch.set_num_threads(threads)


def test_outputs_are_put_together_as_the_module_does(tmp_path: Path) -> None:
    net, x = Odd().eval(), torch.randn(4, 12)
    result = lp.compress(net, lp.Recipe([lp.Quantize()]), calibrate=[x], target=QUICK)
    logits, named = lp.open(result.save(tmp_path / "net.lil"))(x)
    with torch.no_grad():
        expected = result.model(x)
    close(logits, expected[0], atol=1e-4, rtol=1e-5)
    assert list(named) == ["hidden", "none"] and named.hidden.shape == (4, 32) and named.none is None
    with pytest.raises(AttributeError):
        _ = named.other


def test_a_wrong_call_says_what_is_wanted(small: lp.results.Result) -> None:
    run = lp.open(small.folder / "net.lil")
    with pytest.raises(InputError, match="give 'input' as tensors"):
        run()
    with pytest.raises(InputError, match="'pixels'"):
        run(pixels=images(1)[0])


def test_a_file_without_a_graph_says_so(tmp_path: Path) -> None:
    lp.save(tmp_path / "net.lil", nn.Linear(2, 2))
    with pytest.raises(FormatError, match=r"no graph.*without example.*load it into its module"):
        lp.open(tmp_path / "net.lil")


def test_what_is_in_the_base_is_read_from_there(tmp_path: Path) -> None:
    x, y = np.arange(6, dtype=np.float32), np.ones(3, np.float32)
    first = write(tmp_path / "base.lil", {"kind": "answer"}, [Part.of("x", x)])
    header = {"kind": "answer", "base": first.digest, "references": {"old": "x"}}
    write(tmp_path / "delta.lil", header, [Part.of("y", y)])
    reader = Reader(tmp_path / "delta.lil", Reader(tmp_path / "base.lil"))
    assert set(reader.names()) == {"old", "y"} and np.array_equal(reader.read("old"), x)
    with pytest.raises(FormatError, match=f"give base=.*{first.digest}"):
        Reader(tmp_path / "delta.lil")
    with pytest.raises(FormatError, match="give base="):
        Reader(tmp_path / "delta.lil", Reader(tmp_path / "delta.lil", Reader(tmp_path / "base.lil")))


def test_assets_travel_along(small: lp.results.Result, tmp_path: Path) -> None:
    from lilliput.file.assets import read_asset

    assert read_asset(Reader(small.save(tmp_path / "net.lil")), "a.txt") == b"hello"
    with pytest.raises(InputError, match=r"assets\['b'\]"):
        lp.compress(lp.Task(cnn(), calibrate=images(1), assets={"b": tmp_path / "none"}), target=QUICK)
    with pytest.raises(FormatError, match=r"\.\./b"):
        lp.save(tmp_path / "x.lil", nn.Linear(2, 2), assets={"../b": b""})
