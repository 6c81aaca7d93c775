"""The zoo's architectures are alive, reproducible, and understood by torch.export."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from compared import close
from zoo import ZOO, Built, Subject

from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.program import program, quiet

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
every = pytest.mark.parametrize("subject", ZOO, ids=lambda subject: subject.name)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@functools.cache
def built(subject: Subject) -> Built:
    return subject.build()


def test_there_are_many_and_no_two_of_one_name() -> None:
    assert len({subject.name for subject in ZOO}) == len(ZOO) > 80
    assert {subject.kind for subject in ZOO} == {"convolutional", "recurrent", "transformer", "other"}


@every
def test_it_runs(subject: Subject) -> None:
    model, inputs = built(subject)
    assert not any(module.training for module in model.modules())
    for name, x in model.named_parameters():
        assert x.numel() == 1 or bool((x != x.flatten()[0]).any()), f"{name} is constant"
    with torch.no_grad():
        out = model(*inputs)
    for x in out if isinstance(out, tuple) else (out,):
        assert x.dtype == torch.float32 and bool(torch.isfinite(x).all())
        assert float((x[0] - x[1]).abs().max() / x.abs().max()) > 0.01, "it hardly looks at its inputs"


@every
def test_it_is_the_same_each_time(subject: Subject) -> None:
    first, again = built(subject)[0].state_dict(), subject.build()[0].state_dict()
    close(first, again, rtol=0, atol=0)


@every
def test_torch_export_captures_it(subject: Subject) -> None:
    model, inputs = built(subject)
    given = Inputs.of(inputs)
    with quiet(), pytest.raises(Exception, match=subject.uncaptured) if subject.uncaptured else nullcontext():
        program(model, given, dynamic_axes(given, subject.dynamic))
