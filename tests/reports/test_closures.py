"""Functions that hold the module they belong to: hooks, lambdas, nested functions, patched forwards.

Reported as pytorch#37151: a deep copy shares functions, whose cells keep the original. So the copy that is compressed
computed with the user's module, wrote into the user's dicts, and pruning changed weights that nothing used. Right is:
the copy computes by its own weights alone, as a network built anew with the same weights does, and the user's network
and all that it holds stay as they are; or an error that says what stands in the way.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError
from lilliput.model.carrier.carrier import to_dense
from lilliput.model.edits.copies import as_it_stands, private_copy, uses_of
from lilliput.model.surgery.trial import changed

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)


class Calls(nn.Module):
    """A module that computes by a function it holds."""

    def __init__(self, f: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.f(self, x)
        return out


def linear(n: int = 6) -> nn.Linear:
    return nn.Linear(n, n)


def gated(act: Callable[[Any], Callable[..., Any]]) -> nn.Module:
    """a, then `act` of it, which reaches g, then b."""
    net = Calls(lambda s, x: s.b(s.act(s.a(x))), a=linear(), g=linear(), b=linear())
    net.act = act(net)
    return net


def by_default(net: Any) -> Callable[..., Any]:
    def act(x: Tensor, g: Any = net.g, *, other: Any = net.a) -> Tensor:
        return x.relu() * g(x) + other.bias

    return act


def by_partial(net: Any) -> Callable[..., Any]:
    return functools.partial(lambda g, x, scale: scale * g(x), net.g, scale=net.g.bias)


def by_each_other(net: Any) -> Callable[..., Any]:
    def even(x: Tensor, n: int = 2) -> Tensor:
        return x if n == 0 else odd(x, n - 1)

    def odd(x: Tensor, n: int) -> Tensor:
        return net.g(even(x, n - 1))  # type: ignore[no-any-return]

    return even


def by_weakref(net: Any) -> Callable[..., Any]:
    back = weakref.ref(net)
    return lambda x: x.relu() * back().g(x)  # type: ignore[union-attr,misc]


def by_object(net: Any) -> Callable[..., Any]:
    class Gate:
        def __init__(self) -> None:
            self.held = {"net": net}

        def __call__(self, x: Tensor) -> Tensor:
            return x * self.held["net"].g(x)  # type: ignore[no-any-return]

    return Gate()


def by_wrapper(net: Any) -> Callable[..., Any]:
    @functools.wraps(nn.functional.relu)
    def act(x: Tensor) -> Tensor:
        return act.net.g(x)  # type: ignore[attr-defined,no-any-return]

    act.net = net  # type: ignore[attr-defined]
    return act


GATES: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "lambda": lambda net: lambda x: x.relu() * net.g(x),
    "parameter": lambda net: (lambda w: lambda x: x @ w)(net.g.weight),
    "default": by_default,
    "partial": by_partial,
    "each other": by_each_other,
    "weakref": by_weakref,
    "object": by_object,
    "attribute of a function": by_wrapper,
    "bound method": lambda net: net.g.forward,
    "method in a lambda": lambda net: (lambda call: lambda x: call(x).relu())(net.g.forward),
    "list": lambda net: (lambda held: lambda x: held[0](x) * held[1]["b"](x))([net.g, {"b": lambda x: net.b(x)}]),
    "tuple": lambda net: (lambda held: lambda x: held[0](held[1](x)))((net.g, lambda x: net.b(x))),
    "cached": lambda net: functools.lru_cache(lambda x: net.g(x)),
}


def in_a_list() -> nn.Module:
    net = Calls(lambda s, x: s.b(s.acts[1][0](s.a(x))), a=linear(), g=linear(), b=linear())
    net.acts = [torch.relu, (lambda x: net.g(x), 3)]  # type: ignore[assignment]
    return net


def patched() -> nn.Module:
    net: Any = nn.Sequential(linear(), nn.ReLU(), linear())
    net.forward = lambda x: net[2](net[1](net[0](x))) + net[0](x)
    return net  # type: ignore[no-any-return]


def patched_method() -> nn.Module:
    net: Any = nn.Sequential(linear(), nn.ReLU(), linear())
    last = net[2]
    net.forward = types.MethodType(lambda self, x: last(self[1](self[0](x))), net)
    return net  # type: ignore[no-any-return]


def patched_child() -> nn.Module:
    net: Any = nn.Sequential(linear(), nn.ReLU(), linear())
    net[1].forward = lambda x: net[2](x).relu()
    return net  # type: ignore[no-any-return]


def hooked(register: str, hook: Callable[[Any], Callable[..., Any]]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        net: Any = nn.Sequential(linear(), nn.ReLU(), linear())
        getattr(net[1], register)(hook(net), **({"with_kwargs": True} if "kwargs" in hook.__name__ else {}))
        return net  # type: ignore[no-any-return]

    return made


def keeps(net: Any) -> Callable[..., Any]:
    return lambda m, i, o: o + net[0](i[0])


def enters(net: Any) -> Callable[..., Any]:
    return lambda m, i: (net[0](i[0]),)


def enters_with_kwargs(net: Any) -> Callable[..., Any]:
    return lambda m, args, kwargs: ((net[0](args[0]),), kwargs)


def leaves_with_kwargs(net: Any) -> Callable[..., Any]:
    return lambda m, args, kwargs, out: out + net[2](args[0])


NETS: dict[str, Callable[[], nn.Module]] = {
    **{name: functools.partial(gated, gate) for name, gate in GATES.items()},
    "in a list": in_a_list,
    "patched forward": patched,
    "patched by a method": patched_method,
    "patched child": patched_child,
    "forward hook": hooked("register_forward_hook", keeps),
    "forward hook with kwargs": hooked("register_forward_hook", leaves_with_kwargs),
    "forward pre-hook": hooked("register_forward_pre_hook", enters),
    "forward pre-hook with kwargs": hooked("register_forward_pre_hook", enters_with_kwargs),
}
COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "private copy": private_copy,
    "a copy of the copy": lambda net: changed(private_copy(net), ()),
    "as it stands": as_it_stands,
    "dense": to_dense,
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", NETS)
def test_a_copy_computes_by_itself(name: str, copied: str) -> None:
    torch.manual_seed(0)
    net, again, x = NETS[name](), NETS[name](), torch.randn(3, 6)
    before = net(x)
    copy = COPIES[copied](net)
    assert torch.equal(copy(x), before)
    if copied != "as it stands":  # which shares memory until a parameter changes
        assert uses_of(net, lambda: copy(x)) == []
    for p in copy.parameters():
        p.data = torch.randn_like(p)
    again.load_state_dict(copy.state_dict())
    assert torch.equal(net(x), before)
    if name != "cached":  # which answers from its cache
        assert torch.equal(copy(x), again(x)) and not torch.allclose(copy(x), before)
    copy(torch.randn(3, 6)).sum().backward()
    assert all(p.grad is None for p in net.parameters())


def tapped(kept: Any, store: Callable[..., Any]) -> nn.Module:
    net = Calls(lambda s, x: s.head(s.body(x) + s.kept["f"]), body=nn.ReLU(), head=linear(), kept=kept)
    net.body.register_forward_pre_hook(store(net))  # type: ignore[union-attr,operator]
    return net


def into_attribute(net: Any) -> Callable[..., Any]:
    return lambda m, i: net.kept.update(f=2 * i[0])


def into_cell(net: Any) -> Callable[..., Any]:
    kept = net.kept
    return lambda m, i: kept.update(f=2 * i[0])


def by_builtin(net: Any) -> Callable[..., Any]:
    put = net.kept.update
    return lambda m, i: put(f=2 * i[0])


@pytest.mark.parametrize("store", [into_attribute, into_cell, by_builtin])
def test_what_a_hook_writes_into_stays_the_users(store: Callable[..., Any]) -> None:
    net = tapped({}, store)
    x, y = torch.randn(2, 3, 6).unbind()
    net(y)
    mine = net.kept["f"]  # type: ignore[index]
    copy = private_copy(net)
    assert torch.equal(copy(x), net.head(x.relu() + 2 * x))  # type: ignore[operator]
    assert net.kept["f"] is mine  # type: ignore[index]


def test_a_count_that_a_hook_keeps_is_the_copys_own() -> None:
    net, count = nn.Sequential(linear()), 0

    def hook(*told: Any) -> None:
        nonlocal count
        count += 1

    net.register_forward_hook(hook)
    private_copy(net)(torch.ones(6))
    assert count == 0
    net(torch.ones(6))
    assert count == 1


def test_hooks_of_state_dicts() -> None:
    net, saved = nn.Sequential(linear()), list[int]()
    net.register_state_dict_post_hook(lambda *told: saved.append(len(list(net.parameters()))))
    private_copy(net).state_dict()
    assert saved == []


def test_what_methods_of_a_class_hold_stays_one_thing() -> None:
    """A class is shared by its copies; a hook that fills what its methods read fills just that."""
    kept: dict[str, Tensor] = {}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.ReLU(), linear()
            self.body.register_forward_hook(lambda m, i, o: kept.update(f=o))

        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            return self.head(kept["f"])  # type: ignore[no-any-return]

    net, (x, y) = Net(), torch.randn(2, 3, 6).unbind()
    copy = private_copy(net)
    assert torch.equal(copy(x), net.head(x.relu())) and torch.equal(copy(y), net.head(y.relu()))


def test_functions_that_reach_nothing_stay_the_same() -> None:
    net: Any = nn.Sequential(linear())
    net.act, net.pool, net.plain = nn.functional.relu, nn.functional.max_pool2d, lambda x: x + 1
    copy: Any = private_copy(net)
    assert copy.act is net.act and copy.pool is net.pool and copy.plain is net.plain


GLOBAL_HOOK = """
n = Calls(lambda s, x: (s.body(x), s.head(s.kept["f"]))[1], body=nn.ReLU(), head=nn.Linear(64, 4), kept={}).eval()
n.body.register_forward_hook(lambda m, i, o: n.kept.update(f=o))
"""
GLOBAL_ACT = """
def gate(x): return n.g(x)
n = Calls(lambda s, x: s.b(s.act(s.a(x))), a=nn.Linear(64, 64), g=nn.Linear(64, 64), b=nn.Linear(64, 8)).eval()
n.act = lambda x: x.relu() * gate(x)
"""


def script(text: str) -> Any:
    """The network `n` of a script, whose functions name it as a global."""
    space = {"nn": nn, "Calls": Calls}
    exec(text, space)
    return space["n"]


def far(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def test_a_hook_that_feeds_the_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, batches = script(GLOBAL_HOOK), [torch.randn(1, 64) for _ in range(3)]
    net(batches[0])
    mine = net.kept["f"]
    small = lp.compress(lp.Task(net, example=batches[0], calibrate=batches), target=TARGET)
    run = lp.open(small.save(tmp_path / "m.lil"))
    for x in (*batches, torch.randn(1, 64)):
        right = net.head(x.relu())
        assert far(small.model(x), right) < 0.02 and far(run(x), right) < 0.02
    assert net.kept["f"] is mine


def test_pruning_a_layer_that_a_lambda_reaches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, batches = script(GLOBAL_ACT), [torch.randn(4, 64) for _ in range(3)]
    with torch.no_grad():  # rows that matter, which stay, and such as do not
        for layer in (net.a, net.g):
            layer.weight[32:], layer.bias[32:] = 0, 0
    task = lp.Task(net, example=batches[0], calibrate=batches)
    small = lp.compress(task, lp.Recipe([lp.Prune("channels", 0.5)]), target=TARGET)
    assert small.model.g.weight.shape == (32, 64 - 32)
    small.model(batches[0]).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    again = lp.load(small.save(tmp_path / "m.lil"), into=script(GLOBAL_ACT))
    for x in batches:
        close(small.model(x), net(x))
        assert torch.equal(again(x), small.model(x))


def test_a_network_in_a_global_registry_is_refused() -> None:
    """Code that looks the network up where no copy can be put; the remedy is followed below."""
    net = script("held = {'n': None}\nn = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))\nheld['n'] = n\n"
                 "n[0].register_forward_hook(lambda m, i, o: held['n'][1](o))")  # fmt: skip
    with pytest.raises(
        InputError, match=r"0: a copy of the model goes on using the model itself: .*module 1"
    ) as caught:
        lp.compress(lp.Task(net, example=torch.randn(2, 6)), target=TARGET)
    assert "hold what they need as attributes" in caught.value.next
    net[0].held = [net]
    net[0]._forward_hooks.clear()
    net[0].register_forward_hook(lambda m, i, o: m.held[0][1](o))
    copy = private_copy(net)
    assert uses_of(net, lambda: copy(torch.ones(6))) == []


def test_uses_of_tells_what_is_used() -> None:
    net = nn.Sequential(linear(), nn.BatchNorm1d(6))
    net.kept = {}  # type: ignore[assignment]
    view = net[0].weight.t()
    assert uses_of(net, lambda: torch.ones(6) @ view) == ["tensor 0.weight"]
    assert uses_of(net, lambda: net[1].running_mean.add_(1)) == ["tensor 1.running_mean"]
    assert "module 0" in uses_of(net, lambda: net[0](torch.ones(6)))
    assert uses_of(net, lambda: net.kept.update(a=1)) == ["attribute kept"]  # type: ignore[union-attr,operator]
