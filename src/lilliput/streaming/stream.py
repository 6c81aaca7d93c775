"""`stream`: a network that does not fit in memory, compressed from its checkpoint to a `.lil`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lilliput.disk import clear_parts
from lilliput.engine.resume import RECORD, check_same, conditions
from lilliput.engine.store import Store
from lilliput.entropy import Coder
from lilliput.errors import InputError, RecipeError
from lilliput.feeding import Batches, Source, Takes, batched, first_sample
from lilliput.file.assets import asset_parts
from lilliput.file.container import Part, write
from lilliput.file.lil import Contents, check_readable, contents, header_of
from lilliput.model.carrier.arrays import to_array
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.parametrized import is_parametrized
from lilliput.model.edits.held import attributes, passing_buffers
from lilliput.model.names import attribute_name
from lilliput.model.views.inputs import Dynamic, dynamic_axes
from lilliput.modes import ordinary_modes
from lilliput.plain import digest
from lilliput.progress import Progress, silent
from lilliput.recipe import Recipe
from lilliput.streaming.fitting import Fitted, Fitting
from lilliput.streaming.made_again import make_again
from lilliput.streaming.passes import check_calls
from lilliput.streaming.sections import Section, sections, weights_of
from lilliput.streaming.weights import Weights
from lilliput.targets import Eager
from lilliput.task import read_assets


@dataclass(frozen=True)
class Streamed:
    """What `stream` wrote: the bytes of each tensor, and under "" of the rest; and what is to be told of layers."""

    path: Path
    sizes: Mapping[str, int]
    notes: Mapping[str, str]  # of what was done, by the paths of tensors
    skipped: Mapping[str, str]  # and what was not, with the reason


@ordinary_modes()
def stream(
    path: str | Path,
    model: nn.Module,
    source: Any,
    recipe: Recipe,
    *,
    calibrate: Any | None = None,
    dynamic: Dynamic | None = None,
    folder: str | Path | None = None,
    coder: Coder = "dense",
    assets: Mapping[str, str | Path | bytes] | None = None,
    progress: Progress = silent,
) -> Streamed:
    """Follow a recipe on a network that need not fit in memory, and write it as a `.lil` that `lilliput.load` reads.

    `model` is made on the meta device, without numbers. They come from `source`: a safetensors file, a folder of them,
    a `.lil`, or any object with `names()`, `shape(name)`, `dtype(name)` and `read(name, first, last)`. In memory are
    one block at a time, computed in float32; with `calibrate` also what flows into it, and all that is outside of
    blocks. What is not encoded is written as it comes. With a `folder`, a killed run goes on there.

    Raises RecipeError for a step that needs the whole network, InputError for a source that is not the model's,
    FormatError for damaged files, all before any work; and later InputError for a network whose sections cannot be
    told apart: what reads more than what the section before it gave is only seen when it runs.

    >>> import tempfile, torch, lilliput as lp
    >>> def make():
    ...     return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> with torch.device("meta"):
    ...     hollow = make()
    >>> with tempfile.TemporaryDirectory() as place:
    ...     sizes = lp.save(f"{place}/net.lil", make())
    ...     told = stream(f"{place}/small.lil", hollow, f"{place}/net.lil", Recipe([lp.Quantize(weights=lp.Int(4))]))
    ...     lp.load(f"{place}/small.lil", into=make())[0].weight.unique().numel() <= 8 * 15
    True
    """
    _check(model, recipe, calibrate)
    root = duplicate(model).eval()
    weights = Weights(root, source)
    make_again(root, weights.names)
    found = _meant(recipe, root, flowing=calibrate is not None)
    held = read_assets(assets)
    batches = None if calibrate is None else _batches(model, found, calibrate, dynamic)
    store = _store(folder, recipe, weights, batches)
    fitting = Fitting(recipe, root, weights, found, batches, store, digest(conditions(Eager())))
    writing = _Writing(model, root, weights, held)
    written = write(path, writing.header, writing.parts(fitting.all(), len(found), progress), coder)
    sizes = {entry.name: entry.stored_bytes for entry in written.entries}
    skipped = {**fitting.skipped, **(batches.told if batches else {})}
    return Streamed(Path(path), {**sizes, "": written.bytes - sum(sizes.values())}, fitting.notes, skipped)


def _check(model: nn.Module, recipe: Recipe, calibrate: Any | None) -> None:
    """Refuse what can be judged without the source."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}", next="give a torch.nn.Module")
    if not isinstance(recipe, Recipe):
        raise InputError(f"a recipe of type {type(recipe).__name__}", next="give lp.Recipe([…])")
    for name, x in model.named_parameters():
        if not x.is_meta:
            remedy = 'make the model in: with torch.device("meta"); or give this one to lp.apply'
            raise InputError("has numbers already", where=name, next=remedy)
    if is_parametrized(model):
        raise InputError("is parametrized", where="model", next="give the network as it is without parametrizations")
    for i, step in enumerate(recipe.steps):
        where = f"step {i + 1}, {type(step).__name__}"
        if why := step.needs_whole:
            remedy = "leave it out, or give the whole network to lp.apply"
            raise RecipeError("cannot be followed part by part", where=where, why=why, next=remedy)
        if calibrate is None and "calibrate" in step.needs:
            raise InputError("needs calibration batches", where=where, next=step.needs["calibrate"])
        check_readable(step, where)


