"""torch-pruning's part of pruning.py: a whole module comes in a file, a smaller one goes out in another.

Run by the Python of the environment that pruning_peers.py tells of, with lilliput's source on its path:

    peers/bin/python benchmarks/pruning_theirs.py DENSE.pt SHARE SMALL.pt

Local pruning by L2 magnitude over all that is coupled, widths in multiples of eight, the last layer's outputs left
alone; the least ratio that leaves at most SHARE of the multiply-accumulates is found by bisection.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from lilliput.measure.cost import macs

EXAMPLE = torch.zeros(1, 1, 28, 28)


def main() -> None:
    dense, share, small = sys.argv[1:]
    torch.set_num_threads(1)
    net = torch.load(dense, weights_only=False).eval()
    torch.save(within(net, float(share)), small)


def within(net: Any, share: float) -> nn.Module:
    allowed = share * macs(net, (EXAMPLE,)).total
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        found = macs(shrunk(net, middle), (EXAMPLE,)).total
        low, high = (low, middle) if found <= allowed else (middle, high)
    return shrunk(net, high)


def shrunk(net: Any, ratio: float) -> nn.Module:
    small = copy.deepcopy(net)
    tp.pruner.BasePruner(
        small,
        EXAMPLE,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=ratio,
        round_to=8,
        ignored_layers=[small.head],
    ).step()
    return small


if __name__ == "__main__":
    main()
