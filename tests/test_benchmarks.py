"""What benchmarks share: no CSV from a tree with changes, and speeds that come from several processes."""

import csv
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lilliput as lp
from lilliput.measure import Latencies
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BENCHMARK = """
import sys
from table import write

print("worked")
if sys.argv[1:]:
    open(sys.argv[1], "a").write("# changed meanwhile")
write("small", [{"figure": 1.23456}], 1)
"""


@pytest.fixture
def tree(tmp_path):
    """A repository with one benchmark, committed."""
    folder = tmp_path / "tree"
    (folder / "benchmarks" / "results").mkdir(parents=True)
    (folder / "src").mkdir()
    shutil.copy(BENCHMARKS / "table.py", folder / "benchmarks")
    (folder / "benchmarks" / "small.py").write_text(BENCHMARK)
    (folder / "src" / "code.py").write_text("x = 1\n")
    (folder / "benchmarks" / "results" / "small.csv").write_text("figure\n0.5\n")
    _git(folder, "init", "--quiet")
    _commit(folder)
    return folder


def _git(folder, *command):
    named = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(["git", *named, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def _commit(folder):
    _git(folder, "add", "-A")
    _git(folder, "commit", "--quiet", "-m", "x")


def _run(folder, *arguments, **variables):
    command = [sys.executable, folder / "benchmarks" / "small.py", *arguments]
    environment = {**{key: value for key, value in os.environ.items() if key != "DRY"}, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _rows(folder):
    with open(folder / "benchmarks" / "results" / "small.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_csv_names_the_commit_it_was_written_from(tree):
    done = _run(tree)
    assert done.returncode == 0, done.stderr
    assert [(row["figure"], row["commit"]) for row in _rows(tree)] == [
        ("1.235", _git(tree, "rev-parse", "--short", "HEAD").strip())
    ]


@pytest.mark.parametrize("name", ["src/code.py", "src/new.py", "benchmarks/new.py", "benchmarks/small.py"])
def test_a_tree_with_changes_is_refused_before_any_work(tree, name):
    with open(tree / name, "a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    done = _run(tree)
    assert done.returncode != 0
    assert name in done.stderr
    assert "worked" not in done.stdout
    assert _rows(tree) == [{"figure": "0.5"}]


def test_csvs_and_what_no_code_reads_are_no_changes(tree):
    (tree / "benchmarks" / "results" / "small.csv").write_text("figure\n0.7\n")
    (tree / "benchmarks" / "results" / "other.csv").write_text("figure\n0.7\n")
    (tree / "notes.txt").write_text("x")
    (tree / "out").mkdir()
    (tree / "out" / "kept.py").write_text("x")
    done = _run(tree)
    assert done.returncode == 0, done.stderr
    assert _rows(tree)[0]["figure"] == "1.235"


def test_a_dry_run_prints_its_rows_and_writes_nothing(tree):
    (tree / "src" / "code.py").write_text("x = 2\n")
    done = _run(tree, DRY="1")
    assert done.returncode == 0, done.stderr
    assert "\n1.235,make bench NAME=small," in done.stdout
    assert _rows(tree) == [{"figure": "0.5"}]


def test_what_changed_meanwhile_is_printed_and_not_written(tree):
    done = _run(tree, str(tree / "src" / "code.py"))
    assert done.returncode != 0
    assert "src/code.py" in done.stderr
    assert "\n1.235,make bench NAME=small," in done.stdout
    assert _rows(tree) == [{"figure": "0.5"}]


def test_no_benchmark_writes_a_csv_by_itself():
    others = {path.name for path in BENCHMARKS.glob("*.py") if "DictWriter" in path.read_text(encoding="utf-8")}
    assert others == {"table.py"}
    for path in (BENCHMARKS / "results").glob("*.csv"):  # each is written by the benchmark of its name
        assert (BENCHMARKS / f"{path.stem}.py").is_file(), path.name


@pytest.fixture
def timings(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("DRY", raising=False)
    import timings

    return timings


def _took(ours, **conditions):
    return Latencies({"float": (4.0,) * 9, "ours": (ours,) * 9}, **conditions)


def test_a_speed_is_the_median_of_processes_and_its_interval_lies_between_them(timings):
    taken = timings.Taken((_took(2.0), _took(1.6), _took(2.5)))
    found = taken.ratio("float", "ours")
    assert (found.value, found.samples) == (2.0, 3)
    # Student's t on the logarithms of 2.5, 2 and 1.6, by hand: their standard deviation is log 1.25
    half = 4.3027 * math.log(1.25) / math.sqrt(3)
    assert math.log(found.low) == pytest.approx(math.log(2.0) - half, rel=1e-3)
    assert math.log(found.high) == pytest.approx(math.log(2.0) + half, rel=1e-3)
    assert taken.ms("ours") == 2.0
    row = taken.row("faster", "float", "ours")
    assert (row["faster"], row["faster_low"], row["faster_high"]) == (found.value, found.low, found.high)
    assert row["processes"] == 3


def test_one_process_and_disturbed_ones_have_no_interval(timings):
    alone = timings.Taken((_took(2.0),)).row("faster", "float", "ours")
    assert (alone["faster"], alone["faster_low"], alone["faster_high"]) == (2.0, None, None)
    quiet, busy = _took(2.0), _took(2.0, others_cores=1.5, cores=2)
    row = timings.Taken((quiet, busy, quiet)).row("faster", "float", "ours")
    assert (row["faster"], row["faster_low"], row["others_cores"]) == (None, None, 1.5)


def test_files_are_timed_in_fresh_processes(timings, tmp_path):
    torch.manual_seed(0)
    target, example, files = lp.targets.OnnxRuntime(threads=1), torch.randn(1, 256), {}
    for name in ("one", "other"):
        net = torch.nn.Sequential(torch.nn.Linear(256, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
        files[name] = lp.export(tmp_path / f"{name}.onnx", net, example, target=target)
    inputs = Inputs.of(example)
    with torch.no_grad():
        signature = Signature.of(inputs, inputs.call(net))
    quick = {"rounds": 2, "warmup_s": 0.0, "settle_s": 0.0, "round_s": 0.01}
    taken = timings.timed(files, target, signature, inputs, count=2, **quick)
    assert [(one.rounds, set(one.rounds_ms), one.threads) for one in taken.processes] == [(2, {"one", "other"}, 1)] * 2
    assert taken.processes[0].rounds_ms != taken.processes[1].rounds_ms  # each has timed for itself
    with pytest.raises(RuntimeError, match="missing"):
        timings.timed({"gone": tmp_path / "missing.onnx"}, target, signature, inputs, count=1)
