"""Int8 by us beside each runtime's own int8 tool, in that runtime: ExecuTorch (XNNPACK) and LiteRT on one thread.

Three networks: EfficientNet-Lite0 on crops of photographs, MiniLM on text messages of 64 tokens, and an LSTM of 128 to
256 on 16 random steps, which both runtimes write out one by one. Theirs: for ExecuTorch PT2E with its XNNPACKQuantizer
(static for Lite0, dynamic for the others); for LiteRT its converter with PT2EQuantizer, the same. Both are calibrated
with what ours is. All files of a runtime are timed in turns in one process there, beside float, and answers are
compared with those of the float module. The last rows are ONNX Runtime with our default recipe. Each runtime lives in
an environment of its own:

    python3 -m venv et && et/bin/pip install executorch==1.5.1 torch==2.13.0 -c constraints.txt
    python3 -m venv lite && lite/bin/pip install litert-torch==0.10.0 torch==2.13.0 -c constraints.txt
    EXECUTORCH_PYTHON=et/bin/python LITERT_PYTHON=lite/bin/python make bench NAME=edge
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import torch
from table import write
from torch import Tensor, nn

import lilliput as lp
from lilliput.exporters.quantized import quantized
from lilliput.exporters.written import keep, program_of
from lilliput.measure import Noise
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.targets import ExecuTorch, LiteRt, OnnxRuntime, Target

OUT = networks.OUT / "edge"
THEIRS = Path(__file__).parent / "edge_theirs.py"
SECONDS = 30.0


class Steps(nn.Module):
    """An LSTM and a head, answering for the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(128, 256, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.lstm(x)[0][:, -1])
        return answer


def lstm() -> lp.Task:
    torch.manual_seed(0)
    batches = [torch.randn(8, 16, 128) for _ in range(6)]
    return lp.Task(
        Steps().eval(), example=batches[0][:1], calibrate=batches[1:3], evaluate=batches[3:], name="lstm 128-256"
    )


def minilm() -> lp.Task:
    """On messages padded to 64 tokens, which the files then have."""
    task = networks.minilm()
    test = list(task.evaluate)[:4]  # type: ignore[arg-type]
    example = {name: x[:1] for name, x in test[0].items()}
    return replace(task, example=example, evaluate=test, dynamic={name: {0: "batch"} for name in example})


NETWORKS: dict[str, Callable[[], lp.Task]] = {"lite0": networks.lite0, "minilm": minilm, "lstm": lstm}
TARGETS: tuple[Target, ...] = (ExecuTorch(threads=1), LiteRt(threads=1), OnnxRuntime(threads=1))


def files(task: lp.Task, target: Target, convolutional: bool) -> dict[str, Path]:
    """Float, ours and, where there is one, theirs."""
    folder = OUT / target.name / str(task.name)
    folder.mkdir(parents=True, exist_ok=True)
    ending, example = target.writes.format, Inputs.of(task.example)
    batch = {key: {0: "batch"} for key in example.tensors()}
    found = {name: folder / f"{name}.{ending}" for name in ("float", "ours")}
    ours: Any = None
    for name, path in found.items():
        if path.exists():
            continue
        if name == "ours":
            ours = lp.compress(replace(task, evaluate=None), target=replace(target, seconds=0)).model
        target.writes.build(path, ours if name == "ours" else task.model, example, batch)
    if isinstance(target, ExecuTorch | LiteRt):
        found["theirs"] = theirs = folder / f"theirs.{ending}"
        if not theirs.exists():
            _write_theirs(task, target, theirs, convolutional)
    return found


def _write_theirs(task: lp.Task, target: ExecuTorch | LiteRt, path: Path, static: bool) -> None:
    """Their tool, there, on the float program and the batches that ours was calibrated with, one sample at a time."""
    program = keep(quantized(task.model, Inputs.of(task.example)), path)
    samples = []
    for batch in task.calibrate:  # type: ignore[union-attr]
        given = Inputs.of(batch)
        count = len(next(iter(given.tensors().values())))
        samples += [given.map(lambda _, x, i=i: x[i : i + 1]) for i in range(min(count, 16))]
    calibrated = path.with_suffix(".calibrate")
    torch.save([(one.args, dict(one.kwargs)) for one in samples[:64]], calibrated)
    python = target.runs.elsewhere.interpreter
    mode = "static" if static else "dynamic"
    subprocess.run([python, THEIRS, target.name, program, calibrated, path, mode], check=True)
    program_of(path).unlink()


def measured(task: lp.Task, target: Target) -> Iterator[dict[str, Any]]:
    """A row for each file: bytes, latency beside float and theirs, distance from the float module."""
    found = files(task, target, task.name == "lite0")
    example = Inputs.of(task.example)
    with torch.no_grad():
        signature = Signature.of(example, example.call(task.model), task.model.forward)
        assert target.runs is not None
        runs = {name: target.runs.open(path, signature) for name, path in found.items()}
        times = target.runs.latencies(runs, example, SECONDS)
        for name, run in runs.items():
            noise, alike, count = Noise(), 0, 0
            for batch in task.evaluate:  # type: ignore[union-attr]
                given = Inputs.of(batch)
                right, answer = given.call(task.model), given.call(run)
                noise.add(right, answer)
                a, b = (_first(x).flatten(1) for x in (right, answer))
                alike += int((a.argmax(1) == b.argmax(1)).sum())
                count += len(a)
            ratio = times.ratio("float", name).to_json() if times.known else {}
            yield {
                "network": task.name,
                "runtime": target.name,
                "file": name,
                "bytes": found[name].stat().st_size,
                "ms": times.ms(name).value if times.known else None,
                **{f"faster_than_float{end}": ratio.get(key) for end, key in _ENDS.items()},
                "sqnr_db": noise.db,
                "same_largest": alike / count,
                "samples": count,
                "others_cores": times.others_cores,
                "run_threads": 1,
            }


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def _first(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else next(iter(dict(answer).values()))


def main() -> None:
    wanted = sys.argv[1:] or list(NETWORKS)
    rows = []
    for name in wanted:
        task = NETWORKS[name]()
        for target in TARGETS:
            for row in measured(task, target):
                print(row, flush=True)
                rows.append(row)
    write("edge", rows, 1)


if __name__ == "__main__":
    main()
