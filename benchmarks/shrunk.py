"""What a shrunk network is put through, whichever tool shrank it: the steps, the counting, processes of its own."""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / "topologies"), str(ROOT / "src")]
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # transformers knows another one of that name

import zeroed  # noqa: E402
from zeroed import Kept  # noqa: E402
from zoo import subject  # noqa: E402

from lilliput.measure.cost import macs, parameters  # noqa: E402  # neither needs what only Lilliput's environment has

STEPS = ("build", "shrink", "forward", "backward", "save", "load", "export")
Row = dict[str, Any]
_PATIENCE = 30  # times the seconds that a network may take, for one that waits for ever
SEEDS = (1, 2, 3)  # of inputs that no tool has seen


class Refused(Exception):
    """A tool says itself that it cannot do this."""


def flat(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else [x for part in out for x in flat(part)]


def departure(out: Any, expected: Any) -> float:
    """The largest difference of any output, as a share of the largest value of that output."""
    pairs = zip(flat(out), flat(expected), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)


# one process for each


@dataclass
class Trial:
    """One network on its way through the steps; `row` gets what is found, up to the first step that fails.

    `load` has the function of that name called in another process, one that has never seen the network.
    """

    name: str
    tell: Callable[[Any], None]
    load: Callable[[Path], list[Tensor]]
    row: Row = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.tell(name)
        began = time.process_time()
        try:
            yield
        except Exception as error:  # tools and networks raise many kinds
            self.row |= {"failed": "refused" if isinstance(error, Refused) else name, "error": said(error)}
            raise
        finally:
            self.row[f"{name}_cpu_seconds"] = time.process_time() - began


def said(error: BaseException) -> str:
    """What went wrong at first, in a line, with no colours and no folders of this machine."""
    while error.__cause__ is not None:
        error = error.__cause__
    told = re.sub(r'File "[^"]*/', 'File "', re.sub(r"\x1b[^m]*m", "", str(error)))
    return f"{type(error).__name__}: {' '.join(told.split())[:300]}"


def warm() -> None:
    """Have all that exporting needs imported before processes are forked, which then need not do it again."""
    import onnxruntime  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(nn.Linear(2, 2), (torch.zeros(1, 2),), f"{folder}/net.onnx", dynamo=True, verbose=False)


def alone(one: Callable[[Trial], None], load: Callable[[str, str], Any], name: str, seconds: int) -> Row:
    """The row that `one` makes of a network, in a process of its own; one that dies or takes too long has a row too.

    ``load(name, file)`` gives the outputs of what is in the file. The seconds are the processor's: other work, and a
    low priority, may have it wait.
    """
    context = multiprocessing.get_context("fork")
    asks, answers = context.Pipe()
    loader = context.Process(target=_loader, args=(load, name, answers))
    loader.start()
    here, there = context.Pipe(duplex=False)  # which the loader does not hold open
    process = context.Process(target=_trial, args=(one, name, there, asks, seconds))
    process.start()
    there.close()
    told: Any = "build"
    until = time.monotonic() + _PATIENCE * seconds
    why = f"TimeoutError: took over {seconds} s"
    try:
        while here.poll(max(0.0, until - time.monotonic())):
            told = here.recv()
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            why = f"the process ended with {process.exitcode}"
    for child in (process, loader):
        child.kill()
        child.join()
    return {"network": name, **(told if isinstance(told, dict) else {"failed": told, "error": why})}


def _trial(one: Callable[[Trial], None], name: str, there: Any, asks: Any, seconds: int) -> None:
    _silent()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))

    def load(file: Path) -> list[Tensor]:
        asks.send(str(file))
        answer = asks.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return [torch.from_numpy(x) for x in answer]

    trial = Trial(name, there.send, load)
    with suppress(Exception):  # it is in the row
        one(trial)
    there.send(trial.row)


def _loader(load: Callable[[str, str], Any], name: str, answers: Any) -> None:
    _silent()
    try:
        with torch.no_grad():
            answers.send([x.numpy() for x in flat(load(name, answers.recv()))])
    except Exception as error:  # it is told
        answers.send(said(error))


def _silent() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    torch.set_num_threads(1)


