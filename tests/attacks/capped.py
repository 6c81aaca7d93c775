"""Run by the tests here: attacks, each in a process of its own with little memory and little time.

Runs what each test file's `CAPPED` holds, and prints as JSON how each attack ended.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "golden")]

import onnxruntime  # noqa: E402  # loaded here, once for all attacks
import torch  # noqa: E402

import lilliput  # noqa: E402
from lilliput.errors import LilliputError  # noqa: E402

FILES = [path for path in sorted(HERE.glob("test_*.py")) if "\nCAPPED" in path.read_text(encoding="utf-8")]
MORE_MEMORY = 1 << 30  # bytes of addresses beyond those of a process that did nothing yet
SECONDS = 10


def main() -> None:
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    lilliput.open, lilliput.load  # noqa: B018  # imports what is imported when first used
    ended = {path.stem: {name: apart(attack) for name, attack in attacks(path).items()} for path in FILES}
    print(json.dumps(ended))


def attacks(path: Path) -> dict[str, Callable[[], Any]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "CAPPED", {})


def apart(attack: Callable[[], Any]) -> dict[str, Any]:
    """How `attack` ends in a process that is forked for it."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        os.write(sink, json.dumps(ending(attack)).encode())
        os._exit(0)
    os.close(sink)
    with open(source, "rb") as told:
        text = told.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"how": f"died of {signal.Signals(os.WTERMSIG(status)).name}"}  # type: ignore[no-any-return]


def ending(attack: Callable[[], Any]) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + MORE_MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before, began = memory("VmRSS"), time.process_time()
    try:
        how, text = "went through", repr(attack())[:200]
    except LilliputError as error:
        how, text = "refused", str(error)
    except BaseException as error:
        how, text = type(error).__name__, str(error)
    seconds = time.process_time() - began
    return {"how": how, "text": text, "seconds": seconds, "mb": (memory("VmHWM") - before) / 2**20}


def memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(what)))


if __name__ == "__main__":
    main()
