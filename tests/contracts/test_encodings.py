"""What every representation promises, beside a slow and obvious reference."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor

from lilliput.encodings import (
    ENCODINGS,
    NF4,
    BFloat16,
    Blockwise,
    Codebook,
    Encoding,
    Exponent8,
    Fixed,
    Float16,
    Int,
    LowRank,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
    mxfp4,
)
from lilliput.encodings.blocks import Blocked
from lilliput.encodings.codebook import lloyd
from lilliput.encodings.encoding import Encoded
from lilliput.encodings.grids import Grid
from lilliput.encodings.scales import scale_of
from lilliput.errors import EncodingError, LilliputError, RecipeError
from lilliput.plain import from_plain, to_plain

INTEGERS = [
    Int(
        bits,
        group=4 if spread == "group" else None,
        symmetric=symmetric,
        per=None if spread == "group" else spread,
        axis=axis,
        scale=scale,
    )
    for bits, symmetric, spread, axis, scale in itertools.product(
        range(2, 9), (True, False), ("channel", "tensor", "group"), (0, 1), (None, Float16())
    )
]
K = Int(6, group=2, symmetric=False)  # as K-quants hold scales and minima: those of some groups by one of theirs
MINIMA = [
    Int(1, symmetric=False, per="tensor", minimum=Float16()),
    Int(4, symmetric=False, minimum=BFloat16()),
    Int(8, symmetric=False, axis=1, scale=Float16(), minimum=Float16()),
    Int(4, group=4, symmetric=False, scale=Exponent8(), minimum=Float16()),
    Int(4, group=2, symmetric=False, scale=K, minimum=K),
    Int(3, group=4, symmetric=False, axis=1, minimum=Int(6, group=1, symmetric=True)),
]
SPREADS: list[dict[str, Any]] = [
    {"per": "channel"},
    {"per": "tensor", "axis": 1},
    {"group": 4},
    {"group": 4, "axis": 1},
]
LEVELS = [
    Codebook(n, zero=zero, held=held, **where)
    for n, zero, held, where in itertools.product((2, 5, 16), (True, False), (None, Float16()), SPREADS)
]
GRIDS: list[Grid] = [
    make(**where, scale=scale)
    for make, where, scale in itertools.product(
        (
            *(lambda bits=bits, **rest: PowerOfTwo(bits, **rest) for bits in (2, 4)),
            *(lambda bits=bits, **rest: PowerOfTwo(bits, terms=2, **rest) for bits in (3, 6)),
            *(lambda n=n, **rest: Signs(n, **rest) for n in (2, 3, 4)),
            NF4,
            *(lambda name=name, **rest: MiniFloat(name, **rest) for name in ("e4m3", "e5m2", "e2m1")),
        ),
        SPREADS,
        (None, Float16(), Exponent8()),
    )
]
FIXED = [Fixed(m, n) for m, n in ((0, 1), (0, 7), (3, 4), (4, 4), (0, 15), (9, 6), (2, 0))]
TILES = [
    Blockwise(bits, channels, group, axis=axis, scale=scale)
    for bits, (channels, group), (axis, scale) in itertools.product(
        (2, 4, 8), ((1, 4), (4, 4), (2, None), (1, None)), ((0, None), (1, Float16()), (0, Exponent8()))
    )
]
LOW_RANKS = [
    LowRank(rank, factors)
    for rank, factors in (
        (1, None),
        (3, None),
        (4, Float16()),
        (2, Int(8, symmetric=True)),
        (4, Int(4, group=4, symmetric=True)),
        (3, Codebook(8)),
    )
]
ALL = [
    Float16(),
    BFloat16(),
    Sparse(),
    Sparse(Float16()),
    *INTEGERS,
    *MINIMA,
    *(Sparse(encoding) for encoding in INTEGERS[::17]),
    *LEVELS,
    *GRIDS,
    *FIXED,
    *TILES,
    *LOW_RANKS,
    Int(1, symmetric=False),
    PowerOfTwo(3, signed=False),
    PowerOfTwo(4, terms=2, signed=False, group=4),
    Sparse(Codebook(16)),
    Sparse(Signs(3, group=4)),
]
assert {type(encoding) for encoding in ALL} | {Exponent8} == set(ENCODINGS.values()), (
    "an encoding that no contract is checked on"
)
SHAPES = [(12, 8), (4, 8, 3), (8, 4, 2, 2)]


def sample(shape: tuple[int, ...]) -> Tensor:
    """Rows of very different size, one far point, some zeros."""
    x = torch.randn(shape) * torch.logspace(-3, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    x.view(-1)[5] = 30.0
    return x * (torch.rand(shape) > 0.2)


def block_of(index: tuple[int, ...], shape: tuple[int, ...], encoding: Blocked) -> tuple[int, ...]:
    """Where the scale of the element at `index` stands among the scales."""
    high = encoding.channels if isinstance(encoding, Blockwise) else 1
    if encoding.per == "tensor" or (isinstance(encoding, Codebook) and encoding.per is encoding.group is None):
        return ()
    channel = index[encoding.axis]
    if encoding.group is None:
        return (channel // high,)
    rest = [(i, n) for axis, (i, n) in enumerate(zip(index, shape, strict=True)) if axis != encoding.axis]
    position = 0
    for i, n in rest:
        position = position * n + i
    return (channel // high, position // encoding.group)


def reference(encoded: Encoded) -> Tensor:
    """The tensor again: one element after the other, in float64."""
    encoding, parts = encoded.encoding, encoded.decoded_parts()
    if isinstance(encoding, Sparse):
        inner = encoded.parts["values"]
        return reference(inner) if isinstance(inner, Encoded) else inner.double()
    if isinstance(encoding, LowRank):
        left, right = (parts[name].double() for name in ("left", "right"))
        summed = [[left[i, r].item() * right[r].flatten() for r in range(encoding.rank)] for i in range(len(left))]
        return torch.stack([torch.stack(row).sum(0) for row in summed]).reshape(encoded.shape)
    if not isinstance(encoding, Blocked):
        return torch.tensor([float(code) for code in parts["codes"].flatten().tolist()], dtype=torch.float64).reshape(
            encoded.shape
        )
    out = torch.zeros(encoded.shape, dtype=torch.float64)
    for index in itertools.product(*map(range, encoded.shape)):
        block, code = block_of(index, encoded.shape, encoding), int(parts["codes"][index])
        offset = int(parts["offset"][block]) if "offset" in parts else 0
        if isinstance(encoding, Codebook):
            out[index] = parts["levels"][block][code].double()
        elif isinstance(encoding, Grid):
            out[index] = encoding.table()[code] * parts["scale"][block].double()
        elif isinstance(encoding, Blockwise):
            out[index] = tile_numbers(encoding, parts, block)[code]
        else:
            minimum = parts["minimum"][block].double() if "minimum" in parts else 0.0
            out[index] = (code - offset) * parts["scale"][block].double() + minimum
    return out


def tile_numbers(encoding: Blockwise, parts: dict[str, Tensor], block: tuple[int, ...]) -> list[float]:
    """The numbers of one tile, by hand."""
    steps, scale = 2 ** (encoding.bits - 1) - 1, parts["scale"][block].item()
    sizes = [2.0**-i for i in range(steps)] if parts["choice"][block] else [i / steps for i in range(steps, 0, -1)]
    return [scale * number for number in (*(-size for size in sizes), 0.0, *reversed(sizes))]


def integer_of(encoding: Encoding) -> Int | None:
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    return inner if isinstance(inner, Int) else None


def held_in(encoding: Encoding | None, numbers: int) -> int:
    """Bits of a parameter of this many numbers, [channels, groups] of the tensors here."""
    if isinstance(encoding, Int):
        assert encoding.group is not None
        shared = 32 if encoding.symmetric else 32 + encoding.bits
        return numbers * encoding.bits + numbers // encoding.group * shared
    return {Float16(): 16, BFloat16(): 16, Exponent8(): 8}.get(encoding, 32) * numbers  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ALL, ids=repr)
def test_decoding_equals_the_reference(encoding: Encoding) -> None:
    for shape in SHAPES:
        encoded = encoding.represent(sample(shape))
        sums = 1e-6 * float(encoded.decode().abs().max()) if isinstance(encoding, LowRank) else 0
        sums += 1e-6 * float(encoded.decoded_parts().get("minimum", torch.zeros(1)).abs().max())
        close(encoded.decode().double(), reference(encoded), rtol=1e-6, atol=sums)


@pytest.mark.parametrize("encoding", INTEGERS, ids=repr)
def test_a_plain_fit_takes_the_smallest_scale_that_holds_the_block(encoding: Int) -> None:
    x = sample((12, 8))
    parts = Int(**{**vars(encoding), "scale": None}).represent(x).decoded_parts()
    low, high = {}, {}
    for index in itertools.product(range(12), range(8)):
        block = block_of(index, (12, 8), encoding)
        low[block] = min(low.get(block, 0.0), x[index].item())
        high[block] = max(high.get(block, 0.0), x[index].item())
    for block in low:
        top = 2 ** (encoding.bits - 1) - 1 if encoding.symmetric else 2**encoding.bits - 1
        width = max(-low[block], high[block]) if encoding.symmetric else high[block] - low[block]
        assert parts["scale"][block].item() == pytest.approx(width / top if width else 1.0, rel=1e-6)


@pytest.mark.parametrize("encoding", INTEGERS, ids=repr)
def test_inside_its_range_nothing_moves_by_more_than_half_a_step(encoding: Int) -> None:
    x = sample((12, 8))
    encoded = encoding.represent(x)
    parts, decoded = encoded.decoded_parts(), encoded.decode()
    first, last = encoding.limits
    for index in itertools.product(range(12), range(8)):
        block = block_of(index, (12, 8), encoding)
        scale, offset = parts["scale"][block].item(), parts["offset"][block].item() if "offset" in parts else 0
        assert first <= parts["codes"][index].item() <= last and first <= offset <= last
        low, high = (first - offset) * scale, (last - offset) * scale
        moved = abs(decoded[index].item() - min(max(x[index].item(), low), high))
        assert moved <= scale / 2 * (1 + 1e-5)
        outside = max(low - x[index].item(), x[index].item() - high, 0.0)
        assert outside <= scale * (0.5 + (last - first) * 2**-11) * (
            1 + 1e-5
        )  # a half-precision scale falls short a little


@pytest.mark.parametrize("encoding", [*LEVELS, *GRIDS, *FIXED, *TILES], ids=repr)
def test_every_element_gets_its_nearest_number(encoding: Blocked) -> None:
    x = sample((12, 8))
    encoded = encoding.represent(x)
    parts, decoded = encoded.decoded_parts(), encoded.decode()
    for index in itertools.product(range(12), range(8)):
        block = block_of(index, (12, 8), encoding)
        if isinstance(encoding, Grid):
            numbers = [number * parts["scale"][block].item() for number in encoding.table() if not math.isnan(number)]
        elif isinstance(encoding, Blockwise):
            numbers = tile_numbers(encoding, parts, block)
        elif isinstance(encoding, Fixed):
            step = 2.0**-encoding.n
            numbers = [
                min(max(round(x[index].item() / step), low), -low - 1) * step for low in (-(2 ** (encoding.bits - 1)),)
            ]
        else:
            numbers = parts["levels"][block].tolist()
        least = min(abs(number - x[index].item()) for number in numbers)
        assert abs(decoded[index].item() - x[index].item()) <= least * (1 + 1e-5) + 1e-6 * max(
            1.0, abs(x[index].item())
        )


@pytest.mark.parametrize("encoding", [*INTEGERS, *LEVELS, *GRIDS, *FIXED, *TILES], ids=repr)
def test_an_element_lies_between_the_numbers_around_it(encoding: Blocked) -> None:
    torch.manual_seed(5)
    x = sample((8, 8))
    parameters = encoding.fit(x)
    decoded, rows = encoding.represent(x, parameters).decode(), encoding.rows(x)
    blocks = {
        name: part.reshape(len(rows), *part.shape[len(encoding.parameter_shape((8, 8))) :])
        for name, part in parameters.items()
    }
    below, above = encoding.brackets(rows, blocks)
    inside = (below <= rows) & (rows <= above)
    tolerance = 1e-5 * rows.abs()
    assert bool(
        (inside | torch.isclose(below, above) | ((below - rows) <= tolerance) & ((rows - above) <= tolerance)).all()
    )
    close(encoding.unblocked(encoding.nearest(rows, blocks), (8, 8)), decoded, rtol=1e-5, atol=0)
    close(encoding.nearest(below, blocks), below, rtol=1e-5)
    close(encoding.nearest(above, blocks), above, rtol=1e-5)


@pytest.mark.parametrize("encoding", [*INTEGERS[::5], *MINIMA, *LEVELS[::3], *GRIDS[::7], *FIXED, *TILES], ids=repr)
def test_parameters_of_a_column_are_those_of_its_elements(encoding: Blocked) -> None:
    torch.manual_seed(6)
    x = sample((8, 8))
    parameters = encoding.fit(x)
    moved = encoding.represent(x, parameters).decode().movedim(encoding.axis, 0)
    for column in range(8):
        mine = encoding.of_column(parameters, (8, 8), column)
        found = encoding.nearest(x.movedim(encoding.axis, 0)[:, column : column + 1], mine)
        close(found[:, 0], moved[:, column], rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(8))
def test_levels_are_as_good_as_any(seed: int) -> None:
    """Beside every way to cut a few sorted points in three: within rounding of the best, and never far from it."""
    x = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed))
    levels = lloyd(x, 3, zero=False)
    error = (x[..., None] - levels[:, None]).abs().amin(-1).square().sum()
    ordered = x[0].sort().values
    best = min(
        sum(float((part - part.mean()).square().sum()) for part in (ordered[:i], ordered[i:j], ordered[j:]))
        for i, j in itertools.combinations(range(1, 9), 2)
    )
    assert best - 1e-6 <= error <= 1.5 * best
    assert bool((lloyd(x, 3, zero=True) == 0).any())


@pytest.mark.parametrize("seed", range(4))
def test_the_scale_of_a_grid_is_near_the_best_of_many(seed: int) -> None:
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    for levels in (torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(NF4().table())):

        def error(scale: float, levels: Tensor = levels) -> float:
            return float((x[..., None] - scale * levels).abs().amin(-1).square().sum())

        tried = min(error(float(scale)) for scale in torch.linspace(0.02, 4, 400))
        assert error(float(scale_of(x, levels))) <= 1.05 * tried
    assert scale_of(x, torch.tensor([-1.0, 1.0])).item() == pytest.approx(x.abs().mean().item(), rel=1e-5)


def test_small_floats_are_those_of_torch() -> None:
    for name, kind in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        numbers = torch.arange(256, dtype=torch.uint8).view(kind).float()
        ours = torch.tensor(MiniFloat(name).table())
        finite = torch.isfinite(numbers)
        assert torch.equal(ours[finite], numbers[finite]) and bool(ours[~finite].isnan().all())
    assert mxfp4().represent(torch.randn(4, 64)).decoded_parts()["scale"].log2().frac().abs().max() == 0


@pytest.mark.parametrize("encoding", ALL, ids=repr)
def test_zero_is_exact_and_decoded_values_are_their_own_nearest(encoding: Encoding) -> None:
    x = sample((12, 8))
    encoded = encoding.represent(x)
    if encoding.holds_zero:
        assert bool((encoded.decode()[x == 0] == 0).all())
    again = encoding.represent(encoded.decode(), encoding.parameters(encoded))
    sums = 1e-5 * float(x.abs().max()) if isinstance(encoding, LowRank) else 0  # its factors are solved for again
    close(again.decode(), encoded.decode(), rtol=0, atol=sums)
    if encoding.holds_zero:
        close(encoding.represent(torch.zeros(12, 8)).decode(), torch.zeros(12, 8), rtol=0, atol=0)


def bits_by_hand(encoding: Encoding, shape: tuple[int, ...]) -> int:
    if isinstance(encoding, Sparse):
        return 32 * math.prod(shape) if encoding.values is None else bits_by_hand(encoding.values, shape)
    if isinstance(encoding, LowRank):
        rows = (shape[0], encoding.rank), (encoding.rank, math.prod(shape[1:]))
        held = encoding.factors
        return sum(32 * math.prod(one) if held is None else bits_by_hand(held, one) for one in rows)
    if not isinstance(encoding, Blocked):
        return 16 * math.prod(shape)
    blocks = len({block_of(index, shape, encoding) for index in itertools.product(*map(range, shape))})
    whole = math.prod(shape)
    if isinstance(encoding, Codebook):
        return math.ceil(math.log2(encoding.n)) * whole + held_in(encoding.held, blocks * encoding.n)
    if isinstance(encoding, Grid):
        return math.ceil(math.log2(len(encoding.table()))) * whole + held_in(encoding.scale, blocks)
    if isinstance(encoding, Fixed):
        bits = 1 + encoding.m + encoding.n
        return bits * whole + 32 + (8 if 8 < bits < 16 else 0)
    if isinstance(encoding, Blockwise):
        return encoding.bits * whole + held_in(encoding.scale, blocks) + blocks
    assert isinstance(encoding, Int)
    offsets = 0 if encoding.symmetric else encoding.bits * blocks
    if encoding.minimum is not None:
        offsets = held_in(encoding.minimum, blocks)
    return encoding.bits * whole + held_in(encoding.scale, blocks) + offsets


@pytest.mark.parametrize("encoding", ALL, ids=repr)
def test_size_is_exact(encoding: Encoding) -> None:
    for shape in SHAPES:
        assert encoding.size_bits(shape) == bits_by_hand(encoding, shape)
        held = encoding.represent(sample(shape)).tensors()
        inner, before = (encoding.values, "values.") if isinstance(encoding, Sparse) else (encoding, "")
        few = inner.code_bits if inner is not None else None
        narrow = {f"{before}codes": few, f"{before}offset": min(few or 8, 8), f"{before}choice": 1}
        if isinstance(encoding, LowRank) and encoding.factors is not None:
            narrow = {f"{factor}.codes": encoding.factors.code_bits for factor in ("left", "right")}
        if isinstance(inner, Int):
            nested = {name: held for name, held in inner.nested().items() if isinstance(held, Int)}
            narrow |= {f"{name}.{part}": held.bits for name, held in nested.items() for part in ("codes", "offset")}
        for name, x in held.items():
            if narrow.get(name):
                assert int(x.max()) - min(0, int(x.min())) < 2 ** narrow[name]
        bits = {name: narrow.get(name) or 8 * x.element_size() for name, x in held.items()}
        assert encoding.size_bits(shape) == sum(bits[name] * x.numel() for name, x in held.items())


@pytest.mark.parametrize("encoding", ALL, ids=repr)
def test_an_encoding_survives_plain_data(encoding: Encoding) -> None:
    assert from_plain(to_plain(encoding), ENCODINGS) == encoding
    assert eval(repr(encoding), dict(ENCODINGS)) == encoding


@pytest.mark.parametrize("encoding", ALL, ids=repr)
def test_a_tensor_keeps_its_type_and_shape(encoding: Encoding) -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        x = sample((12, 8)).to(dtype)
        decoded = encoding.represent(x).decode()
        assert decoded.dtype == dtype and decoded.shape == x.shape and decoded.is_contiguous()
        transposed = encoding.represent(x.t().contiguous().t()).decode()
        close(transposed, decoded, rtol=0, atol=0)


@pytest.mark.parametrize(
    "encoding", [Float16(), BFloat16(), Int(4), Int(4, symmetric=False), Int(4, per="tensor"), Sparse(Int(4))], ids=repr
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0, 4), (3, 0)], ids=str)
def test_small_and_empty_tensors(encoding: Encoding, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 1.5)
    encoded = encoding.represent(x)
    close(encoded.decode(), x)
    assert encoding.size_bits(shape) >= 0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-9, 1e9, 1e30])
@pytest.mark.parametrize(
    "encoding",
    [BFloat16(), Int(8), Int(8, symmetric=False), Int(4, scale=Float16()), Int(4, symmetric=False, scale=Float16())],
    ids=repr,
)
def test_extreme_sizes_are_held_or_refused(encoding: Encoding, scale: float) -> None:
    """Never in silence something else: half-precision scales run out of range first."""
    x = torch.tensor([[-1.0, 0.0, 0.5, 1.0]]) * scale
    try:
        decoded = encoding.represent(x).decode()
    except EncodingError:
        assert isinstance(encoding, Int) and encoding.scale == Float16()
    else:
        off = (decoded / scale - x / scale).abs()  # the coarsest format has eight numbers over these four
        assert bool((off <= 0.08 + 0.2 * (x / scale).abs()).all())


@pytest.mark.parametrize(("group", "fitting"), [(3, 2), (5, 4), (7, 8), (100, 8)])
def test_groups_that_do_not_divide_are_refused_with_one_that_does(group: int, fitting: int) -> None:
    with pytest.raises(EncodingError, match=f"groups of {group} do not divide 8 inputs; use group={fitting}"):
        Int(4, group=group).represent(torch.randn(6, 8))


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Int(1), "Signs(2)"),
        (lambda: Int(9), "2 to 8"),
        (lambda: Int(8.0), "2 to 8"),  # type: ignore[arg-type]
        (lambda: Int("8"), "2 to 8"),  # type: ignore[arg-type]
        (lambda: Int(4, group=0), "positive"),
        (lambda: Int(4, group=2.5), "positive"),  # type: ignore[arg-type]
        (lambda: Int(4, group=8, per="tensor"), "per="),
        (lambda: Int(4, per="chanel"), "did you mean 'channel'"),  # type: ignore[arg-type]
        (lambda: Int(4, axis=-1), "axis"),
        (lambda: Int(4, scale="Float16"), "Float16"),  # type: ignore[arg-type]
        (lambda: Sparse("Int"), "Int"),  # type: ignore[arg-type]
        (lambda: Sparse(Sparse(Int(8))), "Int"),
        (lambda: Int(8, dynamic=True).represent(torch.randn(2, 2)), "activations only"),
        (lambda: Int(8, axis=2).represent(torch.randn(2, 2)), "axis"),
        (lambda: Float16().represent(torch.tensor([1e6])), "BFloat16"),
        (lambda: Codebook(1), "2 to 256"),
        (lambda: Codebook(16, held=3), "Float16"),  # type: ignore[arg-type]
        (lambda: Codebook(16, zero=0), "True or False"),  # type: ignore[arg-type]
        (lambda: PowerOfTwo(9), "2 to 8"),
        (lambda: PowerOfTwo(4, terms=3), "1 or 2"),
        (lambda: PowerOfTwo(2, terms=2), "at least 3"),
        (lambda: Signs(5), "2, 3 or 4"),
        (lambda: Signs(3, group=0), "positive"),
        (lambda: MiniFloat("e4m4"), "did you mean 'e4m3'"),  # type: ignore[arg-type]
        (lambda: NF4(scale="x"), "Exponent8"),  # type: ignore[arg-type]
        (lambda: Exponent8().represent(torch.tensor([0.0])), "Float16"),
        (lambda: Sparse(Signs(2)), "Signs(3)"),
        (lambda: Int(1, symmetric=True), "Signs(2)"),
        (lambda: Fixed(8, 8), "2 to 16"),
        (lambda: Fixed(0, 0), "2 to 16"),
        (lambda: Fixed(-1, 8), "0 or more"),
        (lambda: Fixed(1, "8"), "0 or more"),  # type: ignore[arg-type]
        (lambda: Fixed(4, 8).for_value(), "at most 8"),
        (lambda: Blockwise(1), "2 to 8"),
        (lambda: Blockwise(4, channels=0), "positive"),
        (lambda: Blockwise(4, group=0), "positive"),
        (lambda: Blockwise(4, channels=5, group=4).represent(torch.randn(8, 8)), "channels=4"),
        (lambda: Blockwise(4, group=32).represent(torch.randn(8, 27)), "group=27"),
        (lambda: Blockwise(4, channels=2).for_value(), "channels=1"),
        (lambda: PowerOfTwo(4, group=8).for_value(), "dynamic=True"),
        (lambda: PowerOfTwo(4, per="channel").for_value(), "tensor"),
        (lambda: PowerOfTwo(4, dynamic=True).represent(torch.randn(2, 2)), "activations only"),
        (lambda: PowerOfTwo(4, signed=1), "True, False or None"),  # type: ignore[arg-type]
        (lambda: Codebook(4).for_value(), "Int(8)"),
        (lambda: Int(4, group=4, scale=Codebook(8)), "Exponent8"),
        (lambda: Int(4, group=4, scale=Int(8, dynamic=True)), "Exponent8"),
        (lambda: Int(4, scale=Int(8)), "group="),
        (lambda: Int(4, symmetric=False, minimum=Int(8)), "group="),
        (lambda: Int(4, minimum=Float16()), "symmetric=False"),
        (lambda: Int(4, symmetric=True, minimum=Float16()), "symmetric=False"),
        (lambda: Int(4, symmetric=False, minimum=Float16(), dynamic=True), "minimum=None"),
        (lambda: Int(4, symmetric=False, minimum=Exponent8()), "BFloat16()"),
        (lambda: Int(4, symmetric=False, minimum="x"), "BFloat16()"),  # type: ignore[arg-type]
        (lambda: Int(4, group=2, symmetric=False, minimum=MINIMA[4]), "BFloat16()"),
        (lambda: Int(4, group=2, scale=MINIMA[4]), "Exponent8()"),
        (lambda: MINIMA[0].for_value(), "whole offsets"),
        (lambda: Sparse(MINIMA[0]), "Int(8)"),
        (lambda: Int(4, symmetric=False, minimum=Float16()).represent(torch.full((2, 2), 1e6)), "BFloat16"),
        (lambda: PowerOfTwo(4, group=4, scale=Int(8)), "Exponent8"),
        (lambda: Blockwise(4, group=4, scale=PowerOfTwo(4)), "Exponent8"),
        (lambda: LowRank(0), "1 or more"),
        (lambda: LowRank(2.0), "1 or more"),  # type: ignore[arg-type]
        (lambda: LowRank(2, Sparse()), "Int(8)"),
        (lambda: LowRank(2, LowRank(1)), "Int(8)"),
        (lambda: LowRank(2, Exponent8()), "Int(8)"),
        (lambda: LowRank(2, Int(8, dynamic=True)), "activations only"),
        (lambda: LowRank(9).represent(torch.randn(12, 8)), "rank=8"),
        (lambda: LowRank(1).represent(torch.randn(12)), "matrices"),
        (lambda: LowRank(2, Int(4, group=3)).represent(torch.randn(12, 8)), "group="),
        (lambda: LowRank(2).for_value(), "Int(8)"),
        (lambda: Sparse(LowRank(2)), "Signs(3)"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(make: Any, hint: str) -> None:
    with pytest.raises(EncodingError) as caught:
        make()
    assert hint in caught.value.next


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"kind": "Imt"}, "did you mean 'Int'"),
        ({"kind": "Int", "bit": 4}, "did you mean 'bits'"),
        ({"kind": "Int", "bits": 4, "scale": {"kind": "float16"}}, "did you mean 'Float16'"),
        ({"kind": "Sparse", "values": {"kind": "Int", "grp": 4}}, "did you mean 'group'"),
        ({"bits": 4}, "known kinds"),
        ({"kind": 3}, "known"),
    ],
)
def test_unknown_plain_data_is_refused_with_the_nearest_name(data: Any, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_plain(data, ENCODINGS)
    assert hint in caught.value.next


@pytest.mark.parametrize(
    "field",
    [{"bits": []}, {"bits": None}, {"group": "4"}, {"axis": "0"}, {"scale": 3}, {"symmetric": 2}, {"dynamic": "no"}],
    ids=str,
)
def test_fields_of_a_wrong_type_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(LilliputError):
        from_plain({"kind": "Int", **field}, ENCODINGS)


def test_what_was_established_lasts() -> None:
    assert Int(4).keeping(Sparse()) == Sparse(Int(4))
    assert Sparse().keeping(Int(4)) == Sparse(Int(4))
    assert Sparse().keeping(Sparse(Int(4))) == Sparse(Int(4))
    assert Sparse(Int(4)).keeping(Sparse()) == Sparse(Int(4))
    assert Int(4).keeping(Int(8)) == Int(4)
    assert Int(4).keeping(LowRank(3)) == LowRank(3, Int(4))
    assert Int(4).keeping(LowRank(3, Float16())) == LowRank(3, Int(4))
    assert LowRank(2).keeping(LowRank(3, Int(8))) == LowRank(2)
    assert LowRank(2).keeping(Int(8)) == LowRank(2)


@pytest.mark.parametrize(
    "encoding", [Float16(), Int(4), Int(4, symmetric=False, group=4), Sparse(Int(4)), Sparse()], ids=repr
)
def test_gradients_pass_straight_through_a_projection(encoding: Encoding) -> None:
    x = sample((12, 8)).requires_grad_()
    frozen = encoding.represent(x.detach())
    projected = encoding.project(x, frozen)
    close(projected, frozen.decode())
    projected.sum().backward()
    free = torch.ones(12, 8) if not isinstance(encoding, Sparse) else (frozen.decode() != 0).float()
    close(x.grad, free)


@pytest.mark.parametrize(
    ("encoding", "forged", "words"),
    [
        (Int(8), {"codes": torch.zeros(8, 4, dtype=torch.int8)}, "for a tensor of"),
        (Int(8), {"scale": torch.zeros(3)}, "for 4 blocks"),
        (Int(8, symmetric=False), {"minimum": torch.zeros(4)}, "the parts codes, minimum, offset, scale"),
        (MINIMA[1], {"minimum": Float16().represent(torch.zeros(3))}, "for 4 blocks"),
        (MINIMA[1], {"offset": torch.zeros(4, dtype=torch.uint8)}, "the parts codes, minimum, offset, scale"),
        (Codebook(4), {"codes": torch.full((4, 8), 9, dtype=torch.uint8)}, "the code 9 of 4"),
        (Codebook(4), {"codes": torch.full((4, 8), -1, dtype=torch.int8)}, "codes of torch.int8"),
        (Codebook(4, group=4), {"levels": torch.zeros(4)}, "for 8 blocks"),
        (Signs(3), {"codes": torch.full((4, 8), 7, dtype=torch.uint8)}, "the code 7 of 3"),
        (NF4(), {"scale": torch.zeros(3)}, "for 4 blocks"),
        (Blockwise(3, 2, 4), {"scale": torch.zeros(4, 2)}, "for 4 blocks"),
        (Blockwise(3, 2, 4), {"choice": torch.zeros(4, dtype=torch.uint8)}, "for 4 blocks"),
        (Blockwise(3, 2, 4), {"choice": torch.full((2, 2), 2, dtype=torch.uint8)}, "neither 0 nor 1"),
        (Blockwise(3, 2, 4), {"codes": torch.full((4, 8), 7, dtype=torch.uint8)}, "the code 7 of 7"),
        (Fixed(1, 3), {"scale": torch.tensor(0.5)}, "2\\^-3"),
        (Fixed(1, 9), {"codes": torch.zeros(4, 8, dtype=torch.int8)}, "int16"),
        (LowRank(3), {"left": torch.zeros(4, 2)}, "for a tensor of"),
        (LowRank(3), {"right": torch.zeros(3, 9)}, "for a tensor of"),
        (LowRank(3), {"right": torch.zeros(3, 8, dtype=torch.int8)}, "right of torch.int8"),
        (LowRank(3), {"scale": torch.zeros(())}, "factors"),
        (Fixed(1, 9), {"offset": torch.tensor(0, dtype=torch.uint8)}, "offset 128"),
    ],
)
def test_forged_parts_are_refused(encoding: Encoding, forged: dict[str, Tensor], words: str) -> None:
    parts = encoding.represent(torch.randn(4, 8)).parts
    encoding.check_parts((4, 8), parts)
    with pytest.raises(ValueError, match=words):
        encoding.check_parts((4, 8), {**parts, **forged})


def test_no_scale_vanishes_among_others() -> None:
    """One group of a thousandth of the others' size: it costs the others nothing, and is not lost."""
    x = 0.02 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    x[:, 8:16] *= 1e-3
    plain, held = Int(4, group=8), Int(4, group=8, scale=Int(6, group=4, symmetric=False))
    errors = [(encoding.represent(x).decode() - x).abs() for encoding in (plain, held)]
    others = torch.ones(32, dtype=torch.bool).index_fill(0, torch.arange(8, 16), False)
    assert float(errors[1][:, others].norm()) < 1.3 * float(errors[0][:, others].norm())
    assert float(errors[1][:, ~others].max()) <= 0.5 * float(x.abs().max()) / 7 / 63 * 1.01


