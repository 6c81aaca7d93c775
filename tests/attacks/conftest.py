"""What every attack must meet: a refusal that names what is wrong, soon, with little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lilliput.errors import LilliputError

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "golden")]  # `forge` and `golden`, for the tests here

LONGEST_S = 2.0  # of the processor, which a busy machine does not lengthen; usually a hundredth of it
HANGS_S = 3600  # after which an attack on a process of its own is given up; usually a hundredth of it
MOST_MB = 64


@pytest.fixture
def refused() -> Callable[..., LilliputError]:
    """Calls, and expects a refusal in which `hint` is found."""

    def refused(hint: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> LilliputError:
        began = time.process_time()
        with pytest.raises(LilliputError, match=hint) as caught:
            call(*args, **kwargs)
        assert time.process_time() - began < LONGEST_S
        return caught.value

    return refused


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By file and name how each attack ended that runs in a process of little memory and time."""
    if sys.platform != "linux":
        pytest.skip("forks, limits memory, and asks /proc how much was used")
    command = [sys.executable, str(HERE / "capped.py")]
    folder = tmp_path_factory.mktemp("capped")
    told = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, cwd=folder)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture
def capped(request: pytest.FixtureRequest, ended: dict[str, dict[str, Any]]) -> Callable[..., None]:
    """Expects an attack of the file's `CAPPED` to have been refused, with little memory and soon."""

    def refused(name: str, hint: str, mb: float = MOST_MB) -> None:
        found = ended[request.path.stem][name]
        assert found["how"] == "refused", found
        assert re.search(hint, found["text"]), found["text"]
        assert found["mb"] < mb and found["seconds"] < LONGEST_S, found

    return refused
