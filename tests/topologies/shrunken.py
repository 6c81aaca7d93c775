"""Networks run through a recipe, without what `compress` does around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo import subject

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.edits.structure import KEPT, Resize
from lilliput.outputs import flatten_outputs
from lilliput.progress import silent


def driven(model: nn.Module, inputs: tuple[Tensor, ...], *steps: Any, target: lp.Target | None = None) -> Driver:
    torch.set_num_threads(1)
    driver, _ = begin(lp.Task(model, example=inputs), target or lp.targets.OnnxRuntime(), Store(), silent)
    follow(lp.Recipe(list(steps)), driver)
    return driver


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return flatten_outputs(model(*inputs))


def same_after_loading(small: nn.Module, name: str, inputs: tuple[Tensor, ...], path: Path) -> bool:
    """Whether what is saved and loaded into another network of the zoo, of that name, answers to the bit the same."""
    lp.save(path, small)
    again = lp.load(path, into=subject(name).build(seed=1)[0])
    return all(map(torch.equal, answers(again, inputs), answers(small, inputs)))


def kept(driver: Driver) -> dict[str, dict[int, Tensor]]:
    """Of each tensor that lost slices, by path: the places that its edits kept along axes, as they were at first."""
    found: dict[str, dict[int, Tensor]] = {}
    for step in driver.state.steps:
        if isinstance(step.edit, Resize):
            for name, places in step.tensors.items():
                if name.startswith(KEPT):
                    axis = int(name.removeprefix(KEPT))
                    for path in step.edit.paths:
                        before = found.setdefault(path, {})
                        before[axis] = before[axis][places] if axis in before else places
    return found


def unscaled(driver: Driver) -> set[str]:
    """The norms over fewer channels whose gains could not be scaled up, as the user is told."""
    return {path for path, why in driver.told.skipped.items() if "norm over fewer channels" in why}
