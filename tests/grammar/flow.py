"""The structure of `forward`: what is called twice, beside, inside, under a condition; and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from source import FLOATS, NESTED, Source, Step, Unfit, production, write_steps

INNER = ((),)  # drawn by the drawer


def _inner(s: Source, steps: Sequence[Step]) -> list[str]:
    with s.apart() as lines:
        write_steps(s, steps)
    if not lines:
        raise Unfit
    return lines


@production(
    *FLOATS,
    weight=3,
    steps=INNER,
    way=(
        "x = {old} + x",
        "x += {old}",
        "x = torch.add({old}, x, alpha=0.5)",
        "x = x - {old}",
        "x = x * {old}",
        "x = {old}.clone().add_(x)",
    ),
)
def residual(s: Source, steps: Sequence[Step], way: str) -> None:
    old, before = s.fresh(), (s.layout, s.shape)
    s.line(f"{old} = x")
    s.lines += _inner(s, steps)
    if before == (s.layout, s.shape):
        s.line(way.format(old=old))
    elif before[0] == s.layout and s.layout != "image" and before[1][1:] == s.shape[1:]:
        s.line(f"x = torch.cat([x, {old}], 1)")
        s.becomes(s.layout, s.shape[0] + before[1][0], *s.shape[1:])


@production(*FLOATS, weight=2, steps=INNER)
def twice(s: Source, steps: Sequence[Step]) -> None:
    before = (s.layout, s.shape)
    body = _inner(s, steps)
    if before != (s.layout, s.shape):
        raise Unfit
    s.indented("for _ in range(2):", body)


@production(
    *FLOATS,
    weight=1.5,
    steps=INNER,
    way=(
        "with torch.autocast('cpu', enabled=False):",
        "with torch.no_grad():",
        "with torch.enable_grad():",
        "with torch.autocast('cpu', torch.bfloat16):",
        "with torch.inference_mode():",
        "with nullcontext():",
    ),
)
def region(s: Source, steps: Sequence[Step], way: str) -> None:
    s.indented(way, _inner(s, steps))
    if "bfloat16" in way:
        s.line("x = x.float()")


@production(
    *FLOATS,
    weight=1,
    steps=INNER,
    way=(
        "checkpoint(part, x, use_reentrant=False)",
        "checkpoint(part, x, use_reentrant=True)",
        "part(x)",
        "torch.utils._pytree.tree_map(part, {'a': x})['a']",
        "(lambda y: part(y))(x)",
    ),
)
def local_function(s: Source, steps: Sequence[Step], way: str) -> None:
    s.indented("def part(x):", [*_inner(s, steps), "return x"])
    s.line(f"x = {way}")


@production(
    *FLOATS,
    weight=1,
    steps=INNER,
    way=(
        "x.sum() > 0",
        "x.shape[0] > 2",
        "x.dim() > 1",
        "self.training",
        "torch.is_grad_enabled()",
        "x.dtype == torch.float32",
        "isinstance(x, nn.Parameter)",
        "x.requires_grad",
    ),
)
def branch(s: Source, steps: Sequence[Step], way: str) -> None:
    before = (s.layout, s.shape)
    body = _inner(s, steps)
    if before != (s.layout, s.shape):
        raise Unfit
    s.indented(f"if {way}:", body)


@production(*FLOATS, weight=2.5, steps=INNER)
def child(s: Source, steps: Sequence[Step]) -> None:
    """The steps in a module of their own."""
    inits, s.inits, kept = s.inits, [], len(s.layers)
    try:
        body, own = _inner(s, steps), s.inits
    finally:
        s.inits = inits
    del s.layers[kept:]
    name = f"Part{s.fresh('')}"
    begin = ["super().__init__()", *own]
    s.classes.append(
        f"class {name}(nn.Module):\n    def __init__(self):\n"
        + "".join(f"        {line}\n" for line in begin)
        + "    def forward(self, x):\n"
        + "".join(f"        {line}\n" for line in [*body, "return x"]).rstrip()
    )
    s.line(f"x = {s.hold(f'{name}()')}(x)")


@production(
    *FLOATS,
    weight=0.6,
    way=(
        "lambda x: x * {layer}.weight.mean()",
        "lambda x: {layer}(x)",
        "functools.partial({layer})",
        "{layer}.forward",
        "types.MethodType(lambda self, x: x + self.training, self)",
    ),
)
def closure(s: Source, way: str) -> None:
    """A function held as an attribute, which reads the module."""
    layer = s.hold(f"nn.Linear({s.shape[-1]}, {s.shape[-1]})")
    name = s.fresh("f")
    s.init(f"self.{name} = {way.format(layer=layer)}")
    s.line(f"x = self.{name}(x)")


@production(
    *FLOATS,
    weight=0.8,
    way=("counter", "running", "list", "last", "lazy", "lazy dict", "attribute number", "momentum norm"),
)
def state(s: Source, way: str) -> None:
    """Something is kept from one call to the next, or made at the first."""
    name = s.fresh("s")
    if way == "counter":
        s.init(f"self.register_buffer({name!r}, torch.zeros(()))")
        s.lines += [f"self.{name} += 1", f"x = x * self.{name}"]
    elif way == "running":
        s.init(f"self.register_buffer({name!r}, torch.zeros(()))")
        s.lines += [f"self.{name} = 0.9 * self.{name} + 0.1 * x.detach().mean()", f"x = x - self.{name}"]
    elif way == "list":
        s.init(f"self.{name} = []")
        s.lines += [f"self.{name}.append(x.mean())", f"x = x + self.{name}[0]"]
    elif way == "last":
        s.init(f"self.{name} = None")
        s.lines += [f"self.{name} = x.mean()"]
    elif way == "lazy":
        s.lines += [
            f"if not hasattr(self, {name!r}):",
            f"    self.{name} = torch.arange({s.channels}) / 9.0",
            f"x = x + self.{name}{s.along}",
        ]
    elif way == "lazy dict":
        s.init(f"self.{name} = {{}}")
        s.lines += [f"x = x + self.{name}.setdefault(x.shape[1], torch.arange({s.channels}) / 9.0){s.along}"]
    elif way == "attribute number":
        s.init(f"self.{name} = 0")
        s.lines += [f"self.{name} += 1", f"x = x * self.{name}"]
    else:
        if s.layout != "image":
            raise Unfit
        s.init(f"self.{name} = nn.BatchNorm2d({s.channels})")
        s.lines += [f"self.{name}.train()", f"x = self.{name}(x)"]


@production(
    *FLOATS,
    weight=0.3,
    way=(
        "F.dropout(x)",
        "x + torch.rand_like(x)",
        "x + torch.randn(1)",
        "x * random.random()",
        "torch.bernoulli(x.sigmoid())",
    ),
)
def chance(s: Source, way: str) -> None:
    s.line(f"x = {way}")


assert NESTED == "steps"
