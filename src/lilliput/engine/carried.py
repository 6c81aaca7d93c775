"""What must hold once tensors are encoded: the module computes with what they decode to, and sees nothing else."""

from __future__ import annotations

import torch
from torch import nn

from lilliput.engine.run import Driver
from lilliput.errors import InputError, LilliputError, reason
from lilliput.feeding import ask
from lilliput.model.carrier.carrier import encoded_tensors, to_dense
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.views.values import without_values
from lilliput.outputs import departure

_SAME = 1e-5  # of the largest answer


def check_carried(driver: Driver) -> None:
    """Refuse a model that answers otherwise with encoded tensors than with ordinary ones of the same values.

    Its forward then asks otherwise than by name: it goes through `parameters()`, say, where encoded ones are missing.
    """
    if not any(True for _ in encoded_tensors(driver.model)):
        return
    carrying = without_values(duplicate(driver.model))
    with torch.no_grad():
        expected = ask(to_dense(carrying), driver.example, "example")
        why = _apart(carrying, driver, expected)
    if why:
        raise InputError(
            "the model does not compute with encoded tensors as it does with parameters of the same values",
            where=type(driver.model).__name__,
            why=why,
            next="let its forward ask for its parameters by name (self.weight), not by parameters() or _parameters",
        )


def _apart(carrying: nn.Module, driver: Driver, expected: object) -> str:
    try:
        apart = departure(expected, ask(carrying, driver.example, "example"))
    except LilliputError as error:
        return reason(error)
    return f"its answers are {apart:.2g} of the largest apart" if apart > _SAME else ""
