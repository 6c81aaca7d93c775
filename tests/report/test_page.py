from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from lilliput.recipe import Recipe
from lilliput.report.page import page

_VOID = {"meta", "wbr"}


def _measured(value: float, low: float | None, high: float | None, samples: int = 20) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "samples": samples}


def _side(onnx: int, loaded: dict[str, Any], ms: float, metric: float) -> dict[str, Any]:
    return {
        "metric": _measured(metric, metric - 0.01, metric + 0.01, 1000),
        "latency_ms": {**_measured(ms, 0.98 * ms, 1.02 * ms), "unit": "ms"},
        "parameters": 4_652_008,
        "macs": 385_187_552,
        "artifacts": [
            {**loaded, "runs_on": "lilliput.load"},
            {"format": "onnx", "bytes": onnx, "runs_on": "onnxruntime"},
        ],
    }


def _layer(path: str, runs_as: str = "int8 kernel", **fields: Any) -> dict[str, Any]:
    row = {"path": path, "ties": [], "op": "linear", "shape": [64, 32], "encoding": "Int(symmetric=True)"}
    figures = {
        "activations": "Int()",
        "bits_per_weight": 7.9,
        "nominal_bits": 8.5,
        "bytes": 2000,
        "zeros": 0.01,
        "sqnr_db": 41.34,
    }
    return {**row, **figures, "runs_as": runs_as, **fields}


def _answer(kind: str, place: str = "", **figures: Any) -> dict[str, Any]:
    errors = {"relative_error": _measured(0.06, 0.05, 0.07, 500), "worst": 17, "worst_error": 0.234}
    told = {"samples": 500, "largest_error": 0.791, "sqnr_db": 24.49, "constant": False}
    return {"place": place, "kind": kind, **told, **errors, "figures": figures}


def _report() -> dict[str, Any]:
    departure = {"largest_error": 0.139, "sqnr_db": 30.95}
    near = {"judged_on": "evaluation batches", "samples": 500, "doubts": []}
    return {
        "schema": 1,
        "name": "SmallNet",
        "target": "onnxruntime",
        "runs_here": True,
        "outcome": "done",
        "sentence": "The .onnx file is 3.79× smaller.",
        "speed": "1.67× faster",
        "before": _side(18_549_188, {"format": "tensors", "bytes": 17_348_092, "coded_bytes": 14_100_000}, 5.232, 0.9),
        "after": _side(4_890_063, {"format": "lil", "bytes": 4_452_645}, 3.135, 0.85),
        "ratio": {"smaller": 3.793, "smaller_file": 3.896, "faster": _measured(1.667, 1.654, 1.711)},
        "metric": {"name": "top1", "higher_is_better": True, "change": _measured(-0.05, -0.07, -0.03, 1000)},
        "agreement": {**near, "outputs": [_answer("classes", same_answer=_measured(0.994, 0.981, 0.998, 500))]},
        "conditions": {
            "timed_on": {"0": [1, 3, 8, 8]},
            "calibration_samples": 8,
            "clusters": None,
            "confidence": 0.95,
            "may_saturate": False,
        },
        "export": {"before": departure, "after": departure},
        "capture": {"rung": "whole", "problems": {}},
        "layers": [_layer("body.0.weight"), _layer("head.weight", ties=["embed.weight"])],
        "skipped": [],
        "training": [],
        "recipe": [{"kind": "Quantize", "activations": {"kind": "Int", "dynamic": True}, "where": "!x"}],
        "environment": {
            "cpu": "Some CPU", "machine": "x86_64", "flags": ["avx2"], "logical_cores": 4, "threads": 2,
            "os": "Linux 6.1", "python": "3.11.7", "lilliput": None, "torch": "2.13.0", "others_cores": 0.0,
        },
    }  # fmt: skip


class _Reader(HTMLParser):
    """Gathers the visible text, and checks that every element is closed by its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)


def _read(data: dict[str, Any]) -> tuple[str, set[str]]:
    """The page's text, with every run of white space as one space, and the names of its elements."""
    reader = _Reader()
    reader.feed(page(data))
    reader.close()
    assert not reader.open
    return " ".join("".join(reader.parts).split()), reader.tags


def _text(data: dict[str, Any]) -> str:
    return _read(data)[0]


def test_the_result_and_the_key_figures_are_shown() -> None:
    text = _text(_report())
    assert "The .onnx file is 3.79× smaller." in text
    assert "The .onnx file, which onnxruntime runs" in text and "18.5 MB → 4.89 MB" in text
    assert "The .lil file, to store and send" in text and "17.3 MB → 4.45 MB" in text
    assert "1.67× faster" in text and "95 % interval 1.65 to 1.71" in text
    assert "95 % interval 98.1 % to 99.8 %" in text and "judged on evaluation batches, 500 samples" in text
    assert "0.9000 → 0.8500" in text and "−0.050 change" in text and "worse than before" in text