def test_a_group_of_zeros_spoils_no_scales_beside_it() -> None:
    """Its scale, which may be anything above zero, is the least that there is."""
    x = 0.02 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    x[:, 8:16] = 0
    errors = [
        float((Int(4, group=8, scale=scale).represent(x).decode() - x).norm())
        for scale in (None, Int(6, group=4, symmetric=False))
    ]
    assert errors[1] < 1.3 * errors[0]


def test_a_minimum_needs_no_zero_in_the_range() -> None:
    """Rows far from zero: their ends are numbers of theirs, and steps are as small as their width allows."""
    x = 100 + torch.rand(8, 16, generator=torch.Generator().manual_seed(1))
    found = Int(4, symmetric=False, minimum=Float16()).represent(x)
    parts = found.decoded_parts()
    close(parts["minimum"], x.amin(1).half().float(), rtol=0)
    close(parts["scale"], (x.amax(1) - parts["minimum"]) / 15, rtol=1e-6)
    assert float((found.decode() - x).abs().max()) <= 0.5 * float(parts["scale"].max()) + 0.04  # a half at 100: 1/16
    whole = Int(4, symmetric=False).represent(x).decode()
    assert float((whole - x).abs().max()) > 10 * float((found.decode() - x).abs().max())


def test_a_row_of_one_number_is_that_number() -> None:
    x = torch.tensor([[1.5] * 4, [-0.25] * 4, [0.0] * 4])
    assert torch.equal(Int(4, symmetric=False, minimum=Float16()).represent(x).decode(), x)


