"""Modules of Lightning: their loaders and training step are the task, and a callback compresses what was fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp
from lilliput.errors import InputError
from lilliput.lightning import Compress, task_of

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.log("validation", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(LightningDataModule):
    def setup(self, stage: str) -> None:
        self.rows = TensorDataset(X, X[:, :4].argmax(1))

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, 16, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.rows, 8), DataLoader(self.rows, 4)]


def test_a_callback_compresses_what_was_fitted(tmp_path: Path) -> None:
    small = Compress(target=QUICK, folder=tmp_path / "out")
    trainer = Trainer(max_epochs=2, callbacks=[small], accelerator="cpu", **QUIET)  # type: ignore[arg-type]
    trainer.fit(net := Net(), Data())
    assert small.result is not None and small.result.data["outcome"] == "done"
    assert small.result.data["agreement"]["samples"] == 64 and (tmp_path / "out" / "net.onnx").exists()
    with torch.no_grad():
        close(small.result.model(X), net.eval()(X), share=0.05)
        assert (net(X) - Net()(X)).abs().max() > 0.1  # it was fitted before


def test_a_task_of_a_module_and_its_data_trains_by_its_own_step() -> None:
    task = task_of(Net(), Data(), name="mine")
    assert task.name == "mine" and task.validate is None and len(task.evaluate) == 8
    history = lp.train(task, lp.Finetune(epochs=3, lr=0.1)).history
    assert history[0]["loss"] > history[-1]["loss"]
    batch = next(iter(task.train))
    close(task.loss(task.model, batch), nn.functional.cross_entropy(task.model(batch[0]), batch[1]))  # type: ignore[misc]


def test_a_module_without_data_is_refused() -> None:
    with pytest.raises(InputError, match="no data to calibrate with"):
        task_of(Net())
    assert task_of(Net(), calibrate=[X]).calibrate == [X]
