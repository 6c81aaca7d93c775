"""The representations and the hosts that every contract is checked on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

from lilliput.encodings import (
    ENCODINGS,
    NF4,
    BFloat16,
    Blockwise,
    Codebook,
    Encoding,
    Exponent8,
    Fixed,
    Float16,
    Int,
    LowRank,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
)
from lilliput.model.carrier.carrier import attach, tensors

CARRIED: tuple[Encoding, ...] = (
    Float16(),
    BFloat16(),
    Int(8),
    Int(2),
    Int(8, axis=1),
    Int(4, group=4),
    Int(3, symmetric=False, per="tensor"),
    Int(5, group=4, symmetric=False, scale=Float16()),
    Int(4, group=4, scale=Int(6, group=1, symmetric=False)),
    Int(3, group=2, symmetric=False, scale=Int(8)),
    Int(4, group=4, symmetric=False, minimum=Float16()),
    Int(4, group=2, symmetric=False, scale=Int(6), minimum=Int(6, symmetric=False)),
    Int(3, symmetric=False, per="tensor", scale=Float16(), minimum=BFloat16()),
    Sparse(),
    Sparse(Int(8)),
    Sparse(Int(4, group=4, scale=Float16())),
    Sparse(Float16()),
    Codebook(16),
    Codebook(5, group=4, held=Float16()),
    Codebook(4, per="channel", axis=1),
    PowerOfTwo(4),
    PowerOfTwo(5, group=4, terms=2),
    Signs(2),
    Signs(3, per="tensor"),
    NF4(group=4),
    MiniFloat("e5m2"),
    MiniFloat("e2m1", group=4, scale=Exponent8()),
    Sparse(Codebook(16)),
    Fixed(1, 5),
    Fixed(2, 9),
    Int(1, symmetric=False, group=4),
    Blockwise(4, group=4),
    Blockwise(3, 4, 4, axis=1, scale=Float16()),
    Blockwise(5, 2, None),
    LowRank(3),
    LowRank(2, Float16()),
    LowRank(3, Int(8)),
)
assert {type(encoding) for encoding in CARRIED} | {Exponent8} == set(ENCODINGS.values()), (
    "an encoding that no contract is checked on"
)


class Scaled(nn.Linear):
    """A layer of the user's own, whose constructor takes other arguments than its parent's."""

    def __init__(self, width: int, *, gain: float) -> None:
        super().__init__(width, width)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Tokens to scores over tokens, through one shared matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embed(tokens))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Host:
    """A module that carries encodings, and what it takes."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Tensor]


HOSTS = (
    Host("linear", lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)), lambda: torch.randn(3, 8)),
    Host("conv", lambda: nn.Conv2d(4, 8, 3), lambda: torch.randn(2, 4, 5, 5)),
    Host("conv_transpose", lambda: nn.ConvTranspose2d(8, 4, 3, stride=2), lambda: torch.randn(2, 8, 3, 3)),
    Host("embedding", lambda: nn.Embedding(12, 8, padding_idx=0), lambda: torch.tensor([[0, 3, 11], [5, 5, 1]])),
    Host("lstm", Recurrent, lambda: torch.randn(2, 5, 8)),
    Host("attention", Attention, lambda: torch.randn(2, 5, 8)),
    Host("own_class", lambda: Scaled(8, gain=0.5), lambda: torch.randn(3, 8)),
    Host("tied", Tied, lambda: torch.tensor([[0, 3, 11], [5, 5, 1]])),
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Nets this small run faster alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    return request.param  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Carried:
    """A model with encodings, and the same function as an ordinary model."""

    model: nn.Module
    dense: nn.Module  # ordinary tensors, equal to what the encodings decode to
    original: nn.Module  # ordinary tensors, as they were before
    x: Tensor
    encoded: tuple[tuple[str, ...], ...]  # all paths of each encoded tensor


Encode = Callable[[nn.Module, Encoding], Iterator[tuple[tuple[str, ...], Tensor]]]


@pytest.fixture
def encode() -> Encode:
    """Encodes every matrix of a model in place; gives the paths of each with what it decodes to."""

    def encode_all(model: nn.Module, encoding: Encoding) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        for paths, x in tensors(model).items():
            if isinstance(x, Tensor) and x.dim() > 1:
                encoded = encoding.represent(with_zeros(x) if isinstance(encoding, Sparse) else x)
                attach(model, paths, encoded)
                yield paths, encoded.decode()

    return encode_all


def with_zeros(x: Tensor) -> Tensor:
    return x.detach() * (x.detach().abs() > x.detach().abs().median())


# each encoding on several hosts, each host with several encodings; all pairs would be the same again
PAIRS = [
    pytest.param((host.name, encoding), id=f"{host.name}-{encoding!r}")
    for (i, host), (j, encoding) in itertools.product(enumerate(HOSTS), enumerate(CARRIED))
    if (i + j) % 4 == 0
]


@pytest.fixture(params=PAIRS)
def carried(request: pytest.FixtureRequest, encode: Encode) -> Carried:
    name, encoding = request.param
    host = next(host for host in HOSTS if host.name == name)
    original = host.make().eval()
    model, dense = copy.deepcopy(original), copy.deepcopy(original)
    changed = dict(encode(model, encoding))
    with torch.no_grad():
        for paths, value in changed.items():
            dense.get_parameter(paths[0]).copy_(value)
    return Carried(model, dense, original, host.example(), tuple(changed))


@pytest.fixture
def tied() -> type[nn.Module]:
    return Tied


@pytest.fixture
def same() -> Callable[[Any, Any], None]:
    """Asserts that two outputs or tensors are equal bit for bit."""
    return lambda a, b: close(a, b, rtol=0, atol=0)
