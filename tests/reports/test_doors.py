"""What people hand over, and where it comes out: classes for objects, arrays, batches of other libraries, terminals.

Met in use: `target=lp.targets.OnnxRuntime`, models from `torch.jit.load`, NumPy arrays for what `lp.open` gives, a
`BatchEncoding` to train with, an encoding of one's own, and terminals in code page 1252 each ended in a foreign error,
a false one, or a file that nobody can read. Right is: it works, or an error of ours says what to do.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.cli.characters import show_what_can_be_shown
from lilliput.encodings import Encoding
from lilliput.errors import EncodingError, FormatError, InputError, LilliputError, RecipeError
from lilliput.file.container import Reader
from lilliput.model.views.inputs import Inputs

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
INT4 = lp.Int(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.fc(x) * scale  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path_factory.mktemp("opened") / "net.lil"
    lp.save(path, net, example={"x": torch.ones(2, 8), "scale": torch.ones(2, 4)})
    return net, lp.open(path, threads=1)


def arrays() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    fixed, stepped = x.copy(), np.repeat(x, 2, axis=1)[:, ::2]
    fixed.flags.writeable = False
    return {
        "plain": x,
        "read only": fixed,
        "backwards": x[::-1],
        "every second": stepped,
        "turned": np.asfortranarray(x),
        "big endian": x.astype(">f4"),
    }


@pytest.mark.parametrize("name", arrays())
def test_arrays_for_what_was_opened(name: str, opened: tuple[nn.Module, Any]) -> None:
    net, run = opened
    x = arrays()[name]
    before = x.copy()
    right = net(torch.tensor(x.astype(np.float32).copy()), torch.ones(3, 4))
    found = run(x=x, scale=np.ones((3, 4), np.float32))
    assert isinstance(found, np.ndarray) and np.array_equal(x, before)  # in kind: torch need not be there
    close(found, right.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("given", [[1.0] * 8, [[1.0] * 8], (1, 2)], ids=repr)
def test_lists_of_numbers_are_refused(given: Any, opened: tuple[nn.Module, Any]) -> None:
    with pytest.raises(InputError, match=r"list of numbers; give a tensor or an array"):
        opened[1](x=given, scale=torch.ones(1, 4))


def test_arrays_of_no_numbers_are_refused(opened: tuple[nn.Module, Any]) -> None:
    with pytest.raises(InputError, match="an array of"):
        opened[1](x=np.array(["a"]), scale=torch.ones(1, 4))


def test_batches_of_arrays() -> None:
    """They are what tensors are, over the same memory, and stay as they were."""
    net, (x, y) = nn.Sequential(nn.Linear(8, 4)), np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    before = x.copy(), y.copy()
    assert Inputs.of(x).args[0].data_ptr() == x.ctypes.data
    small = [
        lp.compress(
            lp.Task(net, calibrate=batches),
            lp.Recipe([lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))]),
            target=TARGET,
        )
        for batches in ([x, y], [torch.tensor(x), torch.tensor(y)])
    ]
    assert small[0].state.digest == small[1].state.digest
    assert np.array_equal(before[0], x) and np.array_equal(before[1], y)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_models_that_torchscript_loads(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    for make in (torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 8))):
        torch.jit.save(make(net), tmp_path / "net.pt")
        loaded = torch.jit.load(tmp_path / "net.pt")
        for model in (loaded, nn.Sequential(loaded)):
            with pytest.raises(InputError, match=r"TorchScript, which cannot be turned back.*load_state_dict"):
                lp.compress(lp.Task(model, example=torch.ones(2, 8)), target=TARGET)
        again = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        again.load_state_dict(loaded.state_dict())  # the remedy
        assert torch.equal(again(torch.ones(2, 8)), net(torch.ones(2, 8)))


@pytest.mark.parametrize(
    ("given", "kind", "remedy"),
    [
        ({"target": lp.targets.OnnxRuntime}, InputError, r"OnnxRuntime\(\)"),
        ({"target": ["onnxruntime"]}, InputError, "known: onnxruntime"),
        ({"target": None}, InputError, "known: onnxruntime"),
        ({"recipe": lp.Recipe}, InputError, r"give lp.Recipe\(\[…\]\)"),
        ({"recipe": [lp.Quantize()]}, InputError, r"give lp.Recipe\(\[…\]\)"),
    ],
)
def test_classes_for_targets_and_recipes(given: dict[str, Any], kind: type[LilliputError], remedy: str) -> None:
    task = lp.Task(nn.Sequential(nn.Linear(8, 4)), example=torch.ones(2, 8))
    for verb in (lp.compress, lp.diagnose):
        with pytest.raises(kind, match=remedy):
            verb(task, **given)


@pytest.mark.parametrize(
    ("made", "remedy"),
    [
        (lambda: lp.Recipe(lp.Quantize()), r"give a list of steps"),  # type: ignore[arg-type]
        (lambda: lp.Recipe(lp.Quantize), r"give a list of steps"),  # type: ignore[arg-type]
        (lambda: lp.Recipe([lp.Quantize]), r"make a step of it: Quantize\(…\)"),  # type: ignore[list-item]
        (lambda: lp.Recipe([lp.Quantize(weights=lp.Int)]), "weights: is .*Int.*Encoding"),  # type: ignore[arg-type]
        (lambda: lp.Recipe([lp.Quantize(rounding=lp.rounding.GPTQ)]), "rounding: is .*GPTQ"),  # type: ignore[arg-type]
    ],
)
def test_classes_for_steps(made: Any, remedy: str) -> None:
    with pytest.raises(RecipeError, match=remedy):
        made()


class Batch(Mapping[str, Any]):
    """A mapping of another library, as BatchEncoding is: no dict, and its items are attributes too."""

    def __init__(self, **held: Any) -> None:
        self.data = held

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, x: Any) -> None:
        self.data = {**self.data, key: x}

    def __iter__(self) -> Any:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def test_batches_of_other_mappings_to_train_with() -> None:
    def weights(batches: list[Any], loss: Any) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 4))
        return lp.train(lp.Task(net, train=batches, loss=loss), lp.Finetune(epochs=2, lr=0.01)).model[0].weight  # type: ignore[index,union-attr,return-value]

    def named(model: Any, batch: Any) -> Tensor:
        assert isinstance(batch, Batch)
        return nn.functional.cross_entropy(model(batch.data["x"]), batch["y"])

    drawn = [(torch.randn(3, 8), torch.tensor([0, 1, 2])) for _ in range(3)]
    right = weights(drawn, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
    assert torch.equal(weights([Batch(x=x, y=y) for x, y in drawn], named), right)
    inside = weights([(Batch(x=x, y=y), 1) for x, y in drawn], lambda model, batch: named(model, batch[0]))
    assert torch.equal(inside, right)


def test_a_batch_encoding_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    net = nn.Sequential(nn.Embedding(16, 4), nn.Flatten(), nn.Linear(12, 2))
    batches = [transformers.BatchEncoding({"ids": torch.randint(16, (4, 3)), "y": torch.tensor([0, 1, 0, 1])})] * 2

    def loss(model: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch.ids), batch.y)

    history = lp.train(lp.Task(net, train=batches, loss=loss), lp.Finetune(epochs=3, lr=0.05)).history
    assert history[-1]["loss"] < history[0]["loss"]


@dataclass(frozen=True, repr=False)
class Mine(lp.Int):
    """An encoding of the user's own."""


