"""What a run ends with: both sides built and measured, the report written, and everything delivered as one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput import external
from lilliput.blame.blame import brief
from lilliput.disk import whole_file
from lilliput.engine.answers import closeness
from lilliput.engine.costs import costs, operators
from lilliput.engine.estimate import tensor_bytes
from lilliput.engine.evidence import Built, build, judge
from lilliput.engine.halves import came_in, copy_given_back
from lilliput.engine.run import Driver
from lilliput.entropy import Coder
from lilliput.errors import ExportError, InputError
from lilliput.exporters import compressed_tensors
from lilliput.feeding import Batches
from lilliput.file.container import recoded
from lilliput.file.graph import Graph
from lilliput.file.lil import lossless_bytes
from lilliput.file.lil import save as write_module
from lilliput.measure import Latencies, artifact, cpu, environment
from lilliput.model.carrier.carrier import tensors, to_dense
from lilliput.model.carrier.identity import model_digest
from lilliput.model.carrier.parameters import read, rescaled, shapes
from lilliput.model.edits.edit import structure
from lilliput.model.edits.edits import State, edits_of
from lilliput.model.edits.origins import of_tensor, origins
from lilliput.model.edits.structure import Replace
from lilliput.plain import to_plain
from lilliput.recipe import Recipe
from lilliput.report import data as report_data
from lilliput.report.card import card
from lilliput.report.costs import cost_figures
from lilliput.report.layers import layers
from lilliput.report.page import page
from lilliput.report.speed import NO_SPEED_UP
from lilliput.targets.operators import LayerTimes, slower_layers
from lilliput.task import Task
from lilliput.techniques.encode import prepare


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model with the evidence for it."""

    model: nn.Module  # of the user's own class; train it on, compress it again
    state: State
    data: dict[str, Any]  # the report
    folder: Path  # holds net.lil, net.<target's format>, report.json and report.html
    digest: str  # of the model as it was delivered
    built: Path  # what the target runs

    def save(self, path: str | Path, coder: Coder = "dense") -> Path:
        """Write the `.lil` file, to store and send: *dense* is smaller, *fast* is read some ten times faster."""
        self._check_unchanged("save")
        if coder == "dense":
            return copied(self.folder / "net.lil", Path(path))
        recoded(self.folder / "net.lil", path, coder)
        return Path(path)

    def export(self, path: str | Path) -> Path:
        """Write the file that the target runs; what lies beside it (`net.onnx.data`) comes along."""
        self._check_unchanged("export")
        return external.copied(self.built, Path(path))

    def report(self, path: str | Path) -> Path:
        """Write the report: a page (`.html`) or its data (`.json`)."""
        return copied(self.folder / f"report{_report_ending(Path(path))}", Path(path))

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> Path:
        """Write a network of transformers as a folder that `from_pretrained` loads, with a model card of this result.

        Weights are codes where compressed-tensors has words for all of them (see `lilliput.formats.save_pretrained`),
        or else the floats that they decode to: then values that flow are not rounded there, and `net.lil`, which holds
        all of it, lies beside. `tokenizer` is whatever makes the inputs, and goes with it.

        Raises InputError for a folder that is there, and for what is no network of transformers.
        """
        self._check_unchanged("formats.save_pretrained")
        place = Path(folder)
        try:
            compressed_tensors.write(place, self.model, tokenizer)
            held = "The weights are codes, held as compressed-tensors."
        except ExportError as error:
            compressed_tensors.write(place, to_dense(self.model), tokenizer)
            copied(self.folder / "net.lil", place / "net.lil")
            held = f"The weights are the floats that their codes decode to ({error}); `net.lil` holds the codes."
        base = str(getattr(getattr(self.model, "config", None), "_name_or_path", "") or "")
        text = card(self.data, held, base if base.count("/") == 1 and not base.startswith((".", "/")) else "")
        (place / "README.md").write_text(text, encoding="utf-8")
        return place

    def _check_unchanged(self, verb: str) -> None:
        if model_digest(self.model) != self.digest:
            raise InputError(
                "the model was changed since it was compressed, and the result holds it as it was then",
                where="result.model",
                next=f"lilliput.{verb}(path, result.model, example=…) writes it as it is",
            )

    def __str__(self) -> str:
        return str(self.data["sentence"])


