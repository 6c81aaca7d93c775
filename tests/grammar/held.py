"""What a module holds beside layers: parameters used by themselves, buffers, plain attributes, ties."""

from __future__ import annotations

from source import FLOATS, Source, Unfit, production


@production(
    "vector",
    "sequence",
    weight=2,
    way=(
        "x @ {w}",
        "F.linear(x, {w}.t())",
        "torch.matmul(x, {w})",
        "torch.einsum('...i,ij->...j', x, {w})",
        "(x.unsqueeze(-1) * {w}).sum(-2)",
        "F.linear(x, {w}.T.contiguous(), torch.zeros(8))",
    ),
)
def raw_weight(s: Source, way: str) -> None:
    w = f"self.{s.fresh('w')}"
    s.init(f"{w} = nn.Parameter(torch.randn({s.channels}, 8) / {s.channels} ** 0.5)")
    s.line(f"x = {way.format(w=w)}")
    s.wide(8)


@production("image", weight=1, holder=("attribute", "dict", "list", "buffer"))
def raw_conv(s: Source, holder: str) -> None:
    name, made = s.fresh("w"), f"torch.randn(8, {s.channels}, 3, 3) / 4"
    read = {"dict": f"self.{name}['w']", "list": f"self.{name}[0]"}.get(holder, f"self.{name}")
    s.init(
        {
            "attribute": f"self.{name} = nn.Parameter({made})",
            "dict": f"self.{name} = nn.ParameterDict({{'w': {made}}})",
            "list": f"self.{name} = nn.ParameterList([{made}])",
            "buffer": f"self.register_buffer({name!r}, {made})",
        }[holder]
    )
    s.line(f"x = F.conv2d(x, {read}, padding=1)")
    s.becomes("image", 8, *s.shape[1:])


@production(
    *FLOATS,
    weight=2.5,
    way=(
        "persistent",
        "not persistent",
        "attribute",
        "list",
        "dict",
        "parameter",
        "frozen",
        "scalar",
        "class",
        "tuple",
    ),
)
def shifted(s: Source, way: str) -> None:
    """A tensor of its own is added to what flows."""
    name, made = s.fresh("b"), f"torch.randn({s.channels}){s.along}"
    read = f"self.{name}"
    if way in ("persistent", "not persistent"):
        s.init(f"self.register_buffer({name!r}, {made}, persistent={way == 'persistent'})")
    elif way == "class":
        s.init(f"type(self).{name} = {made}")
    elif way in ("parameter", "frozen", "scalar"):
        made = "torch.tensor(0.3)" if way == "scalar" else made
        s.init(f"self.{name} = nn.Parameter({made}, requires_grad={way != 'frozen'})")
    else:
        form = {"attribute": "{}", "list": "[{}]", "dict": "{{'k': {}}}", "tuple": "({},)"}[way]
        s.init(f"self.{name} = {form.format(made)}")
        read += {"attribute": "", "dict": "['k']"}.get(way, "[0]")
    s.line(f"x = x + {read}")


@production(
    *FLOATS,
    weight=0.7,
    what=(
        "nn.Parameter(torch.empty(0))",
        "nn.Parameter(torch.zeros(0, 4))",
        "None",
        "'text'",
        "{1, 2}",
        "lambda x: x",
        "torch.float32",
        "torch.Size([2])",
        "nn.ModuleList()",
        "nn.Linear(3, 3)",
        "range(3)",
        "slice(1)",
        "torch.device('cpu')",
        "torch.tensor([1, 2])",
        "float('nan')",
        "nn.ParameterList([torch.randn(3)])",
    ),
)
def unused(s: Source, what: str) -> None:
    """Something that no call reads."""
    s.init(f"self.{s.fresh('u')} = {what}")


@production(
    *FLOATS,
    weight=0.5,
    what=(
        "torch.zeros(0)",
        "torch.tensor(3)",
        "None",
        "torch.tensor([True])",
        "torch.ones(2, dtype=torch.float16)",
        "torch.ones(2, dtype=torch.complex64)",
        "torch.eye(3).to_sparse()",
        "torch.ones(1).expand(5)",
    ),
)
def unused_buffer(s: Source, what: str) -> None:
    s.init(f"self.register_buffer({s.fresh('u')!r}, {what})")