def test_an_encoding_of_ones_own_is_refused_before_any_work(tmp_path: Path) -> None:
    net, told = nn.Sequential(nn.Linear(8, 8)), list[str]()
    task = lp.Task(net, calibrate=[torch.ones(2, 8)])
    sparse = lp.formats.Sparse(values=Mine(8)) if "values" in lp.formats.Sparse.__dataclass_fields__ else Mine(8)
    for step in (lp.Quantize(weights=Mine(8)), lp.Quantize(activations=Mine(8)), lp.Quantize(weights=sparse)):
        with pytest.raises(EncodingError, match=r"Mine is no encoding that Lilliput knows.*use one of"):
            lp.compress(task, lp.Recipe([step]), target=TARGET, progress=lambda stage, *_: told.append(stage))
    assert told == []


def test_an_encoding_of_ones_own_is_refused_at_save(tmp_path: Path) -> None:
    from lilliput.model.carrier.carrier import attach

    net = nn.Sequential(nn.Linear(8, 8))
    attach(net, ("0.weight",), Mine(8).represent(net[0].weight.detach()))  # type: ignore[arg-type]
    for example in (None, torch.ones(2, 8)):
        with pytest.raises(EncodingError, match=r"0\.weight: Mine is no encoding that Lilliput knows"):
            lp.save(tmp_path / "net.lil", net, example=example)
    lp.save(tmp_path / "net.lil", lp.formats.to_dense(net))  # the remedy
    again = lp.load(tmp_path / "net.lil", into=nn.Sequential(nn.Linear(8, 8)))
    assert torch.equal(again(torch.ones(2, 8)), net(torch.ones(2, 8)))
    assert issubclass(Mine, Encoding)


