"""What flows through a network while the calibration batches run, gathered in one pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.feeding import Batches, ask, batch_size
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.values import Interception
from lilliput.model.views.view import MULTIPLIES, View
from lilliput.outputs import departure
from lilliput.progress import Progress
from lilliput.techniques.run import Answer, Run
from lilliput.techniques.statistics import Observe, Statistics

_SAME = 1e-4  # of the largest output: two orders of summing float32 differ by less


def statistics(run: Run, wanted: Mapping[str, Observe]) -> dict[str, Statistics]:
    """What the named values look like over the calibration batches, in the network before its numbers were rounded.

    Each is remembered by itself: where another candidate wants others, only those are looked at.
    """
    floats, batches = run.floats, batches_of(run, f"{len(wanted)} values that flow")
    questions = {name: ("statistics", name, observe) for name, observe in wanted.items()}
    found = {name: answer for name, question in questions.items() if (answer := floats.known(question)) is not None}
    new = {name: observe for name, observe in wanted.items() if name not in found}
    seen = observed(floats.model, floats.view(), new, batches.original, run.example, run.progress) if new else {}
    for name, one in seen.items():
        found[name] = floats.ask(questions[name], partial(Answer, tensors=one.pack()))
    return {name: Statistics.unpack(observe, found[name].tensors) for name, observe in wanted.items()}


def batches_of(run: Run, known: str) -> Batches:
    """The calibration batches; raises InputError where there are none by which to know something."""
    if run.calibrate is None:
        raise InputError(
            "this recipe needs calibration batches",
            why=f"it must know {known}",
            next="give calibrate=, or quantize weights alone, to the nearest",
        )
    return run.calibrate


def observed(
    model: nn.Module,
    view: View,
    wanted: Mapping[str, Observe],
    batches: Batches,
    example: Inputs,
    progress: Progress,
) -> dict[str, Statistics]:
    """The statistics of the values named in `wanted`; `view` is of `model`.

    Images come with their channels last, since oneDNN convolves so without laying every tensor out anew, unless the
    model takes them only as they are given. Activations write over what they alone read: getting memory anew for a
    result is what takes most of their time.
    """
    over = _over(view)
    if _indifferent(model, example):
        try:
            return _pass(model, over, wanted, batches, channels_last, progress)
        except InputError:  # the example was too small to show that a layout matters, or the batches fail anyway
            pass
    return _pass(model, over, wanted, batches, lambda inputs: inputs, progress)


def channels_last(inputs: Inputs) -> Inputs:
    """The same inputs; those with four axes lie in memory with the second of them last."""
    return inputs.map(lambda key, x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)


def _indifferent(model: nn.Module, example: Inputs) -> bool:
    """Whether `model` takes images, and answers the same however they lie in memory."""
    if not any(x.dim() == 4 for x in example.tensors().values()):
        return False
    with torch.no_grad():
        given = ask(model, example, "example")
        try:
            return departure(given, ask(model, channels_last(example), "example")) < _SAME
        except InputError:  # a view, say, that wants whole images one after the other
            return False


def _over(view: View) -> frozenset[str]:
    """The calls that alone read what a layer gives, which is memory of its own."""
    after = (view.only_reader(call) for call in view.calls if call.op in MULTIPLIES)
    return frozenset(call.value for call in after if call and call.value)


def _pass(
    model: nn.Module,
    over: Container[str],
    wanted: Mapping[str, Observe],
    batches: Batches,
    lay: Callable[[Inputs], Inputs],
    progress: Progress,
) -> dict[str, Statistics]:
    seen = {name: Statistics(observe) for name, observe in wanted.items()}
    share, done, i = 1.0, 0, 0

    def visit(name: str, x: Tensor) -> Tensor:
        seen[name].update(x, share)
        if not seen[name].finite:
            raise InputError(
                "what flows is NaN or infinite",
                where=f"{name}, {batches.field}[{i}]",
                why="a range, or a mean, of that is none",
                next="repair what makes it, leave the batch out, or quantize weights alone with bias_correction=False",
            )
        return x

    for i, inputs in enumerate(batches):
        share = batch_size(inputs) / batches.samples
        with torch.no_grad(), Interception(model, visit, only=wanted.keys(), over=over):
            ask(model, lay(inputs), f"{batches.field}[{i}]")
        done += batch_size(inputs)
        progress("calibrating", done, batches.samples)
    return seen
