"""The page that `lilliput web` writes: what lies in it, what is refused, and, in headless Chromium, what it answers."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import torch
from compared import close
from PIL import Image
from test_web import stand_in
from torch import Tensor, nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app
from lilliput.errors import InputError
from lilliput.formats import save_page

READY, ANSWERED = "'ready'", "'answered'"
in_browser = pytest.mark.skipif(
    chromium.PROGRAM is None or chromium.RUNTIME is None, reason=f"{chromium.LACKS}, and Chromium"
)


class Pictures(nn.Module):
    """Five classes of a picture, which tell what it holds where."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Sentence(nn.Module):
    """A vector of a sentence, by what its mask leaves of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None].to(self.table.weight.dtype)
        return (self.table(input_ids) * weights).sum(1) / weights.sum(1)


def written(folder: Path, net: nn.Module, example: Any, dynamic: Any = None) -> Path:
    torch.manual_seed(0)
    for x in net.parameters():
        nn.init.normal_(x, std=0.2)
    return Path(lp.export(folder / "net.onnx", net.eval(), example, dynamic=dynamic))


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return written(tmp_path, Pictures(), torch.zeros(1, 3, 32, 40))


def carried(page: Path, key: str) -> bytes:
    held = (page.parent / f"{key}.js").read_text()
    called = re.fullmatch(rf'carry\("{re.escape(key)}", "([A-Za-z0-9+/=]+)"\);\n', held)
    assert called is not None
    return gzip.decompress(base64.b64decode(called[1]))


def told(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return dict(json.loads(found[1]))


def test_all_that_it_needs_lies_in_the_folder(network: Path, tmp_path: Path) -> None:
    runtime = stand_in(tmp_path / "runtime")
    page = save_page(tmp_path / "page", network, runtime=runtime)
    assert page == tmp_path / "page" / "index.html"
    assert carried(page, "network") == network.read_bytes()
    assert carried(page, "script") == (runtime / "dist" / "ort.wasm.bundle.min.mjs").read_bytes()
    assert carried(page, "binary") == (runtime / "dist" / "ort-wasm-simd-threaded.wasm").read_bytes()
    text = page.read_text(encoding="utf-8")
    assert sorted(re.findall(r'src="(.*?)"', text)) == ["binary.js", "network.js", "script.js"]
    assert not re.search(r"https?://", text) and "connect-src 'none'" in text
    found = told(page)
    assert found["bytes"] == network.stat().st_size and found["runtime"] == "1.30.0"
    expected = {"height": 32, "width": 40, "channels": 3, "first": True, "mean": [0.0], "std": [1.0], "crop": 1.0}
    assert {key: found["picture"][key] for key in expected} == expected


def test_a_name_is_text_and_no_markup(network: Path, tmp_path: Path) -> None:
    labels = ["</script><b>", "a", "b", "c", "d & e"]
    page = save_page(tmp_path / "p", network, runtime=stand_in(tmp_path / "r"), name="<b>{x} & co", labels=labels)
    text = page.read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;{x} &amp; co</title>" in text and "<b>" not in text
    assert told(page)["labels"] == labels


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"labels": ["one", "two"]}, "labels: 2 labels, where the network tells 5 classes apart"),
    ({"size": 64}, "size: takes 32 × 40, not 64 × 64; leave it out"),
    ({"crop": 0.0}, "crop: is 0.0"),
    ({"std": [0.2, 0.0, 0.2]}, "std: is"),
    ({"mean": [0.1, 0.2]}, "mean: is .* one for each of three colours"),
    ({"vocabulary": ["[CLS]", "[SEP]", "[UNK]"]}, "takes no text .*float32 .batch, 3, 32, 40."),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[next(iter(given)) for given, _ in REFUSED])
def test_what_does_not_go_with_the_network(given: Any, message: str, network: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        save_page(tmp_path / "page", network, runtime=stand_in(tmp_path / "runtime"), **given)
    assert not (tmp_path / "page").exists()


def test_other_networks_are_asked_for_numbers(tmp_path: Path) -> None:
    built = written(tmp_path, nn.Linear(4, 3), torch.zeros(2, 4))
    page = save_page(tmp_path / "page", built, runtime=stand_in(tmp_path / "runtime"))
    assert told(page)["picture"] is told(page)["text"] is None
    with pytest.raises(InputError, match=r"takes no picture .*the page then takes numbers"):
        save_page(tmp_path / "page", built, runtime=tmp_path / "runtime", mean=[0.5])


def shell(*words: object) -> Any:
    return CliRunner().invoke(app, ["web", *map(str, words)])


def test_from_the_shell(network: Path, tmp_path: Path) -> None:
    runtime, labels = stand_in(tmp_path / "runtime"), tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    asked = ("--runtime", runtime, "--labels", labels, "--mean", "0.5,0.4,0.3", "--std", "0.2", "--json")
    done = shell(tmp_path, *asked)
    assert done.exit_code == 0, done.stderr
    printed, page = json.loads(done.stdout), tmp_path / "web" / "index.html"
    assert printed["page"] == str(page) and printed["network_bytes"] == network.stat().st_size
    assert told(page)["picture"]["mean"] == [0.5, 0.4, 0.3] and told(page)["picture"]["std"] == [0.2]
    assert told(page)["labels"] == list("abcde")
    assert shell(network, "--runtime", runtime, "--to", tmp_path / "to", "--name", "Net").exit_code == 0
    assert "<title>Net</title>" in (tmp_path / "to" / "index.html").read_text()


WRONG: list[tuple[Sequence[str], str]] = [
    (("{}/nowhere",), "is not there; give the folder that lilliput compress wrote"),
    (("{}/empty",), "has no net.onnx; compress with --target web, or give an .onnx file"),
    (("{}/labels.txt",), "is no ONNX file"),
    (("{}", "--runtime", "{}/empty"), "holds no onnxruntime-web"),
    (("{}", "--runtime", "{}/runtime", "--labels", "{}/nowhere"), "--labels .* cannot be read"),
    (("{}", "--runtime", "{}/runtime", "--mean", "a"), "--mean: is 'a'; give numbers"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[message[:12] for _, message in WRONG])
def test_what_is_wrong_is_said(words: Sequence[str], message: str, network: Path, tmp_path: Path) -> None:
    stand_in(tmp_path / "runtime")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.txt").write_text("one")
    more = () if "--runtime" in words else ("--runtime", str(tmp_path / "runtime"))
    done = shell(*(word.format(tmp_path) for word in words), *more)
    assert done.exit_code == 2 and re.search(message, done.stderr.replace("\n", " ")), done.stderr


def opened(page: Path, **settings: Any) -> chromium.Page:
    held = chromium.Page(page.resolve().as_uri(), **settings)
    held.wait(f"[{READY}, 'failed'].includes(document.body?.dataset.state)")
    assert held.value("document.body.dataset.state + document.getElementById('trouble').textContent") == "ready"
    return held


def answered(held: chromium.Page) -> None:
    held.wait(f"[{ANSWERED}, 'failed'].includes(document.body.dataset.state)")
    assert held.value("document.body.dataset.state + document.getElementById('trouble').textContent") == "answered"


@in_browser
@pytest.mark.parametrize("channels", [3, 1])
def test_a_picture_is_answered_as_by_the_module(channels: int, tmp_path: Path) -> None:
    net = Pictures(channels)
    built = written(tmp_path, net, torch.zeros(1, channels, 32, 40))
    labels = [f"label {i}" for i in range(5)]
    page = save_page(tmp_path / "page", built, labels=labels, mean=[0.5], std=[0.25])
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)  # of that size: nothing is scaled
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    if channels == 1:
        given = (given * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    with torch.no_grad():
        right = net((given - 0.5) / 0.25)[0]
    with opened(page, width=390) as held:
        held.give("#file", tmp_path / "picture.png")
        answered(held)
        rows = held.value(
            "[...document.querySelectorAll('#answers li')].map((li) => [+li.dataset.class, +li.dataset.score])"
        )
        names = held.value("[...document.querySelectorAll('#answers .name')].map((it) => it.textContent)")
        figures = json.loads(held.value("document.getElementById('measured').dataset.figures"))
        assert held.value("document.documentElement.scrollWidth") <= 390
        assert not held.console and {url.partition(":")[0] for url in held.requests} == {"file", "blob"}
    order = right.argsort(descending=True)
    assert [at for at, _ in rows] == order.tolist() and names == [labels[i] for i in order]
    close([score for _, score in rows], right[order].tolist(), share=1e-4)
    assert figures["threads"] == 1 and figures["calls"] >= 3 and figures["bytes"] == built.stat().st_size
    assert 0 < figures["fastest_ms"] <= figures["median_ms"] < 1000


@in_browser
def test_numbers_are_answered_as_by_the_module(tmp_path: Path) -> None:
    net = Sentence()
    axes = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")}
    example = {name: torch.ones(2, 5, dtype=torch.int64) for name in axes}
    page = save_page(tmp_path / "page", written(tmp_path, net, example, axes))
    ids, mask = torch.tensor([[3, 7, 1]]), torch.ones(1, 3)
    with torch.no_grad():
        right = net(ids, mask)[0].tolist()
    with opened(page) as held:

        def ask(text: str) -> str:
            held.value(f"document.querySelector('textarea').value = {json.dumps(text)}")
            held.value("document.forms.form.requestSubmit()")
            held.wait("!busy")
            return str(held.value("document.body.dataset.state"))

        assert ask("[3, 7, 1]") == "answered"  # one list of all; the mask is drawn, as long
        first = held.value("document.querySelector('#answers pre').textContent")
        assert ask("[[3, 7, 1]]") == "answered"
        assert held.value("document.querySelector('#answers pre').textContent") == first
        assert ask("[3, 7") == "failed"
        assert "input_ids is no JSON" in held.value("document.getElementById('trouble').textContent")
        assert held.value("document.getElementById('answer').hidden")  # of what was asked before
        assert ask("[99, 3]") == "failed"  # no such row: the runtime's own words
        assert held.value("document.getElementById('trouble').hidden") is False
    close([float(value) for value in first.split(",")], right, share=1e-3)


@in_browser
def test_a_text_is_cut_into_the_pieces_that_transformers_cuts(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pieces += ["un", "##able", "##ing", "read", "the", "cafe", ",", ".", "!", "'", "$", "中", "-"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"))
    texts = [
        "Unable reading, the CAFÉ!",
        "un-read… it's $5",
        "中文 the\tthe\n 7",
        "",
        "ß" * 3,
        "a" * 101,
        "naïve\u200bread",
    ]
    net = nn.Embedding(len(pieces), 4)
    axes = {"input_ids": {0: "batch", 1: "tokens"}}
    built = written(tmp_path, Named(net), {"input_ids": torch.ones(1, 3, dtype=torch.int64)}, axes)
    page = save_page(tmp_path / "page", built, vocabulary=pieces)
    with opened(page) as held:
        for text in texts:
            script = f"tokens({json.dumps(text)}, new Map(page.text.vocabulary.map((it, at) => [it, at])))"
            found = held.value(f"Array.from(Object.values({script})[0].data, Number)")
            assert found == theirs(text)["input_ids"], text


class Named(nn.Module):
    """A table, whose input has the name that tokenizers give."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)
