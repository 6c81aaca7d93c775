"""The one interception through which every value that flows is seen, named and changed.

A *value* is what one call returns, named by the module whose forward makes the call, the function, how often that
module has called it before in this run, and which output: ``layer1.0:add#1``. An *operand*,
``layer1.0.conv1:conv2d#0@0``, is a value as one call alone reads it. What a call changes in place and is read again
under its old name is no value. The names are made while the module's own code runs, so a functional add has one,
a module that is called twice has two, and an eager run and a captured graph agree on them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from lilliput.encodings import Encoding
from lilliput.errors import EncodingError
from lilliput.model.carrier.carrier import VALUES, become, encoded_names
from lilliput.model.carrier.encoded_tensor import EncodedTensor, learnt, learnt_parts, move_stored, to_learn
from lilliput.model.carrier.forward import forwarded

_NAME = re.compile(  # a module's own name may hold anything but a dot
    r"(?P<module>.*):(?P<op>\w+)#(?P<occurrence>\d+)(?:\[(?P<output>\d+)\])?(?:@(?P<operand>\d+))?", re.DOTALL
)


@dataclass(frozen=True)
class Value:
    """The name of a value that flows, or of one call's view of it.

    >>> str(Value("layer1.0", "add", 1)), str(Value("conv1", "conv2d", 0, operand=0))
    ('layer1.0:add#1', 'conv1:conv2d#0@0')
    """

    module: str
    op: str
    occurrence: int
    output: int = 0
    operand: int | None = None

    def __str__(self) -> str:
        which = f"[{self.output}]" if self.output else ""
        read = "" if self.operand is None else f"@{self.operand}"
        return f"{self.module}:{self.op}#{self.occurrence}{which}{read}"

    @classmethod
    def parse(cls, name: str) -> Value:
        match = _NAME.fullmatch(name)
        if match is None:
            raise EncodingError(f"{name!r} names no value", next="write it as module.path:function#occurrence")
        operand = match["operand"]
        return cls(
            match["module"],
            match["op"],
            int(match["occurrence"]),
            int(match["output"] or 0),
            None if operand is None else int(operand),
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # or torch.compile could not look inside
def _thread() -> int:
    return get_ident()


Visit = Callable[[str, Tensor], Tensor]


class Interception(TorchFunctionMode):
    """While active, hands every floating-point value that `root`'s own code computes to `visit`, which may replace it.

    With `only`, nothing but those names is visited; operands are visited only when named there. The activations named
    in `over` write their result over what they read.
    """

    def __init__(
        self, root: nn.Module, visit: Visit, only: Container[str] | None = None, over: Container[str] = ()
    ) -> None:
        super().__init__()
        self.visit, self.only, self.over = visit, only, over
        # a module's attribute dict is shared by the proxies that torch.export puts in its place
        self.paths: dict[int, str] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module.__dict__), path)
        self.running: list[str | None] = [""]
        self.calls: defaultdict[tuple[str, str], int] = defaultdict(int)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module, op = self.running[-1], getattr(func, "__name__", "").partition(".")[0]  # without an overload
        if module is None or op in ("__get__", "__set__"):
            return func(*args, **kwargs)
        occurrence = self.calls[module, op]
        if self.only is not None:
            args = self._read(f"{module}:{op}#{occurrence}", args)
        if "inplace" in kwargs and f"{module}:{op}#{occurrence}" in self.over:
            kwargs = {**kwargs, "inplace": True}
        out = func(*args, **kwargs)
        outputs = [out] if isinstance(out, Tensor) else out
        if not isinstance(outputs, tuple | list) or not any(_flows(x) for x in outputs):
            return out
        self.calls[module, op] += 1
        names = [f"{module}:{op}#{occurrence}{f'[{i}]' if i else ''}" for i in range(len(outputs))]
        seen = [self._see(name, x) if _flows(x) else x for name, x in zip(names, outputs, strict=True)]
        if isinstance(out, Tensor):
            return seen[0]
        return out if all(a is b for a, b in zip(seen, outputs, strict=True)) else type(out)(seen)

    def _see(self, name: str, x: Tensor) -> Tensor:
        return self.visit(name, x) if self.only is None or name in self.only else x

    def _read(self, call: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._see(f"{call}@{i}", x) if _flows(x) else x for i, x in enumerate(args))

    def __enter__(self) -> Interception:
        self.thread = _thread()  # torch calls these hooks for modules that run in any thread
        self.hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return super().__enter__()  # type: ignore[no-any-return,no-untyped-call]

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.remove()

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if _thread() != self.thread:
            return
        silent = isinstance(module, EncodedTensor)  # decoding a weight is no value of the user's network
        known = self.paths.get(id(module.__dict__))
        self.running.append(None if silent or self.running[-1] is None else known)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if _thread() == self.thread:
            self.running.pop()


def _flows(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


class ValueEncoder(nn.Module):
    """One value's encoding with its parameters."""

    def __init__(self, name: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.name, self.encoding = name, encoding
        for part, tensor in parameters.items():
            self.register_buffer(part, tensor)

    def parameters_of_value(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def _apply(self, fn: Any, recurse: bool = True) -> ValueEncoder:
        """Moves follow; a change of floating type changes what flows, not the grid that it is rounded to."""
        move_stored(self, fn, recurse)
        return self

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parameters_of_value()
        if learning := learnt_parts(self):
            return self.encoding.learn(x, {**parts, **learning}, x.numel() // max(1, len(x)) if x.dim() else 1)
        return self.encoding.project_value(x, parts)

    def unfreeze(self, learn: bool = False) -> None:
        """If `learn`, hold what the encoding's parts are learnt of as parameters."""
        if learn and not learnt_parts(self):
            to_learn(self, self.encoding, self.parameters_of_value())

    def freeze(self) -> None:
        for name, part in learnt(self, self.encoding, self.parameters_of_value()).items():
            self._buffers[name] = part

    def extra_repr(self) -> str:
        return f"{self.name}: {self.encoding}"


def child_name(value: str) -> str:
    """The name of a value's encoder among the root's `value_encodings`: module names hold no dots.

    >>> child_name("layer1.0:add#1"), child_name("a/b:add#0")
    ('layer1/0:add#1', 'a~1b:add#0')
    """
    return value.replace("~", "~0").replace("/", "~1").replace(".", "/")


class ValueEncodings(nn.ModuleDict):
    """The encoders of a model's values, kept at its root."""

    def by_name(self) -> dict[str, ValueEncoder]:
        return {encoder.name: encoder for encoder in self.values()}  # type: ignore[misc]

    def forward(self, x: Any) -> Any:
        """What it is given: a root that runs its children in turn, as `nn.Sequential` does, runs through here."""
        return x

    def simulated(self, root: nn.Module) -> Interception:
        encoders = self.by_name()
        return Interception(root, lambda name, x: encoders[name].forward(x), only=encoders)

    def simulating(self, root: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, with the values of `root` encoded as they flow."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.simulated(root):
                return run(*args, **kwargs)

        return forward


def value_encodings(root: nn.Module) -> dict[str, ValueEncoder]:
    """The value encoders of `root` by the name of the value; empty when it has none."""
    held = root._modules.get(VALUES)
    return held.by_name() if isinstance(held, ValueEncodings) else {}


def attach_value(root: nn.Module, name: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
    """From now on, runs of `root` encode the value called `name`."""
    Value.parse(name)
    held = root._modules.get(VALUES)
    if not isinstance(held, ValueEncodings):
        if held is not None or hasattr(root, VALUES):
            raise EncodingError(
                f"the model has something called {VALUES}",
                why="the encodings of values lie under that name",
                next="give it another name",
            )
        root._modules[VALUES] = held = ValueEncodings()
        become(root, encoded_names(root), values=True)
    held[child_name(name)] = ValueEncoder(name, encoding, parameters)


def without_values(root: nn.Module) -> nn.Module:
    """`root`, no value of which is encoded any more."""
    if value_encodings(root):
        del root._modules[VALUES]
        become(root, encoded_names(root), values=False)
    return root


@contextmanager
def unrounded(root: nn.Module) -> Iterator[bool]:
    """Inside, values of `root` are cut to their ranges and not rounded; tells whether all its encodings can do so."""
    encoders = value_encodings(root).values()
    cuts = [partial(one.encoding.cut_value, parts=one.parameters_of_value()) for one in encoders]
    able = all(cut(torch.zeros(())) is not None for cut in cuts)
    for encoder, cut in zip(encoders, cuts, strict=True) if able else ():
        vars(encoder)["forward"] = cut
    try:
        yield able
    finally:
        for encoder in encoders:
            vars(encoder).pop("forward", None)


def watched(root: nn.Module, visit: Visit) -> AbstractContextManager[None]:
    """Inside, every forward of `root` shows its values to `visit`; its class is exchanged for the while."""

    def through(self: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with Interception(self, visit):
                return run(*args, **kwargs)

        return forward

    return forwarded(root, through)


def tapped(root: nn.Module, names: Sequence[str]) -> AbstractContextManager[None]:
    """Inside, `root` answers with (its output, the values called `names` as the calls after them read them).

    A value with an encoding is given out encoded: what is built of it then keeps its integer kernels.
    """
    encoders = value_encodings(root)

    def through(self: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen: dict[str, Tensor] = {}

            def visit(name: str, x: Tensor) -> Tensor:
                seen[name] = encoders[name](x) if name in encoders else x
                return x

            with Interception(self, visit, only=names):
                out = run(*args, **kwargs)
            return out, tuple(seen[name] for name in names)

        return forward

    return forwarded(root, through)


@torch.library.custom_op("lilliput::mark", mutates_args=())
def mark(x: Tensor, name: str) -> Tensor:
    """A label on a value in a captured graph."""
    return x.clone()


@mark.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)
