"""The layers of kernels.py in OpenVINO, on one thread: floats computed in float32, then in bfloat16."""

from __future__ import annotations

from kernels import report

import lilliput as lp

if __name__ == "__main__":
    report("kernels_openvino", (lp.targets.OpenVino(threads=1, precision=precision) for precision in ("f32", "bf16")))
