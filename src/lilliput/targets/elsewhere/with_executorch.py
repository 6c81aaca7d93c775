"""ExecuTorch with XNNPACK, where `serving.py` asks for it: nothing of Lilliput's is there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def begin(threads: int) -> None:
    """Import the runtime, with so many threads."""
    warnings.simplefilter("ignore")
    from executorch.extension.pybindings import portable_lib

    torch.set_num_threads(threads)
    portable_lib._unsafe_reset_threadpool(threads)


def build(program: str, path: str) -> dict[str, Any]:
    """Lower a saved program to a `.pte`; raises where an operator is left for which ExecuTorch has no kernel."""
    import executorch.kernels.quantized  # noqa: F401  # kernels that are known by being imported
    import torch.ao.quantization.fx._decomposed
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from executorch.runtime import Runtime

    with open(program, "rb") as file:  # by a path, torch would ask for another ending
        saved = torch.export.load(file)
    lowered = to_edge_transform_and_lower(
        saved,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    ).to_executorch()
    targets = [node.target for node in lowered.exported_program().graph.nodes]
    called = {target.name() for target in targets if isinstance(target, torch._ops.OpOverload)}
    if missing := sorted(called - Runtime.get().operator_registry.operator_names):
        raise ValueError(f"there is no kernel for {', '.join(missing)}")
    with open(path, "wb") as file:
        lowered.write_to_file(file)
    return {}


class File:
    """A `.pte`: the shapes that it takes, and how it is called."""

    def __init__(self, path: str) -> None:
        from executorch.runtime import Runtime

        self.method = Runtime.get().load_program(path).load_method("forward")
        told = self.method.metadata
        self.takes = [list(told.input_tensor_meta(i).sizes()) for i in range(told.num_inputs())]

    def ready(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        return [torch.from_numpy(x) for x in arrays]

    def run(self, given: Sequence[Any]) -> Sequence[Any]:
        return self.method.execute(given)  # type: ignore[no-any-return]

    def read(self, found: Sequence[Any]) -> list[np.ndarray]:
        return [x.detach().numpy() for x in found]


def opened(path: str) -> File:
    return File(path)
