"""The model card of a compressed network: what was done to it, and what it cost and gained, for a hub's README.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lilliput.plain import to_toml
from lilliput.report.figures import digits, interval, signed, size
from lilliput.report.sides import file_sizes

Data = Mapping[str, Any]


def card(data: Data, held: str, base: str = "", library: str = "transformers") -> str:
    """Markdown, of the data of a report; `held` says how the folder beside the card holds the weights."""
    head = ["---", f"library_name: {library}", *([f"base_model: {base}"] if base else []), "tags:", "- lilliput", "---"]
    parts = (
        [f"# {data['name']}, compressed", "", str(data["sentence"])],
        ["| | before | after |", "|---|---|---|", *_rows(data)],
        [f"Judged on {data['agreement']['samples']} samples: {data['agreement']['judged_on']}. {held}"],
        ["## Recipe", "", "```toml", *_recipe(data["recipe"]), "```"],
        [f"Measured with {_environment(data['environment'])}."],
    )
    return "\n".join([*head, "", "\n\n".join("\n".join(part) for part in parts), ""])


def _rows(data: Data) -> Iterator[str]:
    for form, runs_on, before, after in file_sizes(data):
        yield f"| .{form} ({runs_on}) | {size(before)} | {size(after)} |"
    before, after = data["before"], data["after"]
    if before["latency_ms"] and after["latency_ms"]:
        yield f"| milliseconds | {digits(before['latency_ms']['value'])} | {digits(after['latency_ms']['value'])} |"
    if data["metric"]:
        change, name = data["metric"]["change"], data["metric"]["name"]
        ends = f"{signed(change['value'])}, {interval(change, signed)}"
        yield f"| {name} | {digits(before['metric']['value'])} | {digits(after['metric']['value'])} ({ends}) |"


def _recipe(steps: Iterable[Data]) -> list[str]:
    tables = (["[[steps]]", *(f"{key} = {to_toml(x)}" for key, x in step.items())] for step in steps)
    return "\n\n".join("\n".join(lines) for lines in tables).splitlines()


def _environment(told: Data) -> str:
    return ", ".join(f"{key} {told[key]}" for key in ("cpu", "torch", "onnxruntime") if told.get(key))
