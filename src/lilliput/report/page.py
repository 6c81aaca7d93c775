"""The report as one HTML page that needs nothing beside it: no network, no scripts, no fonts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lilliput.plain import to_toml
from lilliput.report.blame import blame_section
from lilliput.report.checks import agreement_tiles, checks, reasons
from lilliput.report.exact import exactly
from lilliput.report.figures import digits, interval, percent, signed, size
from lilliput.report.markup import Html, cell, document, dotted, el, joined, number, section, table, tile, track
from lilliput.report.sides import file_sizes, opener, what_runs
from lilliput.targets.target import NOT_HERE

Data = Mapping[str, Any]

_MANY = 24  # rows; a longer table scrolls under its heading


def page(data: dict[str, Any]) -> str:
    """The page that shows `data`, the report; nothing is on it that is not in there."""
    sections = (
        _top,
        _figures,
        _bars,
        exactly,
        _layers,
        _removed,
        _blame,
        _skipped,
        _training,
        checks,
        _recipe,
        _environment,
    )
    return document(f"{data['name']} · Lilliput report", *(section(data) for section in sections))


# the result


def _top(data: Data) -> Html:
    looks = {"done": "badge", "harmed": "badge harmed"}.get(data["outcome"], "badge bad")
    badge = el("span", data["outcome"], class_=looks)
    above = el("p", f"Lilliput report for {data['target']} ", badge, class_="kicker")
    return el("header", above, el("h1", data["name"]), el("p", data["sentence"], class_="lead"), *_warnings(data))


def _warnings(data: Data) -> Iterable[Html]:
    if data.get("harm"):
        yield _warning("what the network had learned is lost", data["harm"])
    verdict, _, reason = data["speed"].partition(": ")
    if reason:
        yield _warning(verdict, reason)
    for doubt in data["agreement"]["doubts"]:
        yield _warning("answers that tell nothing", doubt)
    if data.get("loading"):
        yield _warning("costlier to load than before", data["loading"])
    if data.get("coded"):
        yield _warning("the file to store and send is larger than it could be", data["coded"])
    if data["conditions"]["may_saturate"] and any(map(_overflows, data["layers"])):
        yield _warning(
            "answers may differ on this processor",
            "without VNNI, sums of u8 × s8 products can saturate; weights as Int(7) or OnnxRuntime(safe=True) avoid it",
        )


def _overflows(row: Data) -> bool:
    """Whether pairs of products in a layer can leave 16 bits: not with weights of 7 bits and fewer."""
    return "int8 kernel" in row["runs_as"] and "int8" in row["encoding"]


def _warning(what: str, why: str) -> Html:
    strong, rest = (text[:1].upper() + text[1:] for text in (what, why))
    return el("p", el("strong", strong, "."), f" {rest}.", class_="warning", role="note")


def _figures(data: Data) -> Html:
    """The figures that matter most, a tile each."""
    tiles = [*_size_tiles(data), _speed_tile(data), *agreement_tiles(data["agreement"])]
    if data["metric"]:
        tiles.append(_metric_tile(data["metric"], data["before"]["metric"], data["after"]["metric"]))
    return el("div", *tiles, class_="tiles")


def _size_tiles(data: Data) -> Iterable[Html]:
    for form, runs_on, before, after in file_sizes(data):
        runs = runs_on == data["target"]
        ratio = data["ratio"]["smaller" if runs else "smaller_file"]
        purpose = "to store and send" if not runs else f"which {runs_on} runs" if data["runs_here"] else NOT_HERE
        unit = "smaller" if ratio >= 1 else "larger"
        sizes = f"{size(before)} → {size(after)}"
        yield tile(f"The .{form} file, {purpose}", f"{max(ratio, 1 / ratio):.2f}×", unit, sizes)


def _speed_tile(data: Data) -> Html:
    verdict, label = data["speed"].partition(": ")[0], f"Speed of {what_runs(data)}"
    faster = data["ratio"]["faster"]
    if faster is None:
        return tile(label, "–", verdict, class_="tile bad")
    slower, good = verdict.endswith("slower"), verdict.endswith("faster")
    before, after = (digits(data[side]["latency_ms"]["value"]) for side in ("before", "after"))
    shown = _inverted(faster) if slower else faster
    known = faster["low"] is not None or faster["high"] is not None
    return tile(
        label,
        f"{'' if known else 'about '}{shown['value']:.2f}×",
        "slower" if slower else "faster" if good else "no speed-up",
        f"{before} → {after} ms a call",
        interval(shown, lambda x: f"{x:.2f}") if known else "no interval",
        class_="tile" if good else "tile bad",
    )


def _inverted(ratio: Data) -> Data:
    low, value, high = (ratio[end] and 1 / ratio[end] for end in ("high", "value", "low"))
    return {"low": low, "value": value, "high": high}


def _metric_tile(metric: Data, before: Data, after: Data) -> Html:
    change = metric["change"]
    return tile(
        f"{metric['name']}, {'higher' if metric['higher_is_better'] else 'lower'} is better",
        signed(change["value"]),
        "change",
        f"{digits(before['value'], 4)} → {digits(after['value'], 4)}",
        interval(change, signed),
        f"{change['samples']:,} samples{_verdict(change, metric['higher_is_better'])}",
    )


def _verdict(change: Data, higher_is_better: bool) -> str:
    """What the interval of the change says, where it has both ends."""
    low, high = change["low"], change["high"]
    if low is None or high is None:
        return ""
    if low <= 0 <= high:
        return "; the interval includes no change"
    return "; better than before" if (low > 0) == higher_is_better else "; worse than before"


# bars


def _bars(data: Data) -> Html:
    latency = section("Latency", *_latency_bars(data))
    return el("div", section("Size", *_size_bars(data)), latency, class_="columns")


def _size_bars(data: Data) -> Iterable[Html]:
    sizes = file_sizes(data)
    largest = max(max(both) for _, _, *both in sizes)
    for form, runs_on, *both in sizes:
        yield el("h4", f".{form}, {opener(data, runs_on)}")
        for side, count in zip(("before", "after"), both, strict=True):
            yield _bar(side, count / largest, size(count))


def _latency_bars(data: Data) -> Iterable[Html]:
    times = {side: data[side]["latency_ms"] for side in ("before", "after")}
    if None in times.values():
        yield el("p", f"{data['speed'].partition(': ')[0].capitalize()}.")
        return
    slowest = max(time[end] or 0 for time in times.values() for end in ("value", "high"))
    yield el("h4", what_runs(data))
    for side, time in times.items():
        low, high = (time[end] and time[end] / slowest for end in ("low", "high"))
        yield _bar(side, time["value"] / slowest, f"{digits(time['value'])} ms", low, high)
    rounds, threads = times["after"]["samples"], data["environment"]["threads"]
    many = f"{threads} thread" if threads == 1 else f"{threads} threads"
    whiskers = "; whiskers are 95 % intervals" if times["after"]["low"] is not None else ""
    yield el("p", f"Medians of {rounds} rounds, taken in turns, on {many}{whiskers}.")


def _bar(side: str, share: float, figure: str, low: float | None = None, high: float | None = None) -> Html:
    drawn = el("span", track(share, low, high), class_="track")
    return el("div", el("span", side), drawn, el("b", figure), class_=f"bar {side}")


# layers


def _layers(data: Data) -> Html:
    rows = data["layers"]
    largest = max((row["bytes"] for row in rows), default=0) or 1
    heads = "weight|operation|#shape|encoding|activations|#bits a weight|#bytes|#zeros|#SQNR, dB|how it runs"
    many = "layers long" if len(rows) > _MANY else "layers"
    shown = table(heads.split("|"), (_layer(row, largest) for row in rows), "Layers", class_=many)
    note = (
        "SQNR is the signal of a weight over the noise that encoding it added, batch norms folded in before; "
        "a dash where nothing differs. Bits a weight are those on disk, in the .lil file; nominal are those of the "
        "format, before anything is coded."
    )
    return section("Layers", _ways(rows), shown, el("p", _stored(data)), el("p", note))


def _layer(row: Data, largest: int) -> Iterable[Html]:
    was = [el("small", "was ", dotted(row["was"]))] if row.get("was") else []
    also = (el("small", "also ", dotted(tie)) for tie in row["ties"])
    yield el("th", dotted(row["path"]), *was, *also, scope="row")
    yield cell(row["op"])
    yield number(" × ".join(map(str, row["shape"])), *_was(row))
    yield cell(el("code", row["encoding"]))
    yield cell(el("code", row["activations"]))
    yield number(f"{row['bits_per_weight']:.2f}", el("small", f"{row['nominal_bits']:.2f} nominal"))
    yield number(el("span", track(row["bytes"] / largest), class_="track"), f"{row['bytes']:,}")
    yield number(percent(row["zeros"]))
    yield number("–" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}")
    yield cell(_way(row["runs_as"]), *([el("small", row["note"])] if row.get("note") else []))


def _was(row: Data) -> Iterator[Html]:
    """The shape before, where slices are gone."""
    before = row.get("shape_before")
    if before and before != row["shape"]:
        yield el("small", "of ", " × ".join(map(str, before)))


def _way(runs_as: str, *more: object) -> Html:
    """How a layer runs, marked where it is on integers, with the reason in small."""
    short, _, reason = runs_as.partition(": ")
    mark = el("span", short, *more, class_="way integer" if "int8 kernel" in short else "way")
    return joined(mark, el("small", reason)) if reason else mark


def _ways(rows: Sequence[Data]) -> Html:
    """How many layers run in which way, and what they weigh together; the heaviest first."""
    weights: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        weights[row["runs_as"]].append(row["bytes"])
    heaviest = sorted(weights.items(), key=lambda item: -sum(item[1]))
    items = (_way(way, ": ", el("b", len(held)), f" of {len(rows)}, {size(sum(held))}") for way, held in heaviest)
    return el("ul", *(el("li", item) for item in items), class_="ways")


def _stored(data: Data) -> str:
    held = sum(row["bytes"] for row in data["layers"])
    whole = next(item["bytes"] for item in data["after"]["artifacts"] if item["format"] == "lil")
    was = next(item for item in data["before"]["artifacts"] if "coded_bytes" in item)
    return (
        f"These weights take {held:,} bytes of the .lil file; the other {whole - held:,} hold biases, other tensors, "
        f"the graph and its index. Coding alone, without loss, would bring the original from {size(was['bytes'])} to "
        f"{size(was['coded_bytes'])}."
    )


def _removed(data: Data) -> Html:
    """The layers and blocks that were left out; nothing where none were."""
    if not data.get("removed"):
        return joined()
    rows = (
        [el("th", dotted(gone["path"]), scope="row"), number(f"{gone['parameters']:,}"), cell(gone["told"])]
        for gone in data["removed"]
    )
    note = el("p", "They are called as in the network that was given; 0 is no change at all.")
    return section("Removed", table(("module", "#parameters", "score"), rows, "Removed"), note)


def _blame(data: Data) -> Html:
    return blame_section(data.get("loses"))


def _skipped(data: Data) -> Html:
    skipped = [(item["path"], item["reason"]) for item in data["skipped"]]
    return section("Skipped", reasons(skipped) if skipped else el("p", "Nothing was skipped."))


# training


def _training(data: Data) -> Html:
    """The losses of each training, epoch by epoch; nothing where nothing was trained."""
    if not data["training"]:
        return joined()
    parts = (part for training in data["training"] for part in _losses(training))
    note = el("p", "Means over the batches of an epoch, distillation included.")
    return section("Training", *parts, note)


def _losses(training: Data) -> Iterable[Html]:
    epochs = training["epochs"]
    columns = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    largest = {name: max(epoch.get(name, 0.0) for epoch in epochs) or 1.0 for name in columns}
    rows = (
        [number(str(i + 1)), *(_loss(epoch.get(name), largest[name]) for name in columns)]
        for i, epoch in enumerate(epochs)
    )
    heads = ["#epoch", *(f"#{name.replace('_', ' ')}" for name in columns)]
    yield el("p", el("code", training["step"]))
    yield table(heads, rows, "Training", class_="losses long" if len(epochs) > _MANY else "losses")


def _loss(value: float | None, largest: float) -> Html:
    if value is None:
        return number("–")
    return number(el("span", track(max(0.0, value / largest)), class_="track"), digits(value, 4))


def _recipe(data: Data) -> Html:
    tables = (["[[steps]]", *(f"{key} = {to_toml(x)}" for key, x in step.items())] for step in data["recipe"])
    text = "\n\n".join("\n".join(lines) for lines in tables)
    note = el("p", "What is not written here is at its default.")
    return section("Recipe", el("pre", text), note, *_tried(data.get("tried")))


def _tried(tried: Data | None) -> Iterable[Html]:
    """What was tried on the target to find the recipe, where it was the target's to choose."""
    if not tried:
        return
    if tried["why_not"]:
        yield el("p", f"Whether float is faster somewhere was not tried: {tried['why_not']}.")
    if tried["rows"]:
        rows = ([cell(row["what"]), number(f"{row['faster']['value']:.2f}×")] for row in tried["rows"])
        yield el("p", f"Tried on the target, and chosen: {tried['chosen']}.")
        yield table(("tried", "#as fast as float"), rows, "Tried")


