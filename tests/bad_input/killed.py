"""Run by test_killed.py: compress, save and pack again and again, each time killed or out of space at another moment.

Prints what was found afterwards, as JSON.

Every run is a process of its own, forked before any work is done, so that the libraries are loaded only once.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from select import select
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  # loaded here, once for all runs
import onnxscript  # noqa: F401
import torch
import torch.onnx
from onnxscript._framework_apis import torch_2_5
from safetensors.numpy import save_file
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import LilliputError
from lilliput.exporters.onnx import export
from lilliput.file.checkpoint import pack
from lilliput.file.container import Reader
from lilliput.model.views.inputs import Inputs
from lilliput.targets import onnx as onnx_files
from lilliput.targets.kernels import exact_here

MOMENTS = [
    ("run.json", "write"),
    (".answer", "write"),
    ("net.onnx", "write"),
    ("net.lil", "write"),
    ("comparing outputs", "stage"),
    ("timing", "stage"),
    ("report.json", "write"),
    ("net.onnx", "deliver"),
]
ALONE = {
    ("net.lil", "write"),
    ("net.onnx", "deliver"),
}  # also from an empty folder
RANDOM = {"compress": 16, "save": 10, "pack": 10}  # moments to be killed at
SIZES = 10  # of files, to run out of space at, for each job
AGAIN = 12  # times that one folder is killed at most
OLDER = b"what was there before"

Told = dict[str, Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


def run(folder: Path, moment: tuple[str, str] | None = None) -> None:
    torch.manual_seed(0)
    task = lp.Task(Net(), calibrate=[torch.randn(4, 128) for _ in range(3)])
    recipe = lp.Recipe([lp.Quantize(weights=exact_here(), activations=lp.Int(8))])

    def progress(stage: str, done: int, total: int) -> None:
        if moment == (stage, "stage"):
            die()

    if moment is not None:
        before(
            os, "fsync", lambda fd: moment[1] == "write" and moment[0] in Path(os.readlink(f"/proc/self/fd/{fd}")).name
        )
        before(os, "link", lambda source, beside: (f".{moment[0]}.link", moment[1]) == (Path(beside).name, "deliver"))
    lp.compress(task, recipe, target=lp.targets.OnnxRuntime(seconds=1.0), folder=folder, progress=progress)


def before(module: Any, name: str, due: Callable[..., bool]) -> None:
    """Die just before `module.name` is called, when that is `due`."""
    real = getattr(module, name)

    def call(*args: Any) -> Any:
        if due(*args):
            die()
        return real(*args)

    setattr(module, name, call)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Job:
    """What writes into a folder, and the files there that must have the same bytes each time."""

    name: str
    run: Callable[[Path], Any]
    results: tuple[str, ...] = ("net.lil",)

    @property
    def replaces(self) -> bool:
        """Whether its one file may replace another of that name."""
        return len(self.results) == 1


def jobs(place: Path) -> list[Job]:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(4)))  # 16 MB, which no coder makes much smaller
    checkpoint = place / "checkpoint"
    checkpoint.mkdir()
    save_file({name: x.numpy() for name, x in net.state_dict().items()}, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "words.bpe").write_bytes(np.random.default_rng(0).bytes(100_000))
    return [
        Job("compress", run, ("net.lil", "net.onnx")),
        Job("save", lambda folder: lp.save(folder / "net.lil", net)),
        Job("pack", lambda folder: pack(checkpoint, folder / "net.lil")),
    ]


def forked(work: Callable[[], Any]) -> int:
    """A process that does `work` and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def apart(work: Callable[[], Any], kill_after_s: float | None = None, largest: int | None = None) -> Told:
    """`work` in a process of its own: the signal that ended it, 0 for none, and the error, if it raised one of ours.

    `largest`: bytes of a file, of which more fail as on a full disk.
    """
    reads, writes = os.pipe()
    child = forked(lambda: os.write(writes, json.dumps(_tried(work, largest)).encode()))
    os.close(writes)
    if kill_after_s is not None:
        select([reads], [], [], kill_after_s)  # it tells when it is done, if that comes first
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with open(reads, "rb") as pipe:
        told = pipe.read()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return {"signal": os.WTERMSIG(status), "error": json.loads(told or "null")}


