"""Answers come back as the module gives them, whatever they are put together from (onnx#4855 asks for types it lacks).

Reported: `(y, None)` came back as a tuple of one, an int key as text, `(y, y.shape[0])` and `(y, True)` were refused,
a bfloat16 answer failed in the runtime. Right: `lp.open` answers with what the module answers with, on other inputs
than the example too; numbers that are lengths of inputs follow them.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import CaptureError, ExportError, FormatError, LilliputError, MeasureError
from lilliput.file.container import Reader
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Outputs, Signature, sound
from lilliput.outputs import flatten_outputs, left_out
from lilliput.structures import parts

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
Pair = namedtuple("Pair", "first second")


@dataclass
class Told:
    hidden: Tensor
    steps: int


class Cache:
    """Nobody can compare it."""


class Answering(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(16, 8), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.layer(x))


def everything(y: Tensor) -> Any:
    return {
        "none": (y, None),
        0: y + 1,
        "list": [y * 2, "text", True, False, None, 2.5, float("inf"), -7],
        "lengths": (y.shape, y.shape[0], y.shape[0] / 4),
        "named": Pair(y - 1, {"deep": Pair(None, y - 2)}),
        "largest": y.max(1),
        "dataclass": Told(y.tanh(), 3),
        "ordered": OrderedDict(b=y.neg(), a=y.exp()),
        "twice": (y, y),
        "empty": ((), [], {}),
        "types": (y.bfloat16(), y.half(), y.double(), y > 0, y.to(torch.int8), torch.complex(y, -y)),
        "eight": y.to(torch.float8_e4m3fn),
    }


def opened(net: nn.Module, example: Any, folder: Path, **given: Any) -> Callable[..., Any]:
    lp.save(folder / "net.lil", net.eval(), example=example, target=TARGET, **given)
    return lp.open(folder / "net.lil", threads=1)


def same(ours: Any, theirs: Any) -> None:
    """Compare what was opened with what the module says, part by part; tensors to a rounding of float32."""
    held = parts(ours)
    if held is None:
        assert type(ours) is type(theirs)
        if isinstance(ours, Tensor):
            assert ours.dtype == theirs.dtype
            if ours.dtype == torch.float8_e4m3fn:  # steps so coarse that few may be missed
                close(theirs.float(), ours.float(), share=0.05)
                return
            steps = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(ours.dtype, 1e-5)
            if ours.is_floating_point() or ours.is_complex():
                close(theirs, ours, rtol=steps, atol=1e-5)
            else:
                assert torch.equal(theirs, ours)
        else:
            assert ours == theirs
        return
    other = parts(theirs)
    assert other is not None and held.kind == other.kind
    assert [key for key, _ in held.items] == [key for key, _ in other.items]
    for (_, a), (_, b) in zip(held.items, other.items, strict=True):
        same(b, a)


def test_every_structure_comes_back_with_the_modules_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Answering(everything)
    run = opened(net, torch.randn(4, 16), tmp_path)
    for rows in (4, 9, 1):
        x = torch.randn(rows, 16)
        with torch.no_grad():
            ours, theirs = run(x), net(x)
        same(theirs, ours)
        assert len(flatten_outputs(ours)) == len(flatten_outputs(theirs)) == 19
    assert type(ours) is type(ours["dataclass"]) is Outputs and ours.dataclass.steps == 3
    assert type(ours["named"]).__name__ == "Pair" and ours["named"].second["deep"].first is None
    _first, nothing = ours["none"]
    assert nothing is None and ours["largest"].indices.dtype == torch.int64 and ours["lengths"][1:] == (1, 0.25)


def test_inputs_and_parameters_that_are_answered_with_pass(tmp_path: Path) -> None:
    net = Answering(lambda y: y)
    net.forward = lambda x: (net.layer(x), x, net.layer.bias + 0, x)  # type: ignore[method-assign,assignment]
    run, x = opened(net, torch.randn(4, 16), tmp_path), torch.randn(3, 16)
    same(net(x), run(x))


@pytest.mark.parametrize(
    ("answer", "where"),
    [(lambda y: (y, Cache()), "1"), (lambda y: {"y": y, "cache": {"all": [Cache()]}}, "cache.all.0")],
)
def test_an_object_nobody_can_compare_is_left_out_and_told(answer: Any, where: str, tmp_path: Path) -> None:
    net, x = Answering(answer), torch.randn(4, 16)
    assert left_out(net(x)) == {where: "Cache"}
    with pytest.warns(UserWarning, match=f"output {where}: left out .* Cache"):
        run = opened(net, x, tmp_path)
    found = run(x)
    expected = flatten_outputs(net(x))
    close(flatten_outputs(found), expected, rtol=1e-5, atol=1e-5)
    assert found[1] is None if isinstance(found, tuple) else list(found) == ["y", "cache"]


def test_the_report_tells_what_was_left_out() -> None:
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(8))])
    small = lp.compress(Answering(lambda y: (y, Cache())), recipe, calibrate=[torch.randn(4, 16)], target=TARGET)
    assert [item["reason"] for item in small.data["skipped"] if item["path"] == "output 1"] == [
        "a Cache is no tensor: it is neither compared nor in what was built"
    ]


def endless(y: Tensor) -> Any:
    held: list[Any] = [y]
    held.append(held)
    return held


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (lambda y: (y, y.shape[0] > 6), CaptureError, "truth value that depends on the length"),
        (lambda y: {(1, 2): y}, ExportError, r"the key \(1, 2\).*give it such keys, or return a tuple"),
        (lambda y: Cache(), CaptureError, "answers with no tensor, but with Cache"),
        (endless, MeasureError, "outputs within outputs"),
    ],
)
def test_what_cannot_be_told_is_refused(answer: Any, kind: type[LilliputError], told: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=told):
        opened(Answering(answer), torch.randn(4, 16), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_remedies_work(tmp_path: Path) -> None:
    x = torch.randn(4, 16)
    longer = Answering(lambda y: (y, y.shape[0] > 6))
    same(longer(x), opened(longer, x, tmp_path, dynamic={})(x))
    pair = Answering(lambda y: (1, 2, y))
    same(pair(x), opened(pair, x, tmp_path)(x))


def test_a_forged_structure_is_refused(tmp_path: Path) -> None:
    good = Signature.of(Inputs.of(torch.ones(1)), everything(torch.ones(2, 3))).outputs
    assert sound(good)
    named = {"named": [["a", "tensor"]], "type": "A"}
    assert sound(named) and sound({"dict": [[0, "int"]]}) and sound({"constant": None})
    for bad in (
        {**named, "type": "A: 1"},
        {**named, "type": "class"},
        {"named": [["a b", "tensor"]], "type": "A"},
        {"named": [["_a", "tensor"]], "type": "A"},
        {"named": [["a", "tensor"], ["a", "tensor"]], "type": "A"},
        {"named": [["a", "tensor"]]},
        {"named": [[0, "tensor"]], "type": "A"},
        {"constant": 1},
        {"constant": []},
        {"tensor": "float32"},
        {"tensor": []},
        {"dict": [[True, "tensor"]]},
        {"dict": [[None, "tensor"]]},
        {"list": ["bytes"]},
        {"tuple": [], "list": []},
        {},
        [],
        None,
    ):
        assert not sound(bad), bad


def test_what_the_header_says_is_plain(tmp_path: Path) -> None:
    opened(Answering(lambda y: (y, None, "a", 3, y.bfloat16())), torch.randn(4, 16), tmp_path)
    told = Reader(tmp_path / "net.lil").header["graph"]["outputs"]
    assert told == {"tuple": ["tensor", {"constant": None}, {"constant": "a"}, "int", {"tensor": "bfloat16"}]}
    with pytest.raises(FormatError):
        lp.open(Path(__file__))
