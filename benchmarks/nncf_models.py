"""Every setting of a grid of nncf's, applied to one ONNX file; run by the Python that nncf is installed for.

    python nncf_models.py FLOAT.onnx BATCHES.npz FOLDER

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
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

Setting = tuple[str, Callable[[openvino.Model], openvino.Model]]


def settings(dataset: nncf.Dataset, samples: int) -> Iterator[Setting]:
    """Presets, kinds of model, bias corrections, range estimators; then weights alone."""

    def quantize(**given: Any) -> Callable[[openvino.Model], openvino.Model]:
        return lambda model: nncf.quantize(model, dataset, subset_size=samples, **given)

    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        for kind in (None, nncf.ModelType.TRANSFORMER):
            for fast in (True, False):
                name = f"{preset.value}{' transformer' if kind else ''} {'fast' if fast else 'accurate'} bias"
                yield name, quantize(preset=preset, model_type=kind, fast_bias_correction=fast)
    for estimator in ("MINMAX", "HISTOGRAM", "MEAN_NO_OUTLIERS_MINMAX"):
        for kind in (None, nncf.ModelType.TRANSFORMER):
            ranges = getattr(RangeEstimatorParametersSet, estimator)
            advanced = AdvancedQuantizationParameters(activations_range_estimator_params=ranges)
            mixed = nncf.QuantizationPreset.MIXED
            name = f"mixed{' transformer' if kind else ''} {estimator}"
            yield name, quantize(preset=mixed, model_type=kind, advanced_parameters=advanced)
    for mode in (nncf.CompressWeightsMode.INT8_ASYM, nncf.CompressWeightsMode.INT8_SYM):

        def compress(model: openvino.Model, mode: nncf.CompressWeightsMode = mode) -> openvino.Model:
            return nncf.compress_weights(model, mode=mode)

        yield f"weights {mode.value}", compress


def main(original: str, batches: str, folder: str) -> None:
    logging.disable(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr  # nncf shows its progress there
    given: defaultdict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for key, x in np.load(batches).items():
        index, _, name = key.partition(":")
        given[int(index)][name] = x
    core = openvino.Core()
    for i, (name, make) in enumerate(settings(nncf.Dataset(list(given.values())), len(given))):
        path = Path(folder) / f"nncf-{i}.xml"
        told = {"setting": name}
        try:
            openvino.save_model(make(core.read_model(original)), path, compress_to_fp16=False)
            told["path"] = str(path)
        except Exception as error:  # nncf raises many kinds
            told["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