def test_the_page_needs_nothing_beside_it() -> None:
    shown = page(_report())
    assert not re.search(r"https?:|//\w|@import|url\(", shown)
    assert not _read(_report())[1] & {"script", "link", "img", "iframe", "object", "base", "form"}


def test_every_text_of_the_report_is_escaped() -> None:
    attack = "<script>alert('1')</script>\"&'"

    def attacked(thing: Any, key: str = "") -> Any:
        if isinstance(thing, dict):
            return {name: attacked(x, name) for name, x in thing.items()}
        if isinstance(thing, list):
            return [attacked(x, key) for x in thing]
        kept = key in ("format", "kind", "speed", "runs_on", "target")
        return f"{thing}{attack}" if isinstance(thing, str) and not kept else thing

    data = attacked(_report())
    data["target"] = data["before"]["artifacts"][1]["runs_on"] = data["after"]["artifacts"][1]["runs_on"] = attack
    data["speed"] = f"no speed-up: {attack}"
    data["skipped"] = [{"path": attack, "reason": attack}]
    data["capture"]["problems"] = {attack: attack}
    data["recipe"] = [{"kind": attack, "where": [attack]}]
    text, tags = _read(data)
    assert "script" not in tags and "alert" not in "".join(tags)
    assert text.count("<script>alert('1')</script>") > 20


def test_the_outcome_and_the_reason_for_no_speed_up_stand_at_the_top() -> None:
    data = {**_report(), "outcome": "not met", "speed": "no speed-up: no layer runs on integers"}
    text = _text(data)
    assert "not met" in text[: text.index("smaller")]
    assert "No speed-up. No layer runs on integers." in text[: text.index("to store and send")]
    assert "No speed-up" not in _text(_report())


def test_a_file_that_grew_is_called_larger() -> None:
    data = _report()
    data["ratio"]["smaller"] = 0.8
    assert "1.25× larger" in _text(data)


def test_skipped_layers_are_listed_with_their_reasons() -> None:
    assert "Nothing was skipped." in _text(_report())
    reason = "groups of 128 do not divide 72 inputs"
    data = {**_report(), "skipped": [{"path": f"layer{i}.conv", "reason": reason} for i in range(3)]}
    text = _text(data)
    assert text.count(reason) == 1 and all(f"layer{i}.conv" in text for i in range(3))
    assert "Nothing was skipped." not in text


def test_layers_are_shown_with_their_ties_and_counted_by_how_they_run() -> None:
    data = _report()
    data["layers"].append(_layer("stem.weight", "size only: decoded to float", bytes=500, sqnr_db=None))
    text = _text(data)
    assert "head.weightalso embed.weight" in text and "64 × 32" in text and "41.3" in text
    assert "int8 kernel: 2 of 3, 4.00 kB" in text and "size only: 1 of 3, 500 B" in text
    assert "These weights take 4,500 bytes of the .lil file; the other 4,448,145 hold" in text
    assert "Coding alone, without loss, would bring the original from 17.3 MB to 14.1 MB." in text


def test_losses_are_shown_epoch_by_epoch() -> None:
    data = _report()
    assert "Training" not in _text(data)
    epochs = [{"loss": 0.75, "validation_loss": 0.5}, {"loss": 0.25, "validation_loss": 0.4}, {"loss": 0.125}]
    data["training"] = [{"step": "Finetune(epochs=3)", "epochs": epochs}]
    text = _text(data)
    assert "Finetune(epochs=3)epochlossvalidation loss10.75000.500020.25000.400030.1250–" in text


def test_where_it_loses_is_shown_with_causes() -> None:
    assert "Where it loses" not in _text(_report())
    cause = {"kind": "outlier channel", "says": "channel 5 ranges 110×", "remedies": ["Int(7)", "more bits"]}
    row = {
        **{"name": "stem.weight", "pattern": "stem", "op": "conv2d", "weight": "int8 per channel", "values": "uint8"},
        **{
            "own_db": 12.34,
            "own_on": "module",
            "share": 0.61,
            "reached_db": None,
            "without_db": None,
            "causes": [cause],
        },
    }
    found = {"name": "net", "target": "onnxruntime", "on": "module", "judged_on": "evaluation batches", "samples": 4}
    loses = {**found, "output_db": 11.9, "rows": [row], "notes": ["only some were tried"]}
    text = _text({**_report(), "loses": loses})
    assert "with the module on 4 samples of the evaluation batches, the output keeps 11.9 dB" in text
    assert "12.361 %–outlier channel: channel 5 ranges 110×Try: Int(7)Try: more bits" in text
    assert "only some were tried." in text and "if left in float" not in text
    nothing = {**loses, "rows": [], "notes": ["not found: ValueError"]}
    assert "Where it losesnot found: ValueErrorS" in _text({**_report(), "loses": nothing})


