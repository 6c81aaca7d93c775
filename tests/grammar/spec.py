"""A draw as data: it saves itself as JSON, prints itself as a script, and is built as often as twins are needed."""

from __future__ import annotations

import itertools
import json
import linecache
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from random import Random
from typing import Any

import flow  # noqa: F401  # enters its productions
import held  # noqa: F401
import layers  # noqa: F401
import views  # noqa: F401
from arguments import ARGUMENTS, GIVEN, INPLACE, OUTPUTS, write_arguments
from oddities import NAMES, ODDITIES, write_oddities
from recipes import SAFE, draw_recipe, draw_target, sound
from source import SHAPES, Source, Step, draw_steps, write_steps

PRELUDE = """\
import collections, functools, random, types
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
import torch, lilliput as lp
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
F, Both = nn.functional, collections.namedtuple("Both", "a b")
"""

HELPERS: Mapping[str, str] = {  # written only where they are named
    "Pair(": "@dataclass\nclass Pair:\n    a: torch.Tensor\n    b: torch.Tensor\n",
    "Tagged(": "class Tagged(nn.Parameter):\n    pass\n",
    "Doubled(": "class Doubled(nn.Module):\n    def forward(self, w):\n        return w * 2\n",
    "inferred(": "@torch.inference_mode()\ndef inferred(x):\n    return x * 1\n",
    "is_float(": "def is_float(x):\n    return isinstance(x, torch.Tensor) and x.is_floating_point()\n",
    "(doubled, ": (
        "def doubled(net, args, kwargs):\n    x = kwargs.get('x')\n"
        "    return (args, {**kwargs, 'x': x * 2}) if x is not None and x.is_floating_point() else None\n"
    ),
    "one_storage(": (
        "def one_storage(net):\n    held = [p for p in net.parameters() if p.dtype == torch.float32]\n"
        "    flat, at = torch.cat([p.data.flatten() for p in held]), 0\n    for p in held:\n"
        "        p.data, at = flat[at:at + p.numel()].view(p.shape), at + p.numel()\n"
    ),
}
AMBIENT = (
    "torch.no_grad()",
    "torch.inference_mode()",
    "torch.autocast('cpu', torch.bfloat16)",
    "torch.enable_grad()",
    "torch.device('cpu')",
    "torch.autograd.set_detect_anomaly(True)",
)
_numbers = itertools.count()


