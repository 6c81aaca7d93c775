"""Edits and attributes that reach for what is none of a file's business, or ask for more than it pays for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import forge
import golden
import pytest
import torch
from torch import nn

from lilliput.errors import FormatError
from lilliput.file.container import Reader
from lilliput.file.lil import read_into
from lilliput.model.edits.structure import KeepChildren, KeepEntries, SetFactor, SetNumber

TAKEN = forge.apart(golden.MODULE.read_bytes())
CONV, FC, UP, THIN, LAST, RELU = 2, 3, 4, 5, 6, 8  # places of edits in the list
DUNDERS = ["__class__", "__dict__", "__init__", "__reduce__", "__getattr__", "__call__", "__del__", "__foo__"]
METHODS = ["forward", "train", "eval", "state_dict", "half", "register_buffer", "zero_grad", "to"]
TORCHS = ["_parameters", "_modules", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "training"]


def load(change: Callable[[dict[str, Any]], Any]) -> nn.Module:
    index = TAKEN.index()
    change(index["header"])
    return read_into(Reader(forge.sealed(index, TAKEN.body)), golden.Net())


def more(tensors: dict[str, str] | None = None, **edit: Any) -> Callable[[dict[str, Any]], Any]:
    """Another edit at the end."""
    return lambda header: header["edits"].append({"edit": edit, "tensors": tensors or {}})


def other(i: int, **fields: Any) -> Callable[[dict[str, Any]], Any]:
    """Other fields of the edit at `i`."""
    return lambda header: header["edits"][i]["edit"].update(fields)


def encoding(i: int, **fields: Any) -> Callable[[dict[str, Any]], Any]:
    """Other fields of the encoding of the edit at `i`."""
    return lambda header: header["edits"][i]["edit"]["encoding"].update(fields)


def at(*place: Any) -> Callable[[dict[str, Any]], Any]:
    """The one attribute of the file at another place."""
    return lambda header: header.update(attributes={":attribute::shift": list(place)})


def test_the_plain_file_loads() -> None:
    net = load(lambda header: None)
    assert isinstance(net.norm, nn.Identity) and torch.isfinite(net(golden.example())).all()


REPLACED = {
    "the model itself": ("", "no such module"),
    "nothing": ("nothing", "no such module"),
    "a tensor": ("fc.bias", "no such module"),
    "what holds an encoding": ("conv.weight_encoded", "no such module"),
    "within an encoding": ("up.weight_encoded.scale", "leads into an encoding"),
    "the encoders of values": ("value_encodings", "no such module"),
    **{name: (name, "no such module") for name in (*DUNDERS, *METHODS, *TORCHS)},
    "through a dunder": ("__class__.x", "no such module"),
    "through a method": ("forward.__globals__", "no such module"),
    "a number": (5, "cannot be read"),
    "a list": (["norm"], "cannot be read"),
    "an object": ({"kind": "Replace", "path": "norm"}, "cannot be read"),
    "dots": ("....", "no such module"),
    "100,000 dots": ("." * 100_000, "no such module"),
}


@pytest.mark.parametrize("kind", REPLACED)
def test_only_modules_are_replaced(kind: str, refused: Any) -> None:
    path, hint = REPLACED[kind]
    refused(hint, load, more(kind="Replace", path=path))


@pytest.mark.parametrize("by", ["Linear", "os.system", "Module", "identity", "", "__class__", "torch.nn.Identity"])
def test_only_by_what_is_listed(by: str, refused: Any) -> None:
    refused("no module may be replaced by", load, more(kind="Replace", path="thin", by=by))


DIVIDED: dict[str, tuple[dict[str, Any], str]] = {
    "the model itself": ({"path": ""}, "no such module"),
    "what holds an encoding": ({"path": "conv.weight_encoded"}, "no such module"),
    "through a dunder": ({"path": "__class__.x"}, "no such module"),
    "what is encoded": ({}, "is not a plain convolution"),
    "what is no convolution": ({"path": "last"}, "Linear is not a plain convolution"),
    "channels without end": ({"outputs": [1 << 62, 8]}, "is not a plain|parts of"),
    "channels of a fraction": ({"outputs": [2.0, 8]}, "cannot be read"),
    "channels that are true": ({"outputs": [True, 8]}, "cannot be read"),
    "channels that are a number": ({"outputs": 8}, "cannot be read"),
    "axes that are numbers": ({"axes": [0, 1]}, "cannot be read"),
    "a field too few": ({"groups": None}, "cannot be read"),
    "layers of its own": ({"axes": [{"kind": "Replace", "path": "fc"}, [0, 1]]}, "cannot be read"),
}


@pytest.mark.parametrize("kind", DIVIDED)
def test_only_convolutions_are_divided(kind: str, refused: Any) -> None:
    fields, hint = DIVIDED[kind]
    plain = {"kind": "Divide", "path": "conv", "outputs": [2, 8], "axes": [[0], [1]], "groups": [1, 1]}
    refused(hint, load, more(**{**plain, **fields}))


def test_a_layer_is_not_divided_twice(refused: Any) -> None:
    plain = {"kind": "Divide", "path": "conv", "outputs": [2, 8], "axes": [[0], [1]], "groups": [1, 1]}

    def twice(header: dict[str, Any]) -> None:
        header["edits"][:0] = [{"edit": plain, "tensors": {}}] * 2

    refused("changed twice", load, twice)


def test_parts_need_their_tensors(refused: Any) -> None:
    plain = {"kind": "Divide", "path": "conv", "outputs": [2, 8], "axes": [[0], [1]], "groups": [1, 1]}
    refused("has no tensor|lacks", load, lambda header: header["edits"].insert(0, {"edit": plain, "tensors": {}}))


UNREADABLE: dict[str, Any] = {
    "null": None,
    "a list": [],
    "a number": 5,
    "an edit without its tensors": {"edit": {"kind": "Replace", "path": "norm"}},
    "no kind": {"edit": {"path": "norm"}, "tensors": {}},
    "a kind that is a list": {"edit": {"kind": ["Replace"]}, "tensors": {}},
    "an unknown kind": {"edit": {"kind": "Execute", "path": "norm"}, "tensors": {}},
    "a kind of Python": {"edit": {"kind": "__import__", "name": "os"}, "tensors": {}},
    "a kind of torch": {"edit": {"kind": "Linear", "in_features": 1}, "tensors": {}},
    "a class of ours that is none": {"edit": {"kind": "Edit"}, "tensors": {}},
    "an encoding in place of an edit": {"edit": {"kind": "Int"}, "tensors": {}},
    "a field too many": {"edit": {"kind": "Replace", "path": "norm", "_change": "x"}, "tensors": {}},
    "a field too few": {"edit": {"kind": "EncodeTensor", "paths": ["fc.weight"]}, "tensors": {}},
    "edits within edits": {"edit": {"kind": "SetTensor", "path": {"kind": "SetTensor", "path": "x"}}, "tensors": {}},
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_edit_is_refused(kind: str, refused: Any) -> None:
    refused("an edit cannot be read", load, lambda header: header["edits"].append(UNREADABLE[kind]))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no path": (other(UP, paths=[]), "without a path"),
    "paths that are a string": (other(UP, paths="up.weight"), "cannot be read"),
    "paths that are a number": (other(UP, paths=5), "cannot be read"),
    "paths within paths": (other(UP, paths=[["up.weight"]]), "cannot be read"),
    "a path twice": (other(UP, paths=["up.weight", "down.weight"] * 5000), "changed twice"),
    "half of a tie": (other(UP, paths=["up.weight"]), "a tensor tied to down.weight"),
    "a path to a buffer": (other(UP, paths=["steps"]), "has no tensor"),
    "a path to a module": (other(UP, paths=["up"]), "has no tensor"),
    "a path into an encoding": (more(kind="SetTensor", path="conv.weight_encoded.latent"), "leads into an encoding"),
    "a path into the encoders of values": (more(kind="SetTensor", path="value_encodings.x"), "leads into an encoding"),
    "a tensor without its value": (more(kind="SetTensor", path="fc.bias"), "does not fit together"),
    "a tensor of another shape": (more({"value": "gain"}, kind="SetTensor", path="last.bias"), "last.bias"),
    "integers for floats": (more({"value": "steps"}, kind="SetTensor", path="norm.bias"), "norm"),
    **{
        f"a tensor called {name}": (more({"value": "gain"}, kind="SetTensor", path=f"fc.{name}"), "has no tensor")
        for name in (*DUNDERS, *METHODS, *TORCHS)
    },
    "a shape below zero": (other(UP, shape=[-16, -16]), "a tensor of shape"),
    "a shape of terabytes": (other(UP, shape=[1 << 30, 1 << 30]), "a tensor of shape"),
    "a shape of fractions": (other(UP, shape=[16.0, 16.0]), "cannot be read"),
    "a shape of truths": (other(UP, shape=[True, True]), "cannot be read"),
    "a shape that is a string": (other(UP, shape="16"), "cannot be read"),
    **{
        f"the type {name!r}": (other(UP, dtype=name), "no type of a tensor|cannot be read")
        for name in ("int8", "complex64", "__class__", "_inductor", "onnx", "load", "", ["float32"], 5, None)
    },
    "no encoding": (other(UP, encoding=None), "cannot be read"),
    "a number for an encoding": (other(UP, encoding=8), "cannot be read"),
    "an edit for an encoding": (other(UP, encoding={"kind": "Replace", "path": "x"}), "cannot be read"),
    "groups of nothing": (encoding(UP, group=0), "cannot be read"),
    "groups of less than nothing": (encoding(UP, group=-8), "cannot be read"),
    "groups of a fraction": (encoding(UP, group=8.0), "cannot be read"),
    "groups that do not divide": (encoding(UP, group=7), "do not divide"),
    "groups of 2^62": (encoding(UP, group=1 << 62), "do not divide"),
    "groups of 10^4000": (encoding(UP, group=10**4000), "groups of 1000|do not fit|cannot be read"),
    "an axis that is not there": (encoding(UP, axis=2), "axis 2 of a tensor"),
    "an axis of 2^70": (encoding(UP, axis=1 << 70), "axis"),
    "an axis below zero": (encoding(UP, axis=-1), "cannot be read"),
    "0 bits": (encoding(UP, bits=0), "cannot be read"),
    "2^40 bits": (encoding(UP, bits=1 << 40), "cannot be read"),
    "bits that are true": (encoding(UP, bits=True), "cannot be read"),
    "one scale per atom": (encoding(UP, per="atom"), "cannot be read"),
    "levels without levels": (other(UP, encoding={"kind": "Codebook"}), "do not fit together"),
    "levels by the thousand": (other(UP, encoding={"kind": "Codebook", "n": 1 << 20}), "cannot be read"),
    "places in a table that are numbers": (other(UP, encoding={"kind": "NF4"}), "codes of torch.int8"),
    "signs of no number": (other(UP, encoding={"kind": "Signs", "n": 1 << 40}), "cannot be read"),
    "a float of no format": (other(UP, encoding={"kind": "MiniFloat", "format": ["e4m3"]}), "cannot be read"),
    "scales within scales": (encoding(UP, scale={"kind": "Int", "scale": {"kind": "Int"}}), "give group= as well"),
    "minima that no part holds": (encoding(UP, symmetric=False, minimum={"kind": "Float16"}), "do not fit together"),
    "minima of powers of two": (encoding(UP, symmetric=False, minimum={"kind": "Exponent8"}), "minima as Exponent8"),
    "minima around zero": (encoding(UP, minimum={"kind": "Float16"}), "a minimum where the codes"),
    "minima over minima": (
        encoding(UP, symmetric=False, minimum={"kind": "Int", "symmetric": False, "minimum": {"kind": "Float16"}}),
        "minima as Int",
    ),
    "a minimum that is no one's": (
        lambda header: header["edits"][UP]["tensors"].update(minimum="gain"),
        "do not fit together|lacks",
    ),
    "scales that are sparse": (encoding(UP, scale={"kind": "Sparse"}), "scales as Sparse"),
    "an encoding of itself": (encoding(THIN, values={"kind": "Sparse"}), "cannot be read"),
    "a range at run time for a weight": (
        lambda header: header["edits"][CONV]["edit"].update(encoding={"kind": "Int", "dynamic": 1}),
        "cannot be read",
    ),
    "a value without a name": (other(RELU, value=""), "names no value"),
    "a value that is a number": (other(RELU, value=5), "cannot be read"),
    "a value of Python": (other(RELU, value="__class__"), "names no value"),
    "a value of 10^5000": (other(RELU, value="relu:relu#" + "9" * 5000), "does not fit together"),
    "a value without a scale": (
        lambda header: header["edits"][RELU].update(tensors={}),
        "with the parts none",
    ),
    "a value with a scale for each channel": (
        lambda header: header["edits"][RELU]["tensors"].update(scale="gain"),
        "with the parts offset, scale",
    ),
    "a value with a part too many": (
        lambda header: header["edits"][RELU]["tensors"].update(more="gain"),
        "with the parts more",
    ),
    "a value with a part called forward": (
        lambda header: header["edits"][RELU]["tensors"].update(forward="gain"),
        "with the parts forward",
    ),
    "a value without an encoding": (other(RELU, encoding=None), "cannot be read"),
    "a value with a number for one": (other(RELU, encoding=8), "cannot be read"),
    "a value with an edit for one": (other(RELU, encoding={"kind": "Replace", "path": "x"}), "cannot be read"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_edit_without_sense_is_refused(kind: str, refused: Any) -> None:
    change, hint = CHANGES[kind]
    refused(hint, load, change)


@pytest.mark.parametrize("part", ["encoding", "training", "forward", "shape", "part_names", "_buffers", "latent"])
def test_a_part_hides_nothing(part: str, refused: Any) -> None:
    refused("does not fit|lacks", load, lambda header: header["edits"][UP]["tensors"].update({part: "gain"}))


PLACES: list[tuple[tuple[Any, ...], str]] = [
    *[(("", name), "no such attribute") for name in (*DUNDERS, *METHODS, *TORCHS)],
    *[(("conv", name), "no such attribute") for name in (*DUNDERS, *METHODS, *TORCHS)],
    *[(("", name, "x"), "no such attribute") for name in ("_parameters", "_modules", "_forward_hooks", "__dict__")],
    (("", "_lilliput_structure"), "no such attribute|a tuple where"),
    (("fc", "_lilliput_structure"), "no such attribute"),
    (("", "_lilliput_configs"), "no such attribute"),
    (("fc", "_order_of_tensors"), "a tuple where"),
    (("thin", "_order_of_tensors"), "a tuple where"),
    (("norm", "_order_of_tensors"), "no such attribute"),
    (("conv.weight_encoded", "encoding"), "leads into an encoding"),
    (("conv.weight_encoded", "foo"), "leads into an encoding"),
    (("value_encodings", "foo"), "leads into an encoding"),
    (("", "conv"), "no such attribute"),
    (("", "gain"), "no such attribute"),
    (("fc", "bias"), "no such attribute"),
    (("conv", "weight"), "no such attribute"),
    (("conv", "weight_encoded"), "no such attribute"),
    (("conv", "kernel_size"), "a tuple where"),
    (("conv", "kernel_size", 0), "a int where"),
    (("conv", "kernel_size", -1), "no place"),
    (("conv", "kernel_size", 1 << 70), "no place"),
    (("conv", "kernel_size", "x"), "no place"),
    (("conv", "padding_mode"), "a str where"),
    (("conv", "padding_mode", 0), "no place"),
    (("", "shift", 0), "no place"),
    (("", "shift", "data"), "no place"),
    (("", "not a name"), "no such attribute"),
    (("", "a.b"), "no such attribute"),
    (("", ""), "no such attribute"),
    (("nothing", "x"), "no such module"),
    (("__class__", "x"), "no such module"),
    (("forward", "x"), "no such module"),
    (("",), "an attribute at"),
    ((), "an attribute at"),
    ((0, "shift"), "an attribute at"),
    (("", 0), "an attribute at"),
    (("", ["shift"]), "an attribute at"),
    (("", "shift", None), "an attribute at"),
    (("", "shift", True), "an attribute at"),
    (("", "shift", 1.0), "an attribute at"),
    (("", "shift", *range(1000)), "no place"),
]


@pytest.mark.parametrize(("place", "hint"), PLACES, ids=lambda x: repr(x)[:40])
def test_an_attribute_lies_where_a_tensor_may(place: tuple[Any, ...], hint: str, refused: Any) -> None:
    refused(hint, load, at(*place))


@pytest.mark.parametrize(
    "value", [None, [], "x", 5, {"nothing": ["", "shift"]}, {":attribute::shift": "shift"}], ids=str
)
def test_attributes_without_sense_are_refused(value: Any, refused: Any) -> None:
    refused(
        "no dict of attributes|holds no tensor|an attribute at", load, lambda header: header.update(attributes=value)
    )


def test_a_tensor_that_the_constructor_leaves_out_gets_its_place() -> None:
    assert torch.is_tensor(load(at("fc", "anchor")).fc.anchor)


@pytest.mark.parametrize("name", ["edits", "buffers", "aliases", "attributes"])
@pytest.mark.parametrize("value", [None, 5, "x", True, 1.5], ids=str)
def test_a_header_of_other_types_is_refused(name: str, value: Any, refused: Any) -> None:
    refused(f"of {name}", load, lambda header: header.update({name: value}))


def test_nothing_is_imported_for_a_file() -> None:
    """A name in a file makes torch import none of its lazy parts."""
    before = set(sys.modules)
    for name in ("_inductor", "_export", "onnx", "_dynamo"):
        with pytest.raises(Exception, match="no type of a tensor"):
            load(other(UP, dtype=name))
    new = {name for name in set(sys.modules) - before if name.startswith("torch.")}
    assert not new


# What only a limit of memory and time can tell


def victim(edit: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Callable[[], Any]:
    """A linear layer of 64 inputs and outputs, and an edit of its weight."""

    def attack() -> nn.Module:
        parts = {name.removeprefix("0.weight_encoded."): name for name in tensors}
        full = {"kind": "EncodeTensor", "paths": ["0.weight"], "shape": [64, 64], "dtype": "float32", **edit}
        data = forge.module(tensors, edits=[{"edit": full, "tensors": parts}])
        return read_into(Reader(data), nn.Sequential(nn.Linear(64, 64, bias=False)))

    return attack


CODES = {"0.weight_encoded.codes": ("int8", (64, 64), bytes(4096))}


def scaled(*shape: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    count = 1
    for n in shape:
        count *= n
    return {**CODES, "0.weight_encoded.scale": ("float32", shape, b"\0\0\x80\x3f" * count)}


def again() -> Any:
    """Three thousand times the same edit."""
    return load(lambda header: header["edits"].extend(header["edits"][CONV : CONV + 1] * 3000))


OUTER = {"0.weight_encoded.codes": ("int8", (1, 1 << 16), bytes(1 << 16))}
CAPPED: dict[str, Callable[[], Any]] = {
    "scales spread over groups of 10^9": victim({"encoding": {"kind": "Int", "group": 10**9}}, scaled(64, 1)),
    "scales spread over groups of 2^40": victim({"encoding": {"kind": "Int", "group": 1 << 40}}, scaled(64, 1)),
    "many scales in groups": victim({"encoding": {"kind": "Int", "group": 64}}, scaled(64, 256)),
    "many scales along an axis": victim({"encoding": {"kind": "Int", "axis": 1}}, scaled(4096)),
    "scales of ten axes": victim({"encoding": {"kind": "Int"}}, scaled(*[2] * 10)),
    "codes laid out along scales": victim(
        {"encoding": {"kind": "Int"}}, {**scaled(64), "0.weight_encoded.codes": ("int8", (64, 1), bytes(64))}
    ),
    "codes of another shape": victim({"encoding": {"kind": "Int"}}, {**scaled(64), **OUTER}),
    "values of another shape": victim(
        {"encoding": {"kind": "Sparse"}}, {"0.weight_encoded.values": ("float32", (1,), bytes(4))}
    ),
    "the same edit again": again,
}


@pytest.mark.parametrize("kind", CAPPED)
def test_in_little_memory(kind: str, capped: Any) -> None:
    capped(kind, "do not fit together|do not divide|changed twice")


SHRUNK = {
    "larger": ({"kind": "Resize", "paths": ["fc.bias"], "shape": [17]}, "where one of at least"),
    "another rank": ({"kind": "Resize", "paths": ["fc.bias"], "shape": [16, 1]}, "where one of at least"),
    "huge": ({"kind": "Resize", "paths": ["fc.bias"], "shape": [1 << 60]}, "where one of at least"),
    "negative": ({"kind": "Resize", "paths": ["fc.bias"], "shape": [-1]}, "where one of at least"),
    "empty": ({"kind": "Resize", "paths": ["last.bias"], "shape": [0]}, "where one of at least"),
    "no path": ({"kind": "Resize", "paths": [], "shape": [1]}, "without a path"),
    "no tensor": ({"kind": "Resize", "paths": ["fc"], "shape": [1]}, "no tensor"),
    "within an encoding": (
        {"kind": "Resize", "paths": ["conv.weight_encoded.codes"], "shape": [1]},
        "into an encoding",
    ),
    "a larger number": ({"kind": "SetNumber", "module": "last", "name": "in_features", "value": [99]}, "for one of"),
    "no number left": ({"kind": "SetNumber", "module": "last", "name": "in_features", "value": [0]}, "for one of"),
    "several for one": ({"kind": "SetNumber", "module": "last", "name": "in_features", "value": [1, 1]}, "for one of"),
    "a tuple of millions": ({"kind": "LeaveOut", "path": "fc", "zeros": True, "outputs": 9**9}, "from one module"),
    "a tuple of less than none": ({"kind": "LeaveOut", "path": "fc", "zeros": True, "outputs": -1}, "from one module"),
    "no module to leave out": ({"kind": "LeaveOut", "path": "none", "zeros": True, "outputs": 0}, "no such module"),
    "a number of no config": (
        {"kind": "SetNumber", "module": "last", "name": "weight.in_features", "value": [1]},
        "no config",
    ),
    "a factor for a size": ({"kind": "SetFactor", "module": "last", "name": "in_features", "value": 0.5}, "for 16"),
    "a factor of nothing": ({"kind": "SetFactor", "module": "norm", "name": "eps", "value": 0.0}, "eps of 0.0"),
    "a factor of letters": (
        {"kind": "SetFactor", "module": "norm", "name": "eps", "value": "1"},
        "cannot be read",
    ),
    "entries of a module's own": (
        {"kind": "KeepEntries", "module": "conv", "name": "kernel_size", "count": 2, "kept": [0]},
        "no list",
    ),
    "no list": ({"kind": "KeepChildren", "container": "fc", "count": 1, "kept": [0]}, "is no list"),
    "no module": ({"kind": "KeepChildren", "container": "nothing", "count": 1, "kept": [0]}, "no such module"),
}


@pytest.mark.parametrize("name", SHRUNK)
def test_sizes_only_shrink(name: str) -> None:
    edit, message = SHRUNK[name]
    with pytest.raises(FormatError, match=message):
        load(more(**edit))


@pytest.mark.parametrize("name", [*DUNDERS, *METHODS, *TORCHS, "weight", "nothing", "__class__.x", "kernel_size.0"])
def test_a_number_is_no_way_to_anything_else(name: str) -> None:
    with pytest.raises(FormatError):
        load(more(kind="SetNumber", module="conv", name=name, value=[1]))
    with pytest.raises(FormatError):
        load(more(kind="SetFactor", module="conv", name=name, value=0.5))
    with pytest.raises(FormatError):
        load(more(kind="KeepEntries", module="conv", name=name, count=1, kept=[0]))


class Config:
    """As transformers has them."""

    def __init__(self, width: int = 8, kinds: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.width, self.kinds, self.wide, self.own = width, list(kinds), True, torch.zeros(2)

    def to_dict(self) -> dict[str, Any]:
        return {"width": self.width}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Config:
        return cls(**found)


@pytest.mark.parametrize(
    "edit",
    [
        SetNumber("", "config.width", (9,)),
        SetNumber("", "config.width", (0,)),
        SetNumber("", "config.width", (4, 4)),
        SetNumber("", "config.wide", (1,)),
        SetNumber("", "config.own", (1, 1)),
        SetNumber("", "config", (1,)),
        SetNumber("", "config.", (1,)),
        SetNumber("", "config.to_dict", (1,)),
        SetNumber("", "config.__class__", (1,)),
        SetNumber("", "config.__dict__.width", (1,)),
        SetNumber("", "config.own.requires_grad", (1,)),
        SetNumber("", "other.width", (1,)),
        SetNumber("", ".".join(["config"] * 4000), (1,)),
        KeepEntries("", "config.kinds", 2, (0,)),
        KeepEntries("", "config.kinds", 3, (2, 1)),
        KeepEntries("", "config.kinds", 3, (3,)),
        KeepEntries("", "config.kinds", 3, ()),
        KeepEntries("", "config.width", 8, (0,)),
        KeepEntries("", "config", 3, (0,)),
        SetFactor("", "config.width", 0.5),
        SetFactor("", "factor", float("inf")),
        SetFactor("", "factor", float("nan")),
        SetFactor("", "factor", -1.0),
    ],
    ids=str,
)
def test_a_config_only_shrinks(edit: Any) -> None:
    net = nn.Linear(2, 2)
    net.config = config = Config()
    net.factor = 0.5
    with pytest.raises(FormatError):
        edit.apply(net, {})
    assert config.width == net.config.width == 8 and config.kinds == net.config.kinds == ["a", "b", "c"]


def test_a_config_is_never_changed_where_it_is() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net.config = net[0].config = net[1].config = config = Config()
    SetNumber("", "config.width", (4,)).apply(net, {})
    KeepEntries("1", "config.kinds", 3, (0, 2)).apply(net, {})
    assert net.config is net[0].config is net[1].config is not config
    assert (net.config.width, net.config.kinds) == (4, ["a", "c"]) and (config.width, len(config.kinds)) == (8, 3)


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [-1], [2], [0, 1, 2]])
def test_lists_lose_children_and_nothing_else(kept: list[int]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(FormatError, match="cannot keep"):
        KeepChildren("", 2, tuple(kept)).apply(net, {})
