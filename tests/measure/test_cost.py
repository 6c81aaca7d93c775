from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lilliput.errors import MeasureError
from lilliput.measure import macs, parameters


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Shared(nn.Module):
    """One layer under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.inner = nn.Sequential(self.first, nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


ATTENTION = 5 * 16 * 48 + 2 * (5 * 5 * 16) + 5 * 16 * 16  # q, k, v; scores and mixture; output


@pytest.mark.parametrize(
    ("model", "shapes", "expected"),
    [
        (nn.Linear(10, 20), [(3, 10)], 3 * 10 * 20),
        (nn.Linear(10, 20, bias=False), [(10,)], 10 * 20),
        (nn.Conv2d(4, 8, 3, padding=1), [(2, 4, 6, 5)], 2 * 8 * 6 * 5 * 4 * 9),
        (nn.Conv2d(4, 8, 3, groups=4), [(1, 4, 8, 8)], 8 * 6 * 6 * 9),
        (nn.ConvTranspose2d(4, 8, 3), [(1, 4, 8, 8)], 4 * 8 * 8 * 8 * 9),
        (nn.LSTM(10, 20), [(5, 3, 10)], 5 * 3 * 4 * 20 * (10 + 20)),
        (nn.GRU(10, 20), [(5, 3, 10)], 5 * 3 * 3 * 20 * (10 + 20)),
        (nn.MultiheadAttention(16, 4, batch_first=True), [(1, 5, 16)] * 3, ATTENTION),
        (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), [(1, 5, 16)], ATTENTION + 2 * 5 * 16 * 32),
        (Attention(), [(2, 4, 5, 16)], 2 * 2 * 4 * 5 * 5 * 16),
        (Product(), [(3, 5, 6), (6,)], 3 * 5 * 6),
        (Product(), [(6,), (6,)], 6),
        (nn.BatchNorm2d(3), [(1, 3, 4, 4)], 0),
    ],
)
def test_multiply_accumulates_equal_the_formula(model: nn.Module, shapes: list[Any], expected: int) -> None:
    cost = macs(model, tuple(torch.randn(*shape) for shape in shapes))
    assert cost.total == expected


def test_module_paths_are_those_of_named_modules() -> None:
    cost = macs(Shared(), (torch.zeros(1, 8),))
    assert cost.total == 2 * 64 + 32
    assert cost.by_module == {"first": 128, "inner": 64 + 32, "inner.1": 32}


def test_keywords_reach_the_model() -> None:
    assert macs(Product(), (), {"a": torch.zeros(2, 3), "b": torch.zeros(3, 4)}).total == 24


def test_the_model_and_torch_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    switches = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    macs(model, (torch.randn(3, 4),))
    assert [part.training for part in model.modules()] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert switches == (torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled())


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_random_numbers_drawn_by_the_model_are_given_back() -> None:
    example = torch.zeros(2)
    state = torch.get_rng_state()
    macs(_Noise(), (example,))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failing_model_is_a_measure_error_and_keeps_its_mode() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(MeasureError, match=r"fails on the example \(RuntimeError"):
        macs(model, (torch.zeros(1, 4),))
    assert model.training


def test_shared_parameters_are_counted_once() -> None:
    assert parameters(Shared()) == 72 + 36
    tied = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    tied[1].weight = tied[0].weight
    assert parameters(tied) == 40


def test_a_view_of_a_parameter_may_enter_a_module() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.layer = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.queries.expand(len(x), 3, 4))  # type: ignore[no-any-return]

    net = Asking()
    assert macs(net, (torch.zeros(2, 1),)).total == 2 * 3 * 4 * 5
    assert all(parameter.requires_grad for parameter in net.parameters())
