"""A task from a file: what is found in it, and how what fails in it is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lilliput.cli.load import Source, load_task
from lilliput.errors import InputError
from lilliput.task import Task

HEAD = "import lilliput as lp\nfrom torch import nn, ones\n"


def _file(folder: Path, text: str, name: str = "some_task.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _refused(folder: Path, text: str) -> InputError:
    before = list(sys.path)
    with pytest.raises(InputError) as caught:
        load_task(Source(_file(folder, text)))
    assert sys.path == before
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "task = lp.Task(nn.Linear(2, 2), ones(1, 2))",
        "def task():\n    return lp.Task(nn.Linear(2, 2), ones(1, 2))",
    ],
    ids=["a task", "a function"],
)
def test_a_task(text: str, tmp_path: Path) -> None:
    assert isinstance(load_task(Source(_file(tmp_path, HEAD + text))), Task)


def test_files_beside_it_are_importable(tmp_path: Path) -> None:
    _file(tmp_path, HEAD + "def net():\n    return nn.Linear(2, 2)\n", "nets_beside.py")
    before = list(sys.path)
    text = (
        "import nets_beside\n"
        + HEAD
        + "def task():\n    import nets_beside\n    return lp.Task(nets_beside.net(), ones(1, 2))\n"
    )
    assert isinstance(load_task(Source(_file(tmp_path, text))), Task)
    assert sys.path == before


def test_dataclasses_and_a_taken_name(tmp_path: Path) -> None:
    """A file may be called as a module that is loaded, which stays what it is."""
    text = (
        HEAD
        + "import dataclasses\n@dataclasses.dataclass\nclass Data:\n    x: 'int'\n"
        + "task = lp.Task(nn.Linear(2, 2), ones(1, 2))\n"
    )
    assert isinstance(load_task(Source(_file(tmp_path, text, "json.py"))), Task)
    import json

    assert json.loads("[1]") == [1]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        (
            "import lilliput as lp\n\ndef half(x):\n    return x / 0\n\ntask = half(3)\n",
            4,
            "ZeroDivisionError: division by zero",
        ),
        ("x = 1\ntask = (\n", 2, "SyntaxError: '(' was never closed"),
        ("import no_such_library\n", 1, "ModuleNotFoundError: No module named 'no_such_library'"),
        (
            "import torch\n\ndef task():\n    return torch.zeros(3).view(7)\n",
            4,
            "RuntimeError: shape '[7]' is invalid",
        ),
        ("raise SystemExit(0)\n", 1, "SystemExit: 0"),
    ],
    ids=["an error", "a syntax error", "an import", "in the function", "it ends"],
)
def test_errors_in_it_are_told_with_file_and_line(text: str, line: int, why: str, tmp_path: Path) -> None:
    error = _refused(tmp_path, text)
    assert error.where == f"{tmp_path / 'some_task.py'}:{line}"
    assert error.what == "the task file failed" and error.why.startswith(why)


def test_errors_in_a_file_beside_it(tmp_path: Path) -> None:
    _file(tmp_path, "x = 1\ny = x.nothing\n", "broken_beside.py")
    assert _refused(tmp_path, "import broken_beside\n").where == f"{tmp_path / 'broken_beside.py'}:2"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("net = 1", "defines no `task`"),
        ("task = 3", "`task` is of type int"),
        ("def task(): return 3", "`task` is of type int"),
    ],
    ids=["none", "a number", "a function of a number"],
)
def test_no_task(text: str, what: str, tmp_path: Path) -> None:
    error = _refused(tmp_path, text)
    assert error.what == what and error.where == str(tmp_path / "some_task.py") and "lp.Task" in error.next


@pytest.mark.parametrize("name", ["missing.py", ".", "task.txt"])
def test_no_python_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "task.txt").write_text("task")
    with pytest.raises(InputError) as caught:
        load_task(Source(tmp_path / name))
    assert caught.value.where == str(tmp_path / name)


def test_a_folder_wants_its_task_and_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for given, said in (
        ({}, "give --task NAME: text-classification"),
        ({"task": "text-generation"}, "give --data FILE"),
        ({"inputs": tmp_path, "task": "text-generation"}, "goes with an ONNX file"),
    ):
        with pytest.raises(InputError) as caught:
            load_task(Source(tmp_path, **given))  # type: ignore[arg-type]
        assert said in str(caught.value)
    with pytest.raises(InputError, match="goes with a folder and --task"):
        load_task(Source(_file(tmp_path, HEAD), data=tmp_path))