@production("vector", "sequence", weight=1, way=("same module", "same parameter", "transposed", "read by another"))
def tied(s: Source, way: str) -> None:
    c = s.channels
    first = s.hold(f"nn.Linear({c}, {c})")
    if way == "same module":
        second = f"self.{s.fresh('t')}"
        s.init(f"{second} = {first}")
        s.line(f"x = {second}({first}(x).tanh())")
    elif way == "same parameter":
        second = s.hold(f"nn.Linear({c}, {c})")
        s.init(f"{second}.weight = {first}.weight")
        s.line(f"x = {second}({first}(x).tanh())")
    elif way == "transposed":
        s.line(f"x = F.linear({first}(x).tanh(), {first}.weight.t())")
    else:
        s.line(f"x = {first}(x) + {first}.weight.mean()")


@production("sequence", weight=0.7)
def rotated(s: Source) -> None:
    """Complex buffers, as rotary embeddings hold them."""
    if s.channels % 2:
        raise Unfit
    name, (t, c) = s.fresh("r"), s.shape
    s.init(f"self.register_buffer({name!r}, torch.polar(torch.ones({t}, {c // 2}), torch.randn({t}, {c // 2})))")
    s.line(
        f"x = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * self.{name}).flatten(2)"
    )


@production("vector", "sequence", weight=1, dtype=("half", "double", "bfloat16"))
def other_precision(s: Source, dtype: str) -> None:
    s.line(f"x = {s.hold(f'nn.Linear({s.channels}, 8).{dtype}()')}(x.{dtype}()).float()")
    s.wide(8)


@production(
    "vector",
    "sequence",
    "image",
    weight=1,
    way=("overridden", "keyword", "list", "dict", "sequential", "subclassed tensor", "own weight name"),
)
def wrapped(s: Source, way: str) -> None:
    """A layer that is no plain child called plainly."""
    c = s.channels
    made = f"nn.Conv2d({c}, 8, 1)" if s.layout == "image" else f"nn.Linear({c}, 8)"
    if way == "overridden":
        call = (
            "F.conv2d(x, self.weight * 2, self.bias)"
            if s.layout == "image"
            else "F.linear(x, self.weight * 2, self.bias)"
        )
        name = f"Own{s.fresh('')}"
        s.classes.append(f"class {name}({made.partition('(')[0]}):\n    def forward(self, x):\n        return {call}")
        s.line(f"x = {s.hold(name + '(' + made.partition('(')[2])}(x)")
    elif way == "keyword":
        s.line(f"x = {s.hold(made)}(input=x)")
    elif way == "list":
        held = s.hold(f"nn.ModuleList([{made}, nn.ReLU()])", gives_tensor=False)
        s.indented(f"for part in {held}[:2]:", ["x = part(x)"])
    elif way == "dict":
        held = s.hold("nn.ModuleDict({'a/b': " + made + "})", gives_tensor=False)
        s.line(f"x = {held}['a/b'](x)")
    elif way == "sequential":
        s.line(f"x = {s.hold(f'nn.Sequential(nn.Sequential({made}), nn.ReLU())')}(x)")
    elif way == "subclassed tensor":
        layer = s.hold(made)
        s.init(f"{layer}.weight = Tagged({layer}.weight.data)")
        s.line(f"x = {layer}(x)")
    else:
        name = f"Own{s.fresh('')}"
        shape, call = ("8, {c}, 1, 1", "F.conv2d") if s.layout == "image" else ("8, {c}", "F.linear")
        s.classes.append(
            f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            f"        self.kernel = nn.Parameter(torch.randn({shape.format(c=c)}) / 3)\n"
            f"    def forward(self, x):\n        return {call}(x, self.kernel)"
        )
        s.line(f"x = {s.hold(f'{name}()')}(x)")
    s.wide(8)
