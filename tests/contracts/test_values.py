"""Values that flow: their names, and what encoding one of them changes."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.encodings import (
    NF4,
    BFloat16,
    Blockwise,
    Encoding,
    Fixed,
    Float16,
    Int,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
)
from lilliput.errors import EncodingError, FormatError
from lilliput.model.carrier.carrier import to_dense
from lilliput.model.edits.edits import EncodeValue
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.values import Interception, Value, attach_value, value_encodings

if TYPE_CHECKING:
    from conftest import Encode


class Residual(nn.Module):
    """One layer called twice, one activation for all, in place, and a sum that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.conv(x)))
        h = self.act(self.conv(self.drop(h)))
        h = h + x
        h += 1
        return F.relu(h, inplace=True)


class Inplace(nn.Module):
    """What an in-place call changed is read again under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        g = self.act(h)
        return h + g


class Many(nn.Module):
    """Calls with several outputs, and with some that do not flow."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.attention = nn.LSTM(8, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h, (last, _) = self.lstm(x)
        h = self.attention(h, h, h)[0] + h
        for block in self.blocks:
            h = torch.tanh(block(h))
        a, b = h.chunk(2, dim=-1)
        best, where = a.max(dim=-1)
        return torch.cat([a * b, best[..., None], where[..., None].to(h.dtype)], dim=-1) + last.mean()