def finished(
    task: Task,
    came: Task,
    driver: Driver,
    evaluate: Batches | None,
    recipe: Recipe,
    place: Path,
    assets: Mapping[str, bytes],
) -> Result:
    """Build before and after for the target, measure both, and only when all is well deliver it into `place`.

    `task` is the one that is computed; what is stored and delivered has the types of its model as it `came`.
    """
    work, ending = place / "work", driver.target.writes.format
    original = driver.afresh(task.model if task.baseline is None else task.baseline, reads=True)
    loses = brief(driver, task.model, evaluate or driver.calibrate, task.name or type(task.model).__name__)
    first = build(original, original.model, original.state.digest, work / f"original.{ending}")
    last = build(driver, driver.model, driver.state.digest, work / f"net.{ending}")
    original.settle()
    driver.settle()
    provenance = {"recipe": to_plain(list(recipe.steps)), "base": driver.state.base, "state": driver.state.digest}
    delivered = copy_given_back(driver.model, came.model)
    stored = write_module(
        work / "net.lil", delivered, graph=graph_of(driver, last), assets=assets, provenance=provenance
    )
    data = _reported(task, came, original, driver, evaluate, recipe, (first, last), stored, loses)
    for name, text in (("report.json", json.dumps(data, indent=1, allow_nan=False)), ("report.html", page(data))):
        with whole_file(work / name) as file:
            file.write(text.encode())
    for name in dict.fromkeys(("report.json", "report.html", "net.lil", f"net.{ending}")):
        _deliver(work / name, place / name)
    driver.settle()
    delivered = copy_given_back(driver.model, came.model)
    return Result(delivered, driver.state, data, place, model_digest(delivered), place / f"net.{ending}")


def _reported(
    task: Task,
    came: Task,
    original: Driver,
    driver: Driver,
    evaluate: Batches | None,
    recipe: Recipe,
    builds: tuple[Built, Built],
    stored: Mapping[str, int],
    loses: Mapping[str, Any],
) -> dict[str, Any]:
    """The report on both builds, measured; `stored` are the bytes of each tensor in the `.lil` file.

    `loses` is where it does, found before anything was built: both hold copies of the network.
    """
    name = task.name or type(task.model).__name__
    near = closeness(driver, task, *builds, evaluate)
    judged = judge(driver, task.metric, *builds) if task.metric else None
    spent = costs(driver, *builds)
    as_delivered = replace(driver, model=copy_given_back(driver.model, came.model))
    weighed_before, weighed = _weighed(original, came, driver, builds)
    return report_data.assemble(
        name=name,
        driver=driver,
        recipe=recipe,
        before=report_data.side(
            original.model, driver, weighed_before, judged.before if judged else None, cost_figures(spent, "before")
        ),
        after=report_data.side(
            driver.model, driver, weighed, judged.after if judged else None, cost_figures(spent, "after")
        ),
        builds=builds,
        near=near,
        judged=judged,
        spent=spent,
        losing=_losing(driver, spent.taken, *builds),
        rows=layers(as_delivered, exact_tensors(original, driver), stored),
        conditions={
            "timed_on": {str(key): list(x.shape) for key, x in driver.example.tensors().items()},
            "calibration_samples": driver.calibrate.samples if driver.calibrate else 0,
            "clusters": len(set(task.clusters)) if task.clusters and evaluate else None,
            "confidence": 0.95,
            "may_saturate": cpu().may_saturate,
            "multiples": next(iter(driver.told.facts["multiples"]), None),
        },
        environment=environment(driver.target.threads_used),
        loses=loses,
        halves=came_in(came.model) or came_in(came.baseline),
        compressed=task.baseline is None and bool(edits_of(task.model)),
    )


