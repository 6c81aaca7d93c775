"""A file is read where little is installed: without torch, without transformers, without what exports a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import close
from packaging.requirements import Requirement
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import lilliput as lp

ROOT = Path(__file__).parents[2]
TOOLCHAIN = ("transformers", "onnxscript", "onnx_ir", "accelerate", "huggingface_hub", "safetensors", "constriction")
OTHERS = ("onnx", "onnxruntime", "openvino", "typer", "rich")


def without(packages: tuple[str, ...], code: str, folder: Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
    """What a process does that cannot import these packages."""
    head = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", head + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    return done


def command(*words: str) -> str:
    return f"from lilliput.cli import main; sys.argv[1:] = {list(words)!r}; main()"


class Several(nn.Module):
    """Answers with types that NumPy has and has not, and takes lists and plain values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 6)

    def forward(self, parts: list[Tensor], scale: float = 1.0) -> dict[str, Any]:
        x = self.fc(torch.cat(parts, -1)) * scale
        return {"half": x.bfloat16(), "pair": torch.complex(x, 2 * x), "count": x.shape[1], "no": None, "both": (x, -x)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds, their inputs, and what the modules answer."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    x, long, image = torch.randn(3, 12), torch.randn(2, 5, 12), torch.randn(2, 3, 8, 8)
    coded = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    lp.save(folder / "base.lil", coded)
    convolution = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ).eval()
    nets: dict[str, tuple[nn.Module, Any]] = {
        "linear": (nn.Linear(12, 5).eval(), x),
        "coded": (lp.apply(lp.Task(coded, example=x), lp.Recipe([lp.Quantize(weights=lp.Int(4, group=4))])), x),
        "convolution": (convolution.eval(), image),
        "recurrent": (Recurrent().eval(), long),
    }
    arrays = {}
    for name, (net, given) in nets.items():
        lp.save(folder / f"{name}.lil", net, example=given)
        with torch.no_grad():
            arrays |= {f"{name}.in": given.numpy(), f"{name}.out": net(given).numpy()}
    lp.save(folder / "delta.lil", coded, example=x, base=folder / "base.lil")
    with torch.no_grad():
        arrays |= {"delta.in": x.numpy(), "delta.out": coded(x).numpy()}
    several, parts = Several().eval(), [x[:, :4], x[:, 4:]]
    lp.save(folder / "several.lil", several, example={"parts": parts, "scale": 0.5})
    with torch.no_grad():
        arrays |= {"several.in": x.numpy(), "several.out": several(parts, 0.5)["both"][1].numpy()}
    np.savez(folder / "arrays.npz", **arrays)
    return folder


OPENS = """
import numpy as np, lilliput as lp
arrays, answers = np.load('arrays.npz'), {}
for name in ('linear', 'coded', 'convolution', 'recurrent', 'delta'):
    run = lp.open(name + '.lil', threads=1, base='base.lil' if name == 'delta' else None)
    answers[name] = run(arrays[name + '.in'])
x = arrays['several.in']
told = lp.open('several.lil', threads=1)(parts=[x[:, :4], x[:, 4:]], scale=0.5)
answers |= {'several': told.both[1], 'pair': told.pair, 'half': told['half'].astype(np.float32)}
print(told.count, told.no, told.half.dtype)
np.savez('answers.npz', **answers)
"""


def test_files_of_several_kinds_open_without_torch(files: Path) -> None:
    assert without(("torch", *TOOLCHAIN), OPENS, files).stdout == "6 None bfloat16\n"
    with np.load(files / "arrays.npz") as arrays, np.load(files / "answers.npz") as answers:
        for name in ("linear", "coded", "convolution", "recurrent", "delta", "several"):
            close(answers[name], arrays[f"{name}.out"], atol=1e-5, rtol=1e-5)
        x = -arrays["several.out"]
        close(answers["pair"].real, x, atol=1e-5, rtol=1e-5)
        close(answers["pair"].imag, 2 * x, atol=1e-5, rtol=1e-5)
        close(answers["half"], x, share=0.02)


