"""Twenty modules as people write them: what each is, as its docstring says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from doors_models import Built, ids, noise
from torch import Tensor, nn
from torch.nn import functional


class _Odd(nn.Module):
    """Two linear layers around a nonlinearity, of which the others change one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(48, 96), nn.Linear(96, 48)

    def forward(self, x: Tensor) -> Any:
        return self.last(functional.gelu(self.first(x)))


class WeightsAsBuffers(_Odd):
    """A weight that is no parameter: frozen features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(48, 48))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x @ self.frozen)


class TiedFourWays(nn.Module):
    """One matrix embeds, answers, and is added in two places, once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(120, 48)
        self.head = nn.Linear(48, 120, bias=False)
        self.head.weight = self.words.weight
        self.also = nn.ModuleList([nn.Linear(48, 120, bias=False), nn.Module()])
        self.also[0].weight = self.words.weight
        self.also[1].kept = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        mixed: Tensor = self.head(x) + self.also[0](x.tanh())
        return mixed + functional.linear(x, self.also[1].kept)


class Functional(nn.Module):
    """Layers are functions, their weights parameters in lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(48, 48) / 7) for _ in range(3)])
        self.rest = nn.ParameterDict(
            {"bias": nn.Parameter(torch.zeros(48)), "kernel": nn.Parameter(torch.randn(48, 1, 3))}
        )

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = functional.linear(x, weight, self.rest["bias"]).relu()
        return functional.conv1d(x[..., None], self.rest["kernel"], padding=1, groups=48).squeeze(-1)


class ByLambda(_Odd):
    """Submodules are called through lambdas that its constructor made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [lambda x: self.first(x), torch.tanh, lambda x: self.last(x)]

    def forward(self, x: Tensor) -> Any:
        for step in self.steps:
            x = step(x)
        return x


class ChangesItsInput(_Odd):
    """Its input is normalised in place."""

    def forward(self, x: Tensor) -> Any:
        x -= x.mean(1, keepdim=True)
        x.div_(x.std(1, keepdim=True) + 1e-5)
        return super().forward(x)


class Closure(_Odd):
    """`forward` is a closure over a layer, set on the instance."""

    def __init__(self) -> None:
        super().__init__()
        scale = nn.Parameter(torch.ones(96))
        self.scale = scale

        def forward(x: Tensor) -> Tensor:
            out: Tensor = self.last(self.first(x).relu() * scale)
            return out

        self.forward = forward  # type: ignore[method-assign]


class Called(_Odd):
    """`__call__` of its own around forward."""

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(x * 2, *args, **kwargs)


class Normed(nn.Module):
    """Weight and spectral norm, the old and the new way."""

    def __init__(self) -> None:
        super().__init__()
        from torch.nn.utils import parametrizations, spectral_norm, weight_norm

        self.layers = nn.Sequential(
            weight_norm(nn.Linear(48, 48)),
            parametrizations.weight_norm(nn.Linear(48, 48)),
            spectral_norm(nn.Linear(48, 48)),
            parametrizations.spectral_norm(nn.Linear(48, 48)),
        )

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Hyper(nn.Module):
    """A network makes the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.makes, self.last = nn.Linear(8, 48 * 8), nn.Linear(8, 48)

    def forward(self, x: Tensor, style: Tensor) -> Any:
        weights = self.makes(style).view(-1, 48, 8)
        return self.last(torch.einsum("bi,bio->bo", x, weights).tanh())


class Hooked(_Odd):
    """Hooks before and after a layer change what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_pre_hook(lambda module, given: (given[0] * 0.5,))
        self.last.register_forward_hook(lambda module, given, out: out + given[0].mean())


class UnderNoGrad(_Odd):
    """`forward` is decorated."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class UnderInference(_Odd):
    """`forward` runs under inference_mode."""

    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            return super().forward(x)


class Answers(_Odd):
    """Answers with tensors, None, a number and a text."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"out": out, "aux": [out.mean(1), None], "size": x.shape[1], "kind": "odd"}


class SharedLayer(_Odd):
    """One layer is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for _ in range(3):
            x = self.again(x).relu()
        return self.last(x)


class Checkpointed(_Odd):
    """Activations are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Any:
        from torch.utils.checkpoint import checkpoint

        return self.last(checkpoint(self.first, x, use_reentrant=False))


class Sliced(nn.Module):
    """One weight is sliced for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.joint, self.out = nn.Parameter(torch.randn(144, 48) / 7), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (functional.linear(x, self.joint[i * 48 : (i + 1) * 48]) for i in range(3))
        return self.out(functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class FunctionalCall(_Odd):
    """Its own layer is called with other weights."""

    def forward(self, x: Tensor) -> Any:
        halved = {name: p * 0.5 for name, p in self.first.named_parameters()}
        return self.last(torch.func.functional_call(self.first, halved, (x,)).relu())


class Bags(nn.Module):
    """Embeddings of bags, as for categories in tables."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(120, 48), nn.Linear(48, 16)

    def forward(self, ids: Tensor) -> Any:
        return self.last(self.bag(ids))


class Tables(_Odd):
    """A table is made in `forward`: positions, from nothing."""

    def forward(self, x: Tensor) -> Any:
        places = torch.arange(48, dtype=torch.float32, device=x.device)
        return super().forward(x + torch.sin(places / 10000 ** (places / 48)))


class Recurrent(nn.Module):
    """A GRU cell in a loop of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.GRUCell(48, 48), nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Any:
        state = x.new_zeros(len(x), 48)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.last(state)


def odd(module: type[nn.Module], *inputs: Callable[[], Any], train: bool = False) -> Callable[[], Built]:
    def made() -> Built:
        torch.manual_seed(0)
        return module().train(train), {"": tuple(one() for one in inputs)}

    return made


_ROWS: Callable[[], Any] = lambda: noise(4, 48)  # noqa: E731
_STEPS: Callable[[], Any] = lambda: noise(4, 6, 48)  # noqa: E731
_WORDS: Callable[[], Any] = lambda: ids(4, 9)  # noqa: E731
ODD: dict[str, Callable[[], Built]] = {
    "weights as buffers": odd(WeightsAsBuffers, _ROWS),
    "tied four ways": odd(TiedFourWays, _WORDS),
    "functional layers": odd(Functional, _ROWS),
    "called by lambda": odd(ByLambda, _ROWS),
    "input changed in place": odd(ChangesItsInput, _ROWS),
    "forward is a closure": odd(Closure, _ROWS),
    "call of its own": odd(Called, _ROWS),
    "weight and spectral norm": odd(Normed, _ROWS),
    "weights made by a network": odd(Hyper, _ROWS, lambda: noise(4, 8)),
    "hooks": odd(Hooked, _ROWS),
    "under no_grad": odd(UnderNoGrad, _ROWS),
    "under inference_mode": odd(UnderInference, _ROWS),
    "answers of many kinds": odd(Answers, _ROWS),
    "a layer called thrice": odd(SharedLayer, _ROWS),
    "checkpointed": odd(Checkpointed, _ROWS),
    "weight in slices": odd(Sliced, _STEPS),
    "functional_call": odd(FunctionalCall, _ROWS),
    "bags of embeddings": odd(Bags, _WORDS),
    "table made in forward": odd(Tables, _ROWS, train=True),
    "a cell in a loop": odd(Recurrent, _STEPS),
}