@dataclass(frozen=True)
class Spec:
    """A module, what it is called with, a recipe and a target."""

    layout: str = "vector"
    steps: list[Step] = field(default_factory=list)
    given: str = "plain"  # how x lies in memory
    inplace: str = ""  # written over what is given
    arguments: list[str] = field(default_factory=list)
    output: str = "tensor"
    oddities: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    passed: str = "dict"  # or tuple, tensor
    batches: list[int] = field(default_factory=lambda: [2, 2])
    dynamic: str = "batch"  # or fixed
    ambient: str = ""
    recipe: list[str] = field(default_factory=list)  # none: the default of the target
    target: str = SAFE
    seed: int = 0

    @classmethod
    def drawn(cls, random: Random) -> Spec:
        """One that random numbers give: most of it plain, so that what is odd is seen alone or with few others."""

        def seldom(chance: float, choices: Any, most: int = 1) -> list[Any]:
            return random.sample(list(choices), random.randint(1, most)) if random.random() < chance else []

        layout = random.choices(list(SHAPES), (4, 2, 3, 3, 2))[0]
        names = {str(random.randint(0, 4)): name for name in seldom(0.15, NAMES, 2)}
        steps = draw_steps(random, Source(layout, SHAPES[layout], names), 1, 5)
        arguments = seldom(0.3, ARGUMENTS, 2)
        fixed = random.random() < 0.2
        same = random.choice((1, 2, 4))
        recipe = draw_recipe(random)
        while not sound(recipe):
            recipe = draw_recipe(random)
        return cls(
            layout,
            steps,
            given=(seldom(0.15, GIVEN) or ["plain"])[0] if layout != "tokens" else "plain",
            inplace=(seldom(0.06, INPLACE) or [""])[0] if layout != "tokens" else "",
            arguments=arguments,
            output=(seldom(0.3, OUTPUTS) or ["tensor"])[0],
            oddities=seldom(0.3, ODDITIES, 2),
            names=names,
            passed=random.choice(("dict",) * 6 + ("tuple",) if arguments else ("tensor", "tuple", "dict")),
            batches=[same] * 3 if fixed else random.choice(([2, 2, 3], [1, 1], [4, 1, 2], [3, 3, 3])),
            dynamic="fixed" if fixed else "batch",
            ambient=(seldom(0.08, AMBIENT) or [""])[0],
            recipe=recipe,
            target=draw_target(random),
            seed=random.randint(0, 999),
        )

    def to_json(self) -> str:
        plain = {key: value for key, value in asdict(self).items() if value != _DEFAULT[key]}
        return json.dumps(plain, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        return cls(**json.loads(text))

    def module(self) -> str:
        """The source of `net` and of `batch(n, other)`."""
        source = Source(self.layout, SHAPES[self.layout], self.names)
        if self.inplace:
            source.line(INPLACE[self.inplace])
        if self.output == "input":
            source.line("given = x")
        write_steps(source, self.steps)
        write_arguments(source, self.arguments)
        write_oddities(source, self.oddities)
        signature = ", ".join(["self, x", *(argument[0] for argument in source.arguments)])
        body = [*source.lines, OUTPUTS[self.output]]
        text = "\n\n".join(
            [
                *source.classes,
                "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                + "".join(f"        {line}\n" for line in source.inits)
                + f"    def forward({signature}):\n"
                + "\n".join(f"        {line}" for line in body),
                f"torch.manual_seed({self.seed})\nnet = Net().eval()" + "".join(f"\n{line}" for line in source.after),
                self._batch(source),
            ]
        )
        return "".join(helper for name, helper in HELPERS.items() if name in text) + text

    def _batch(self, source: Source) -> str:
        shape = "".join(f", {n}" for n in SHAPES[self.layout])
        plain = f"torch.randint(0, 20, (n{shape}))" if self.layout == "tokens" else f"torch.randn(n{shape})"
        given = [("x", GIVEN[self.given].format(plain))]
        for _, name, value, other in source.arguments:
            if value:
                given.append((name, value if value == other else f"({other} if other else {value})"))
        if self.passed == "dict" or any(ARGUMENTS[name].kind == "keyword" for name in self.arguments):
            made = "dict(" + ", ".join(f"{name}={value}" for name, value in given) + ")"
        elif self.passed == "tuple" or len(given) > 1:
            made = "(" + "".join(f"{value}, " for _, value in given).rstrip() + ")"
        else:
            made = given[0][1]
        return f"def batch(n, other=False):\n    return {made}"

    def build(self) -> dict[str, Any]:
        """The names that the source makes: `net` and `batch`; another, equal net at each call."""
        name = f"<grammar {next(_numbers)}>"
        text = f"{PRELUDE}\n{self.module()}\n"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        made: dict[str, Any] = {"__name__": "drawn"}
        exec(compile(text, name, "exec"), made)
        return made

    def script(self) -> str:
        """All that it takes to see it again, but for what is wrong."""
        steps = f"lp.Recipe([{', '.join(self.recipe)}])" if self.recipe else "None"
        dynamic = "{}" if self.dynamic == "fixed" else "None"
        train = TRAIN if any("Finetune" in step for step in self.recipe) else ""
        call = (
            f"result = lp.compress(lp.Task(net, calibrate=xs, dynamic={dynamic}{train}), {steps}, target={self.target})"
        )
        batches = ", ".join(f"batch({n})" for n in self.batches)
        return (
            f"{PRELUDE}{LOSS if train else ''}{self.module()}\nxs = [{batches}]\n"
            + (f"with {self.ambient}:\n    {call}" if self.ambient else call)
            + "\n"
        )


TRAIN = ", train=xs, loss=loss"
LOSS = """\
def loss(model, batch):
    out = model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
    return sum(y.float().square().mean() for y in torch.utils._pytree.tree_leaves(out) if isinstance(y, torch.Tensor))

"""
_DEFAULT = {f.name: getattr(Spec(), f.name) for f in fields(Spec)}
