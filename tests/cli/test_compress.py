"""`lilliput compress`: what it prints where, what it writes, how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
FILES = ["net.lil", "net.onnx", "report.html", "report.json"]
PRUNE = '[[steps]]\nkind = "Prune"\nunit = "weights"\namount = 0.01\n'


def _written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_the_sentence_and_the_files(lilliput: Run, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lilliput("compress", task, "-o", out, "--seconds", 1.5)
    assert done.exit_code == 0, done.stderr
    assert _written(out) == FILES
    sentence, empty, *files = done.stdout.splitlines()
    assert sentence == json.loads((out / "report.json").read_text())["sentence"] and not empty
    assert sorted(files) == [str(out / name) for name in FILES]
    assert "this is the task speaking" in done.stderr
    assert "building net.onnx: 1 of 1, " in done.stderr and "\x1b" not in done.stderr
    as_json = lilliput("compress", task, "-o", out, "--seconds", 1.5, "--json")
    assert as_json.exit_code == 0
    assert json.loads(as_json.stdout) == json.loads((out / "report.json").read_text())


def test_nothing_gained(lilliput: Run, task: Path, tmp_path: Path) -> None:
    """Written all the same, and told by the exit code; a recipe comes from a file."""
    (tmp_path / "recipe.toml").write_text(PRUNE)
    out = tmp_path / "out"
    done = lilliput("compress", task, "-o", out, "--seconds", 1.5, "--recipe", tmp_path / "recipe.toml", "--threads", 1)
    assert done.exit_code == 3, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["outcome"] == "not met" and report["recipe"][0]["amount"] == 0.01
    assert report["environment"]["threads"] == 1
    assert _written(out) == FILES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "missing.py: there is no such file"),
        (["{task}", "--target", "onnxruntim"], "did you mean 'onnxruntime'?"),
        (["{task}", "--recipe", "missing.toml"], "missing.toml: the recipe cannot be read"),
        (["{task}", "--recipe", "{task}"], "the recipe is not TOML"),
        (["{task}", "-o", "{task}"], "cannot be written (Not a directory); choose another place"),
    ],
    ids=["no task", "no target", "no recipe", "no TOML", "no folder"],
)
def test_bad_input_is_one_message(lilliput: Run, task: Path, arguments: list[str], message: str) -> None:
    done = lilliput("compress", *(argument.format(task=task) for argument in arguments))
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stderr


def test_bad_data_is_one_message(lilliput: Run, task: Path, tmp_path: Path) -> None:
    task.write_text(task.read_text() + "task = lp.Task(Net(), calibrate=[])\n")
    done = lilliput("compress", task, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "error: calibrate: holds no batches; give at least one batch"
    assert not (tmp_path / "out").exists()


def test_interrupted(lilliput: Run, task: Path, tmp_path: Path) -> None:
    task.write_text(task.read_text() + "task = lp.Task(Net(), calibrate=task.calibrate, metric=stop)\n")
    task.write_text("def stop(model):\n    raise KeyboardInterrupt\n" + task.read_text())
    done = lilliput("compress", task, "-o", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1].startswith("stopped; the same command goes on where it was")
    assert not (tmp_path / "out").exists()  # the metric is tried before any work


@pytest.mark.parametrize("arguments", [[], ["compress"], ["compress", "--fast"], ["squeeze"]], ids=str)
def test_wrong_usage(lilliput: Run, arguments: list[str]) -> None:
    done = lilliput(*arguments)
    assert done.exit_code == 2
    assert "Usage: " in done.stderr + done.stdout


def test_version(lilliput: Run) -> None:
    from lilliput import __version__

    done = lilliput("--version")
    assert (done.exit_code, done.stdout) == (0, f"lilliput {__version__}\n")


def test_the_help_shows_a_recipe_that_works(lilliput: Run) -> None:
    import lilliput as lp

    lines = lilliput("compress", "--help").stdout.splitlines()
    toml = [line.strip() for line in lines if line.strip().startswith("[[") or (" = " in line and "task" not in line)]
    recipes = "\n".join(toml).split('activations = {kind = "Int", bits = 8}\n')
    assert lp.Recipe.from_toml(recipes[0] + 'activations = {kind = "Int", bits = 8}').steps == (
        lp.Quantize(weights=lp.Int(8), activations=lp.Int(8)),
    )
    assert lp.Recipe.from_toml(recipes[1]).steps == (
        lp.Prune("weights", 0.5),
        lp.Quantize(weights=lp.Int(4, group=32), where=("*", "!head")),
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from lilliput.cli import main\n"
        "sys.argv = ['lilliput', 'compress', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    taken = []
    for _ in range(3):
        began = _children_s()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        taken.append(_children_s() - began)
    assert min(taken) < 0.5


def _children_s() -> float:
    """Processor seconds of processes that have ended: other work on the machine makes them no more."""
    used = os.times()
    return used.children_user + used.children_system


def test_as_a_process_of_its_own(task: Path, tmp_path: Path) -> None:
    """Killed from outside, and started again: the same bytes as undisturbed, and clean streams."""

    def start(out: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "lilliput.cli",
            "compress",
            str(task),
            "-o",
            out,
            "--seconds",
            "1.5",
            "--json",
        ]
        return subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    undisturbed, killed = start("undisturbed"), start("killed")
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("building net.onnx"):
            killed.kill()
            break
    killed.communicate()
    assert killed.returncode == -9
    again = start("killed")
    for process, out in ((undisturbed, "undisturbed"), (again, "killed")):
        stdout, stderr = process.communicate(timeout=3600)
        assert process.returncode == 0, stderr
        assert json.loads(stdout) == json.loads((tmp_path / out / "report.json").read_text())
    for name in ("net.lil", "net.onnx"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
