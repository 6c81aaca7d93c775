"""Layers with weights, normalisations, attention, pooling, activations."""

from __future__ import annotations

from source import FLOATS, Source, Unfit, production

WIDTHS = (4, 8, 12)
BOTH = (True, False)


@production("vector", "sequence", weight=6, width=WIDTHS, bias=BOTH)
def linear(s: Source, width: int, bias: bool) -> None:
    s.line(f"x = {s.hold(f'nn.Linear({s.channels}, {width}, bias={bias})')}(x)")
    s.wide(width)


@production(
    "image",
    weight=6,
    width=WIDTHS,
    kernel=(1, 3),
    bias=BOTH,
    padding=(0, 1, "same"),
    mode=("zeros", "zeros", "reflect", "circular", "replicate"),
)
def conv2d(s: Source, width: int, kernel: int, bias: bool, padding: int | str, mode: str) -> None:
    given = f"padding={padding!r}, padding_mode={mode!r}, bias={bias}"
    s.line(f"x = {s.hold(f'nn.Conv2d({s.channels}, {width}, {kernel}, {given})')}(x)")
    grow = 0 if padding == "same" else 2 * int(padding) - (kernel - 1)
    s.becomes("image", width, *(n + grow for n in s.shape[1:]))


@production("image", weight=2, width=WIDTHS, groups=(2, 4, 0), stride=(1, 2), dilation=(1, 2))
def conv2d_grouped(s: Source, width: int, groups: int, stride: int, dilation: int) -> None:
    groups = groups or s.channels  # 0: depthwise
    width = width if groups != s.channels else 2 * s.channels
    if s.channels % groups or width % groups:
        raise Unfit
    given = f"stride={stride}, dilation={dilation}, padding={dilation}, groups={groups}"
    s.line(f"x = {s.hold(f'nn.Conv2d({s.channels}, {width}, 3, {given})')}(x)")
    s.becomes("image", width, *((n - 1) // stride + 1 for n in s.shape[1:]))


@production("image", weight=1, width=WIDTHS, stride=(1, 2), groups=(1, 2), extra=(0, 1))
def conv_transpose2d(s: Source, width: int, stride: int, groups: int, extra: int) -> None:
    if s.channels % groups or s.shape[1] > 16 or extra >= stride:
        raise Unfit
    given = f"stride={stride}, padding=1, groups={groups}, output_padding={extra}"
    s.line(f"x = {s.hold(f'nn.ConvTranspose2d({s.channels}, {width}, 3, {given})')}(x)")
    s.becomes("image", width, *((n - 1) * stride + 1 + extra for n in s.shape[1:]))


@production(
    "signal",
    weight=6,
    width=WIDTHS,
    kernel=(1, 3),
    padding=(0, 1),
    mode=("zeros", "zeros", "reflect", "circular"),
    groups=(1, 1, 2),
)
def conv1d(s: Source, width: int, kernel: int, padding: int, mode: str, groups: int) -> None:
    if s.channels % groups:
        raise Unfit
    given = f"padding={padding}, padding_mode={mode!r}, groups={groups}"
    s.line(f"x = {s.hold(f'nn.Conv1d({s.channels}, {width}, {kernel}, {given})')}(x)")
    s.becomes("signal", width, s.shape[1] + 2 * padding - kernel + 1)


@production("signal", weight=1, width=WIDTHS)
def conv_transpose1d(s: Source, width: int) -> None:
    s.line(f"x = {s.hold(f'nn.ConvTranspose1d({s.channels}, {width}, 4, stride=2, padding=1)')}(x)")
    s.becomes("signal", width, 2 * s.shape[1])


@production("tokens", weight=8, width=WIDTHS, padding=(None, 0), largest=(None, 1.0))
def embedding(s: Source, width: int, padding: int | None, largest: float | None) -> None:
    s.line(f"x = {s.hold(f'nn.Embedding(20, {width}, padding_idx={padding}, max_norm={largest})')}(x)")
    s.becomes("sequence", *s.shape, width)


@production("tokens", weight=1, width=WIDTHS, mode=("mean", "sum"))
def embedding_bag(s: Source, width: int, mode: str) -> None:
    s.line(f"x = {s.hold(f'nn.EmbeddingBag(20, {width}, mode={mode!r})')}(x)")
    s.becomes("vector", width)


@production("tokens", weight=1)
def one_hot(s: Source) -> None:
    s.line("x = F.one_hot(x, 20).float()")
    s.becomes("sequence", *s.shape, 20)


@production(
    "sequence",
    weight=3,
    kind=("LSTM", "GRU", "RNN"),
    width=(4, 8),
    levels=(1, 1, 2),
    both=BOTH,
    last=BOTH,
    first=(True, True, False),
)
def recurrent(s: Source, kind: str, width: int, levels: int, both: bool, last: bool, first: bool) -> None:
    given = f"num_layers={levels}, bidirectional={both}, batch_first={first}"
    layer = s.hold(f"nn.{kind}({s.channels}, {width}, {given})", gives_tensor=False)
    state = s.fresh()
    s.line(f"x, {state} = {layer}(x)" if first else f"x, {state} = {layer}(x.transpose(0, 1))")
    if not first:
        s.line("x = x.transpose(0, 1)")
    if last:
        s.line(f"x = {state}[0][-1]" if kind == "LSTM" else f"x = {state}[-1]")
        s.becomes("vector", width)
    else:
        s.wide(width * (1 + both))


@production("image", "signal", weight=2, affine=BOTH)
def batch_norm(s: Source, affine: bool) -> None:
    norm = s.hold(f"nn.BatchNorm{2 if s.layout == 'image' else 1}d({s.channels}, affine={affine})")
    s.init(f"{norm}.running_mean.normal_(); {norm}.running_var.uniform_(0.5, 2)")
    s.line(f"x = {norm}(x)")


@production("image", "signal", weight=1, kind=("GroupNorm", "InstanceNorm"), affine=BOTH, tracked=BOTH)
def other_norm(s: Source, kind: str, affine: bool, tracked: bool) -> None:
    if kind == "GroupNorm":
        if s.channels % 2:
            raise Unfit
        norm = s.hold(f"nn.GroupNorm(2, {s.channels}, affine={affine})")
    else:
        given = f"{s.channels}, affine={affine}, track_running_stats={tracked}"
        norm = s.hold(f"nn.InstanceNorm{2 if s.layout == 'image' else 1}d({given})")
    s.line(f"x = {norm}(x)")


@production("sequence", "vector", weight=2, kind=("LayerNorm", "RMSNorm"))
def layer_norm(s: Source, kind: str) -> None:
    s.line(f"x = {s.hold(f'nn.{kind}({s.channels})')}(x)")


@production("sequence", weight=1.5, heads=(1, 2), weights=BOTH, mask=BOTH)
def attention(s: Source, heads: int, weights: bool, mask: bool) -> None:
    if s.channels % heads:
        raise Unfit
    layer = s.hold(f"nn.MultiheadAttention({s.channels}, {heads}, batch_first=True)", gives_tensor=False)
    masked = ", attn_mask=torch.ones(x.shape[1], x.shape[1]).triu(1).bool()" if mask else ""
    s.line(f"x = {layer}(x, x, x, need_weights={weights}{masked})[0]")


@production("sequence", weight=1, norm_first=BOTH, act=("relu", "gelu"))
def transformer(s: Source, norm_first: bool, act: str) -> None:
    if s.channels % 2:
        raise Unfit
    given = f"{s.channels}, 2, 16, activation={act!r}, batch_first=True, norm_first={norm_first}"
    s.line(f"x = {s.hold(f'nn.TransformerEncoderLayer({given})')}(x)")


@production("sequence", weight=1.5, fused=BOTH, causal=BOTH)
def dot_product_attention(s: Source, fused: bool, causal: bool) -> None:
    c, (q, k, v) = s.channels, (s.fresh(), s.fresh(), s.fresh())
    if c % 2:
        raise Unfit
    if fused:
        parts = f"unflatten(2, (3, 2, {c // 2})).permute(2, 0, 3, 1, 4)"
        s.line(f"{q}, {k}, {v} = {s.hold(f'nn.Linear({c}, {3 * c})')}(x).{parts}")
    else:
        for name in (q, k, v):
            s.line(f"{name} = {s.hold(f'nn.Linear({c}, {c})')}(x).unflatten(2, (2, {c // 2})).transpose(1, 2)")
    s.line(f"x = F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={causal}).transpose(1, 2).flatten(2)")


@production("image", weight=1, kind=("Max", "Avg"), ceil=BOTH)
def pool2d(s: Source, kind: str, ceil: bool) -> None:
    s.line(f"x = {s.hold(f'nn.{kind}Pool2d(2, ceil_mode={ceil})')}(x)")
    s.becomes("image", s.channels, *((n + ceil) // 2 for n in s.shape[1:]))


@production("image", weight=1, size=(1, 2))
def adaptive_pool(s: Source, size: int) -> None:
    if any(n % size for n in s.shape[1:]):
        raise Unfit
    s.line(f"x = F.adaptive_avg_pool2d(x, {size})")
    s.becomes("image", s.channels, size, size)


@production("signal", weight=0.5)
def pool1d(s: Source) -> None:
    s.line("x = F.max_pool1d(x, 2)")
    s.becomes("signal", s.channels, s.shape[1] // 2)


@production("image", weight=0.5, mode=("nearest", "bilinear"))
def interpolate(s: Source, mode: str) -> None:
    if s.shape[1] > 8:
        raise Unfit
    s.line(f"x = F.interpolate(x, scale_factor=2, mode={mode!r})")
    s.becomes("image", s.channels, *(2 * n for n in s.shape[1:]))


@production(
    *FLOATS,
    weight=5,
    act=(
        "nn.ReLU()",
        "nn.ReLU(inplace=True)",
        "nn.GELU()",
        "nn.SiLU()",
        "nn.Hardswish()",
        "nn.Sigmoid()",
        "nn.Tanh()",
        "nn.LeakyReLU(0.1)",
        "nn.ReLU6()",
        "nn.PReLU()",
        "nn.Softplus()",
        "nn.Dropout()",
        "nn.Identity()",
        "nn.ELU()",
    ),
)
def activation(s: Source, act: str) -> None:
    s.line(f"x = {s.hold(act)}(x)")


@production(
    *FLOATS,
    weight=3,
    act=(
        "x.relu()",
        "F.relu(x, inplace=True)",
        "x.relu_()",
        "F.gelu(x)",
        "x.tanh()",
        "x.sigmoid() * x",
        "x.abs()",
        "x.clamp(-1, 1)",
        "F.dropout(x, 0.5, self.training)",
        "x.softmax(-1)",
        "x.square()",
        "torch.where(x > 0, x, x * 0.1)",
        "x / (1 + x.abs())",
        "F.normalize(x, dim=1)",
        "x.masked_fill(x < -1, 0.0)",
    ),
)
def functional(s: Source, act: str) -> None:
    s.line(f"x = {act}")


@production(
    "image",
    "signal",
    "vector",
    "sequence",
    weight=1,
    way=(
        "weight_norm",
        "parametrized weight_norm",
        "spectral_norm",
        "parametrized spectral_norm",
        "orthogonal",
        "pruned",
        "doubled",
    ),
)
def reparametrized(s: Source, way: str) -> None:
    """A layer whose weight is computed from others."""
    c = s.channels
    if way == "orthogonal" and s.layout in ("image", "signal"):
        raise Unfit
    layer = s.hold(
        {"image": f"nn.Conv2d({c}, 8, 1)", "signal": f"nn.Conv1d({c}, 8, 1)"}.get(s.layout, f"nn.Linear({c}, 8)")
    )
    s.init(
        {
            "weight_norm": f"nn.utils.weight_norm({layer})",
            "parametrized weight_norm": f"nn.utils.parametrizations.weight_norm({layer})",
            "spectral_norm": f"nn.utils.spectral_norm({layer})",
            "parametrized spectral_norm": f"nn.utils.parametrizations.spectral_norm({layer})",
            "orthogonal": f"nn.utils.parametrizations.orthogonal({layer})",
            "pruned": f"prune.l1_unstructured({layer}, 'weight', 0.5)",
            "doubled": f"nn.utils.parametrize.register_parametrization({layer}, 'weight', Doubled())",
        }[way]
    )
    s.line(f"x = {layer}(x)")
    s.wide(8)
