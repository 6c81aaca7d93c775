"""Networks that people bring: forty of transformers and twenty odd modules, each by default, and half as wide.

Each is compressed with the target's own recipe, saved, loaded into a module made anew, and opened; all must answer as
the compressed module does. Those of transformers also lose half of their channels: `fewer` is how many times fewer
parameters are left. What is refused has a row that says why. What was tried lies in out/doors and is not tried again
at the same commit.

    make bench NAME=doors
    make bench NAME=doors ARGS='xlnet "tied four ways"'     some of them
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from doors_models import LIBRARY
from doors_odd import ODD
from shrunk import Refused, Row, Trial, alone, departure, flat, said, warm
from table import COMMIT, write

import lilliput as lp
from lilliput.errors import LilliputError
from lilliput.outputs import flatten_outputs

EVERY = {**LIBRARY, **ODD}
SECONDS = 300
QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
HALF = lp.Recipe([lp.Prune("channels", 0.5)])
KEPT = Path(__file__).parents[1] / "out" / "doors"
NEAR = 1e-3  # of the largest answer: what reading a file may change, where nothing is rounded anew
ROUNDED = 0.05  # the same, where values are rounded in the runtime and in the module


def inputs_of(name: str) -> tuple[Any, Any]:
    net, given = EVERY[name]()
    return net, given.get("", given)


def called(net: Any, given: Any) -> Any:
    given = torch.utils._pytree.tree_map(lambda x: x.clone(), given)  # some change what they are given
    with torch.no_grad():
        return net(**given) if isinstance(given, dict) else net(*given)


def one(trial: Trial) -> None:
    torch.set_num_threads(1)
    with trial.step("build"):
        net, given = inputs_of(trial.name)
        trial.row["parameters"] = sum(p.numel() for p in net.parameters())
        batches = [given, torch.utils._pytree.tree_map(lambda x: x.roll(1, -1), given)]
    with tempfile.TemporaryDirectory() as folder:
        with trial.step("compress"):
            result = _or_refused(lambda: lp.compress(net, calibrate=batches, target=QUICK, measure=False))
            trial.row |= {"outcome": result.data["outcome"], "smaller": result.data["ratio"]["smaller_file"]}
            right = flatten_outputs(called(result.model.eval(), given))
        with trial.step("save"):
            result.save(path := Path(folder) / "net.lil")
        with trial.step("load"):
            trial.row["loaded_departs"] = departure(trial.load(path), right)
        with trial.step("open"):
            found = flatten_outputs(called(lp.open(path), given))
            trial.row["opened_departs"] = departure(found, right)
        with trial.step("agree"):
            if trial.row["loaded_departs"] > NEAR or trial.row["opened_departs"] > ROUNDED:
                raise AssertionError("what is loaded or opened answers otherwise")
    if trial.name in LIBRARY:
        try:
            small = _or_refused(lambda: lp.apply(lp.Task(inputs_of(trial.name)[0], calibrate=batches), HALF))
            called(small, given)
            trial.row["fewer"] = trial.row["parameters"] / sum(p.numel() for p in small.parameters())
        except Exception as error:  # its own and ours
            trial.row["not_halved"] = said(error)


def _or_refused(work: Any) -> Any:
    try:
        return work()
    except LilliputError as error:
        raise Refused(str(error)) from None


def load(name: str, file: str) -> Any:
    torch.set_num_threads(1)
    net, given = inputs_of(name)
    for p in net.parameters():
        p.data.normal_()  # its numbers come from the file
    return flat(flatten_outputs(called(lp.load(file, net).eval(), given)))


def tried(name: str) -> Row:
    place = KEPT / COMMIT / f"{name.replace(' ', '-')}.json"
    if not place.exists():
        row = alone(one, load, name, SECONDS)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(row))
    row = json.loads(place.read_text())
    print(json.dumps({key: value for key, value in row.items() if not key.endswith("seconds")}), flush=True)
    return dict(row)


def arranged(row: Row) -> Row:
    seconds = sum(value for key, value in row.items() if key.endswith("_cpu_seconds"))
    columns = ("parameters", "outcome", "smaller", "loaded_departs", "opened_departs", "fewer", "not_halved", "error")
    return {
        "network": row["network"],
        "from": "transformers" if row["network"] in LIBRARY else "odd",
        "worked": "all"
        if "failed" not in row
        else "refused"
        if row["failed"] == "refused"
        else f"until {row['failed']}",
        **{key: row.get(key, "") for key in columns},
        "cpu_seconds": seconds,
    }


def main() -> None:
    warm()
    import transformers  # noqa: F401  # once, and not in every process

    rows = [arranged(tried(name)) for name in sys.argv[1:] or EVERY]
    write("doors", rows, threads=1, keep=lambda row: row["network"] not in (sys.argv[1:] or EVERY))
    halved = [row for row in rows if row["from"] == "transformers" and row["fewer"] and row["fewer"] >= 1.5]
    print(
        f"{sum(row['worked'] == 'all' for row in rows)} of {len(rows)} worked; {len(halved)} came down by 1.5 and more"
    )


if __name__ == "__main__":
    main()