def _environment(data: Data) -> Html:
    """Where the figures were taken; what is not named here is a version."""
    rest = dict(data["environment"])
    cpu, machine, flags, system = (rest.pop(key) for key in ("cpu", "machine", "flags", "os"))
    cores, threads, busy = (rest.pop(key, None) for key in ("logical_cores", "threads", "others_cores"))
    pairs = {
        "Processor": f"{cpu or 'unknown'} ({machine})",
        "Flags": joined(*(joined(el("code", flag), " ") for flag in flags)) if flags else "unknown",
        "Threads": f"{threads}, of {cores} logical cores",
        "Other work": "unknown" if busy is None else f"{busy:.2f} cores busy while timing",
        "System": system,
        "Versions": ", ".join(f"{name} {version}" for name, version in rest.items() if version),
        **_multiples(data["conditions"].get("multiples")),
    }
    shown = (joined(el("dt", key), el("dd", value)) for key, value in pairs.items())
    return section("Environment", el("dl", *shown, class_="pairs"))


def _multiples(told: Data | None) -> dict[str, str]:
    """What numbers of channels were made multiples of, where this processor's kernels would like others."""
    if not told or told["of"] % told["here"] == 0:
        return {}
    of, here = told["of"], told["here"]
    return {
        "Channels": f"multiples of {of}, so on any machine; kernels of this one take {here} at once (multiple={here})"
    }
