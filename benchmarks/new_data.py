"""What examples/new_data.py prints, as rows: accuracies of old and new classes by way of training on new data.

Means over five seeds with the lowest and the highest, which are no interval of the mean.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table import write

EXAMPLE = Path(__file__).parent.parent / "examples" / "new_data.py"
COLUMNS = ("old", "new", "all_ten")
_CELL = re.compile(r"([\d.]+) \( ?([\d.]+) to ([\d.]+)\)")
_RATE = re.compile(r"lr=(\S+)")


def rows(printed: str) -> Iterator[dict[str, Any]]:
    """Each line that shows figures, by its way and rate.

    >>> line = "replay                    94.0 (90.8 to 96.6)  96.6 (95.4 to 97.4)  83.8 (80.5 to 87.1)   lr=0.003"
    >>> next(rows(line))["all_ten_least"]
    80.5
    """
    for line in printed.splitlines():
        cells, rate = _CELL.findall(line), _RATE.search(line)
        if len(cells) == len(COLUMNS):
            row: dict[str, Any] = {"way": re.split(r"\s{2,}", line)[0], "lr": rate[1] if rate else ""}
            for column, (mean, least, most) in zip(COLUMNS, cells, strict=True):
                row |= {column: float(mean), f"{column}_least": float(least), f"{column}_most": float(most)}
            yield row


def main() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], check=True, capture_output=True, text=True)
    print(done.stdout, flush=True)
    write("new_data", rows(done.stdout), 1)


if __name__ == "__main__":
    main()
