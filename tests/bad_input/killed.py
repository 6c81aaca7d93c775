"""Run by test_killed.py: compress a net again and again, each time killed at another moment.

Prints what was found afterwards, as JSON.

Every run is a process of its own, forked before any work is done, so that the libraries are loaded only once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  # loaded here, once for all runs
import onnxscript  # noqa: F401
import torch
import torch.onnx
from torch import Tensor, nn

import lilliput as lp
import lilliput.engine.begin

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


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


def run(folder: Path, moment: tuple[str, str] | None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = lp.Task(Net(), calibrate=[torch.randn(4, 8, 4, 4) for _ in range(3)])
    recipe = lp.Recipe([lp.Quantize(activations=lp.Int(8))])

    def progress(stage: str, done: int, total: int) -> None:
        if moment == (stage, "stage"):
            die()

    if moment is not None:
        before(os, "fsync", lambda fd: moment[1] == "write" and moment[0] in os.readlink(f"/proc/self/fd/{fd}"))
        before(os, "link", lambda source, path: moment == (Path(path).name, "deliver"))
    lp.compress(task, recipe, target=lp.OnnxRuntime(seconds=1.0), folder=folder, progress=progress)


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


def apart(folder: Path, moment: tuple[str, str] | None) -> int:
    """`run` in a process of its own; the signal that ended it, 0 for none."""
    child = os.fork()
    if not child:
        code = 1
        try:
            run(folder, moment)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the run in {folder} failed")
    return os.WTERMSIG(status)


def found(folder: Path) -> dict[str, Any]:
    return {
        "results": sorted(path.name for path in folder.glob("*") if path.is_file()),
        "unfinished": sorted(path.name for path in folder.rglob(".*.part")),
    }


def main(place: Path) -> None:
    told: dict[str, Any] = {"killed": {}, "folders": {}}
    apart(place / "undisturbed", None)
    for moment in MOMENTS:
        name = " ".join(moment)
        told["killed"][name] = {"signal": apart(place / "chain", moment), **found(place / "chain")}
        if moment in ALONE:
            told["killed"][f"{name}, alone"] = {"signal": apart(place / name, moment), **found(place / name)}
    for name in ["chain", *(" ".join(moment) for moment in MOMENTS if moment in ALONE)]:
        apart(place / name, None)
        told["folders"][name] = found(place / name)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
