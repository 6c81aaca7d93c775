"""A mistake of this library, planted, comes out of a run in the tests: nobody's model is blamed for it.

In a user's run it is held to what it would otherwise be taken for, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.blame import simulation
from lilliput.engine import fidelity
from lilliput.errors import RAISE_OWN, InputError, is_own
from lilliput.exporters import onnx as exporter
from lilliput.model.surgery import trial
from lilliput.model.surgery.coupling import Coupling, coupling
from lilliput.model.surgery.coupling.rules import RULES
from lilliput.model.views import capture
from lilliput.model.views.inputs import Inputs
from lilliput.targets.onnxruntime import OrtSession

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
HALF, INT8 = lp.Prune("channels", 0.5, multiple=1), lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def compressed(*steps: Any) -> dict[str, Any]:
    target = lp.targets.OnnxRuntime(threads=1, seconds=0.1)
    return dict(lp.compress(network(), lp.Recipe(list(steps)), calibrate=[X, X.flip(0)], target=target).data)


def coupled() -> Coupling:
    return coupling(network(), Inputs.of(X))


def doubled() -> Any:
    return fidelity._inherent(network(), [Inputs.of(X)], [(0.0, 0.0)])


def mistaken(function: Any) -> Callable[..., Any]:
    """`function` as it would be with a slip in its first line: it fails where the library's own lines stand."""
    code = compile(
        "def slip(*given, **named):\n    return len(given) + str(named)", function.__code__.co_filename, "exec"
    )
    made: dict[str, Any] = {}
    exec(code, made)
    return made["slip"]  # type: ignore[no-any-return]


# Where a slip is planted, and what is then run.
SLIPS: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "a rule of coupling": (RULES, "linear", coupled),
    "what a captured graph says": (capture, "_calls_of", lambda: compressed(INT8)),
    "an edit that is tried": (trial, "duplicate", lambda: compressed(HALF)),
    "where it loses": (simulation, "alone", lambda: compressed(INT8)),
    "answers in double precision": (fidelity, "without_values", doubled),
    "a pass over the exported graph": (exporter, "simplify", lambda: compressed(INT8)),
    "the account of operators": (OrtSession, "accounts", lambda: compressed(INT8)),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_mistake_of_ours_comes_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, run = SLIPS[name]
    run()
    slip = mistaken(where[attribute] if isinstance(where, dict) else getattr(where, attribute))
    (monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr)(where, attribute, slip)  # type: ignore[operator]
    with pytest.raises(TypeError, match="'int' and 'str'") as caught:
        run()
    assert is_own(caught.value)


def test_a_user_s_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAISE_OWN)
    monkeypatch.setitem(RULES, "linear", mistaken(RULES["linear"]))
    assert not coupled().groups  # nothing is removed that is not understood
    monkeypatch.setattr(simulation, "alone", mistaken(simulation.alone))
    assert "'int' and 'str'" in compressed(INT8)["loses"]["notes"][0]


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(5, 5)


def failure(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def test_what_a_model_raises_is_not_ours() -> None:
    wrong = Inputs.of(torch.randn(2, 5))
    for model in (Fails(), nn.Linear(6, 2), nn.Sequential(nn.Linear(6, 2))):
        assert not is_own(failure(lambda model=model: trial.answers(model, wrong)))  # type: ignore[misc]
    assert not is_own(failure(lambda: lp.compress(nn.Linear(6, 2), [INT8], calibrate=[wrong.args[0]])))
    assert not is_own(InputError("raised on purpose"))
