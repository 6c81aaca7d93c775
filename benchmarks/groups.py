"""How long it takes to find what is coupled in a network of 204 layers, ResNet-200-like, on pictures of 224 pixels."""

from __future__ import annotations

from time import perf_counter, process_time

import torch
from table import write
from torch import nn

from lilliput.measure import parameters
from lilliput.model.surgery.coupling import coupling
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.program import program, quiet


def main() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.set_num_threads(1)
    config = ResNetConfig(depths=[3, 24, 36, 3], hidden_sizes=[256, 512, 1024, 2048], num_labels=1000)
    net, inputs = ResNetForImageClassification(config).eval(), Inputs.of(torch.randn(1, 3, 224, 224))
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules())
    rows = []
    for _ in range(3):
        with quiet():
            began = process_time()
            program(net, inputs, {})
            captured = process_time() - began
        began, clock = process_time(), perf_counter()
        found = coupling(net, inputs)
        rows.append((process_time() - began, perf_counter() - clock, captured, len(found.groups)))
    processor, seconds, captured, groups = sorted(rows)[1]
    row = {"layers": layers, "parameters": parameters(net), "groups": groups, "processor_seconds": processor}
    write("groups", [{**row, "seconds": seconds, "of_which_capture": captured}], 1)


if __name__ == "__main__":
    main()
