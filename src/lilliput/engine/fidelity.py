"""Whether what was built computes what the module computes: as it is written, and as the target runs it.

As it is written a file is computed node by node in float, and without the rounding of values that flow on either side
(`lilliput.exporters.unrounded` tells why): there both agree to the order of sums, whatever was encoded.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings.integer import Uniform
from lilliput.engine.run import Driver
from lilliput.errors import ExportError, InputError, LilliputError, raise_own
from lilliput.feeding import ask, batch_size, check_like
from lilliput.measure import Noise
from lilliput.model.carrier.carrier import encoded_tensors
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import tapped, unrounded, value_encodings, without_values
from lilliput.outputs import difference, finite, flatten_outputs, paired

RELATIVE = 1e-3  # length of the error, of the length of an output
LARGEST = 1e-2  # largest error, of the spread of an output
SAMPLES = 8  # besides the example, where there are as many
_BIASES = 0.5  # of the noise of rounding what flows, that steps of biases may add where bits are few
_FINE_BITS = 7
_SUMS = 10.0  # times what single precision does to answers: sums in another order
_FAR = 4.0  # times the noise that the file as written has: more is told
_LEAST = 1e-6  # noise over signal (60 dB) that is never told
_TAPS = 16  # values that are given out by one build

Runner = Callable[..., Any]


@dataclass(frozen=True)
class AsWritten:
    """How far a file, as it is written, is from the module; of its outputs that which is furthest."""

    relative: float  # length of the error over that of the output
    largest: float  # error over the spread of the output
    samples: int
    rounded: bool  # whether the rounding of what flows had to be kept, which blurs the comparison


def check_written(driver: Driver, model: nn.Module, path: Path, signature: Signature) -> dict[str, Any] | None:
    """Compare the file at `path` as it is written with `model`; None where no target here computes so.

    Raises ExportError where they are apart, with the first value that is.
    """
    samples = list(_samples(driver))
    off = _off_as_written(driver, model, path, signature, samples, rounded=False)
    if rounded := off is None:
        off = _off_as_written(driver, model, path, signature, samples, rounded=True)
    if off is None:
        return None
    relative, largest = max(one[0] for one in off), max(one[1] for one in off)
    if relative > RELATIVE:
        check_precise(_answer(driver, model))
    if relative > RELATIVE or largest > LARGEST:
        share = 1.0 if rounded else _BIASES if _coarse(model) else 0.0
        blur = share * _noise(model, samples) if share and value_encodings(model) else 0.0
        steps = [torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0 for x in _answer(driver, model)]
        for i, (one, two) in enumerate(_inherent(model, samples, off)):
            far = off[i][0] > max(RELATIVE, steps[i], blur, _SUMS * one)
            if far or (off[i][1] > max(LARGEST, _SUMS * two) and not (rounded and blur)):
                _refuse(driver, model, off, i, rounded)
    return asdict(AsWritten(relative, largest, sum(map(batch_size, samples)), rounded))


def _off_as_written(
    driver: Driver, model: nn.Module, path: Path, signature: Signature, samples: Sequence[Inputs], *, rounded: bool
) -> list[tuple[float, float]] | None:
    """How far the file is from the module, for each output; None where nothing here computes it so.

    The session lives no longer than this: what follows makes copies of the network.
    """
    with nullcontext(True) if rounded else unrounded(model) as able:
        run = driver.target.writes.reference(path, signature, rounded=rounded) if able else None
        return None if run is None else _off(model, run, samples)


def _answer(driver: Driver, model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return flatten_outputs(driver.example.call(model))


def _coarse(model: nn.Module) -> bool:
    """Whether weights or values have so few bits that the steps of biases in integers, their product, are felt."""
    held = (encoded.encoding for _, encoded in encoded_tensors(model))
    flowing = (encoder.encoding for encoder in value_encodings(model).values())
    return any(isinstance(one, Uniform) and one.bits < _FINE_BITS for one in (*held, *flowing))


def told_of_kernels(driver: Driver, model: nn.Module, path: Path, signature: Signature, run: Runner) -> str:
    """A sentence where the target's kernels are far less exact than the file as it is written; else empty."""
    with torch.no_grad():
        right = [(inputs, ask(model, inputs, "a sample")) for inputs in _samples(driver)]
    as_run = _noise_of(run, right)
    if as_run.ratio <= _LEAST:
        return ""
    written = driver.target.writes.reference(path, signature, rounded=True)
    if written is None:
        return ""
    as_written = _noise_of(written, right)
    if as_run.ratio <= _FAR * as_written.ratio:
        return ""
    run_db, written_db = ("exact" if one.db is None else f"{one.db:.1f} dB" for one in (as_run, as_written))
    return (
        f"{driver.target.name} is at {run_db} of the module where the file as written is at {written_db}:"
        " its kernels saturate, or round more than the file says"
    )


def _noise_of(run: Runner, right: Sequence[tuple[Inputs, Any]]) -> Noise:
    """What its answers differ by from those that are right."""
    noise = Noise()
    for inputs, expected in right:
        noise.add(expected, ask(run, inputs, "a sample"))
    return noise


def check_precise(expected: Any) -> None:
    """Refuse answers that lie below what their type holds to its full precision: any order of sums gives others."""
    found = [x for x in flatten_outputs(expected) if x.is_floating_point() and x.numel()]
    largest = max((float(x.abs().max()) for x in found), default=0.0)
    least = max((torch.finfo(x.dtype).tiny for x in found), default=0.0)
    if 0 < largest < least:
        raise InputError(
            f"the model answers with numbers of {largest:.1g} at most",
            why=f"under {least:.1g} a float has only some bits left, so that no runtime gives the same",
            next="give it its trained weights: fresh ones, and norms that saw no data, shrink what flows",
        )