def _weighed(original: Driver, came: Task, driver: Driver, builds: tuple[Built, Built]) -> tuple[list[Any], list[Any]]:
    """What there is to deliver on both sides, with its bytes: what the target runs, and what is stored and sent.

    Where that is one file, it is there once.
    """
    opener = report_data.opener_of_stored(driver.target)
    held = copy_given_back(original.model, came.model if came.baseline is None else came.baseline)
    plain = {
        "format": "tensors",
        "bytes": tensor_bytes(held),
        "coded_bytes": lossless_bytes(held),
        "runs_on": opener,
    }
    stored = artifact(builds[1].path.with_name("net.lil"), "lil", opener)
    if opener == driver.target.name:
        return [plain], [stored]
    before, after = (artifact(built.path, driver.target.writes.format, driver.target.name) for built in builds)
    return [before, plain], [after, stored]


def _losing(driver: Driver, taken: Latencies, before: Built, after: Built) -> list[LayerTimes]:
    """The layers that take longer than before, where the whole is no faster."""
    if not taken.known or taken.ratio("before", "after").value >= NO_SPEED_UP:
        return []
    driver.progress("looking for what takes longer", 0, 1)
    found = slower_layers(operators(driver, before), operators(driver, after))
    driver.progress("looking for what takes longer", 1, 1)
    return found


def graph_of(driver: Driver, built: Built) -> Graph | str:
    """What was built, to travel inside the file, or why nothing does."""
    if not driver.target.writes.opened_by:
        how = "which runs the module itself" if driver.target.runs is not None else "which is not run here"
        return f"it was made for {driver.target.name}, {how}"
    return Graph(built.path, driver.target.writes.opened_by, built.signature.to_plain(), built.departure)


def _deliver(source: Path, path: Path) -> None:
    """Give `source` the name `path` as well, without a second copy where the disk can do that.

    Tensors beside an ONNX file are copied: readers refuse data that has two names.
    """
    if external.keeps_beside(source):
        external.copied(source, path)
        return
    if external.keeps_beside(path):  # of an earlier result
        external.data_of(path).unlink()
    beside = path.with_name(f".{path.name}.link")
    try:
        beside.unlink(missing_ok=True)
        os.link(source, beside)
        os.replace(beside, path)
    except OSError:
        copied(source, path)
    beside.unlink(missing_ok=True)  # a rename between two names of one file leaves both


def exact_tensors(original: Driver, driver: Driver) -> dict[str, tuple[str, Tensor]]:
    """What the parameters of the compressed model were in the original, and called there, by their paths now.

    They are prepared and rescaled as those of the compressed model were; what the original has not is left out.
    """
    made = [edit for edit in structure(driver.model) if edit not in structure(original.model)]
    modules = origins(original.model, made)
    if any(isinstance(edit, Replace) for edit in made):
        prepare(original)
    factors = dict[str, Tensor]()
    for fact in driver.told.facts["rescaled"]:
        factors[fact["path"]] = factors.get(fact["path"], torch.ones(())) * fact["factor"]
    found, known = dict[str, tuple[str, Tensor]](), {path for paths in tensors(original.model) for path in paths}
    for path, shape in shapes(driver.model).items():
        was = of_tensor(path, modules)
        if was is not None and was in known:
            x, factor = read(original.model, was), factors.get(was)
            found[path] = (was, x if factor is None or tuple(x.shape) != shape else rescaled(x, factor))
    return found


def copied(source: Path, path: Path) -> Path:
    """`source` written to `path`, whole or not at all."""
    with whole_file(path) as file, source.open("rb") as read:
        shutil.copyfileobj(read, file)
    return path


def _report_ending(path: Path) -> str:
    if path.suffix not in (".html", ".json"):
        raise InputError(
            f"a report as {path.suffix or 'a file without an ending'}", where=str(path), next="write .html or .json"
        )
    return path.suffix