def test_scales_and_minima_of_groups_are_those_of_k_quants() -> None:
    """``d · s · code - d_min · m`` of Q4_K: 6 bits for each scale and each minimum, and one number for all eight."""
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(2))
    six = Int(6, group=8, symmetric=False)
    found = Int(4, group=32, symmetric=False, scale=six, minimum=six).represent(x)
    held = found.tensors()
    d, least = held["scale.scale"].double(), held["minimum.scale"].double()
    s, m = held["scale.codes"].double(), held["minimum.offset"].double() - held["minimum.codes"].double()
    assert s.shape == (2, 8) and d.shape == (2, 1) and bool((held["scale.offset"] == 0).all()) and bool((m >= 0).all())
    codes = held["codes"].double().reshape(2, 8, 32)
    close(found.decode().double().reshape(2, 8, 32), (d * s)[..., None] * codes - (least * m)[..., None], atol=1e-6)
    assert float((found.decode() - x).norm() / x.norm()) < 0.085


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 6, 8])
def test_parameters_held_among_integers_are_held_again_as_they_are(bits: int, symmetric: bool) -> None:
    """Whatever is loaded, trained on and frozen holds its scales and minima anew: they must not creep."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(400, 8, generator=draw) * torch.rand(400, 1, generator=draw)
    encoding = Int(bits, symmetric=symmetric)
    once = encoding.hold(x).decode()
    assert torch.equal(encoding.hold(once).decode(), once)
    plain = encoding.represent(x)
    assert float((once - plain.decode()).abs().max()) <= 1.001 * float(plain.decoded_parts()["scale"].max())