def _samples(driver: Driver) -> Iterator[Inputs]:
    """The example, and batches to calibrate or evaluate with that the graph takes, until there are enough samples."""
    yield driver.example
    count = 0
    for inputs in itertools.chain(driver.calibrate or (), driver.evaluate or ()):
        given = _shortened(driver, Inputs.of(inputs), SAMPLES - count)
        try:
            check_like(given, driver.example, driver.dynamic, "a sample", first=False)
        except InputError:  # other lengths, along axes that are not open
            continue
        yield given
        count += batch_size(given)
        if count >= SAMPLES:
            return


def _shortened(driver: Driver, inputs: Inputs, most: int) -> Inputs:
    """The first samples of a batch, where each input has an open axis of them."""
    open_axes = [driver.dynamic.get(key, {}).get(0) for key, x in inputs.tensors().items()]
    if None in open_axes or len(set(open_axes)) != 1 or len({len(x) for x in inputs.tensors().values()}) != 1:
        return inputs
    return inputs.map(lambda _, x: x[:most])


def _off(model: nn.Module, run: Runner, samples: Sequence[Inputs]) -> list[tuple[float, float]]:
    """For each output, the length of the error over its own, and the largest error over its spread."""
    answers: list[list[tuple[Tensor, Tensor]]] = []
    with torch.no_grad():
        for inputs in samples:
            expected, found = (flatten_outputs(ask(one, inputs, "a sample")) for one in (model, run))
            whole = [not x.is_floating_point() for x in expected]
            answers.append(paired(expected, found))
    return [(_places if are else _apart)(pairs) for are, pairs in zip(whole, zip(*answers, strict=True), strict=True)]


def _places(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Of an output of whole numbers, where lengths mean nothing: the share of places that differ."""
    unlike = torch.cat([(a != b).flatten() for a, b in pairs])
    return 0.0, float(unlike.double().mean()) if unlike.numel() else 0.0


def _apart(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Of one output over all samples."""
    ours = torch.cat([finite(a).flatten() for a, _ in pairs])
    error = torch.cat([difference(a, b).flatten() for a, b in pairs])
    if not ours.numel() or not bool(error.any()):
        return 0.0, 0.0
    length, largest = float(ours.norm()), float(error.max())
    spread = float(ours.max() - ours.min())
    spread = spread if spread > 1e-3 * float(ours.abs().max()) else float(ours.abs().max())  # nearly a constant
    tiny = torch.finfo(torch.float32).tiny
    return float(error.norm()) / max(length, tiny), largest / max(spread, tiny)


def _noise(model: nn.Module, samples: Sequence[Inputs]) -> float:
    """What the rounding of values that flow does to answers, as the length of a share of them."""
    plain = without_values(duplicate(model))
    return max(relative for relative, _ in _off(plain, lambda *a, **k: model(*a, **k), samples))


def _inherent(
    model: nn.Module, samples: Sequence[Inputs], off: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """How far answers are from those in double precision: means of what is normalised, say, are rounding alone."""
    try:
        double = without_values(duplicate(model)).double()
        plain = without_values(duplicate(model))

        def run(*args: Any, **kwargs: Any) -> Any:
            return Inputs(args, kwargs).map(lambda _, x: x.double() if x.is_floating_point() else x).call(double)

        return _off(plain, run, samples)
    except Exception as error:  # the user's own code need not take double precision
        raise_own(error)
        return [(0.0, 0.0)] * len(off)


def _refuse(driver: Driver, model: nn.Module, off: Sequence[tuple[float, float]], index: int, rounded: bool) -> None:
    relative, largest = off[index]
    output = f"output {index} is" if len(off) > 1 else "its answers are"
    first = _first_apart(driver, model, rounded)
    raise ExportError(
        f"the file does not compute what the module computes: {output} {relative:.2g} of their length apart,"
        f" {largest:.2g} of their spread at most",
        where=first or driver.target.writes.format,
        why="the first value at which the two part" if first else "",
        next="leave what makes it out with where=, and please report it",
    )


def _first_apart(driver: Driver, model: nn.Module, rounded: bool) -> str:
    """The first value, in the order in which they are computed, that the file has otherwise; found by halving."""
    names = list(dict.fromkeys(call.value for call in driver.view().calls if call.value))
    begin, end, found = 0, len(names), ""
    try:
        while begin < end:
            step = max(1, math.ceil((end - begin) / _TAPS))
            places = [*range(begin, end, step)]
            bad = _apart_at(driver, model, [names[i] for i in places], rounded)
            if bad is None:
                return found
            found = names[places[bad]]
            begin, end = (places[bad - 1] + 1 if bad else begin), places[bad]
    except LilliputError:  # what is built to find out cannot be built
        pass
    return found


def _apart_at(driver: Driver, model: nn.Module, names: Sequence[str], rounded: bool) -> int | None:
    """Which is the first of some values that a file that gives them out has otherwise."""
    with (
        tempfile.TemporaryDirectory(prefix="lilliput-", ignore_cleanup_errors=True) as folder,
        nullcontext() if rounded else unrounded(model),
        tapped(model, names),
        torch.no_grad(),
    ):
        path = Path(folder) / f"tapped.{driver.target.writes.format}"
        driver.target.writes.build(path, model, driver.example, driver.dynamic)
        expected = driver.example.call(model)
        run = driver.target.writes.reference(
            path, Signature.of(driver.example, expected, model.forward), rounded=rounded
        )
        if run is None:
            return None
        pairs = paired(list(expected[1]), list(driver.example.call(run)[1]))
        return next((i for i, pair in enumerate(pairs) if _apart([pair])[0] > RELATIVE), None)
