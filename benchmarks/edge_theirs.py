"""Int8 by the runtime's own tool, where it is: ``edge_theirs.py RUNTIME PROGRAM CALIBRATE OUT static|dynamic``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch


def main(runtime: str, program: str, calibrate: str, out: str, mode: str) -> None:
    with open(program, "rb") as file:
        module = torch.export.load(file).module(check_guards=False)
    samples, dynamic = torch.load(calibrate), mode == "dynamic"
    {"executorch": executorch, "litert": litert}[runtime](module, samples, out, dynamic)


def quantized(module: Any, samples: Any, quantizer: Any, convert: Any, prepare: Any, dynamic: bool) -> Any:
    prepared = prepare(module, quantizer)
    for args, kwargs in samples[:1] if dynamic else samples:
        prepared(*args, **kwargs)
    return convert(prepared)


def executorch(module: Any, samples: Any, out: str, dynamic: bool) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer().set_global(settings)
    done = quantized(module, samples, quantizer, convert_pt2e, prepare_pt2e, dynamic)
    args, kwargs = samples[0]
    lowered = to_edge_transform_and_lower(
        torch.export.export(done, args, kwargs),
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    Path(out).write_bytes(lowered.to_executorch().buffer)


def litert(module: Any, samples: Any, out: str, dynamic: bool) -> None:
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer, quant_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = pt2e_quantizer.PT2EQuantizer().set_global(settings)

    def convert(prepared: Any) -> Any:
        return convert_pt2e(prepared, fold_quantize=False)

    done = quantized(module, samples, quantizer, convert, prepare_pt2e, dynamic)
    args, kwargs = samples[0]
    config = quant_config.QuantConfig(pt2e_quantizer=quantizer)
    litert_torch.convert(done, args, kwargs, quant_config=config).export(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
