"""From a module to a view of it, at the highest rung that works."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

from lilliput.encodings import Int, Sparse
from lilliput.errors import CaptureError, InputError
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.view import View

if TYPE_CHECKING:
    from conftest import Encode


def view_of(model: nn.Module, example: Any, dynamic: Any = None) -> View:
    """The view, and a check that taking it left the model as it was."""
    modes = [module.training for module in model.modules()]
    types = [type(module) for module in model.modules()]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    inputs = Inputs.of(example)
    given = {key: x.clone() for key, x in inputs.tensors().items()}
    view = capture(model, inputs, dynamic_axes(inputs, dynamic))
    assert [module.training for module in model.modules()] == modes
    assert [type(module) for module in model.modules()] == types
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    close(dict(model.state_dict()), before, rtol=0, atol=0)
    close(inputs.tensors(), given, rtol=0, atol=0)
    return view


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        return self.fc((h + h.flip(-1)).mean((2, 3)))  # type: ignore[no-any-return]


class Masked(nn.Module):
    """Tokens and a mask, by keyword, of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        h = torch.tanh(self.layer(self.embed(tokens))) * scale
        if mask is not None:
            h = h * mask[..., None]
        return {"scores": self.out(h.sum(1))}


class Branch(nn.Module):
    """Looks at its data: cannot be exported whole."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.unused = nn.Linear(8, 8), inner, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.inner(x) if x.sum() > -1e9 else self.unused(x)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Layers in a list, between which it looks at its data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 8)])
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 2)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if x.sum() > -1e9 else x
        return self.heads["a"](x)  # type: ignore[no-any-return]


# the whole model


@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_captured_whole(training: bool) -> None:
    view = view_of(Net().train(training), torch.randn(1, 3, 6, 6))
    assert view.rung == "whole" and not view.problems
    assert set(view.weights) == {"conv.weight", "fc.weight"}
    conv = view.weights["conv.weight"][0]
    assert (conv.op, conv.value, conv.module, conv.weight_shape, conv.bias) == (
        "conv2d",
        "conv:conv2d#0",
        "conv",
        (4, 3, 3, 3),
        "conv.bias",
    )
    after = view.only_reader(conv)
    assert after is not None and after.op == "batch_norm"
    assert isinstance(conv.shape[0], str) and conv.shape[1:] == (4, 6, 6)
    assert view.calls[-1].op == "output" and view.calls[-1].reads == (view.weights["fc.weight"][0].id,)


def test_every_read_is_of_something_known(encode: Encode) -> None:
    model = Net()
    list(encode(model, Sparse(Int(8))))
    view = view_of(model, torch.randn(2, 3, 6, 6))
    assert set(view.weights) == {"conv.weight", "fc.weight"}
    for call in view.calls:
        for read in call.reads:
            assert read is None or read in view.by_id or read.startswith(("tensor ", "input ")), read


def test_encoding_does_not_change_the_calls(encode: Encode) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    before = view_of(model, x)
    list(encode(model, Int(8)))
    after = view_of(model, x)
    assert [(c.op, c.value, c.weights, c.weight_shape, len(c.reads)) for c in after.calls] == [
        (c.op, c.value, c.weights, c.weight_shape, len(c.reads)) for c in before.calls
    ]


@pytest.mark.parametrize(
    ("example", "dynamic"),
    [
        ({"tokens": torch.tensor([[1, 2, 3]])}, None),
        (
            {"tokens": torch.tensor([[1, 2, 3]]), "mask": torch.ones(1, 3)},
            {"tokens": {0: "batch", 1: "tokens"}, "mask": {0: "batch", 1: "tokens"}},
        ),
        (
            {"tokens": torch.ones(2, 4, dtype=torch.long), "mask": torch.ones(2, 4), "scale": 2.0},
            {"tokens": {1: "tokens"}, "mask": {1: "tokens"}},
        ),
        ((torch.tensor([[1, 2, 3]]), torch.ones(1, 3)), {0: {0: "batch", 1: "tokens"}, 1: {0: "batch", 1: "tokens"}}),
        ((torch.tensor([[1]]), torch.ones(1, 1)), {0: {0: "batch", 1: "tokens"}, 1: {0: "batch", 1: "tokens"}}),
        ({"tokens": torch.tensor([[1, 2, 3]])}, {}),
    ],
)
def test_inputs_by_keyword_and_axes_that_vary(example: Any, dynamic: Any) -> None:
    view = view_of(Masked(), example, dynamic)
    assert view.rung == "whole"
    embed, layer = view.weights["embed.weight"][0], view.weights["layer.weight"][0]
    axes = {"batch": 0, "tokens": 1}
    first = {axes[name] for names in dict(dynamic).values() for name in names.values()} if dynamic is not None else {0}
    for axis in (0, 1):
        assert isinstance(layer.shape[axis], str) == (axis in first)
    assert any(read and read.startswith("input ") for read in embed.reads)


@pytest.mark.parametrize(
    ("dynamic", "hint"),
    [
        ({"token": {0: "batch"}}, "tokens"),
        ({"tokens": {2: "x"}}, "2 axes"),
        ({"tokens": {-1: "x"}}, "2 axes"),
        ({0: {0: "x"}}, "tokens"),
    ],
)
def test_axes_that_are_not_there_are_refused(dynamic: Any, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        dynamic_axes(Inputs.of({"tokens": torch.tensor([[1, 2]])}), dynamic)


def test_ties_are_seen_under_their_first_name(tied: type[nn.Module], encode: Encode) -> None:
    model, x = tied(), torch.tensor([[0, 3, 11]])
    for _ in range(2):
        view = view_of(model, x)
        assert view.ties == (("embed.weight", "head.weight"),)
        assert set(view.weights) == {"embed.weight", "body.weight"}
        assert [call.op for call in view.weights["embed.weight"]] == ["embedding", "linear"]
        list(encode(model, Int(8)))


class HeadFirst(nn.Module):
    """A tie whose second name is met first when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.embed = nn.Linear(8, 12, bias=False), nn.Embedding(12, 8)
        self.embed.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))  # type: ignore[no-any-return]


