"""What a figure is computed by: cells of CSVs, arithmetic, and a few words for several rows."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from marks.csvs import Results, Row, Wrong, unknown

_CELL = re.compile(r"\b(?P<csv>\w+)\[(?P<selector>(?:\"[^\"]*\"|[^\]\"])*)\](?:\.(?P<column>\w+))?")
_ENDS = (("_low", "_high"), ("_least", "_most"))
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Figure:
    """A number with the ends of its interval where it has one, or a text."""

    value: float | str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Cell:
    """A column of the rows that a selector names."""

    csv: str
    selector: str
    column: str | None

    def __str__(self) -> str:
        return f"{self.csv}[{self.selector}]" + (f".{self.column}" if self.column else "")

    def rows(self, results: Results) -> list[Row]:
        return results.select(self.csv, self.selector)

    def all(self, results: Results, column: str | None = None) -> list[str]:
        """What stands in the column in each row that has something there."""
        name = column or self.column
        if name is None:
            raise Wrong(f"{self} names no column")
        results.check_column(self.csv, name)
        return [row[name] for row in self.rows(results) if row[name]]

    def numbers(self, results: Results) -> list[float]:
        found = [_number(text) for text in self.all(results)]
        if not found or any(isinstance(one, str) for one in found):
            raise Wrong(f"{self} holds no numbers")
        return [float(one) for one in found]

    def figure(self, results: Results) -> Figure:
        """The one cell, with the ends of its interval where the row has them."""
        row = results.one(self.csv, self.selector)
        if self.column is None:
            raise Wrong(f"{self} names no column")
        results.check_column(self.csv, self.column)
        if not row[self.column]:
            raise Wrong(f"{self} is empty")
        value = _number(row[self.column])
        for low, high in _ENDS:
            ends = [_number(row.get(self.column + end) or "") for end in (low, high)]
            if all(isinstance(end, float) for end in ends):
                return Figure(value, float(ends[0]), float(ends[1]))
        return Figure(value)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _same(cell: Cell, results: Results) -> str:
    found = set(cell.all(results))
    if len(found) != 1:
        raise Wrong(f"{cell} is not the same in all rows: {', '.join(sorted(found)[:3])}")
    return found.pop()


def _processor(cell: Cell, results: Results) -> str:
    """The processor of all the rows, with what decides about its integer kernels."""
    cpu, flags = (_same(Cell(cell.csv, cell.selector, column), results) for column in ("cpu", "flags"))
    name = re.sub(r"\((?:R|TM)\)| (?:Processor|CPU)\b.*", "", cpu)
    integers = [known for flag, known in (("vnni", "VNNI"), ("amx_int8", "AMX")) if flag in flags]
    article = "an" if name[:1] in "AEIOU" else "a"
    return f"{article} {name} " + (f"with {' and '.join(integers)}" if integers else "without VNNI")


_WORDS: dict[str, Callable[[Cell, Results], float | str]] = {
    "count": lambda cell, results: float(len(cell.rows(results))),
    "least": lambda cell, results: min(cell.numbers(results)),
    "most": lambda cell, results: max(cell.numbers(results)),
    "same": lambda cell, results: _number(_same(cell, results)),  # what all the rows have
    "processor": _processor,
}


def evaluate(expression: str, results: Results) -> Figure:
    """The figure that an expression comes to, such as `100 * rounding[resnet20, rounding=GPTQ].recovered`.

    Of one cell with an interval, the interval goes through the arithmetic too; of several it is not known.
    """
    cells: list[Cell] = []

    def named(found: re.Match[str]) -> str:
        cells.append(Cell(found["csv"], " ".join(found["selector"].split()), found["column"]))
        return f"_{len(cells) - 1}"

    try:
        tree = ast.parse(_CELL.sub(named, expression).strip(), mode="eval").body
    except SyntaxError as error:
        raise Wrong(f"{expression!r} is no expression") from error
    whole: dict[str, Figure] = {}  # the cells that stand alone, not under a word

    def value(node: ast.expr, end: str) -> float | str:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name) if name[1:].isdigit():
                if name not in whole:
                    whole[name] = cells[int(name[1:])].figure(results)
                return getattr(whole[name], end)  # type: ignore[no-any-return]
            case ast.Call(func=ast.Name(id=word), args=[ast.Name(id=name)]) if name[1:].isdigit():
                if word not in _WORDS:
                    raise unknown("a word for several rows", word, _WORDS)
                return _WORDS[word](cells[int(name[1:])], results)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                above, below = _sure(value(left, end)), _sure(value(right, end))
                if isinstance(op, ast.Div) and not below:
                    raise Wrong(f"{expression!r} divides by 0")
                return _OPERATORS[type(op)](above, below)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](_sure(value(operand, end)))
        raise Wrong(f"{expression!r} is no expression of cells, + - * / and {', '.join(_WORDS)}")

    def _sure(found: float | str) -> float:
        if isinstance(found, str) or not math.isfinite(found):
            raise Wrong(f"{expression!r} computes with {found!r}")
        return found

    found = value(tree, "value")
    if len(whole) == 1 and next(iter(whole.values())).low is not None:
        low, high = sorted(float(value(tree, end)) for end in ("low", "high"))
        return Figure(found, low, high)
    return Figure(found)
