"""What a module is called with beside `x`, what it gives back, and how its inputs lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from source import Source, Unfit


@dataclass(frozen=True)
class Argument:
    """In the signature, two values for a batch of `n` samples, and what is done with it at the end of `forward`."""

    signature: str
    value: str
    other: str
    line: str
    kind: str = "argument"  # or "keyword": can only be given by name


ROWS = ".reshape(-1, *[1] * (x.dim() - 1))"  # a number a sample, to go with what flows

ARGUMENTS: Mapping[str, Argument] = {
    "strength": Argument("strength=1.0", "0.5", "9.0", "x = x * strength"),
    "flag": Argument("flag=False", "True", "False", "x = -x if flag else x * 3"),
    "mode": Argument("mode='plus'", "'plus'", "'minus'", "x = x + 1 if mode == 'plus' else x - 1"),
    "count": Argument("count=1", "2", "3", "for _ in range(count): x = x * 0.5"),
    "nothing": Argument("nothing=None", "None", "0.25", "x = x if nothing is None else x * nothing"),
    "left_out": Argument("left_out=0.25", "", "", "x = x * left_out"),
    "sizes": Argument("sizes=(1, 1)", "(1, 2)", "(1, 3)", "x = x * sizes[1]"),
    "gain": Argument("gain=None", "torch.rand(n)", "torch.rand(n)", "x = x * gain{rows}"),
    "mask": Argument("mask=None", "torch.rand(n) > 0.3", "torch.rand(n) > 0.3", "x = x * mask{rows}"),
    "scalar": Argument("scalar=None", "torch.rand(())", "torch.rand(())", "x = x * scalar"),
    "index": Argument(
        "index=None",
        "torch.randint(0, 4, (n,))",
        "torch.randint(0, 4, (n,))",
        "x = x + (index / 4.0){rows}",
    ),
    "shared": Argument("shared=None", "torch.randn({c})", "torch.randn({c})", "x = x + shared{along}"),
    "unread": Argument("unread=None", "torch.randn(n, 2)", "torch.randn(n, 2)", ""),
    "pair": Argument(
        "pair=None",
        "[torch.rand(n), torch.rand(n)]",
        "[torch.rand(n), torch.rand(n)]",
        "x = x * (pair[0] - pair[1]){rows}",
    ),
    "parts": Argument(
        "parts=None",
        "{{'a': torch.rand(n), 'b': 2.0}}",
        "{{'a': torch.rand(n), 'b': 3.0}}",
        "x = x * parts['a']{rows} * parts['b']",
    ),
    "named": Argument("named", "torch.rand(n)", "torch.rand(n)", "x = x + named{rows}", "keyword"),
    "named_number": Argument("named_number=2", "3", "4", "x = x / named_number", "keyword"),
    "input": Argument("input=None", "torch.rand(n)", "torch.rand(n)", "x = x + input{rows}"),
    "long": Argument(
        "long=None",
        "torch.rand(n, 6).double()",
        "torch.rand(n, 6).double()",
        "x = x + long.float().mean(1){rows}",
    ),
}

GIVEN: Mapping[str, str] = {  # how `x` is made, from what makes it plainly
    "plain": "{}",
    "scaled": "{} * 3 + 1",
    "strided": "torch.stack([{0}, {0}], -1)[..., 0]",
    "with gradient": "{}.requires_grad_()",
    "one value": "{}.mul(0).add(0.5)",
    "inference": "inferred({})",
    "zeros in part": "{}.relu()",
}

INPLACE: Mapping[str, str] = {
    "": "",
    "div": "x.div_(2)",
    "item": "x[:, :1] = 0",
    "isub": "x -= 0.5",
    "relu": "F.relu_(x)",
}

OUTPUTS: Mapping[str, str] = {
    "tensor": "return x",
    "tuple": "return x, x.mean(-1)",
    "one": "return (x,)",
    "list": "return [x, x * 2]",
    "dict": "return {'a': x, 'b': x.relu()}",
    "nested": "return {'a': (x, [x + 1, {'c': x.abs()}])}",
    "keys": "return {0: x, 'b': x + 1}",
    "none": "return x, None",
    "none first": "return None, x",
    "number": "return x, x.shape[0], 3, 'text', True",
    "same twice": "return x, x",
    "view": "return x, x[..., :1]",
    "scalar": "return x.mean()",
    "half": "return x.half()",
    "bfloat16": "return x.bfloat16()",
    "double": "return x.double()",
    "class": "return x.flatten(1).argmax(1)",
    "boolean": "return x, x > 0",
    "named tuple": "return Both(x, x + 1)",
    "dataclass": "return Pair(x, x + 1)",
    "ordered": "return OrderedDict(b=x, a=x + 1)",
    "input": "return x, given",
    "squeezed": "return x.squeeze()",
    "first": "return x[0]",
    "complex": "return torch.complex(x, x + 1)",
    "constant": "return x, torch.ones(3)",
    "weight": "return x, next(self.parameters())",
    "empty": "return x, x[..., :0]",
    "flat": "return x.flatten()",
    "generator": "return (y for y in (x, x))",
    "set": "return {x}",
}


def write_arguments(source: Source, names: list[str]) -> None:
    """The arguments, in the order that a signature wants."""
    chosen = [(name, ARGUMENTS[name]) for name in names]
    for name, argument in sorted(chosen, key=lambda pair: pair[1].kind != "argument"):
        if "along" in argument.line and not source.floats:
            raise Unfit
        fill = {"c": source.channels, "along": source.along}
        if argument.line:
            source.line(argument.line.replace("{along}", source.along).replace("{rows}", ROWS))
        signature = ("*, " if argument.kind == "keyword" and not _keyword_yet(source) else "") + argument.signature
        source.arguments.append((signature, name, _filled(argument.value, fill), _filled(argument.other, fill)))


def _keyword_yet(source: Source) -> bool:
    return any(signature.startswith("*, ") for signature, *_ in source.arguments)


def _filled(text: str, fill: Mapping[str, object]) -> str:
    return text.format(**fill)
