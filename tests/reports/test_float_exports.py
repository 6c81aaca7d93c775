"""A float network computes in the runtime what it does in torch, whatever views and samplings it is made of.

Found in use: a MobileViT of fresh weights came out with a cosine of 0.977 to the module. Its answers were of 1e-41,
where a float has a few bits left: neither torch's exporter nor the runtime is wrong, and any order of sums gives
others. Right: with norms that saw data it agrees to rounding; a network that answers so is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.engine.fidelity import check_precise
from lilliput.errors import ExportError, InputError
from lilliput.exporters.onnx import export
from lilliput.model.views.inputs import Inputs
from lilliput.runtimes.session import session

Answer = Callable[..., Tensor]


class Calls(nn.Module):
    def __init__(self, answers: list[Answer]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: Tensor, *more: Tensor) -> list[Tensor]:
        return [answer(x, *more) for answer in self.answers]


def built(net: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> list[Tensor]:
    """What ONNX Runtime, with its optimizations, answers to `inputs`; the first axis is left open."""
    export(path, net.eval(), Inputs.of(inputs), {i: {0: "batch"} for i in range(len(inputs))})
    held = session(path, 1)
    names = [value.name for value in held.get_inputs()]
    return [torch.from_numpy(x) for x in held.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))]


def resized(**given: Any) -> Answer:
    return lambda x: F.interpolate(x, **given)


def patched(x: Tensor) -> Tensor:
    """As MobileViT cuts images into patches, attends to them, and lays them out again."""
    batch, channels, height, width = x.shape
    y = x.reshape(batch * channels * (height // 2), 2, width // 2, 2).transpose(1, 2)
    y = y.reshape(batch, channels, -1, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
    y = F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])[:, 0].contiguous()
    y = y.view(batch, 4, -1, channels).transpose(1, 3).reshape(batch * channels * (height // 2), width // 2, 2, 2)
    return y.transpose(1, 2).reshape(batch, channels, height, width)


CASES: dict[str, Answer] = {
    "patches": patched,
    **{f"{mode}, corners {c}, {s}": resized(mode=mode, align_corners=c, scale_factor=s)
       for mode in ("bilinear", "bicubic") for c in (False, True) for s in (1.7, 0.5)},
    **{f"{mode}, a size": resized(mode=mode, size=(5, 13)) for mode in ("bilinear", "bicubic", "nearest", "area")},
    "bilinear, smoothed": resized(mode="bilinear", size=(5, 6), antialias=True),
    "bicubic, smoothed": resized(mode="bicubic", size=(13, 6), antialias=True),
    "nearest": resized(mode="nearest", scale_factor=2.0),
    "unfold": lambda x: F.unfold(x, 3, padding=1, stride=2),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 10), 3, padding=1),
    "windows": lambda x: x.unfold(2, 4, 2),
    "shuffled": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2) * 2, 2),
    "reflected": lambda x: F.pad(x, (2, 1, 3, 0), mode="reflect"),
    "by the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "rolled": lambda x: torch.roll(x, (1, -2), (2, 3)),
}  # fmt: skip
SAMPLED: dict[str, Answer] = {
    f"{mode}, {padding}, corners {c}": (
        lambda x, grid, mode=mode, padding=padding, c=c: F.grid_sample(x, grid, mode, padding, c)
    )
    for mode in ("bilinear", "nearest")
    for padding in ("zeros", "border", "reflection")
    for c in (False, True)
}


@pytest.mark.parametrize("cases", [CASES, SAMPLED], ids=["images", "grids"])
def test_the_export_computes_what_the_module_does(cases: dict[str, Answer], tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 4, 8, 10),) + ((torch.rand(2, 5, 6, 2) * 2.4 - 1.2,) if cases is SAMPLED else ())
    net = Calls(list(cases.values()))
    for name, ours, theirs in zip(cases, net(*inputs), built(net, inputs, tmp_path / "net.onnx"), strict=True):
        assert ours.shape == theirs.shape, name
        assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max(), name


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_resize_that_the_exporter_writes_otherwise_is_refused(mode: str, tmp_path: Path) -> None:
    net = Calls([resized(mode=mode, size=(13, 15), antialias=True, align_corners=True)])
    with pytest.raises(ExportError, match=r"antialias=True and align_corners=True.*resize with align_corners=False"):
        built(net, (torch.randn(2, 3, 8, 10),), tmp_path / "net.onnx")


def test_a_batch_norm_in_training_mode_is_refused_where_it_holds_statistics(tmp_path: Path) -> None:
    """Without any, as weights are standardised by in BiT, the exporter writes what torch computes (among the cases)."""
    net = Calls([lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True)])
    with pytest.raises(ExportError, match=r"training mode that holds statistics.*leave it in eval mode"):
        built(net, (torch.randn(2, 3, 8, 10),), tmp_path / "net.onnx")


def test_a_layer_of_patches_whose_norms_saw_data_agrees(tmp_path: Path) -> None:
    mobilevit = pytest.importorskip("transformers.models.mobilevit.modeling_mobilevit")
    torch.manual_seed(0)
    config = mobilevit.MobileViTConfig(num_attention_heads=2)
    net = mobilevit.MobileViTLayer(config, 6, 8, stride=2, hidden_size=12, num_stages=1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    x = torch.randn(2, 6, 16, 16)
    with torch.no_grad():
        net.train()(x)
        expected = net.eval()(x)
        found = built(net, (x,), tmp_path / "net.onnx")[0]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_answers_too_small_for_floats_are_refused_with_the_reason() -> None:
    """Asked where what was built departs from the module; the whole MobileViT takes a minute."""
    with pytest.raises(InputError, match=r"answers with numbers of 2e-41 at most .* give it its trained weights"):
        check_precise((torch.full((2, 3), 2e-41), torch.arange(3)))
    check_precise((torch.full((2, 3), 2e-41), torch.full((2,), 1e-30)))
    check_precise(torch.zeros(3))
