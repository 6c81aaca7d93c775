"""What moves, cuts and joins without weights."""

from __future__ import annotations

from source import FLOATS, Source, Unfit, production


def _size(s: Source) -> int:
    size = 1
    for n in s.shape:
        size *= n
    return size


@production(
    "image",
    "signal",
    "sequence",
    weight=3,
    way=("x.flatten(1)", "x.reshape(x.shape[0], -1)", "x.view(len(x), -1)", "nn.Flatten()(x)", "x.reshape(-1, {size})"),
)
def flatten(s: Source, way: str) -> None:
    size = _size(s)
    if size > 512:
        raise Unfit
    s.line(f"x = {way.format(size=size)}" if "view" not in way else "x = x.contiguous().view(len(x), -1)")
    s.becomes("vector", size)


@production(
    "image",
    weight=3,
    way=("x.mean((2, 3))", "x.amax((2, 3))", "F.adaptive_avg_pool2d(x, 1).flatten(1)", "x.flatten(2).mean(-1)"),
)
def pool_all(s: Source, way: str) -> None:
    s.line(f"x = {way}")
    s.becomes("vector", s.channels)


@production("signal", "sequence", weight=2, way=("mean", "amax", "sum"))
def pool_time(s: Source, way: str) -> None:
    s.line(f"x = x.{way}({2 if s.layout == 'signal' else 1})")
    s.becomes("vector", s.channels)


@production(
    "signal",
    "sequence",
    weight=2,
    way=("x.transpose(1, 2)", "x.mT", "x.permute(0, 2, 1)", "torch.einsum('nab->nba', x)", "x.swapaxes(-1, -2)"),
)
def transpose(s: Source, way: str) -> None:
    s.line(f"x = {way}")
    s.becomes("sequence" if s.layout == "signal" else "signal", *s.shape[::-1])


@production("image", weight=1.5, way=("x.flatten(2).transpose(1, 2)", "x.permute(0, 2, 3, 1).flatten(1, 2)"))
def patches(s: Source, way: str) -> None:
    s.line(f"x = {way}")
    s.becomes("sequence", s.shape[1] * s.shape[2], s.shape[0])


@production(
    "sequence",
    weight=1,
    way=(
        "x[:, 0]",
        "x[:, -1]",
        "x.select(1, 0)",
        "x.unbind(1)[0]",
        "x[:, :1].squeeze(1)",
        "x.index_select(1, torch.tensor([0])).squeeze(1)",
    ),
)
def one_of(s: Source, way: str) -> None:
    s.line(f"x = {way}")
    s.becomes("vector", s.channels)


@production("vector", weight=0.7)
def unflatten(s: Source) -> None:
    if s.channels % 4:
        raise Unfit
    s.line("x = x.unflatten(1, (4, -1))")
    s.becomes("sequence", 4, s.channels // 4)


@production(*FLOATS, weight=1, way=("halves multiplied", "halves exchanged", "chunked", "glu"))
def split(s: Source, way: str) -> None:
    axis = -1 if s.layout in ("sequence", "vector") else 1
    a, b, c = s.fresh(), s.fresh(), s.channels
    if c % 2:
        raise Unfit
    if way == "glu":
        s.line(f"x = F.glu(x, {axis})")
    else:
        cut = f"x.chunk(2, {axis})" if way == "chunked" else f"x.split({c // 2}, {axis})"
        s.line(f"{a}, {b} = {cut}")
        s.line(f"x = torch.cat([{b}, {a}], {axis})" if way == "halves exchanged" else f"x = {a} * {b}.sigmoid()")
    s.wide(c if way == "halves exchanged" else c // 2)


@production(
    *FLOATS,
    weight=1,
    way=(
        "torch.roll(x, 1, -1)",
        "x.flip(-1)",
        "x.cumsum(-1)",
        "F.pad(x, (1, 1))[..., 1:-1]",
        "x[..., :]",
        "x.expand_as(x)",
        "x.contiguous()",
        "x.clone()",
        "x + 0",
        "x.to(torch.float32)",
        "x.type_as(x)",
        "x.view(x.shape)",
        "x.unsqueeze(0).squeeze(0)",
        "torch.stack([x, x]).sum(0)",
        "x.repeat_interleave(2, 0)[::2]",
        "x.detach()",
        "torch.nan_to_num(x)",
    ),
)
def moved(s: Source, way: str) -> None:
    s.line(f"x = {way}")


@production("image", weight=0.5)
def pixel_shuffle(s: Source) -> None:
    if s.channels % 4 or s.shape[1] > 8:
        raise Unfit
    s.line("x = F.pixel_shuffle(x, 2)")
    s.becomes("image", s.channels // 4, 2 * s.shape[1], 2 * s.shape[2])


@production(*FLOATS, weight=0.7, value=("0", "1.5", "x.mean(-1, keepdim=True)"))
def written(s: Source, value: str) -> None:
    """A part of what flows is written over."""
    s.line("x = x.clone()")
    s.line(f"x[..., :1] = {value}")
