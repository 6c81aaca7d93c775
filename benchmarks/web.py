"""Networks in a page, in headless Chromium on one thread, beside ONNX Runtime on one thread of the same machine.

    make bench NAME=web ARGS=lite0    one of them again; the rows of the others stay

Each is tried in float, as built for a CPU, and as built for a page. Wants Chromium, and onnxruntime-web from npm
(`npm install onnxruntime-web`). A page tells what it measured itself; browsers are started anew for each figure.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, OUT
from table import DRY, agreed, write
from timings import PROCESSES, timed

import lilliput as lp
from lilliput.external import bytes_of
from lilliput.formats import save_page
from lilliput.measure import median_ratio
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from chromium import Page

_ASK = "guarded(() => answer(numbers({texts})))"
_FIGURES = "document.getElementById('measured').dataset.figures"


def main() -> None:
    rows, names = [], sys.argv[1:] or list(NETWORKS)
    for name in names:
        rows += list(measure(name))
        print(*rows[-3:], sep="\n", flush=True)
    order = list(NETWORKS)
    write("web", rows, 1, keep=lambda row: row["network"] not in names, order=lambda row: order.index(row["network"]))


def measure(name: str) -> list[dict[str, Any]]:
    task, folder = NETWORKS[name](), OUT / f"web-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    native = lp.targets.OnnxRuntime(threads=1, seconds=0)
    cpu = lp.compress(task, target=native, folder=folder / "cpu").data
    page = lp.compress(task, target=lp.targets.Web(), folder=folder / "page").data
    files = {
        "float": folder / "cpu" / "work" / "original.onnx",
        "as for a CPU": folder / "cpu" / "net.onnx",
        "as for a page": folder / "page" / "net.onnx",
    }
    example = Inputs.of(task.example)
    with torch.no_grad():
        signature = Signature.of(example, example.call(task.model))
    here = timed(files, native, signature, example)
    pages = {build: save_page(folder / f"page {build}", file) for build, file in files.items()}
    asked = [json.dumps(x.tolist()) for x in signature.arguments(example)]
    taken: dict[str, list[dict[str, Any]]] = {build: [] for build in files}
    for _ in range(1 if DRY else PROCESSES):
        for build, index in pages.items():
            taken[build].append(in_chromium(index, asked))
    told = {"float": {}, "as for a CPU": agreed(cpu), "as for a page": agreed(page)}
    floats = here.ms("float")
    return [
        {
            "network": name,
            "build": build,
            "bytes": bytes_of(files[build]),
            **figures(taken[build], taken["float"], floats),
            "native_ms": here.ms(build),
            "others_cores": here.others_cores,
            "browser": taken[build][0]["browser"].partition("HeadlessChrome/")[2].partition(" ")[0],
            "onnxruntime_web": taken[build][0]["runtime"],
            **told[build],
        }
        for build in files
    ]


def in_chromium(index: Path, asked: list[str]) -> dict[str, Any]:
    """What a page measured, once it had answered and measured for longer."""
    with Page(index.resolve().as_uri()) as page:
        page.wait("['ready', 'failed'].includes(document.body?.dataset.state)")
        page.value(_ASK.format(texts=json.dumps(asked)))
        page.value("guarded(() => measure(firstMs, LONG_MS))")
        state = page.value("document.body.dataset.state")
        if state != "answered":
            raise RuntimeError(f"the page is {state}: {page.value('document.body.innerText')}")
        return dict(json.loads(page.value(_FIGURES)))


def figures(taken: list[dict[str, Any]], floats: list[dict[str, Any]], native_float_ms: float) -> dict[str, Any]:
    """Of the browsers, in the middle and at the ends."""
    found: dict[str, Any] = {}
    each = [one["quarter_ms"] for one in taken]
    for column, values in (
        ("page_ms", each),
        ("times_native_float", [ms / native_float_ms for ms in each]),
        ("faster_than_float", [was["quarter_ms"] / ms for was, ms in zip(floats, each, strict=True)]),
        ("first_ms", [one["first_ms"] for one in taken]),
        ("load_ms", [one["load_ms"] for one in taken]),
    ):
        told = median_ratio(values, [1.0] * len(values)).to_json()
        found |= {column: told["value"], f"{column}_low": told["low"], f"{column}_high": told["high"]}
    return {**found, "browsers": len(taken)}


if __name__ == "__main__":
    main()
