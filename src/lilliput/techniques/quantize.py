"""Quantization after training: what numbers, how their ranges are fitted, and when."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from lilliput.encodings import Codebook, Encoding, Int, Sparse
from lilliput.encodings.blocks import Blocked
from lilliput.errors import InputError, RecipeError
from lilliput.model.carrier.parameters import encoding_of, read, shapes
from lilliput.model.surgery.depth import repeated
from lilliput.model.views.values import value_encodings
from lilliput.model.views.view import Call, View
from lilliput.techniques.assignment import Assignment, assigned
from lilliput.techniques.blocks import Block, BlockStop, blocks
from lilliput.techniques.choice import Choice, JointChoice
from lilliput.techniques.combinations import check, check_rounding
from lilliput.techniques.encode import (
    Shared,
    encode,
    encode_block,
    encode_shared,
    encode_value,
    place,
    prepare,
    remembered,
    set_tensor,
    together,
)
from lilliput.techniques.inputs import Stop
from lilliput.techniques.observe import statistics
from lilliput.techniques.ranges import MSE, Range
from lilliput.techniques.rounding import BRECQ, Rounding
from lilliput.techniques.run import Placed, Placement, Run, counted
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.technique import Technique, used_weights
from lilliput.techniques.walk import can_be_seen, walk
from lilliput.techniques.where import check_where, chosen


@dataclass(frozen=True, repr=False)
class Quantize(Technique):
    """Represent weights, and values that flow, by fewer bits, without training.

    Weights alone: ``Quantize(weights=Int(8))``, or ``weights=Codebook(16)``, by which they share few numbers. With
    activations whose ranges come from calibration (static): ``activations=Int(8)``; with ranges found at each run
    (dynamic): ``activations=Int(8, dynamic=True)``. What flows into weights that an earlier step has encoded is encoded
    with the rest.

    Both may differ from layer to layer: ``weights={"*": Int(8), "encoder.*": Int(4), "head": None}``, by the layers'
    paths or an `Assignment`; None is float. In ``activations`` a path means what flows into that layer. The name of a
    value, ``"layer1.0:add#0"``, means that value alone, whatever the target would have encoded.

    Activations as a grid of numbers, ``activations=PowerOfTwo(4)`` or ``Blockwise(4)``, show what a network would lose
    by it: no runtime computes so, and nothing gets faster. What formats and fits combine is in the guide.

    >>> Quantize(weights={"*": Int(8), "fc": Int(4)}, activations=Int(8))
    Quantize(weights={'*': Int(), 'fc': Int(bits=4)}, activations=Int())
    """

    weights: Encoding | Mapping[str, Encoding | None] | None = Int()
    activations: Encoding | Mapping[str, Encoding | None] | None = None
    fit: Range = MSE()  # how the scales, ranges or levels of weights are found
    rounding: Rounding | None = None  # by which numbers are chosen; None: the nearest
    calibration: Range = MSE()  # how those of activations are found
    together: bool = False  # one list of numbers, `Codebook`, for all tensors that `where` means
    bias_correction: bool = True  # move each bias by the mean error that rounded weights cause, if there are batches

    def __post_init__(self) -> None:
        for field in ("weights", "activations"):
            if isinstance(given := getattr(self, field), Mapping):
                object.__setattr__(self, field, Assignment(given))
        if self.weights is None:
            raise RecipeError("Quantize without weights", next="give weights=Int(8), or leave the step out")
        for one in _each(self.weights):
            check(one, self.fit, "weights")
            check_rounding(one, self.rounding)
        for one in _each(self.activations):
            check(one, self.calibration, "values")
        lists = isinstance(self.weights, Codebook) and self.weights.one_block and self.rounding is None
        if self.together and not lists:
            what = f"one list for all tensors of {self.weights}"
            raise RecipeError(what, next="give Codebook(16) for each whole tensor, or drop together=")

    @property
    def establishes(self) -> frozenset[str]:
        flowing = list(_each(self.activations))
        found = {"values": bool(flowing), "ranges": any(one.calibrated for one in flowing)}
        return frozenset(name for name, whether in found.items() if whether)

    @property
    def rounds(self) -> bool:
        return True

    @property
    def needs(self) -> Mapping[str, str]:
        if self.rounding is not None:
            return {"calibrate": "give calibrate=, or round to the nearest: rounding=None"}
        if "ranges" in self.establishes:
            return {"calibrate": "give calibrate=, or ranges at run time, activations=Int(8, dynamic=True), or none"}
        return {}

    def apply(self, run: Run) -> None:
        prepare(run)
        chosen_weights, asked = self._choose(run)
        encodings = self._fitting(run, chosen_weights, asked)
        chosen_weights = {path: chosen_weights[path] for path in encodings}
        placed = self._place(run, encodings)
        places = placed.values
        correct = self._correctable(run, chosen_weights) if self.bias_correction and run.calibrate is not None else {}
        seen = self._statistics(run, places, () if self.rounding else correct.values())
        if self.rounding is None:
            shared = together(run, encodings, self.fit) if self.together and encodings else None
            for path, encoding in counted(run, "encoding", encodings.items()):
                self._encode(run, path, encoding, correct.get(path), seen, shared)
        else:
            self._walk(run, chosen_weights, encodings, correct)
        for one in places:
            if one.encoding.calibrated:
                held = seen[one.like or one.value]
                if not held.reached:
                    raise _never_reached(one.value)
                encoding = one.encoding.for_range(held.low)
                encode_value(run, one.value, encoding, self.calibration.of_value(held, encoding))
            else:
                encode_value(run, one.value, one.encoding, one.encoding.given())
        self._tell(run, asked, encodings, placed)

    def _fitting(
        self, run: Run, weights: Mapping[str, Sequence[Call]], asked: Mapping[str, Encoding | None]
    ) -> dict[str, Encoding]:
        """How each weight is encoded; one that the groups of a format do not divide is left out, and told."""
        known, found = shapes(run.model), dict[str, Encoding]()
        for path, calls in weights.items():
            encoding = for_weight(asked[path], calls[0], known[path])
            if encoding is None:
                run.skip(path, f"{asked[path]} has groups of one length, which do not divide its inputs")
            else:
                found[path] = encoding
        return found

    def _tell(
        self, run: Run, asked: Mapping[str, Encoding | None], encodings: Mapping[str, Encoding], placed: Placed
    ) -> None:
        """Where something else was done than asked for, or nothing, and why."""
        for path, encoding in encodings.items():
            if text := _in_place_of(asked[path], encoding):
                run.note(path, text)
            if self.together:
                run.note(path, f"its numbers are those of {len(encodings)} tensors")
        for path, text in placed.told.items():
            run.note(path, text)
        for path, why in placed.left.items():
            run.skip(path, why, lasting=True)

    def _statistics(self, run: Run, places: Sequence[Placement], correct: Iterable[Call]) -> Mapping[str, Statistics]:
        wanted = {one.value: Observe() for one in places if one.encoding.calibrated}
        for call in correct:
            axis = 1 - len(call.weight_shape)  # from the end: a convolution also takes an image without a batch
            wanted[f"{call.value}@0"] = Observe(histogram=f"{call.value}@0" in wanted, channel_axis=axis)
        return statistics(run, wanted) if wanted else {}

    def _encode(
        self,
        run: Run,
        path: str,
        encoding: Encoding,
        correct: Call | None,
        seen: Mapping[str, Statistics],
        shared: Shared | None,
    ) -> None:
        """A weight rounded to the nearest; a bias takes up the error on average."""
        exact = None if correct is None else read(run.model, path)
        if shared is None:
            encode(run, path, encoding, Choice(fit=self.fit))
        else:
            encode_shared(run, path, encoding, shared)
        flowing = None if correct is None else seen[f"{correct.value}@0"]
        if flowing is not None and not flowing.reached:
            run.note(path, "no calibration batch reaches it: its bias is not corrected")
        elif correct is not None and exact is not None and flowing is not None:
            shift = mean_error(exact, read(run.model, path), flowing.mean)
            _shift(run, correct, shift)

    def _walk(
        self,
        run: Run,
        weights: Mapping[str, list[Call]],
        encodings: Mapping[str, Encoding],
        correct: Mapping[str, Call],
    ) -> None:
        """The weights in the order in which they are used, each by what the layers before it make of the batches."""
        joint: list[Block] = []
        if isinstance(self.rounding, BRECQ):
            joint = blocks(weights, repeated(run.model), self.rounding.blocks, correct)
        places = _places_of(weights, joint)
        together = {path for block in joint for path in block.calls}
        with closing(walk(run, list(places.values()))) as stops:  # which end with it, whatever is raised
            for path, calls in counted(run, "encoding", weights.items()):
                if path in places:
                    stop = next(stops)
                    if isinstance(stop, BlockStop):
                        assert isinstance(self.rounding, BRECQ)
                        block = {path: encodings[path] for path in stop.block.calls}
                        encode_block(run, block, JointChoice(self.fit, self.rounding, stop))
                    else:
                        self._round(run, path, calls, encodings[path], correct.get(path), stop)
                        if joint:
                            run.note(path, "in no block: rounded by itself")
                elif path not in together:
                    encode(run, path, encodings[path], Choice(fit=self.fit))
                    run.note(path, f"rounded to the nearest: what {calls[0].op} reads is not looked at")
            next(stops, None)

    def _round(
        self, run: Run, path: str, calls: Sequence[Call], encoding: Encoding, correct: Call | None, stop: Stop
    ) -> None:
        """A weight rounded by what flows into its layer; its bias takes up what is left on average."""
        exact, stop.absorbed = read(run.model, path), correct is not None
        encode(run, path, encoding, Choice(fit=self.fit, rounding=self.rounding, stop=stop))
        if len(calls) > 1:
            run.note(path, f"rounded by what flows at the first of its {len(calls)} uses")
        if correct is not None:
            rounded = read(run.model, path)
            _shift(run, correct, remembered(run, ("shift", path), lambda: mean_shift(exact, rounded, stop)))

    def _choose(self, run: Run) -> tuple[dict[str, list[Call]], dict[str, Encoding | None]]:
        """The tensors to encode, with the calls that use them, and how; all others are reported with a reason."""
        weights, known = used_weights(run), shapes(run.model)
        check_where(self.where, list(weights))
        for path in known:
            if len(known[path]) > 1 and path not in weights:
                run.skip(path, _why_not(run.view(), path))
        picked = {path: calls for path, calls in weights.items() if chosen(path, self.where)}
        rule = assigned(self.weights)
        rule.check("weights", _paths(run))
        asked, earlier = _asked(run, rule, picked), _encoded(run)
        for path in [path for path in weights if asked.get(path) is None and path not in earlier]:
            told = f"left out by where={self.where!r}" if path not in picked else "left in float by weights="
            run.skip(path, told)
        return {path: calls for path, calls in picked.items() if asked[path] is not None}, asked

    def _place(self, run: Run, encodings: Mapping[str, Encoding]) -> Placed:
        """What flows into these weights, and into those that an earlier step has encoded by themselves."""
        if self.activations is None:
            return Placed()
        view, rule, flowing = run.view(), assigned(self.activations), value_encodings(run.model)
        alone = {
            path: encoding
            for path, encoding in _encoded(run).items()
            if not any(view.reads_one_of(call, flowing) for call in view.weights[path])
        }
        weights = {**alone, **encodings}
        rule.check("activations", _paths(run))
        asked = {path: one.for_value() for path, one in _asked(run, rule, weights).items() if one is not None}
        placed = place(run, asked, weights)
        named = rule.of_values("activations", [name for call in view.calls for name in call.names])
        own = {name: one and Placement(name, _without_groups(name, one)) for name, one in named.items()}
        values = {**{one.value: one for one in placed.values}, **own}
        left = {path: "what it reads is left in float by activations=" for path in encodings if path not in asked}
        return replace(placed, values=[one for one in values.values() if one], told={**left, **placed.told})

    @property
    def needs_whole(self) -> str:
        if self.activations is not None:
            return "values that flow between parts are seen in the whole network alone"
        if self.together:
            return "one list of numbers is fitted to all tensors at once"
        return "its blocks are found in the whole network" if isinstance(self.rounding, BRECQ) else ""

    def check_paths(self, paths: Sequence[str]) -> None:
        super().check_paths(paths)
        assigned(self.weights).check("weights", paths)

    def within(self, weights: Mapping[str, Sequence[Call]]) -> Self | None:
        paths = [path for path in weights if chosen(path, self.where)]
        rule = assigned(self.weights).within(paths)
        if not any(rule.of_path(path) for path in paths):
            return None
        return replace(self, weights=rule) if isinstance(self.weights, Mapping) else self

    def reading_floats(self, paths: Collection[str], layers: Collection[str]) -> Self:
        some = any(chosen(path, self.where) and path not in paths for path in layers)
        rule = {**assigned(self.activations), **dict.fromkeys(map(glob.escape, sorted(paths)))}
        return replace(self, activations=rule if some and self.activations is not None else None)

    def _correctable(self, run: Run, weights: dict[str, list[Call]]) -> dict[str, Call]:
        """Calls whose bias, theirs alone, can take up the mean error of their one weight, by the path of that.

        Only ops of one weight have a `Call.bias`: in a recurrent layer an error comes back through the state.
        """
        readers = run.view().readers
        return {
            path: calls[0]
            for path, calls in weights.items()
            if len(calls) == 1
            and calls[0].value
            and calls[0].bias
            and len(readers[f"tensor {calls[0].bias}"]) == 1
            and not calls[0].op.startswith("conv_transpose")
        }


def for_weight(encoding: Encoding | None, call: Call, shape: tuple[int, ...]) -> Encoding | None:
    """How the weight of `call`, of `shape`, is encoded: axes, scales and groups as they suit it; None where no groups
    of the format do.
    """
    assert encoding is not None
    return encoding.for_weight(1 if call.op.startswith("conv_transpose") else None).dividing(shape)


def _in_place_of(asked: Encoding | None, used: Encoding) -> str:
    """What is to be told of groups and tiles that are not those asked for; empty where they are."""
    one, other = ((x.values if isinstance(x, Sparse) else x) for x in (asked, used))
    if not isinstance(one, Blocked) or not isinstance(other, Blocked):
        return ""
    group = f"groups of {other.group}: {one.group} do not divide its inputs" if one.group != other.group else ""
    tiles = f"tiles of {other.channels} channels: {one.channels} do not divide them"
    return "; ".join(filter(None, [group, tiles if one.channels != other.channels else ""]))


def _asked(run: Run, rule: Assignment, paths: Iterable[str]) -> dict[str, Encoding | None]:
    """What each weight, or what flows into its layer, gets; a tied one as any of its paths is told."""
    ties = {path: tie for tie in run.view().ties for path in tie}
    return {path: rule.of_tie(ties.get(path, (path,))) for path in paths}


def _paths(run: Run) -> list[str]:
    """Of all tensors, by each path that a tied one has."""
    view = run.view()
    return [*view.weights, *shapes(run.model), *(path for tie in view.ties for path in tie)]


def _without_groups(name: str, encoding: Encoding) -> Encoding:
    """For a value that is named by itself, of which nothing tells where its channels lie."""
    if getattr(encoding, "group", None):
        raise RecipeError(
            f"{encoding} for a value by its name", where=name, next="name the layer that reads it instead"
        )
    return encoding.for_value()


def _each(given: Encoding | Mapping[str, Encoding | None] | None) -> Iterator[Encoding]:
    """The encodings that are given, for all or by path."""
    yield from (one for one in (given.values() if isinstance(given, Mapping) else (given,)) if one is not None)


def _shift(run: Run, call: Call, shift: Tensor) -> None:
    """The bias of a call takes up what is added to its outputs on average."""
    assert call.bias is not None
    set_tensor(run, call.bias, read(run.model, call.bias) - shift)


def _never_reached(value: str) -> InputError:
    module = value.rpartition(":")[0]
    return InputError(
        "no calibration batch reaches it, so its range is not known",
        where=value,
        next=f'give batches that do, or where="!{module}", or ranges at run time: activations=Int(8, dynamic=True)',
    )


def _places_of(weights: Mapping[str, Sequence[Call]], joint: Sequence[Block]) -> dict[str, Call | Block]:
    """Where the calibration batches wait, by the weight that comes first there."""
    of = {path: block for block in joint for path in block.calls}
    places: dict[str, Call | Block] = {}
    seen: set[str] = set()
    for path, calls in weights.items():
        if path in of and of[path].path not in seen:
            seen.add(of[path].path)
            places[path] = of[path]
        elif path not in of and can_be_seen(calls[0]):
            places[path] = calls[0]
    return places


def _encoded(run: Run) -> dict[str, Encoding]:
    """The weights that earlier steps have encoded: what flows into them is encoded with the rest."""
    known = shapes(run.model)
    found = {path: encoding_of(run.model, path) for path in run.view().weights if path in known}
    return {path: encoding for path, encoding in found.items() if encoding is not None}


def _why_not(view: View, path: str) -> str:
    """Why a tensor is no weight that this technique represents."""
    ops = sorted({call.op for call in view.readers.get(f"tensor {path}", [])})
    if not ops:
        return "no captured call reads it"
    return f"it is read by {' and '.join(ops)}, not by a convolution, linear or recurrent layer, or embedding"


def mean_error(exact: Tensor, rounded: Tensor, mean: Tensor) -> Tensor:
    """What rounding a weight adds to each output on average: Σ (rounded - exact) · E[input], [outputs].

    For a convolution the borders are taken for inner points. Source: Nagel et al., "Data-Free Quantization Through
    Weight Equalization and Bias Correction", 2019, arXiv 1906.04721, with E[input] measured on the calibration batches.
    """
    error = (rounded - exact).flatten(2).sum(2) if exact.dim() > 2 else rounded - exact  # [outputs, inputs of a group]
    return _mean_output(error, mean.reshape(-1, error.shape[1]))


def mean_shift(exact: Tensor, rounded: Tensor, stop: Stop) -> Tensor:
    """What all rounding up to here adds to each output on average, [outputs]."""
    if not stop.batches:
        return rounded.new_zeros(len(rounded))
    seen = stop.moments
    return _mean_output(rounded.flatten(1), seen.mean) - _mean_output(exact.flatten(1), seen.original_mean)


def _mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """Σ weight · mean, [outputs], for a weight [outputs, K] and the means of what it multiplies, [groups, K]."""
    return (weight.reshape(len(mean), -1, weight.shape[1]) * mean[:, None]).sum(2).reshape(-1)
