"""What `compress` returns, writes and reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.model.edits.edits import EncodeTensor

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=2)
MEASURED = {"value", "low", "high", "samples"}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    ).eval()


def images(seed: int) -> list[Tensor]:
    return list(torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(seed)).split(16))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> lp.results.Result:
    model, judged = net(), images(2)
    labels = [model(x).argmax(1) for x in judged]
    task = lp.Task(
        model,
        calibrate=images(1),
        evaluate=judged,
        clusters=[i // 8 for i in range(64)],
        metric=lp.metrics.top1(list(zip(judged, labels, strict=True))),
        name="small",
    )
    recipe = lp.Recipe([lp.Quantize(activations=lp.Int(8), where=("*", "!7"))])
    return lp.compress(task, recipe, target=QUICK, folder=tmp_path_factory.mktemp("out"))


def test_report_has_the_schema_that_it_states(result: lp.results.Result) -> None:
    data = json.loads((result.folder / "report.json").read_text())
    assert data["schema"] == 1
    told = {"outcome", "before", "after", "ratio", "agreement", "layers", "skipped", "recipe", "environment"}
    assert told <= set(data)
    for side in ("before", "after"):
        costs = {"latency_ms", "calls", "joules", "throughput", "loading", "macs", "parameters", "nonzero", "distinct"}
        assert {"metric", "artifacts", *costs} == set(data[side])
        assert set(data[side]["latency_ms"]) >= MEASURED
        assert set(data[side]["metric"]) == MEASURED
        assert {artifact["runs_on"] for artifact in data[side]["artifacts"]} == {"onnxruntime", "lilliput.load"}
    assert set(data["ratio"]) == {"smaller", "smaller_file", "faster", "nonzero", "shared", "weight_error"}
    assert set(data["agreement"]) == {"judged_on", "samples", "outputs", "doubts"}
    [answer] = data["agreement"]["outputs"]
    assert answer["kind"] == "classes" and set(answer["figures"]["same_answer"]) == MEASURED  # the metric says so


def test_sizes_are_those_of_the_files(result: lp.results.Result) -> None:
    for artifact in result.data["after"]["artifacts"]:
        assert artifact["bytes"] == (result.folder / f"net.{artifact['format']}").stat().st_size
    before, after = ({a["format"]: a["bytes"] for a in result.data[s]["artifacts"]} for s in ("before", "after"))
    assert result.data["ratio"]["smaller"] == pytest.approx(before["onnx"] / after["onnx"])
    assert result.data["ratio"]["smaller_file"] == pytest.approx(before["tensors"] / after["lil"])
    assert before["tensors"] == sum(x.nbytes for x in net().state_dict().values())


def test_a_result_is_saved_by_either_coder(result: lp.results.Result, tmp_path: Path) -> None:
    dense, fast = (result.save(tmp_path / f"{coder}.lil", coder) for coder in ("dense", "fast"))
    assert dense.read_bytes() == (result.folder / "net.lil").read_bytes()
    assert 1 < fast.stat().st_size / dense.stat().st_size < 1.1
    a, b = (lp.load(path, into=net()).state_dict() for path in (dense, fast))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(lp.errors.LilliputError, match="a coder called 'quick'"):
        result.save(tmp_path / "no.lil", "quick")  # type: ignore[arg-type]
    assert not (tmp_path / "no.lil").exists()


def test_a_result_that_was_trained_on_is_not_written_as_it_was(tmp_path: Path) -> None:
    small = lp.compress(net(), lp.Recipe([lp.Quantize()]), calibrate=[torch.randn(4, 3, 8, 8)], target=QUICK)
    lp.formats.unfreeze(small.model)
    with pytest.raises(
        lp.errors.LilliputError, match=r"result.model: the model was changed.*lilliput.save\(path, result"
    ):
        small.save(tmp_path / "a.lil")
    lp.formats.freeze(small.model)
    small.save(tmp_path / "a.lil")
    with torch.no_grad():
        next(iter(small.model.parameters())).add_(1.0)
    with pytest.raises(lp.errors.LilliputError, match=r"lilliput.export\(path, result.model, example"):
        small.export(tmp_path / "a.onnx")
    x = torch.randn(4, 3, 8, 8)
    lp.save(tmp_path / "b.lil", small.model, example=x[:1])
    with torch.no_grad():
        expected = small.model(x)
    close(lp.open(tmp_path / "b.lil")(x), expected, atol=1e-5, rtol=1e-5)
    session = onnxruntime.InferenceSession(lp.export(tmp_path / "b.onnx", small.model, x[:1]))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


def test_a_recipe_that_only_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    task = lp.Task(
        nn.Linear(8, 4),
        calibrate=[x],
        train=[(x, torch.arange(16) % 4)],
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )
    trained = lp.compress(task, lp.Recipe([lp.Finetune(lr=0.1)]), target=QUICK)
    assert trained.data["training"] and not torch.equal(trained.model.weight, task.model.weight)


def test_every_public_name_is_shown_to_type_checkers() -> None:
    source = Path(lp.__file__).read_text()
    shown = re.findall(r"^    from lilliput(?:\.([\w.]+))? import (\w+) as (\w+)$", source, re.MULTILINE)
    assert {name: place for place, name, again in shown if name == again and place} == lp._PLACES
    assert {name for place, name, _ in shown if not place} == lp._NAMESPACES.keys()


def test_twenty_names_are_at_the_top_and_the_others_are_told_where_they_are() -> None:
    assert len(lp._PLACES) <= 20
    for space, names in lp._NAMESPACES.items():
        listed = set(getattr(getattr(lp, space), "__all__", ())) - {"TARGETS", "target"}
        assert all(hasattr(getattr(lp, space), name) for name in listed), space
        assert listed - lp._PLACES.keys() == set(names), space
    with pytest.raises(AttributeError, match=r"no attribute 'GPTQ'; it is lilliput\.rounding\.GPTQ"):
        lp.GPTQ  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'Levels'$"):
        lp.Levels  # noqa: B018


def test_what_was_left_out_is_listed_with_its_reason(result: lp.results.Result) -> None:
    told = {entry["path"]: entry["reason"] for entry in result.data["skipped"]}
    assert told.keys() == {"0.weight", "7.weight"} and "where" in told["7.weight"]
    assert told["0.weight"].startswith("what it reads stays float")  # a stem, whose weight is encoded


def test_rows_say_how_each_layer_runs(result: lp.results.Result) -> None:
    rows = {row["path"]: row for row in result.data["layers"]}
    assert rows["3.weight"]["runs_as"] == "int8 kernel"
    assert rows["0.weight"]["runs_as"].startswith("size only")
    assert rows["7.weight"]["encoding"] == "float32"
    assert 30 < rows["3.weight"]["sqnr_db"] < 60


def test_module_file_and_export_agree(result: lp.results.Result, tmp_path: Path) -> None:
    x = images(3)[0]
    again = lp.load(result.save(tmp_path / "net.lil"), into=net())
    assert torch.equal(again(x), result.model(x))
    assert type(result.model).__name__ == "Sequential"
    run = lp.open(tmp_path / "net.lil")
    close(run(x), result.model(x).detach(), share=0.02)


def test_reports_are_written_where_asked(result: lp.results.Result, tmp_path: Path) -> None:
    assert "<html" in result.report(tmp_path / "r.html").read_text()
    assert json.loads(result.report(tmp_path / "r.json").read_text())["name"] == "small"
    with pytest.raises(lp.errors.LilliputError, match=r"\.html or \.json"):
        result.report(tmp_path / "r.pdf")


def test_weights_alone_are_called_no_speed_up() -> None:
    small = lp.compress(net(), lp.Recipe([lp.Quantize()]), calibrate=images(1), target=QUICK)
    assert small.data["speed"].startswith("no speed-up: no layer runs on integers")
    assert "no speed-up" in str(small)
    assert small.data["agreement"]["judged_on"] == "calibration batches"


def test_a_compressed_model_is_compressed_again(result: lp.results.Result) -> None:
    task = lp.Task(result.model, calibrate=images(1))
    pruned = lp.compress(task, lp.Recipe([lp.Prune("weights", 0.5)]), target=QUICK)
    zeros = {row["path"]: row["zeros"] for row in pruned.data["layers"]}
    assert all(0.49 < share < 0.6 for share in zeros.values())
    edits = [step.edit for step in pruned.state.steps if isinstance(step.edit, EncodeTensor)]
    assert {repr(edit.encoding).startswith("Sparse") for edit in edits} == {True}


def test_the_target_chooses_a_recipe(tmp_path: Path) -> None:
    seen: list[Any] = []
    small = lp.compress(net(), calibrate=images(1), target=QUICK, progress=lambda *step: seen.append(step))
    assert small.data["recipe"][0]["activations"] == {"kind": "Int"}
    assert {stage for stage, _, _ in seen} >= {"calibrating", "encoding", "timing"}
    assert all(done <= total for _, done, total in seen)
