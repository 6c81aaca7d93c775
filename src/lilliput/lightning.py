"""Lightning: the task of a module and its data, and a callback that compresses what was fitted.

Lightning is imported with this module, which nothing else of the library needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lilliput.delivery import Result
from lilliput.errors import InputError, not_installed
from lilliput.recipe import Recipe
from lilliput.targets import Target
from lilliput.task import Task
from lilliput.verbs import compress

try:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
except ImportError as error:
    raise not_installed("lightning", error=error) from None


def task_of(module: LightningModule, data: LightningDataModule | None = None, **given: Any) -> Task:
    """The task of a module: its data module's loaders calibrate, judge and train, `training_step` is the loss.

    `given` are fields of `lilliput.Task`, such as `metric`, and come before what is found. Without `data`, they are
    those of the trainer that has fitted the module. Validation batches judge where there are no test batches.

    Raises InputError for a module without data.

    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> class Net(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = torch.nn.Linear(4, 2)
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> class Data(LightningDataModule):
    ...     def train_dataloader(self):
    ...         return DataLoader(torch.ones(8, 4), 4)
    >>> task_of(Net(), Data()).evaluate is None
    True
    """
    found = _of_trainer(module) if data is None else _of_data(data)
    if found.get("calibrate") is None and "calibrate" not in given:
        raise InputError(
            "no data to calibrate with", where=type(module).__name__, next="give a data module, or calibrate="
        )
    fields = {
        "loss": _step,
        "name": type(module).__name__,
        **found,
        **given,
    }
    return Task(module, **fields)


class Compress(Callback):
    """Compresses a module once it is fitted; `result` has the outcome, `folder` the files.

    `given` are fields of the task, such as `metric`. Only the first of several processes compresses.

    >>> Compress(target="onnxruntime").result is None
    True
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        *,
        target: str | Target = "onnxruntime",
        folder: str | Path | None = None,
        **given: Any,
    ) -> None:
        self.recipe, self.target, self.folder, self.given = recipe, target, folder, given
        self.result: Result | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            task = task_of(pl_module, **self.given)
            self.result = compress(task, self.recipe, target=self.target, folder=self.folder)


def _step(model: Any, batch: Any) -> Tensor:
    """The loss of a training step, which may log: there is no trainer to log with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*self.trainer.*")
        told = model.training_step(batch, 0)
    loss: Tensor = told["loss"] if isinstance(told, Mapping) else told
    return loss


def _of_trainer(module: LightningModule) -> dict[str, Any]:
    """The loaders of the trainer that has fitted a module; none where none has."""
    trainer = module._trainer
    if trainer is None:
        return {}
    return _fields(trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders)


def _of_data(data: LightningDataModule) -> dict[str, Any]:
    data.prepare_data()
    data.setup("fit")
    train, validate = (_loader(data, kind) for kind in ("train", "val"))
    data.setup("test")
    return _fields(train, validate, _loader(data, "test"))


def _loader(data: LightningDataModule, kind: str) -> Any:
    """A loader of a data module; None where it defines none."""
    own = getattr(type(data), f"{kind}_dataloader") is not getattr(LightningDataModule, f"{kind}_dataloader")
    return getattr(data, f"{kind}_dataloader")() if own else None


def _fields(train: Any, validate: Any, test: Any) -> dict[str, Any]:
    """What trains calibrates; what validates judges where there are no test batches, and then stops no training."""
    train, validate, test = (one[0] if isinstance(one, list) and one else one for one in (train, validate, test))
    found = {"calibrate": train, "train": train, "evaluate": test or validate, "validate": validate if test else None}
    return {name: loader for name, loader in found.items() if loader}
