"""Number formats of weights beside one another, on the pointwise convolutions of EfficientNet-Lite0.

Those hold most of its weights. The stem, the depthwise convolutions and the classifier are Int(8) in every row, so that
what differs is the format; nothing else is done: no bias correction, no training, activations in float. Each format is
fitted by squared error (`MSE`), or by what the row says. Groups and tiles are of the sizes nearest to 32 inputs and 8
channels that divide a layer. Outputs are compared in torch, on photographs that nothing was fitted to.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from networks import OUT, lite0
from table import write
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.encodings.blocks import divisor
from lilliput.measure import DistanceSoFar
from lilliput.model.carrier.carrier import attach
from lilliput.model.rescaling.fold import fold_norms
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.techniques.ranges import MSE, Range

CROPS = 3  # of each of the 20 photographs to judge by: an agreement of 90 % is known to within some 8 points
Choice = Callable[[Tensor], Encoding]  # the format of a weight, whose sizes it may depend on


def cases() -> Iterator[tuple[str, int, Choice, Range]]:
    """Name, bits of a code, format, fit."""
    fit = MSE()
    yield "as it is", 32, lambda x: lp.formats.Sparse(), fit
    yield "BFloat16", 16, lambda x: lp.formats.BFloat16(), fit
    for bits in (2, 3, 4, 5, 6, 8):
        n, few, whole = 2**bits, bits <= 4, bits != 5
        yield "Int, a scale a channel", bits, lambda x, b=bits: lp.Int(b), fit
        yield "Levels, one list a tensor", bits, lambda x, n=n: lp.formats.Codebook(n), fit
        if few:
            yield (
                "Levels, a list a channel",
                bits,
                lambda x, n=n: lp.formats.Codebook(n, per="channel", held=lp.formats.Float16()),
                fit,
            )
            yield "Log", bits, lambda x, b=bits: lp.formats.PowerOfTwo(b), fit
        if 3 <= bits <= 6:
            yield "Log, sums of two", bits, lambda x, b=bits: lp.formats.PowerOfTwo(b, terms=2), fit
        if whole and bits < 8:
            yield "Int in groups", bits, lambda x, b=bits: lp.Int(b, group=inputs(x), scale=lp.formats.Float16()), fit
            yield "Int in groups, over minima", bits, lambda x, b=bits: over_minima(x, b), fit
            yield (
                "Tiles of 1 × 32",
                bits,
                lambda x, b=bits: lp.formats.Blockwise(b, 1, inputs(x), scale=lp.formats.Float16()),
                fit,
            )
            yield "Tiles of 8 × 32", bits, lambda x, b=bits: tiles(x, b), fit
        if whole and bits >= 4:
            yield "Fixed", bits, lambda x, b=bits: fixed(x, b), fit
    yield "Fixed", 16, lambda x: fixed(x, 16), fit
    yield "Levels, by quantiles", 4, lambda x: lp.formats.Codebook(16), lp.ranges.Quantiles()
    yield "Levels, by clipped intervals", 4, lambda x: lp.formats.Codebook(16), lp.ranges.Intervals()
    yield "Signs(2)", 1, lambda x: lp.formats.Signs(2), fit
    yield "Signs(3)", 2, lambda x: lp.formats.Signs(3), fit
    yield "Signs(4)", 2, lambda x: lp.formats.Signs(4), fit
    yield "NF4", 4, lambda x: lp.formats.NF4(), fit
    yield "NF4 in groups", 4, lambda x: lp.formats.NF4(group=inputs(x), scale=lp.formats.Float16()), fit
    yield "MiniFloat e2m1", 4, lambda x: lp.formats.MiniFloat("e2m1"), fit
    yield "MiniFloat e4m3", 8, lambda x: lp.formats.MiniFloat("e4m3"), fit
    yield "MiniFloat e5m2", 8, lambda x: lp.formats.MiniFloat("e5m2"), fit


def inputs(x: Tensor) -> int:
    return divisor(x[0].numel(), 32)


def over_minima(x: Tensor, bits: int) -> Encoding:
    return lp.Int(bits, group=inputs(x), symmetric=False, scale=lp.formats.Float16(), minimum=lp.formats.Float16())


def tiles(x: Tensor, bits: int) -> Encoding:
    return lp.formats.Blockwise(bits, divisor(len(x), 8), inputs(x), scale=lp.formats.Float16())


def fixed(x: Tensor, bits: int) -> Encoding:
    """Fixed point with as many bits before the point as the largest weight needs."""
    before = max(0, math.ceil(math.log2(x.abs().max().item())))
    return lp.formats.Fixed(min(before, bits - 1), max(0, bits - 1 - before))


def main() -> None:
    torch.set_num_threads(1)
    task = lite0()
    crops = torch.cat(list(task.evaluate)).unflatten(0, (20, -1))[:, :CROPS]  # [photographs, crops, 3, 224, 224]
    batches = list(crops.flatten(0, 1).split(20))
    net, paths = prepared(task)
    with torch.no_grad():
        exact = [net(x) for x in batches]
    rows = [row(*case, net, paths, batches, exact) for case in cases()]
    write("formats", rows, 1)


def prepared(task: lp.Task) -> tuple[nn.Module, list[str]]:
    """The network with its norms folded and what is not judged in 8 bits; the weights that are judged."""
    net, example = copy.deepcopy(task.model).eval(), Inputs.of(task.example)
    view = capture(net, example, dynamic_axes(example, None))
    for edit, given in fold_norms(view, net):
        edit.apply(net, given)
    judged = []
    for path, (call, *_) in view.weights.items():
        if call.op == "conv2d" and call.weight_shape[2:] == (1, 1):
            judged.append(path)
        else:
            encode(net, path, lp.Int(8), MSE())
    return net, judged


def encode(net: nn.Module, path: str, encoding: Encoding, fit: Range) -> int:
    """Encode a weight in place; its bits."""
    x, mine = net.get_parameter(path).detach(), encoding.for_weight()
    attach(net, (path,), mine.represent(x, fit.fit(x, mine)))
    return mine.size_bits(tuple(x.shape))


def row(
    name: str,
    bits: int,
    choose: Choice,
    fit: Range,
    net: nn.Module,
    paths: list[str],
    batches: list[Tensor],
    exact: list[Tensor],
) -> dict[str, Any]:
    model, weights, file = (
        copy.deepcopy(net),
        sum(net.get_parameter(path).numel() for path in paths),
        OUT / "formats.lil",
    )
    OUT.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    held = sum(encode(model, path, choose(net.get_parameter(path).detach()), fit) for path in paths)
    seconds = time.perf_counter() - began
    lp.save(file, model)
    so_far, dense = DistanceSoFar({"": "classes"}), lp.formats.to_dense(model)
    with torch.no_grad():
        for x, out in zip(batches, exact, strict=True):
            so_far.add(out, dense(x))
    [found] = so_far.distances()
    told = {
        "format": name,
        "bits": bits,
        "bits_per_weight": held / weights,
        "lil_bytes": file.stat().st_size,
        "sqnr_db": found.sqnr_db,
        "top1_agreement": float(found.scores["same_answer"].mean()),
        "samples": found.samples,
        "fit_seconds": seconds,
    }
    print(told, flush=True)
    return told


if __name__ == "__main__":
    main()
