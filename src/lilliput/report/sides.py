"""The files of both sides, as a page compares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]


def file_sizes(data: Data) -> list[tuple[str, str, int, int]]:
    """Format, what opens it, bytes before and after of each file; what the target runs comes first."""
    before = {item["runs_on"]: item["bytes"] for item in data["before"]["artifacts"]}
    after = sorted(data["after"]["artifacts"], key=lambda item: item["runs_on"] != data["target"])
    return [(x["format"], x["runs_on"], before[x["runs_on"]], x["bytes"]) for x in after]


def what_runs(data: Data) -> str:
    """The file that the target runs, in words."""
    return "the .{} file in {}".format(*file_sizes(data)[0])