def test_the_first_name_is_that_of_the_module_and_not_of_the_run(encode: Encode) -> None:
    model, x = HeadFirst(), torch.tensor([[0, 3, 11]])
    for _ in range(2):
        view = view_of(model, x)
        assert {path: len(calls) for path, calls in view.weights.items()} == {"head.weight": 2}
        list(encode(model, Int(8)))


def test_a_module_that_is_called_twice_is_two_calls() -> None:
    layer = nn.Linear(8, 8)
    view = view_of(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 8))
    assert {path: [call.value for call in calls] for path, calls in view.weights.items()} == {
        "0.weight": ["0:linear#0", "0:linear#1"]
    }


# lower rungs


@pytest.mark.parametrize("training", [False, True])
def test_what_cannot_be_exported_is_captured_by_its_submodules(training: bool) -> None:
    model = Branch(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))).train(training)
    view = view_of(model, torch.randn(3, 8))
    assert set(view.problems) == {""} and "data" in view.problems[""].lower()
    assert set(view.weights) == {"first.weight", "inner.0.weight", "inner.3.weight"}
    assert [call.value for call in view.weights["inner.3.weight"]] == ["inner.3:linear#0"]
    assert view.only_reader(view.weights["inner.0.weight"][0]).op == "batch_norm"  # type: ignore[union-attr]


def test_the_rung_is_the_lowest_that_was_needed() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x) if x.sum() > -1e9 else x  # type: ignore[no-any-return]

    assert view_of(Two(), torch.randn(3, 8)).rung == "submodule"
    assert view_of(Branch(nn.Linear(8, 4)), torch.randn(3, 8)).rung == "module-local"


def test_rungs_go_down_to_single_modules_with_a_reason_each() -> None:
    view = view_of(Branch(Branch(nn.Linear(8, 4))), torch.randn(3, 8))
    assert view.rung == "module-local" and set(view.problems) == {"", "inner"}
    assert all(": " in reason and len(reason) > 20 for reason in view.problems.values())
    assert set(view.weights) == {"first.weight", "inner.first.weight", "inner.inner.weight"}