def test_tensors_give_tensors_and_arrays_arrays(files: Path) -> None:
    run, x = lp.open(files / "linear.lil", threads=1), torch.randn(3, 12)
    assert isinstance(run(x), Tensor) and isinstance(run(x.numpy()), np.ndarray)
    assert np.array_equal(run(x).numpy(), run(x.numpy()))
    assert np.array_equal(run(x.numpy()), run(x.numpy().astype(">f4")))
    assert np.array_equal(run(x.numpy()), run(np.asfortranarray(x.numpy())))
    several = lp.open(files / "several.lil", threads=1)
    with_tensors = several(parts=[x[:, :4], x[:, 4:].numpy()], scale=0.5)  # some of both: tensors
    assert with_tensors.half.dtype == torch.bfloat16 and with_tensors.pair.is_complex()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array(["a"]), "an array of <U1"),
        (np.array([{}], object), "an array of object"),
        ([1.0], "a list of numbers"),
    ],
)
def test_what_is_no_numbers_is_refused(files: Path, given: Any, said: str) -> None:
    with pytest.raises(lp.errors.InputError, match=said):
        lp.open(files / "linear.lil", threads=1)(given)


def test_a_module_is_loaded_without_what_exports(files: Path) -> None:
    code = (
        "import numpy as np, torch, lilliput as lp\n"
        "from torch import nn\n"
        "net = lp.load('coded.lil', into=nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)))\n"
        "with torch.no_grad(): np.save('loaded.npy', net(torch.from_numpy(np.load('arrays.npz')['coded.in'])))"
    )
    without((*TOOLCHAIN, *OTHERS), code, files)
    with np.load(files / "arrays.npz") as arrays:
        close(np.load(files / "loaded.npy"), arrays["coded.out"], atol=1e-6, rtol=1e-6)


def test_commands_on_files_need_five_packages(files: Path, tmp_path: Path) -> None:
    blocked = ("torch", *TOOLCHAIN, "onnx", "onnxruntime", "openvino")
    (tmp_path / "in").mkdir()
    x = np.arange(4000, dtype=np.float32).reshape(40, 100)
    save_file({"weight": x}, tmp_path / "in" / "net.safetensors")
    without(blocked, command("pack", "in", "-o", "net.lil"), tmp_path)
    without(blocked, command("unpack", "net.lil", "-o", "out"), tmp_path)
    assert np.array_equal(load_file(tmp_path / "out" / "net.safetensors")["weight"], x)
    told = json.loads(without(blocked, command("inspect", str(files / "coded.lil"), "--json"), tmp_path).stdout)
    assert {row["path"] for row in told["weights"]} >= {"0.weight", "2.weight"}
    checked = without(blocked, command("verify", str(files / "coded.lil")), tmp_path).stdout
    assert "not loaded: onnx is not installed; pip install onnx onnxruntime" in checked and "is whole" in checked


@pytest.mark.parametrize(
    ("blocked", "words", "said"),
    [
        ("torch", ["compress", "task.py"], "torch is not installed; pip install torch"),
        (
            "onnx",
            ["export", "{}/coded.lil", "-o", "x.onnx"],
            "onnx is not installed; pip install onnx onnxruntime",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_command(
    files: Path, tmp_path: Path, blocked: str, words: list[str], said: str
) -> None:
    done = without((blocked,), command(*(word.format(files) for word in words)), tmp_path, expected=2)
    assert done.stderr == f"error: {said}\n"


def test_a_public_name_that_needs_torch_says_so(tmp_path: Path) -> None:
    code = "import lilliput as lp\ntry: lp.load\nexcept lp.errors.InputError as error: print(error)"
    assert without(("torch",), code, tmp_path).stdout == "lilliput.load: torch is not installed; pip install torch\n"


def test_no_remedy_names_a_package_that_is_on_no_index() -> None:
    texts = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    assert len(texts) > 200
    wrong = [str(path) for path in texts if re.search(r"install\s+(-\S+\s+)*['\"]?lilliput", path.read_text("utf-8"))]
    assert not wrong


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        *(("linux", machine, wanted) for machine, wanted in (("x86_64", True), ("aarch64", False), ("riscv64", False))),
        *(("win32", machine, wanted) for machine, wanted in (("AMD64", True), ("ARM64", False))),
        *(("darwin", machine, True) for machine in ("x86_64", "arm64")),
    ],
)
def test_the_library_for_ans_is_asked_for_where_it_has_a_wheel(system: str, machine: str, wanted: bool) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    (found,) = [one for one in map(Requirement, listed) if one.name == "constriction"]
    assert found.marker is not None
    assert found.marker.evaluate({"sys_platform": system, "platform_machine": machine}) == wanted
