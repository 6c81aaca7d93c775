"""What the comparison of a build sees: how far each file is from its module as it is written, right and with faults.

    make bench NAME=guard     what was done before at this commit is not done again

Each fault is one that an exporter could have, in one layer in the middle of the file. A file is refused from 0.001 of
the answers' length or 0.01 of their spread on, with fewer than seven bits from half of the noise of rounding.
`with_rounding` is how far the right file is where the rounding of values that flow is kept on both sides, which is why
it is not. `guard_share` is what of the processor time of a whole `compress` goes into comparing both files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from networks import OUT, lite0, minilm
from recurrent import classifier
from table import COMMIT, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "targets"))
from mutants import MUTANTS, Mutant, NoPlace, exporting

import lilliput as lp
from lilliput.engine import evidence, fidelity
from lilliput.engine.begin import begin, follow
from lilliput.engine.evidence import build
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import ExportError
from lilliput.progress import silent

THREADS = 2
NETWORKS: dict[str, Callable[[], lp.Task]] = {"lite0": lite0, "minilm": minilm, "lstm, spam": classifier}
RECIPES: dict[str, lp.Recipe | None] = {
    "the default": None,
    "weights of 4 bits, values of 8": lp.Recipe([lp.Quantize(weights=lp.Int(4), activations=lp.Int(8))]),
}


def compressed(task: lp.Task, recipe: lp.Recipe | None) -> Driver:
    target = lp.targets.OnnxRuntime(threads=THREADS)
    task = replace(task, metric=None, evaluate=None, clusters=None)
    driver, _ = begin(task, target, Store(None), silent)
    follow(recipe or target.prefers.recipe(driver.view(), driver.calibrate is not None), driver)
    return driver


def right(driver: Driver) -> dict[str, Any]:
    """The file as it is, without and with the rounding of what flows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        built = build(driver, driver.model, driver.state.digest, path)
        run = driver.target.writes.reference(path, built.signature, rounded=True)
        assert built.written is not None and run is not None
        kept = max(one[0] for one in fidelity._off(driver.model, run, list(fidelity._samples(driver))))
        figures = {key: built.written[key] for key in ("relative", "largest", "samples")}
        return {"refused": False, **figures, "with_rounding": kept}


def faulty(driver: Driver, mutant: Mutant) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with exporting(mutant):
                built = build(driver, driver.model, driver.state.digest, Path(folder) / "net.onnx")
        except ExportError as error:
            return {"refused": True, "where": error.where, "told": error.what}
        assert built.written is not None
        return {"refused": False, **{key: built.written[key] for key in ("relative", "largest", "samples")}}


def cost(task: lp.Task) -> dict[str, float]:
    """Processor seconds of a whole `compress` by the default recipe, and of comparing its two files as written."""
    spent, began = 0.0, process_time()
    known = {name: getattr(evidence, name) for name in ("check_written", "told_of_kernels")}

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal spent
            entered = process_time()
            try:
                return call(*args)
            finally:
                spent += process_time() - entered

        return run

    for name, call in known.items():
        setattr(evidence, name, watched(call))
    try:
        lp.compress(task, target=lp.targets.OnnxRuntime(threads=THREADS))
    finally:
        for name, call in known.items():
            setattr(evidence, name, call)
    whole = process_time() - began
    return {"guard_cpu_s": spent, "compress_cpu_s": whole, "guard_share": spent / whole}


def rows(kept: Path) -> Iterator[dict[str, Any]]:
    """One for each network, recipe and fault; those that a run before has left in `kept` are not made again."""
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    yield from done
    known = {(row["network"], row["recipe"], row["fault"]) for row in done}
    with kept.open("a", encoding="utf-8") as file:
        for network, name in ((n, r) for n in NETWORKS for r in RECIPES if RECIPES[r] is None or n == "lite0"):
            missing = [fault for fault in ("none", *MUTANTS) if (network, name, fault) not in known]
            if not missing:
                continue
            task = NETWORKS[network]()
            driver = compressed(task, RECIPES[name])
            for fault in missing:
                try:
                    found = right(driver) if fault == "none" else faulty(driver, MUTANTS[fault])
                except NoPlace:
                    found = {"refused": "", "told": "the file has no place for it"}
                if fault == "none" and network == "lite0" and RECIPES[name] is None:
                    found |= cost(task)
                row = {"network": network, "recipe": name, "fault": fault, **found}
                print(json.dumps(row), file=file, flush=True)
                print(row, flush=True)
                yield row


def main() -> None:
    torch.set_num_threads(THREADS)
    columns = (
        "network",
        "recipe",
        "fault",
        "refused",
        "where",
        "told",
        "relative",
        "largest",
        "samples",
        "with_rounding",
        "guard_cpu_s",
        "compress_cpu_s",
        "guard_share",
    )
    kept = OUT / "guard" / f"{COMMIT}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    write("guard", ({key: row.get(key, "") for key in columns} for row in rows(kept)), threads=THREADS)


if __name__ == "__main__":
    main()
