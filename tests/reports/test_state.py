"""State that is no dense, strided tensor of a plain type, and such as was made with gradients.

Reported as safetensors#10 (empty, sparse, shared tensors), safetensors#450 (complex) and pytorch#28594 (attributes
with a gradient history): foreign errors, some after all work. Right is: stored and given back bit for bit, or refused
by name before any work, with a remedy that works.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

import lilliput as lp
from lilliput.errors import InputError
from lilliput.model.edits.copies import private_copy

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Holds(nn.Module):
    """A linear layer beside a buffer that its forward does not read, or reads by `use`."""

    def __init__(self, held: Any, use: Callable[[Tensor, Any], Tensor] = lambda y, held: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.use = nn.Linear(8, 8), use
        if isinstance(held, nn.Parameter):
            self.held = held
        else:
            self.register_buffer("held", held)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.fc(x), self.held)


class Plain(Holds):
    """The same, in a plain attribute."""

    def __init__(self, held: Any) -> None:
        super().__init__(None)
        self.tensors = {"a": [held]}


def sparse() -> Tensor:
    return torch.eye(8).to_sparse()


REFUSED: dict[str, tuple[Callable[[], Tensor], str, Callable[[Tensor], Tensor]]] = {
    "sparse": (sparse, "layout sparse_coo", Tensor.to_dense),
    "compressed rows": (lambda: torch.eye(8).to_sparse_csr(), "layout sparse_csr", Tensor.to_dense),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8),
        "PyTorch has quantized",
        Tensor.dequantize,
    ),
    "complex": (lambda: torch.polar(torch.ones(6), torch.ones(6)), "complex64", torch.view_as_real),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device", torch.zeros_like),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("kind", [Holds, Plain])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stored_is_named_before_any_work(name: str, kind: type[Any]) -> None:
    make, what, remedy = REFUSED[name]
    told: list[str] = []
    with pytest.raises(InputError) as caught:
        lp.compress(lp.Task(kind(make()), example=X), target=TARGET, progress=lambda stage, *_: told.append(stage))
    error = caught.value
    place = "held" if kind is Holds else "tensors.a.0"
    assert what in error.what and place in str(error) and error.next and told == []
    if name != "meta":
        private_copy(kind(remedy(make())))


class Extra(nn.Module):
    """State that no tensor is."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.fc, self.extra = nn.Linear(8, 8), extra

    def get_extra_state(self) -> Any:
        return self.extra() if callable(self.extra) else self.extra

    def set_extra_state(self, extra: Any) -> None:
        self.given = extra

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("extra", [{"version": 2}, "2", None, [1, 2], b"bytes"], ids=repr)
def test_extra_state_that_is_no_tensor_is_named(extra: Any) -> None:
    for model, where in ((Extra(extra), "Extra"), (nn.Sequential(nn.ReLU(), Extra(extra)), "1")):
        with pytest.raises(InputError, match=f"{where}: extra state of type {type(extra).__name__}.*as a tensor"):
            lp.compress(lp.Task(model, example=X), target=TARGET)


def test_extra_state_that_is_a_tensor_comes_back(tmp_path: Path) -> None:
    model = Extra(lambda: torch.arange(3))  # made anew each time it is asked for
    small = lp.compress(lp.Task(model, example=X), lp.Recipe([lp.Quantize()]), target=TARGET)
    again = lp.load(small.save(tmp_path / "m.lil"), into=Extra(lambda: torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(again.given, torch.arange(3)) and torch.equal(again(X), small.model(X))


STORED: dict[str, Callable[[], Tensor | nn.Parameter]] = {
    "empty buffer": lambda: torch.zeros(0),
    "empty matrix": lambda: torch.zeros(0, 8),
    "empty parameter": lambda: nn.Parameter(torch.zeros(0)),
    "parameter that is not read": lambda: nn.Parameter(torch.arange(24.0).reshape(4, 6)),
    "empty matrix of parameters": lambda: nn.Parameter(torch.zeros(4, 0)),
    "a single number": lambda: torch.tensor(3),
    "truth values": lambda: torch.tensor([True, False]),
    "negated view": lambda: torch.complex(torch.ones(3), torch.ones(3)).conj().imag,
    "stretched": lambda: torch.arange(3.0)[:, None].expand(3, 4),
    "turned": lambda: torch.arange(12.0).reshape(3, 4).t(),
    "half precision": lambda: torch.ones(3, dtype=torch.float16),
}
STEPS = {
    "Quantize": [lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))],
    "Prune": [lp.Prune("channels", 0.5)],
}


def holding_all() -> nn.Module:
    return nn.Sequential(*(Holds(make()) for make in STORED.values()), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("steps", STEPS)
def test_unusual_tensors_come_back(steps: str, tmp_path: Path) -> None:
    net = holding_all()
    small = lp.compress(lp.Task(net, calibrate=[X]), lp.Recipe(STEPS[steps]), target=TARGET)
    again: Any = lp.load(small.save(tmp_path / "m.lil"), into=holding_all())
    for i, make in enumerate(STORED.values()):
        assert torch.equal(again[i].held, make()) and again[i].held.dtype == make().dtype
    assert torch.equal(again(X), small.model(X))
    close(lp.open(tmp_path / "m.lil")(X), small.model(X), share=1e-4 if steps == "Prune" else 0.05)


class Cached(Holds):
    """Keeps what it computed, with its history."""

    def __init__(self) -> None:
        super().__init__(None)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.fc(x)
        return self.last


HISTORIES: dict[str, Callable[[], nn.Module]] = {
    "cached activation": Cached,
    "old weight norm": lambda: nn.Sequential(weight_norm(nn.Linear(8, 8))),
    "old spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(8, 8))),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", HISTORIES)
def test_attributes_with_a_gradient_history(name: str) -> None:
    net = HISTORIES[name]()
    net(X).sum().backward()  # a step, in training mode
    net.eval()
    right = net(X).detach()
    copy = private_copy(net).eval()
    close(copy(X), right, atol=1e-6)
    assert torch.equal(net(X), right)


def test_an_expanded_buffer_is_trained_beside() -> None:
    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 4)
            self.register_buffer("many", torch.ones(1).expand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.many

    batches = [torch.randn(4, 8) for _ in range(2)]
    net = Expanded().eval()
    task = lp.Task(net, calibrate=batches, train=batches, loss=lambda model, x: model(x).square().mean())
    small = lp.compress(task, lp.Recipe([lp.Finetune(epochs=1)]), target=lp.targets.OnnxRuntime(threads=1, seconds=0))
    assert torch.equal(small.model.get_buffer("many"), torch.ones(4)) and net.many.stride() == (0,)
    assert small.model(batches[0]).norm() < net(batches[0]).norm()
