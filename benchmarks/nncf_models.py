"""Every setting of a grid of nncf's, applied to one ONNX file; run by the Python that nncf is installed for.

    python nncf_models.py FLOAT.onnx BATCHES.npz FOLDER [transformer]

The batches are arrays called ``0:input``, ``1:input`` and so on. For each setting there is a line of JSON on stdout:
its name, and the file that it gave or the reason why it gave none.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NNCF_CI", "1")  # it notes no events for its maker then

import nncf
import numpy as np
import openvino
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from openvino.passes import ConstantFolding, Manager

Setting = tuple[str, Callable[[openvino.Model], openvino.Model]]


def settings(dataset: nncf.Dataset, samples: int, transformer: bool) -> Iterator[Setting]:
    """Presets, bias corrections, range estimators; for transformers how much is smoothed; then weights alone.

    Whatever suits the kind of network (nncf's `model_type`) goes with all of them, and the other kind with one.
    """

    def quantize(kind: bool = transformer, **given: Any) -> Callable[[openvino.Model], openvino.Model]:
        model_type = nncf.ModelType.TRANSFORMER if kind else None
        return lambda model: nncf.quantize(model, dataset, subset_size=samples, model_type=model_type, **given)

    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        for fast in (True, False):
            name = f"{preset.value} {'fast' if fast else 'accurate'} bias"
            yield name, quantize(preset=preset, fast_bias_correction=fast)
    other = "other than transformer" if transformer else "transformer"
    yield f"performance fast bias, {other}", quantize(kind=not transformer)
    for estimator in ("MINMAX", "HISTOGRAM"):
        ranges = getattr(RangeEstimatorParametersSet, estimator)
        advanced = AdvancedQuantizationParameters(activations_range_estimator_params=ranges)
        yield f"performance {estimator}", quantize(advanced_parameters=advanced)
    for alpha in (0.7, 0.5, -1) if transformer else ():
        smooth = AdvancedQuantizationParameters(smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha))
        name = f"performance smooth {alpha}" if alpha > 0 else "performance not smooth"
        yield name, quantize(advanced_parameters=smooth)
    for mode in (nncf.CompressWeightsMode.INT8_ASYM, nncf.CompressWeightsMode.INT8_SYM):

        def compress(model: openvino.Model, mode: nncf.CompressWeightsMode = mode) -> openvino.Model:
            return nncf.compress_weights(model, mode=mode)

        yield f"weights {mode.value}", compress


def _folded(model: openvino.Model) -> openvino.Model:
    """Without operators on constants, over which nncf fails in an LSTM's gates."""
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


def main(original: str, batches: str, folder: str, kind: str = "") -> None:
    logging.disable(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr  # nncf shows its progress there
    given: defaultdict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for key, x in np.load(batches).items():
        index, _, name = key.partition(":")
        given[int(index)][name] = x
    core = openvino.Core()
    dataset = nncf.Dataset(list(given.values()))
    for i, (name, make) in enumerate(settings(dataset, len(given), kind == "transformer")):
        path = Path(folder) / f"nncf-{i}.xml"
        told = {"setting": name}
        try:
            openvino.save_model(make(_folded(core.read_model(original))), path, compress_to_fp16=False)
            told["path"] = str(path)
        except Exception as error:  # nncf raises many kinds
            told["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
