"""The quantizer for transformers' own exporters: what they write is what a recipe of ours makes of their file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from compared import close
from transformers import BertConfig, BertForSequenceClassification

import lilliput as lp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.exporters import OnnxConfig, OnnxExporter

    from lilliput.transformers import LilliputQuantizer

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
pytestmark = pytest.mark.filterwarnings("ignore")  # of experimental exporters


def test_an_exporter_writes_what_a_recipe_makes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, **SIZES)).eval()
    ids = [torch.randint(0, 100, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    recipe = lp.Recipe([lp.Quantize(lp.Int(8), activations=None)])
    quantizer = LilliputQuantizer(recipe, batches, target=QUICK)
    exported: Any = OnnxExporter().export(net, batches[0], config=OnnxConfig(dynamic=True, quantizer=quantizer))
    exported.save_pretrained(tmp_path)
    held = {x.data_type for x in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert (
        onnx.TensorProto.INT8 in held
        and quantizer.result is not None
        and quantizer.result.data["ratio"]["smaller"] > 2.5
    )
    with torch.no_grad():
        right = net(**batches[1]).logits
    found = torch.as_tensor(exported(**batches[1])["logits"])
    close(found, right, share=0.05)
    assert not torch.equal(found, right)  # its weights are rounded
    close(found, quantizer.result.model(*batches[1].values())["logits"], rtol=1e-3, atol=1e-4)


def test_other_exports_are_refused_by_the_exporter() -> None:
    with pytest.raises(ValueError, match="LilliputQuantizer quantizes onnx exports"):
        LilliputQuantizer().validate_environment("dynamo")
