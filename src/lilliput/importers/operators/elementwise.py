"""Operators that take elements one by one."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.importers.operators.numbers import Value, alike, are_numbers, each, number, tensor
from lilliput.importers.operators.table import elementwise, operator

elementwise(
    {
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Exp": torch.exp,
        "Log": torch.log,
        "Abs": torch.abs,
        "Erf": torch.erf,
        "Sign": torch.sign,
        "Round": torch.round,
        "Sin": torch.sin,
        "Cos": torch.cos,
        "Tan": torch.tan,
        "Asin": torch.asin,
        "Acos": torch.acos,
        "Atan": torch.atan,
        "Sinh": torch.sinh,
        "Cosh": torch.cosh,
        "Asinh": torch.asinh,
        "Acosh": torch.acosh,
        "Atanh": torch.atanh,
        "IsNaN": torch.isnan,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "HardSwish": F.hardswish,
        "Mish": F.mish,
    }
)


def _one(name: str, of_tensor: Callable[[Tensor], Tensor], of_number: Callable[[Any], Any]) -> None:
    """An operator of one value, which sizes are computed by as well."""

    def function(X: Value) -> Value:
        return each(of_number, X) if are_numbers(X) else of_tensor(X)

    _named(name, function)


def _two(name: str, of_tensors: Callable[..., Tensor], of_numbers: Callable[[Any, Any], Any]) -> None:
    """An operator of two values, which sizes are computed by as well."""

    def function(A: Value, B: Value) -> Value:
        return each(of_numbers, A, B) if are_numbers(A, B) else of_tensors(*alike(A, B))

    _named(name, function)


def _named(name: str, function: Callable[..., Any]) -> None:
    """Give a function a name in this module, by which torch.fx writes it, and put it into the table."""
    function.__name__ = function.__qualname__ = name.lower() + "_"
    function.__module__ = __name__
    globals()[function.__name__] = operator(name)(function)


def _divided(a: Any, b: Any) -> Any:
    """As ONNX divides: whole numbers towards zero."""
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    return -(-a // b) if isinstance(a, int) and isinstance(b, int) and (a < 0) != (b < 0) else a // b


def _quotient(a: Any, b: Any) -> Any:
    floats = any(isinstance(one, float) or (isinstance(one, Tensor) and one.is_floating_point()) for one in (a, b))
    return a / b if floats else torch.div(a, b, rounding_mode="trunc")


def _power(a: Any, b: Any) -> Any:
    """The type is that of the base."""
    made = a**b
    return made.to(a.dtype) if isinstance(a, Tensor) else made


for _name, _of_tensor, _of_number in (
    ("Neg", torch.neg, python.neg),
    ("Sqrt", torch.sqrt, lambda x: x**0.5),
    ("Reciprocal", torch.reciprocal, lambda x: 1 / x),
    ("Floor", torch.floor, math.floor),
    ("Ceil", torch.ceil, math.ceil),
    ("Not", torch.logical_not, lambda x: not x),
):
    _one(_name, _of_tensor, _of_number)

for _name, _of_tensors, _of_numbers in (
    ("Add", python.add, python.add),
    ("Sub", python.sub, python.sub),
    ("Mul", python.mul, python.mul),
    ("Div", _quotient, _divided),
    ("Pow", _power, python.pow),
    ("Equal", python.eq, python.eq),
    ("Greater", python.gt, python.gt),
    ("GreaterOrEqual", python.ge, python.ge),
    ("Less", python.lt, python.lt),
    ("LessOrEqual", python.le, python.le),
    ("And", python.and_, lambda a, b: a and b),
    ("Or", python.or_, lambda a, b: a or b),
    ("Xor", python.xor, python.ne),
):
    _two(_name, _of_tensors, _of_numbers)


@operator("Mod")
def mod(A: Value, B: Value, *, fmod: int = 0) -> Value:
    if are_numbers(A, B):
        return each(math.fmod if fmod else python.mod, A, B)
    a, b = alike(A, B)
    return torch.fmod(tensor(a, B), b) if fmod else a % b


def _all(of_two: Callable[[Any, Any], Any], of_numbers: Callable[[Any, Any], Any], values: tuple[Value, ...]) -> Value:
    if are_numbers(*values):
        made = values[0]
        for value in values[1:]:
            made = each(of_numbers, made, value)
        return made
    first = next(value for value in values if isinstance(value, Tensor))
    made, *rest = (tensor(value, first) for value in values)
    for value in rest:
        made = of_two(made, value)
    return made


@operator("Max")
def largest(*data_0: Value) -> Value:
    return _all(torch.maximum, max, data_0)


@operator("Min")
def smallest(*data_0: Value) -> Value:
    return _all(torch.minimum, min, data_0)


@operator("Sum")
def total(*data_0: Value) -> Value:
    return _all(torch.add, python.add, data_0)


@operator("Mean")
def mean(*data_0: Value) -> Value:
    return total(*data_0) / len(data_0)


@operator("Where")
def where(condition: Value, X: Value, Y: Value) -> Value:
    if are_numbers(condition, X, Y):
        return each(lambda c, x, y: x if c else y, condition, X, Y)
    if are_numbers(X, Y):
        return torch.where(condition, tensor(X), tensor(Y))
    x, y = (tensor(one, next(t for t in (X, Y) if isinstance(t, Tensor))) for one in (X, Y))
    return torch.where(tensor(condition), x, y)


@operator("Clip")
def clip(input: Tensor, min: Value = None, max: Value = None) -> Tensor:
    """An end that is computed is a tensor."""
    ends = [one if one is None or isinstance(one, Tensor) else number(one) for one in (min, max)]
    if ends == [None, None]:
        return input
    if isinstance(ends[0], Tensor) or isinstance(ends[1], Tensor):
        ends = [None if one is None else tensor(one, input) for one in ends]
    return torch.clamp(input, *ends)


@operator("Elu")
def elu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(X, alpha)


@operator("Celu")
def celu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(X, alpha)


@operator("Selu")
def selu(X: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(X, alpha)


@operator("LeakyRelu")
def leaky_relu(X: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(X, alpha)


@operator("PRelu")
def prelu(X: Tensor, slope: Tensor) -> Tensor:
    return torch.where(X < 0, X * slope, X)


@operator("ThresholdedRelu")
def thresholded_relu(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(alpha < X, X, torch.zeros_like(X))


@operator("HardSigmoid")
def hard_sigmoid(X: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid(X)
    return torch.clamp(X * alpha + beta, 0, 1)


@operator("Gelu")
def gelu(X: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(X, approximate=approximate)


@operator("Swish")
def swish(X: Tensor, *, alpha: float = 1.0) -> Tensor:
    return X * torch.sigmoid(alpha * X)


@operator("Shrink")
def shrink(input: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    zero = torch.zeros_like(input)
    return torch.where(input < -lambd, input + bias, torch.where(input > lambd, input - bias, zero))


@operator("IsInf")
def is_infinite(X: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = [
        sign(X) for sign, wanted in ((torch.isposinf, detect_positive), (torch.isneginf, detect_negative)) if wanted
    ]
    return torch.stack([*found, torch.zeros_like(X, dtype=torch.bool)]).any(0)