def put_through(
    trial: Trial,
    original: nn.Module,
    small: nn.Module,
    inputs: tuple[Tensor, ...],
    kept: Kept | None,
    save: Callable[[Path], Any],
    export: Callable[[Path], Any],
    unscaled: Collection[str] = (),
) -> None:
    """All steps after shrinking; the row gets figures as they come, and stops growing at the first that fails."""
    with torch.no_grad():
        wanted = original(*inputs)
    with trial.step("forward"):
        out = runs(small, inputs, wanted)
    judged(trial, original, small, kept, unscaled)
    with trial.step("backward"):
        trains(small, inputs)
    with tempfile.TemporaryDirectory(prefix="shrink-") as folder:
        file, onnx = Path(folder, "net"), Path(folder, "net.onnx")
        with trial.step("save"):
            save(file)
        with trial.step("load"):
            agrees("the loaded one", trial.load(file), out, 1e-5)
        with trial.step("export"):
            export(onnx)
            agrees("ONNX Runtime", in_onnxruntime(onnx, inputs), out, 1e-3)


def runs(small: nn.Module, inputs: tuple[Tensor, ...], wanted: Any) -> Any:
    with torch.no_grad():
        out = small(*inputs)
    shapes, expected = ([tuple(x.shape) for x in flat(given)] for given in (out, wanted))
    if shapes != expected:
        raise RuntimeError(f"answers with {shapes} in place of {expected}")
    if not all(bool(torch.isfinite(x).all()) for x in flat(out)):
        raise RuntimeError("answers with numbers that are not finite")
    return out


def trains(small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A backward pass reaches as many parameters as have to do with the outputs, and fits them."""
    small.zero_grad()
    for x in small.parameters():
        x.requires_grad_(True)
    sum(x.square().sum() for x in flat(small(*inputs))).backward()  # type: ignore[union-attr]
    reached = [x for x in small.parameters() if x.grad is not None]
    if not reached or not all(bool(torch.isfinite(x.grad).all()) for x in reached):
        raise RuntimeError("no gradient, or one that is not finite")
    small.zero_grad()


def agrees(who: str, out: Any, expected: Any, tolerance: float) -> None:
    if not (found := departure(out, expected)) <= tolerance:
        raise RuntimeError(f"{who} differs by {found:.2g} of the largest output")


def in_onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    fed = {name: x.numpy() for name, x in zip(names, inputs, strict=False)}
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, fed)]


# what was removed, and whether removing it was all that was done


def figures(model: nn.Module, inputs: tuple[Tensor, ...], when: str) -> Row:
    """Parameters and multiply-accumulates, with Lilliput's own count for whichever tool."""
    counted = copy.deepcopy(model).requires_grad_(False)  # torch's counter stumbles over views of parameters
    return {f"parameters_{when}": parameters(model), f"macs_{when}": macs(counted, inputs).total}


def judged(
    trial: Trial, original: nn.Module, small: nn.Module, kept: Kept | None, unscaled: Collection[str] = ()
) -> None:
    """Tell in the row whether the shrunk network computes what the original does with all that is not `kept` zero."""
    if kept is None:
        trial.row |= {"equals_zeroed": "unknown", "why": "it also changed numbers that it kept"}
        return
    try:
        unseen = [subject(trial.name).build(seed)[1] for seed in SEEDS]
        apart = zeroed.departure(original, small, kept, unseen, unscaled)
    except Exception as error:  # networks raise many kinds
        trial.row |= {"equals_zeroed": "unknown", "why": said(error)}
    else:
        trial.row |= {"equals_zeroed": apart <= zeroed.TOLERANCE, "departure_from_zeroed": apart}


def kept_by_values(original: nn.Module, small: nn.Module) -> Kept | None:
    """What was kept along each axis of each tensor, of a tool that does not tell: from numbers, which are random."""
    held = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    found: dict[str, dict[int, Tensor]] = {}
    for name, x in [*original.named_parameters(), *original.named_buffers()]:
        if name not in held or held[name].dim() != x.dim():
            return None
        if not x.is_floating_point() or x.shape == held[name].shape:
            continue
        there = torch.isin(x, held[name]).float()
        for axis, left in enumerate(held[name].shape):
            share = there.movedim(axis, 0).reshape(x.shape[axis], -1).mean(1)
            places = (share > share.max() / 2 if x.dim() > 1 else in_order(x, held[name])).nonzero().flatten()
            if len(places) != left:
                return None
            found.setdefault(name, {})[axis] = places
    return found


def in_order(x: Tensor, small: Tensor) -> Tensor:
    """Where the numbers of `small` stand in `x`, one behind the other: single numbers may be equal by chance."""
    wanted, there = small.tolist(), torch.zeros(len(x), dtype=torch.bool)
    for i, number in enumerate(x.tolist()):
        if wanted and number == wanted[0]:
            there[i] = True
            wanted.pop(0)
    return there