def _tried(work: Callable[[], Any], largest: int | None) -> dict[str, str] | None:
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails with an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        work()
    except LilliputError as error:
        return {"kind": type(error).__name__, "where": error.where, "why": error.why, "next": error.next}
    return None


def found(folder: Path) -> Told:
    return {
        "results": sorted(path.name for path in folder.glob("*") if path.is_file()),
        "unfinished": sorted(path.name for path in folder.rglob(".*.part")),
    }


def named_moments(place: Path) -> Told:
    """One folder killed at every moment in turn, and some killed once."""
    told: Told = {"killed": {}, "folders": {}}
    apart(partial(run, place / "undisturbed"))
    for moment in MOMENTS:
        name = " ".join(moment)
        ended = apart(partial(run, place / "chain", moment))
        told["killed"][name] = {**ended, **found(place / "chain")}
        if moment in ALONE:
            ended = apart(partial(run, place / name, moment))
            told["killed"][f"{name}, alone"] = {**ended, **found(place / name)}
    for name in ["chain", *(" ".join(moment) for moment in MOMENTS if moment in ALONE)]:
        apart(partial(run, place / name))
        told["folders"][name] = found(place / name)
    return told


class Trial:
    """One job in one folder after another, each compared with an undisturbed run."""

    def __init__(self, job: Job, place: Path) -> None:
        self.job, self.place = job, place / job.name
        self.random = Random(job.name)
        self.undisturbed = self.place / "undisturbed"
        self.durations_s: list[float] = []
        self._undisturbed(self.undisturbed)

    def killed(self, i: int) -> Told:
        """A run killed at a random moment, and run again."""
        folder, began = self._folder(f"killed {i}", older=i % 2 == 1), perf_counter()
        ended = apart(partial(self.job.run, folder), kill_after_s=self.random.random() * self.duration_s)
        taken_s = perf_counter() - began
        told = {**ended, "phase": self._phase(folder), "damaged": self._damaged(folder)}
        if told["phase"] == "after":
            self.durations_s.append(taken_s)
        return {**told, **self._again(folder)}

    def killed_again_and_again(self) -> Told:
        """One folder killed at random moments, earlier ones first, until the run gets through."""
        folder, signals, damaged = self._folder("chain"), [], []
        while (not signals or signals[-1]) and len(signals) < AGAIN:
            latest_s = (0.4 + 0.2 * len(signals)) * self.duration_s
            ended = apart(partial(self.job.run, folder), kill_after_s=self.random.uniform(0.05, latest_s))
            signals.append(ended["signal"])
            damaged += self._damaged(folder)
        return {"kills": sum(map(bool, signals)), "damaged": damaged, **self._again(folder)}

    def out_of_space(self, i: int) -> Told:
        """A run that may write no file of over a random size, and run again without that limit."""
        folder = self._folder(f"full {i}", older=i % 2 == 1)
        largest = max(path.stat().st_size for path in self.undisturbed.rglob("*"))
        ended = apart(partial(self.job.run, folder), largest=int(self.random.random() ** 3 * largest))
        kept = not self.job.replaces or [path.read_bytes() for path in folder.glob("*")] == [OLDER] * (i % 2)
        left = found(folder)["unfinished"]
        told = {**ended, "folder": str(folder), "kept": kept, "left": left, "damaged": self._damaged(folder)}
        return {**told, **self._again(folder)}

    @property
    def duration_s(self) -> float:
        """Of an undisturbed run; it changes with all that the machine does."""
        return min(self.durations_s[-3:])

    def _undisturbed(self, folder: Path) -> None:
        fresh, began = not (folder / "work").exists(), perf_counter()
        if error := apart(partial(self.job.run, folder))["error"]:
            raise SystemExit(f"failed undisturbed: {error}")
        if fresh:
            self.durations_s.append(perf_counter() - began)

    def _folder(self, name: str, older: bool = False) -> Path:
        folder = self.place / name
        folder.mkdir()
        if older and self.job.replaces:
            (folder / self.job.results[0]).write_bytes(OLDER)
        return folder

    def _phase(self, folder: Path) -> str:
        if all(self._is_same(folder, name) for name in self.job.results):
            return "after"
        begun = any(path.is_file() and path.read_bytes() != OLDER for path in folder.rglob("*"))
        return "during" if begun else "before"

    def _is_same(self, folder: Path, name: str) -> bool:
        path = folder / name
        return path.exists() and path.read_bytes() == (self.undisturbed / name).read_bytes()

    def _damaged(self, folder: Path) -> list[str]:
        """Files that are not whole under a name of their own."""
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".part"]
        return [str(file) for file in files if not self._is_whole(folder, file)]

    def _is_whole(self, folder: Path, file: Path) -> bool:
        path = folder / file
        if file.suffix in (".lil", ".answer"):
            return path.read_bytes() == OLDER or _holds(path)
        if file.suffix == ".onnx":
            return self._is_same(folder, str(file))
        if file.suffix in (".json", ".origins"):
            return _is_json(path.read_text())
        return path.read_text().endswith("</html>\n")

    def _again(self, folder: Path) -> Told:
        """What an undisturbed run makes of the folder, which is then removed."""
        self._undisturbed(folder)
        same = all(self._is_same(folder, name) for name in self.job.results)
        told = {"same": same, "unfinished": found(folder)["unfinished"]}
        shutil.rmtree(folder)
        return told


