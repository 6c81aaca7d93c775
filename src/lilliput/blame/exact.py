"""The network as it was before its first tensor was encoded, and parts of the encoding put into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lilliput.blame.places import Place, encoded_weights
from lilliput.engine.run import Driver
from lilliput.model.carrier.carrier import attach, encoded_tensors, owner_of, tensors, to_dense
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.edits.edits import EncodeTensor, EncodeValue
from lilliput.model.edits.structure import Replace
from lilliput.model.views.values import Interception, attach_value, value_encodings
from lilliput.techniques.encode import prepare


def before_encoding(driver: Driver, model: nn.Module) -> nn.Module:
    """A copy of `model`, the original, with all that was done to it before anything was encoded: norms folded, say."""
    exact, steps = driver.afresh(model, reads=True), driver.state.steps
    if any(True for _ in encoded_tensors(exact.model)) or value_encodings(exact.model):
        exact.model = to_dense(exact.model)
    first = next((i for i, step in enumerate(steps) if isinstance(step.edit, EncodeTensor | EncodeValue)), len(steps))
    for step in steps[:first]:
        step.edit.apply(exact.model, step.tensors)
    if any(isinstance(step.edit, Replace) for step in steps[first:]):
        prepare(exact)
    return exact.model.eval()


def differs(exact: nn.Module, small: nn.Module, found: Sequence[Place]) -> str:
    """Why places of `small` cannot be put into `exact` one by one; empty where they can."""
    shapes = {path: tuple(x.shape) for paths, x in tensors(exact).items() for path in paths}
    weights = encoded_weights(small)
    for place in found:
        if place.weight in weights and shapes.get(place.weight) != tuple(weights[place.weight].shape):
            return f"{place.weight} has another shape than before it was encoded"
    return ""


def with_encodings(exact: nn.Module, small: nn.Module, chosen: Sequence[Place]) -> nn.Module:
    """A copy of `exact` in which the `chosen` places, and no others, are encoded as they are in `small`."""
    made, weights, encoders = duplicate(exact), encoded_weights(small), value_encodings(small)
    for place in chosen:
        for path, x in _biases(small, place).items():
            _parameter(made, path).data = x
        if place.weight in weights:
            paths = next(paths for paths in tensors(made) if place.weight in paths)
            attach(made, paths, weights[place.weight].encoded())
        for name in place.values:
            attach_value(made, name, encoders[name].encoding, encoders[name].parameters_of_value())
    return made.eval()


@contextmanager
def simulated(
    exact: nn.Module, small: nn.Module, chosen: Sequence[Place], *, weights: bool = True, values: bool = True
) -> Iterator[None]:
    """Inside, one run of `exact` computes as if the `chosen` places were encoded: their weights, their values, or both.

    One run only: values are named by how often a function was called before.
    """
    encoders = value_encodings(small) if values else {}
    only = {name: encoders[name] for place in chosen for name in place.values if name in encoders}
    changed = _changed(small, chosen) if weights else {}
    kept = {path: _parameter(exact, path).data for path in changed}
    try:
        for path, x in changed.items():
            _parameter(exact, path).data = x
        with Interception(exact, lambda name, x: only[name](x), only=only):
            yield
    finally:
        for path, x in kept.items():
            _parameter(exact, path).data = x


def _changed(small: nn.Module, chosen: Sequence[Place]) -> dict[str, Tensor]:
    """What the encoded weights of places decode to, and the biases that were corrected for them."""
    weights, found = encoded_weights(small), {}
    for place in chosen:
        if place.weight in weights:
            with torch.no_grad():
                found[place.weight] = weights[place.weight]().detach()
        found |= _biases(small, place)
    return found


def _biases(small: nn.Module, place: Place) -> dict[str, Tensor]:
    if place.bias is None:
        return {}
    owner, name = owner_of(small, place.bias)
    held = owner._parameters.get(name)
    return {} if held is None else {place.bias: held.detach()}


def _parameter(root: nn.Module, path: str) -> nn.Parameter:
    owner, name = owner_of(root, path)
    held = owner._parameters[name]
    assert held is not None
    return held