def test_layers_in_lists_are_found_below_a_failed_capture(encode: Encode) -> None:
    model, x = Stack(), torch.randn(3, 8)
    for _ in range(2):
        view = view_of(model, x)
        assert view.rung == "module-local" and set(view.problems) == {""}
        assert [call.op for call in view.calls] == [
            "linear",
            "batch_norm",
            "output",
            "linear",
            "output",
            "linear",
            "output",
        ]
        assert set(view.weights) == {"layers.0.0.weight", "layers.1.weight", "heads.a.weight"}
        assert view.weights["layers.0.0.weight"][0].value == "layers.0.0:linear#0"
        list(encode(model, Int(8)))


def test_nothing_that_can_be_captured_is_an_error() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(CaptureError, match="no part"):
        view_of(Opaque(), torch.randn(3))


def test_a_model_that_fails_on_its_example_is_the_users_to_repair() -> None:
    with pytest.raises(InputError, match="fails on its example"):
        view_of(Net(), torch.randn(1, 5, 6, 6))


@pytest.mark.parametrize("example", [3, "x", None, [object()], (torch.zeros(1), float("inf"))])
def test_what_is_no_input_is_refused(example: Any) -> None:
    with pytest.raises(InputError, match=r"give (a tensor|tensors)"):
        Inputs.of(example)


def test_a_captured_copy_is_as_good() -> None:
    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    assert view_of(copy.deepcopy(model), x).calls == view_of(model, x).calls


class Last(nn.Module):
    """A linear layer on the last hidden states of a recurrent one: the outputs of its steps are read by nobody."""

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell, self.fc = cell, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = self.cell(x)[1]
        return self.fc((states[0] if isinstance(states, tuple) else states)[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("cell", "op"),
    [
        (nn.LSTM(4, 8, 2, bidirectional=True), "lstm"),
        (nn.GRU(4, 8, bias=False, batch_first=True), "gru"),
        (nn.RNN(4, 8), "rnn_tanh"),
        (nn.RNN(4, 8, nonlinearity="relu"), "rnn_relu"),
    ],
    ids=["lstm", "gru", "tanh", "relu"],
)
def test_a_recurrent_call_has_all_its_weights_and_leaves_the_steps_open(cell: nn.RNNBase, op: str) -> None:
    view = view_of(Last(cell), torch.randn(5, 3, 4), {0: {0: "steps", 1: "batch"}})
    assert view.rung == "whole"
    (call,) = [call for call in view.calls if call.op == op]
    assert call.value == f"cell:{op}#0" and call.module == "cell" and call.bias is None
    assert call.weights == tuple(f"cell.{name}" for name, x in cell.named_parameters() if x.dim() > 1)
    assert set(view.weights) == {*call.weights, "fc.weight"}
    assert all(view.weights[path] == [call] for path in call.weights)


def test_weights_of_a_recurrent_call_that_are_one_tensor_are_one_weight(encode: Encode) -> None:
    cell = nn.LSTM(8, 8)
    cell.weight_hh_l0 = cell.weight_ih_l0
    net = Last(cell)
    assert list(view_of(net, torch.randn(5, 3, 8)).weights) == ["cell.weight_ih_l0", "fc.weight"]
    list(encode(net, Int(8)))
    assert list(view_of(net, torch.randn(5, 3, 8)).weights) == ["cell.weight_ih_l0", "fc.weight"]


def test_packed_sequences_depend_on_data_and_are_not_captured_whole() -> None:
    class Packed(Last):
        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((x.shape[1],), len(x))
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return self.fc(nn.utils.rnn.pad_packed_sequence(self.cell(packed)[0])[0][-1])  # type: ignore[no-any-return]

    view = view_of(Packed(nn.LSTM(4, 8)), torch.randn(5, 3, 4), {})
    assert view.rung == "module-local" and set(view.weights) == {"fc.weight"}