class Shared(nn.Module):
    """One module under two names, and one of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Sequential(self.first, nn.ReLU()), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(self.first(x))
        return x


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 4, 6, 6)),
    "shared": (Shared, (2, 8)),
    "inplace": (Inplace, (2, 4, 6, 6)),
    "many": (Many, (2, 5, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = NETS[request.param]
    return make().eval(), torch.randn(shape)


def seen(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def visit(name: str, value: Tensor) -> Tensor:
        assert name not in found
        found[name] = value.detach().clone()
        return value

    with torch.no_grad(), Interception(model, visit):
        model(x)
    return found


def captured(model: nn.Module, x: Tensor) -> set[str]:
    inputs = Inputs.of(x)
    view = capture(model, inputs, dynamic_axes(inputs, None))
    assert view.rung == "whole"
    return {call.value for call in view.calls if call.value is not None}


# names


def test_names_of_a_residual_net() -> None:
    assert list(seen(Residual().eval(), torch.randn(1, 4, 6, 6))) == [
        "conv:conv2d#0",
        "norm:batch_norm#0",
        "act:relu#0",
        "drop:dropout#0",
        "conv:conv2d#1",
        "act:relu#1",
        ":add#0",
        ":add_#0",
        ":relu#0",
    ]


def test_outputs_have_names_of_their_own() -> None:
    names = set(seen(Many().eval(), torch.randn(2, 5, 8)))
    assert {
        "lstm:lstm#0",
        "lstm:lstm#0[1]",
        "lstm:lstm#0[2]",
        ":chunk#0",
        ":chunk#0[1]",
        ":max#0",
        "blocks.1:linear#0",
    } <= names
    assert ":max#0[1]" not in names  # places are no values


def test_an_eager_run_and_a_captured_graph_agree_on_names(net: tuple[nn.Module, Tensor]) -> None:
    model, x = net
    eager, graph = set(seen(model, x)), captured(model, x)
    assert graph <= eager
    # a graph drops calls that do nothing, and holds no name for what flows nowhere
    assert all(
        Value.parse(name).op in {"dropout", "lstm", "multi_head_attention_forward", "to", "contiguous", "chunk"}
        for name in eager - graph
    )


def test_names_are_the_same_after_encoding(net: tuple[nn.Module, Tensor], encode: Encode) -> None:
    model, x = net
    eager, graph = list(seen(model, x)), captured(model, x)
    list(encode(model, Sparse(Int(8))))
    assert list(seen(model, x)) == eager and captured(model, x) == graph
    for name in sorted(graph)[::3]:
        attach_value(model, name, Int(8, symmetric=False, per="tensor"), GRID)
    own = [name for name in seen(model, x) if not Value.parse(name).op.startswith("project_")]
    assert own == eager
    assert {name for name in captured(model, x) if not Value.parse(name).op.startswith("project_")} == graph


def test_names_are_the_same_in_training(net: tuple[nn.Module, Tensor]) -> None:
    model, x = net
    assert list(seen(copy.deepcopy(model).train(), x)) == list(seen(model, x))


@pytest.mark.parametrize("name", ["", "conv", "conv:conv2d", "conv:conv2d#x", "a:b#0@", "a:b#0[1", 'a:b#0"'])
def test_what_names_no_value_is_refused(name: str) -> None:
    with pytest.raises(EncodingError, match="write it as"):
        attach_value(Residual(), name, Int(8), {})


@pytest.mark.parametrize(
    "value", [Value("a.b", "add", 3), Value("", "lstm", 0, 2), Value("c", "conv2d", 0, operand=1)], ids=str
)
def test_a_name_is_read_as_it_is_written(value: Value) -> None:
    assert Value.parse(str(value)) == value


# encoding a value

GRID = {"scale": torch.tensor(0.05), "offset": torch.tensor(128, dtype=torch.uint8)}
UNSIGNED = Int(8, symmetric=False, per="tensor")


def rounded(x: Tensor) -> Tensor:
    """To the grid and back, with gradients passing straight through inside it."""
    codes = torch.round(x / 0.05) + 128
    inside = ((codes >= 0) & (codes <= 255)).to(x.dtype)
    grid = (codes.clamp(0, 255) - 128) * 0.05
    return (x * inside) + (grid - x * inside).detach()


def residual_by_hand(net: Residual, x: Tensor, at: str) -> Tensor:
    def mark(name: str, value: Tensor) -> Tensor:
        return rounded(value) if name == at else value

    def operand(name: str, value: Tensor) -> Tensor:
        return mark(name, value)

    h = mark("conv:conv2d#0", net.conv(operand("conv:conv2d#0@0", x)))
    h = mark("norm:batch_norm#0", net.norm(h))
    h = mark("act:relu#0", torch.relu(h))
    h = mark("conv:conv2d#1", net.conv(operand("conv:conv2d#1@0", h)))
    h = mark("act:relu#1", torch.relu(h))
    h = mark(":add#0", operand(":add#0@0", h) + operand(":add#0@1", x))
    return mark(":relu#0", torch.relu(mark(":add_#0", h + 1)))


PLACES = [
    "conv:conv2d#0",
    "conv:conv2d#1",
    "conv:conv2d#1@0",
    "conv:conv2d#0@0",
    "act:relu#0",
    "act:relu#1",
    ":add#0",
    ":add#0@1",
    ":relu#0",
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_exactly_the_named_value_is_encoded(name: str, training: bool) -> None:
    plain = Residual().train(training)
    model, x = copy.deepcopy(plain), 3 * torch.randn(2, 4, 6, 6)
    attach_value(model, name, UNSIGNED, GRID)
    given, by_hand = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = model(given), residual_by_hand(plain, by_hand, name)
    close(out, expected)
    assert not torch.allclose(out, copy.deepcopy(plain)(x))
    out.square().sum().backward()
    expected.square().sum().backward()
    close(given.grad, by_hand.grad)
    close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_a_value_is_what_a_call_returns_and_not_what_it_changed_in_place() -> None:
    plain = Inplace().eval()
    model, x = copy.deepcopy(plain), torch.randn(2, 4, 6, 6)
    attach_value(model, "act:relu#0", UNSIGNED, GRID)
    with torch.no_grad():
        exact = torch.relu(plain.conv(x))
        close(model(x), exact + rounded(exact))
        exported = torch.export.export(model, (x,), strict=False).module()
        close(exported(x), model(x))  # so the file says the same


def test_one_output_of_many_is_encoded() -> None:
    plain, x = nn.LSTM(8, 8, batch_first=True).eval(), torch.randn(2, 5, 8)
    model = copy.deepcopy(plain)
    attach_value(model, ":lstm#0[1]", UNSIGNED, GRID)
    with torch.no_grad():
        out, (h, c) = plain(x)
        now, (h_now, c_now) = model(x)
    close((now, h_now, c_now), (out, rounded(h), c))


def test_the_dynamic_range_is_that_of_each_run() -> None:
    model = nn.Sequential(nn.ReLU())
    attach_value(model, "0:relu#0", Int(4, dynamic=True), {})
    for size in (0.01, 1.0, 100.0):
        x = size * torch.linspace(-1, 1, 31)
        step = size / 15
        close(model(x), torch.round(torch.relu(x) / step) * step)
    close(model(torch.zeros(3)), torch.zeros(3))


def nearest_by_hand(x: Tensor, numbers: list[float]) -> Tensor:
    """Each element at the nearest of some numbers, of two equally near the lower."""
    flat = [min(sorted(numbers), key=lambda number, x=x: abs(number - x)) for x in x.flatten().tolist()]  # type: ignore[misc]
    return torch.tensor(flat).reshape(x.shape)


GRIDS = [PowerOfTwo(4), PowerOfTwo(3, signed=False), Signs(2), Signs(3), NF4(), MiniFloat("e4m3"), MiniFloat("e5m2")]


@pytest.mark.parametrize("encoding", GRIDS, ids=repr)
def test_a_value_is_at_the_nearest_number_times_its_scale(encoding: Any) -> None:
    scale, x = torch.tensor(0.37), torch.randn(4, 25, requires_grad=True)
    out = encoding.project_value(x, {"scale": scale})
    numbers = [number * scale.item() for number in encoding.table() if number == number]
    close(out.detach(), nearest_by_hand(x.detach(), numbers), rtol=1e-6, atol=1e-6)
    out.sum().backward()
    inside = (x >= min(numbers)) & (x <= max(numbers))
    close(x.grad, inside.float())


def group_by_hand(group: Tensor, tables: list[list[float]]) -> Tensor:
    """A group on each table at the scale that reaches its ends, moved once to the least error; the better of them."""
    found = []
    for numbers in tables:
        scale = max(group.max().item() / max(numbers), group.min().item() / (min(numbers) or 1.0), 0.0) or 1.0
        near = nearest_by_hand(group / scale, numbers)
        squares, products = float((near * near).sum()), float((near * group).sum())
        scale = products / squares if squares > 0 and products > 0 else scale
        found.append(nearest_by_hand(group / scale, numbers) * scale)
    return min(found, key=lambda near: float((near - group).square().sum()))


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("encoding", [*(GRIDS[:5]), Blockwise(3)], ids=repr)
def test_each_group_has_a_scale_of_its_own_run(encoding: Any, axis: int) -> None:
    x = (torch.randn(2, 8, 3, 8) * torch.logspace(-2, 1, 8)).requires_grad_()
    if isinstance(encoding, Blockwise):
        tables = [[-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1], [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]]
        flowing = Blockwise(3, group=4, axis=axis)
    else:
        tables = [list(encoding.table())]
        flowing = type(encoding)(**{**vars(encoding), "group": 4, "axis": axis, "dynamic": True})
    out = flowing.for_value().project_value(x, {})
    moved, ours = x.detach().movedim(axis, -1), out.detach().movedim(axis, -1)
    for group, mine in zip(moved.reshape(-1, 4), ours.reshape(-1, 4), strict=True):
        close(mine, group_by_hand(group, tables), rtol=1e-4, atol=1e-6)
    out.sum().backward()
    close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    ("encoding", "parts", "words"),
    [
        (PowerOfTwo(4, per="tensor"), {}, "needed"),
        (PowerOfTwo(4, group=4, dynamic=True), {"scale": torch.tensor(1.0)}, "run time"),
        (Fixed(2, 3), {"scale": torch.tensor(1.0)}, "2\\^-3"),
        (Blockwise(4), {"scale": torch.tensor(1.0)}, "scale"),
        (NF4(per="tensor"), {"scale": torch.ones(3)}, "shapes"),
    ],
    ids=repr,
)
def test_forged_parameters_of_values_are_refused(encoding: Encoding, parts: dict[str, Tensor], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        EncodeValue("act:relu#0", encoding).apply(Residual(), parts)


@pytest.mark.parametrize(
    "encoding",
    [
        Float16(),
        BFloat16(),
        Int(8, symmetric=True, per="tensor"),
        Int(4, dynamic=True),
        Fixed(2, 4),
        PowerOfTwo(4, per="tensor"),
        MiniFloat("e4m3", dynamic=True),
        Blockwise(3, group=2, axis=1),
    ],
    ids=repr,
)
def test_values_of_every_representation_run_train_and_are_captured(encoding: Encoding) -> None:
    model, x = Residual(), torch.randn(2, 4, 6, 6)
    parameters = {"scale": torch.tensor(0.05)} if encoding.calibrated else encoding.given()
    attach_value(model, "act:relu#0", encoding, parameters)
    model(x).sum().backward()
    assert model.conv.weight.grad is not None and bool(model.conv.weight.grad.abs().sum() > 0)
    assert "act:relu#0" in captured(model.eval(), x)
    exported = torch.export.export(model, (x,), strict=False).module()
    close(exported(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_changes_what_flows_and_not_the_grid(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    scale = torch.tensor(0.0123456789)
    attach_value(model, "0:linear#0", UNSIGNED, {**GRID, "scale": scale})
    out = model.to(dtype)(torch.randn(2, 8, dtype=dtype))
    assert out.dtype == dtype
    held = value_encodings(model)["0:linear#0"]
    assert held.scale.dtype == torch.float32 and torch.equal(held.scale, scale)  # type: ignore[arg-type,union-attr]


def test_value_encodings_survive_copies_and_state(encode: Encode, same: Any) -> None:
    model, x = Residual().eval(), torch.randn(2, 4, 6, 6)
    list(encode(model, Int(8)))
    for name in PLACES[::2]:
        attach_value(model, name, UNSIGNED, GRID)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and value_encodings(other).keys() == value_encodings(model).keys()
        same(other(x), expected)
    other = copy.deepcopy(model)
    for encoder in value_encodings(other).values():
        encoder.scale.mul_(2)  # type: ignore[operator,union-attr]
    assert not torch.equal(other(x), expected)
    same(model(x), expected)
    other.load_state_dict(model.state_dict(), strict=True)
    same(other(x), expected)
    assert isinstance(model, Residual) and repr(type(model)) == repr(Residual)


def test_to_dense_encodes_no_value() -> None:
    plain = Residual().eval()
    model, x = copy.deepcopy(plain), torch.randn(2, 4, 6, 6)
    attach_value(model, ":add#0", UNSIGNED, GRID)
    whole = nn.Sequential(model)  # also where it is a part of something larger
    for dense in (to_dense(model), to_dense(whole)[0]):  # type: ignore[index]
        assert type(dense) is Residual and list(dense.state_dict()) == list(plain.state_dict())
        close(dense(x), plain(x))


def test_runs_in_other_threads_do_not_disturb_names() -> None:
    models, x = (
        [nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(6)]) for _ in range(3)],
        torch.randn(4, 8),
    )
    for model in models:
        for i in range(6):
            attach_value(model, f"{i}.1:relu#0", UNSIGNED, GRID)
    expected = [model(x).detach() for model in models]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            with torch.no_grad():
                if not torch.equal(models[i](x), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failing_run_leaves_no_trace(same: Any) -> None:
    model, x = Residual().eval(), torch.randn(2, 4, 6, 6)
    attach_value(model, ":add#0", UNSIGNED, GRID)
    expected = model(x)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 6, 6))
    same(model(x), expected)
    seen_hooks = torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks
    assert not any(seen_hooks)


def test_torch_compile_runs_with_value_encodings() -> None:
    torch.compiler.reset()
    model, x = Residual().eval(), torch.randn(2, 4, 6, 6)
    attach_value(model, "act:relu#0", UNSIGNED, GRID)
    with torch.no_grad():
        close(torch.compile(model, backend="eager")(x), model(x))