def test_every_chunk_is_checked_before_a_graph_is_opened(tmp_path: Path) -> None:
    """Of a file with parts that the graph does not need: each byte that is changed is told, and nothing is answered."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    net.register_buffer("unread", torch.arange(64.0))
    path, bent = tmp_path / "net.lil", tmp_path / "bent.lil"
    lp.save(path, net, example=torch.ones(2, 8), assets={"words.txt": b"some words " * 9})
    whole = path.read_bytes()
    places = {0, 9, 13, len(whole) - 1, len(whole) - 20, len(whole) - 45, len(whole) - 60}
    for entry in Reader(path).entries.values():
        places |= {entry.offset, entry.offset + entry.stored_bytes // 2, entry.offset + entry.stored_bytes - 1}
    assert len(places) > 20
    for at in places:
        bent.write_bytes(whole[:at] + bytes((whole[at] ^ 0x41,)) + whole[at + 1 :])
        with pytest.raises(FormatError):
            lp.open(bent)
        fresh: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        fresh.register_buffer("unread", torch.zeros(64))
        with pytest.raises(FormatError):
            lp.load(bent, into=fresh)


TELLS = "× ≥ ≤ – — … → ← ± ≈ µ √ ² · 日"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "latin-1", "utf-8"])
def test_every_character_comes_out(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    show_what_can_be_shown()
    print(TELLS)
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding).rstrip()
    assert shown.encode(encoding) and len(shown) >= len(TELLS)
    assert shown == TELLS if encoding == "utf-8" else shown.endswith("?")
    if encoding == "ascii":
        assert shown == "x >= <= - - ... -> <- +- ~ u sqrt 2 * ?"


TASK = """
import torch
from torch import nn
import lilliput as lp
torch.manual_seed(0)
task = lp.Task(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)), calibrate=[torch.ones(2, 8)], name="≥é×")
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_every_command_ends_well_on_terminals_of_few_characters(encoding: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "task.py").write_text(TASK, encoding="utf-8")
    save_file({"weight": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    lp.save(tmp_path / "net.lil", net, example=torch.ones(2, 8))
    commands = [
        ["pack", "model.safetensors", "-o", "packed.lil"],
        ["unpack", "packed.lil", "-o", "unpacked"],
        ["inspect", "net.lil"],
        ["verify", "net.lil"],
        ["export", "net.lil", "-o", "net.onnx"],
        ["check", "net.lil"],
        ["compress", "task.py", "--dry-run"],
        ["compress", "task.py", "-o", "out", "--threads", "1"],
        ["diagnose", "task.py", "--worst", "0", "--samples", "1"],
        ["inspect", "missing≥.lil"],
    ]
    if encoding == "cp1252":  # of what ASCII cannot show it shows more
        commands = [*commands[:4], commands[-1]]
    code = (
        "import sys\nfrom lilliput.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['lilliput', *line.split('|')]\n"
        "    try: app.main()\n"
        "    except SystemExit as end: print('ended', end.code)\n"
    )
    here = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *("|".join(words) for words in commands)],
        cwd=tmp_path, env=here, capture_output=True,
    )  # fmt: skip
    shown = run.stdout.decode(encoding)
    ends = [line for line in shown.splitlines() if line.startswith("ended")]
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(ends) == len(commands) and all(end in ("ended 0", "ended 3") for end in ends[:-1]), shown
    assert ends[-1] == "ended 2" and b"Traceback" not in run.stderr
    assert "->" in shown or "→" in shown
