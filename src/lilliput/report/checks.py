"""The part of the page that says how far the result can be trusted: what was compared, and how far it is off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lilliput.report.figures import digits, interval, percent
from lilliput.report.likeness import furthest, percent_off
from lilliput.report.markup import Html, cell, dotted, el, joined, number, section, table, tile
from lilliput.report.sides import what_runs
from lilliput.targets.target import BY_REFERENCE

Data = Mapping[str, Any]

_TILES = 3  # outputs that have one each; of more, the one that is furthest off
_RUNGS = {
    "whole": "The whole model was captured as one graph.",
    "submodule": "The model was captured in parts, one submodule at a time.",
    "module-local": "Some parts were captured only module by module.",
}
_WRITTEN = {"before": "original", "after": "compressed"}
_FIGURES = {  # of an answer's kind: what it is called in the table, and how it is written
    "same_answer": ("same answer", percent),
    "same_token": ("same token", percent),
    "cosine": ("cosine", "{:.6f}".format),
    "norm_ratio": ("length", "{:.4f}".format),
    "divergence": ("KL, nats", "{:.2g}".format),
}


def agreement_tiles(near: Data) -> Iterable[Html]:
    """How far answers agree, a tile for each output where they are few."""
    outputs = near["outputs"]
    shown = outputs if len(outputs) <= _TILES else [furthest(outputs)]
    for one in shown:
        named = f", {one['place']}" if one["place"] and len(outputs) > 1 else ""
        judged = f"judged on {near['judged_on']}, {near['samples']:,} samples"
        label, figure, unit, *notes = _TILE[one["kind"]](one)
        yield tile(f"{label}{named}", figure, unit, *notes, judged)


def _classes(one: Data) -> Iterable[str]:
    same = one["figures"]["same_answer"]
    yield from ("Samples with the same answer as before", *_parted(percent(same["value"])))
    yield f"{interval(same, percent)}; {_db(one)}"


def _tokens(one: Data) -> Iterable[str]:
    same, divergence = (one["figures"][name] for name in ("same_token", "divergence"))
    yield from ("Tokens that are the same as before", *_parted(percent(same["value"])))
    yield f"{interval(same, percent)}; KL divergence {divergence['value']:.2g} nats"


def _embedding(one: Data) -> Iterable[str]:
    cosine, ratio = (one["figures"][name] for name in ("cosine", "norm_ratio"))
    yield from ("Cosine of embeddings with those before", f"{cosine['value']:.4f}", "")
    yield f"{interval(cosine, '{:.4f}'.format)}; {ratio['value']:.3f} times as long"


def _values(one: Data) -> Iterable[str]:
    if one["sqnr_db"] is None:
        yield from ("Answers beside those before", "the same", "")
        return
    yield from ("Signal to noise of answers", f"{one['sqnr_db']:.1f}", "dB")
    yield f"{percent_off(one['relative_error']['value'])} off, the worst sample {percent_off(one['worst_error'])}"


_TILE = {"classes": _classes, "tokens": _tokens, "embedding": _embedding, "values": _values}


def _parted(figure: str) -> tuple[str, str]:
    """The number and its unit."""
    value, _, unit = figure.partition("\N{NO-BREAK SPACE}")
    return value, unit


def _db(one: Data) -> str:
    return "no noise" if one["sqnr_db"] is None else f"SQNR {one['sqnr_db']:.1f} dB"


def checks(data: Data) -> Html:
    """How far what was built is from what it was built from, and from what was there before."""
    near, export, capture = data["agreement"], data["export"], data["capture"]
    files = (
        _departure("original: file and module", export["before"]),
        _departure("compressed: file and module", export["after"]),
    )
    heads = ("on the example", "#largest error", "#SQNR, dB")
    judge = "" if data["runs_here"] else f": {BY_REFERENCE}"
    about = f"A file means {what_runs(data)}{judge}. {_RUNGS.get(capture['rung'], capture['rung'])}"
    written = [el("p", text) for side, what in _WRITTEN.items() for text in _written(export[side], what)]
    problems = [reasons(capture["problems"].items())] if capture["problems"] else []
    return section("Checks", el("p", about), *problems, _outputs(near), table(heads, files, "Files"), *written)


def _outputs(near: Data) -> Html:
    """Each output of the compressed file beside that of the original's."""
    own = list(dict.fromkeys(name for one in near["outputs"] for name in one["figures"]))
    heads = ("output", "kind", "#SQNR, dB", "#error", "#worst sample", "#largest error")
    rows = ([*_output(one), *(_own(one, name) for name in own)] for one in near["outputs"])
    return table((*heads, *(f"#{_FIGURES[name][0]}" for name in own)), rows, "Outputs")


def _output(one: Data) -> Iterable[Html]:
    yield el("th", dotted(one["place"]) if one["place"] else "the answer", scope="row")
    yield cell(one["kind"])
    yield number("–" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f}")
    yield number(percent_off(one["relative_error"]["value"]))
    yield number(f"{percent_off(one['worst_error'])}", el("small", f"number {one['worst']}"))
    yield number(f"{digits(one['largest_error'])}")


def _own(one: Data, name: str) -> Html:
    found = one["figures"].get(name)
    return number("–" if found is None else _FIGURES[name][1](found["value"]))


def _written(found: Data, what: str) -> Iterable[str]:
    """How far a file is from the module as it is written, and what its kernels make of it."""
    if written := found.get("written"):
        how = "" if written["rounded"] else ", without the rounding of values that flow"
        yield (
            f"As it is written, the {what} file is within {written['relative']:.1g} of the module's answers"
            f" ({written['samples']:,} samples, computed in float{how})."
        )
    if told := found.get("told"):
        yield f"{told}."


def _departure(what: str, found: Data) -> Iterable[Html]:
    yield cell(what)
    for key, form in (("largest_error", "{:.2g}"), ("sqnr_db", "{:.1f}")):
        yield number("–" if found.get(key) is None else form.format(found[key]))


def reasons(found: Iterable[tuple[str, str]]) -> Html:
    """Each reason, with the paths that it holds for."""
    paths: dict[str, list[str]] = defaultdict(list)
    for path, reason in found:
        paths[reason].append(path)
    parts = (joined(el("dt", reason), *(el("dd", dotted(path)) for path in held)) for reason, held in paths.items())
    return el("dl", *parts, class_="reasons")