def _meant(recipe: Recipe, root: nn.Module, *, flowing: bool) -> list[Section]:
    """The sections that are to be in memory: those with weights that a step means; where batches flow, all blocks."""
    found = sections(root)
    names = weights_of(root, found)
    for step in recipe.steps:
        step.check_paths([path for own in names for path in own])
    meant = [any(step.within(dict.fromkeys(own, ())) for step in recipe.steps) for own in names]
    return [one for one, whether in zip(found, meant, strict=True) if whether or (flowing and one.block)]


def _batches(model: nn.Module, found: Sequence[Section], calibrate: Any, dynamic: Dynamic | None) -> Batches:
    source = Source.of(batched(calibrate), "calibrate", Takes.of(model.forward))
    example = first_sample(source, "calibrate", dynamic)
    check_calls(duplicate(model).eval(), found, example)
    return Batches.checked(source, "calibrate", example, dynamic_axes(example, dynamic))


def _store(folder: str | Path | None, recipe: Recipe, weights: Weights, batches: Batches | None) -> Store:
    """Where answers are remembered; a folder with another run's is refused."""
    if folder is None:
        return Store(None)
    work = Path(folder) / "work"
    clear_parts(work)
    shapes = {name: str(weights.part(name).shape) for name in weights.names if weights.has(name)}
    check_same(
        work / RECORD,
        {
            "recipe": digest(list(recipe.steps)),
            "model": digest(shapes),
            "calibration data": batches.digest if batches else "",
            "environment": conditions(Eager()),
        },
    )
    return Store(work)


@dataclass
class _Writing:
    """The file as it comes about: what each section adds to the header, which is written last."""

    model: nn.Module
    root: nn.Module
    weights: Weights
    assets: Mapping[str, bytes]
    edits: list[Mapping[str, Any]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        if not self.edits:
            raise InputError(
                "the recipe changed no layer", where="recipe", next="see where= and the layers of the model"
            )
        described = {
            "buffers": self.buffers,
            "attributes": self.attributes,
            "graph": None,
            "no_graph": "made by streaming, which never holds the whole network",
            "assets": asset_parts(self.assets)[0],
            "provenance": {},
        }
        return header_of(self.model, self.edits, self.aliases, described)

    def parts(self, fitted: Iterator[Fitted], count: int, progress: Progress) -> Iterator[Part]:
        done: list[Section] = []
        for one in fitted:
            progress("streaming", len(done), count)
            yield from self._section(one)
            done.append(one.section)
            del one  # or it would stay in memory until the next is there
        yield from self._rest(done)
        progress("streaming", count, count)
        yield from asset_parts(self.assets)[1]

    def _section(self, one: Fitted) -> Iterator[Part]:
        held = contents(one.network)
        self._note(held)
        for name, x in held.tensors.items():
            if not self.weights.has(name):
                yield Part.of(name, to_array(x), held.bits.get(name))
            elif name in one.changed:
                yield Part.of(name, to_array(x.to(self.weights.dtype(name))))
            else:
                yield self.weights.part(name)

    def _note(self, held: Contents) -> None:
        """A weight decodes to the type that the source has it in, though it was fitted in float32."""
        for entry in held.edits:
            edit = entry["edit"]
            if edit["kind"] == "EncodeTensor":
                kind = str(self.weights.dtype(edit["paths"][0])).removeprefix("torch.")
                edit = {**edit, "dtype": kind}
            self.edits.append({**entry, "edit": edit})
        self.aliases |= held.aliases
        self.buffers += held.described["buffers"]
        self.attributes |= held.described["attributes"]

    def _rest(self, done: Sequence[Section]) -> Iterator[Part]:
        """All that is in no section: from the source, a slice at a time, or as the model holds it."""

        def left(name: str) -> bool:
            return not any(section.holds(name) for section in done)

        state = self.root.state_dict()
        for name, names in self.weights.names.items():
            if left(name) and name != names[0]:
                self.aliases[name] = names[0]
            elif left(name):
                yield self.weights.part(name) if self.weights.has(name) else Part.of(name, to_array(state[name]))
        for name, x in passing_buffers(self.root).items():
            if left(name):
                self.buffers.append(name)
                yield Part.of(name, to_array(x))
        for place, x in attributes(self.root).items():
            if left(f"{place[0]}."):
                name = attribute_name(place)
                self.attributes[name] = list(place)
                yield Part.of(name, to_array(x))