def test_a_disturbed_timing_is_a_warning_without_an_interval() -> None:
    data = _report()
    assert "Other work kept" not in _text(data) and "95 % interval 1.65" in _text(data)
    data["speed"] = "about 1.67× faster: other work kept 0.8 of 4 cores busy while it was timed"
    data["ratio"]["faster"] |= {"low": None, "high": None}
    text = _text(data)
    assert "About 1.67× faster. Other work kept 0.8 of 4 cores busy while it was timed." in text
    assert "about 1.67× faster" in text and "no interval" in text and "to open" not in text


def test_a_slower_result_is_called_slower() -> None:
    data = {**_report(), "speed": "1.25× slower: longer than before take head (1 → 2 ms: Gemm)"}
    data["ratio"]["faster"] = _measured(0.8, 0.78, 0.82)
    text = _text(data)
    assert "1.25× slower" in text and "95 % interval 1.22 to 1.28" in text and "head (1 → 2 ms: Gemm)." in text


def test_a_result_that_was_not_timed_has_a_page() -> None:
    data = {**_report(), "speed": "not timed: seconds=0"}
    data["ratio"]["faster"] = data["before"]["latency_ms"] = data["after"]["latency_ms"] = None
    text = _text(data)
    assert "– not timed" in text and "Not timed. Seconds=0." in text and "None" not in text


def test_what_was_tried_is_shown() -> None:
    rows = [{"what": "the target's own recipe", "faster": _measured(0.84, 0.8, 0.9)}]
    tried = {"why_not": "", "rows": rows, "chosen": "weights alone", "recipe": "", "reasons": {}}
    assert "chosen: weights alone" in _text({**_report(), "tried": tried}) and "0.84×" in _text(
        {**_report(), "tried": tried}
    )
    untried = {**tried, "why_not": "seconds=0", "rows": []}
    assert "was not tried: seconds=0." in _text({**_report(), "tried": untried})
    assert "tried" not in _text(_report())


def test_what_could_not_be_captured_is_shown() -> None:
    data = {**_report(), "capture": {"rung": "submodule", "problems": {"": "branches", "a.b": "loops"}}}
    text = _text(data)
    assert "one submodule at a time" in text and "branchesthe whole model" in text and "loopsa.b" in text


def test_figures_that_are_missing_leave_a_page_without_them() -> None:
    data = _report()
    data["metric"] = data["before"]["metric"] = data["after"]["metric"] = None
    figures = {"cosine": _measured(0.994, None, 0.998, 500), "norm_ratio": _measured(0.9, 0.8, 1.0, 500)}
    data["agreement"]["outputs"] = [_answer("embedding", **figures) | {"sqnr_db": None}]
    data["export"]["after"] = dict.fromkeys(data["export"]["after"])
    data["ratio"]["faster"] |= {"low": None, "high": None}
    data["before"]["latency_ms"] |= {"low": None, "high": None}
    data["layers"] = [_layer("", sqnr_db=None, shape=[], bytes=0)]
    text = _text(data)
    assert "Cosine of embeddings" in text and "0.9940" in text and "open to 0.9980" in text
    assert "top1" not in text and "None" not in text and "nan" not in text


def test_a_report_without_layers_flags_or_processor_has_a_page() -> None:
    data = {**_report(), "layers": []}
    data["environment"] |= {"flags": [], "cpu": ""}
    assert "unknown (x86_64)" in _text(data)


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "verdict"),
    [
        (-0.2, 0.1, True, "the interval includes no change"),
        (0.1, 0.2, True, "better than before"),
        (0.1, 0.2, False, "worse than before"),
        (-0.2, -0.1, False, "better than before"),
    ],
)
def test_the_change_of_the_metric_is_put_in_words(
    low: float, high: float, higher_is_better: bool, verdict: str
) -> None:
    data = _report()
    data["metric"] |= {"higher_is_better": higher_is_better, "change": _measured((low + high) / 2, low, high)}
    assert verdict in _text(data)


def test_the_recipe_can_be_copied_from_the_page() -> None:
    reader = re.search(r"<pre>(.*?)</pre>", page(_report()), flags=re.DOTALL)
    assert reader
    copied = Recipe.from_toml(reader.group(1).replace("&quot;", '"'))
    assert "dynamic=True" in repr(copied) and "!x" in repr(copied)


def test_the_data_are_left_as_they_were() -> None:
    data = _report()
    before = copy.deepcopy(data)
    page(data)
    assert data == before


def test_a_processor_on_which_sums_saturate_is_a_warning() -> None:
    data = _report()
    data["conditions"]["may_saturate"] = True
    data["layers"][0] |= {"runs_as": "int8 kernel", "encoding": "int8 per channel"}
    assert "saturate" in page(data)
    data["layers"][0]["encoding"] = "int7 per channel"
    assert "saturate" not in page(data)