def _holds(path: Path) -> bool:
    try:
        Reader(path).check_digest()
    except LilliputError:
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def at_random(job: Job, place: Path) -> Told:
    trial = Trial(job, place)
    return {
        "killed": [trial.killed(i) for i in range(RANDOM[job.name])],
        "chain": trial.killed_again_and_again(),
    }


def full(job: Job, place: Path) -> list[Told]:
    trial = Trial(job, place)
    return [trial.out_of_space(i) for i in range(SIZES)]


def side_by_side(works: Mapping[str, Callable[[], Any]], place: Path) -> Told:
    """What each tells, in processes of their own, as many at a time as there are cores, forked before any work."""
    waiting, children = list(works), set()
    while waiting or children:
        while waiting and len(children) < (os.cpu_count() or 1):
            name = waiting.pop(0)
            children.add(forked(partial(_tell, works[name], place / f"{name}.json")))
        child, status = os.wait()
        children.remove(child)
        if status:
            raise SystemExit("a part failed")
    return {name: json.loads((place / f"{name}.json").read_text()) for name in works}


def _tell(work: Callable[[], Any], path: Path) -> None:
    path.write_text(json.dumps(work()))


def main(place: Path) -> None:
    torch.set_num_threads(1)
    short = partial(onnx_files.interleaved, rounds=1, warmup_s=0.0, settle_s=0.0, round_s=0.01)
    onnx_files.interleaved = short  # type: ignore[assignment]  # timings are not looked at here
    torch_2_5.get_torchlib_ops = cache(torch_2_5.get_torchlib_ops)  # a third of an export reads what stays the same
    inspect.getsource = cache(inspect.getsource)  # … and so is most of the rest
    export(place / "first.onnx", Net().eval(), Inputs((torch.zeros(1, 128),), {}), {})  # much is set up only once
    gc.freeze()  # collections leave alone what the processes share
    works: dict[str, Callable[[], Any]] = {}
    for job in jobs(place):
        works[f"killed {job.name}"] = partial(at_random, job, place / "random")
        works[f"full {job.name}"] = partial(full, job, place / "full")
    print(json.dumps(side_by_side({**works, "named": partial(named_moments, place)}, place)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
