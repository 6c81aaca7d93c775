"""Convolutions that become several, one behind the other: which may, and the doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, nn

from lilliput.encodings.encoding import tensor_digest
from lilliput.feeding import fingerprint
from lilliput.model.carrier.carrier import owner_of
from lilliput.model.carrier.parameters import encoding_of, held_at, read
from lilliput.model.edits.division import Divide
from lilliput.model.surgery.trial import misfit, shapes
from lilliput.model.views.values import value_encodings
from lilliput.model.views.view import Call
from lilliput.techniques.forms import DIVISIONS, Form, Ranks
from lilliput.techniques.run import Answer, Run, counted

_PLAIN = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
Change = tuple[Divide, dict[str, Tensor]]


def divide(run: Run, form: Form, ranks: Mapping[str, Ranks]) -> None:
    """Let convolutions, by the paths of their weights, become several; those without which the network would not run
    are left, and told.
    """
    made = {path: _divided(run, form, path, of) for path, of in counted(run, "dividing", ranks.items())}
    refused = _refused(run, form, {path: change for path, (change, _) in made.items()})
    for path, ((edit, given), kept) in made.items():
        if path in refused:
            run.skip(path, f"cannot be divided: {refused[path]}")
            continue
        run.apply(edit, given)
        for i in range(len(edit.outputs)):
            told = f"part {i + 1} of {len(edit.outputs)} of {edit.path}, which keep {kept:.1%} of its sum of squares"
            run.note(f"{edit.path}.{i}.weight", told, lasting=True)


def _divided(run: Run, form: Form, path: str, ranks: Ranks) -> tuple[Change, float]:
    module, x = path.rpartition(".")[0], read(run.model, path)

    def compute() -> Answer:
        parts = DIVISIONS[form](x, ranks)
        weights = {f"{i}.weight": part for i, part in enumerate(parts.weights)}
        return Answer([parts.outputs, parts.axes, parts.groups, parts.kept], weights)

    found = run.ask(("division", tensor_digest(x), form, ranks), compute, model=False, data=False)
    outputs, axes, groups, kept = found.data
    edit = Divide(module, tuple(outputs), tuple(map(tuple, axes)), tuple(groups))
    bias = run.model.get_submodule(module)._parameters["bias"]
    given = {} if bias is None else {f"{len(outputs) - 1}.bias": bias.detach()}
    return (edit, {**found.tensors, **given}), kept


def _refused(run: Run, form: Form, made: Mapping[str, Change]) -> dict[str, str]:
    """The layers that something else in the network asks for as they were, and why it then fails."""

    def compute() -> Answer:
        expected = shapes(run.model, run.example)
        if not misfit(run.model, list(made.values()), run.example, expected):
            return Answer({})
        refused, going = dict[str, str](), list[Change]()
        for path, change in made.items():
            if why := misfit(run.model, [*going, change], run.example, expected):
                refused[path] = why
            else:
                going.append(change)
        return Answer(refused)

    question = ("undivided", fingerprint(run.example), form, [repr(edit) for edit, _ in made.values()])
    return dict(run.ask(question, compute, data=False).data) if made else {}


def why_not(run: Run, form: Form, path: str, calls: Sequence[Call]) -> str:
    """Why the layer of a weight is not to be divided; empty where it may be."""
    others = sorted({call.op for call in calls} - _PLAIN.keys())
    if others:
        return f"{' and '.join(others)} is no convolution that is divided into parts"
    if any(call.window is not None and call.window.groups > 1 for call in calls):
        return "a convolution in groups is not divided into parts"
    held = encoding_of(run.model, path)
    if held is not None:
        return f"it is encoded already, as {held.label()}: factorize before that"
    return _why_not_kernel(form, calls[0].weight_shape) or _why_not_module(run, path, calls)


def _why_not_kernel(form: Form, shape: tuple[int, ...]) -> str:
    kernel = shape[2:]
    if prod(kernel) == 1:
        return "its kernel is one point"
    if form == "spatial" and len(kernel) != 2:
        return f"a kernel of {len(kernel)} axes is not divided into an upright and a flat one"
    return "its kernel is a line already" if form == "spatial" and min(kernel) == 1 else ""


def _why_not_module(run: Run, path: str, calls: Sequence[Call]) -> str:
    paths, _ = held_at(run.model, path)
    if len(paths) > 1:
        return f"it is tied to {paths[1]}"
    name = path.rpartition(".")[0]
    used = sorted({call.module for call in calls} - {name})
    if used:
        return f"{used[0] or 'the model itself'} reads its weight too"
    module, _ = owner_of(run.model, path)
    if not name or type(module) is not _PLAIN[calls[0].op] or "forward" in vars(module):
        return f"a {type(module).__name__} with a forward of its own" if name else "it is the whole model"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "hooks are set on it"
    if any(value.startswith(f"{name}:") for value in value_encodings(run.model)):
        return "what it reads or gives is encoded already: factorize before that"
    return ""
