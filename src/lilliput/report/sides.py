"""The files of both sides, as a page compares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lilliput.targets.target import NOT_HERE

Data = Mapping[str, Any]


def file_sizes(data: Data) -> list[tuple[str, str, int, int]]:
    """Format, what opens it, bytes before and after of each file; that for the target comes first."""
    before = {item["runs_on"]: item["bytes"] for item in data["before"]["artifacts"]}
    after = sorted(data["after"]["artifacts"], key=lambda item: item["runs_on"] != data["target"])
    return [(x["format"], x["runs_on"], before[x["runs_on"]], x["bytes"]) for x in after]


def what_runs(data: Data) -> str:
    """The file that the target runs, or would run elsewhere, in words."""
    form, runs_on, *_ = file_sizes(data)[0]
    return f"the .{form} file in {runs_on}" if data["runs_here"] else f"the .{form} file, {NOT_HERE}"


def opener(data: Data, runs_on: str) -> str:
    """What opens a file, in words."""
    return NOT_HERE if runs_on == data["target"] and not data["runs_here"] else f"opened by {runs_on}"
