"""What Lilliput imports reports nothing to its makers and writes nothing into the user's home.

Found in use: importing OpenVINO looked up a tracker's address and left an identity in the home folder; ONNX Runtime
notes events there (docs/onnxruntime.md). Right is: no name is looked up, no machine but this one is reached, and the
home stays empty. The examples are held to the same by `.ci/run`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GUARDED = Path(__file__).parents[2] / "scripts" / "guarded.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at a home in the way of Linux")


def guarded(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GUARDED), sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True)


TRIED = {
    "a name looked up, the error swallowed": (
        "import socket\ntry: socket.getaddrinfo('example.org', 443)\nexcept OSError: pass",
        "socket.getaddrinfo: example.org",
    ),
    "a machine reached by its number": (
        "import socket\ntry: socket.socket().connect(('192.0.2.1', 80))\nexcept OSError: pass",
        "socket.connect: 192.0.2.1",
    ),
    "in a thread": (
        "import threading, socket\n"
        "threading.Thread(target=lambda: socket.socket(2, 2).sendto(b'', ('192.0.2.1', 80))).start()",
        "socket.sendto: 192.0.2.1",
    ),
    "a file at home": (
        "import pathlib\ntry: (pathlib.Path.home() / 'id').write_text('me')\nexcept OSError: pass",
        "home/id",
    ),
    "a folder at home": (
        "import os\ntry: os.makedirs(os.path.expanduser('~/.x'))\nexcept OSError: pass",
        "home/.x",
    ),
    "by another program": ("import os\nos.system('echo me > ~/id')", "written: ~/id"),
}


@pytest.mark.parametrize("kind", TRIED)
def test_the_guard_sees(kind: str) -> None:
    code, noted = TRIED[kind]
    done = guarded(code)
    assert done.returncode == 1 and noted in done.stderr, done.stderr


def test_the_guard_leaves_the_rest_alone() -> None:
    code = """
import os, pathlib, socket, sys, tempfile
here = socket.create_server(("127.0.0.1", 0))
socket.create_connection(here.getsockname()).close()
socket.getaddrinfo("localhost", 80)
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "x").write_text("temporary")
assert not list(pathlib.Path.home().iterdir())
sys.exit(7)
"""
    done = guarded(code)
    assert done.returncode == 7, done.stderr  # the command's own
    assert "guarded:" not in done.stderr


ALL = """
import torch
import lilliput as lp

net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
batches = [torch.randn(4, 8)]
loss = lambda model, batch: model(batch).square().mean()
task = lp.Task(net, calibrate=batches, train=batches, loss=loss)
recipe = lp.Recipe([lp.Quantize(), lp.Finetune()])
small = lp.compress(task, recipe, target=lp.targets.OnnxRuntime(threads=1, seconds=1))
path = small.folder / "copy.lil"
lp.open(small.save(path))(batches[0])
lp.save(path, small.model, example=batches[0], target="openvino")
lp.open(path)(batches[0])
import openvino, sys
assert not any(name.startswith("openvino_telemetry") for name in sys.modules)
"""


def test_all_that_is_imported_under_guard() -> None:
    """Both runtimes, the exporter and accelerate, each at work."""
    done = guarded(ALL)
    assert done.returncode == 0, done.stderr


OWN = """
import sys
if {earlier}:
    import openvino_telemetry as own
import lilliput as lp
lp.targets.OpenVino()
import openvino
import openvino_telemetry
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
assert not {earlier} or openvino_telemetry is own
import torch
print(openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.ones(1, 2)).outputs)
"""


@pytest.mark.parametrize("earlier", [True, False])
def test_what_a_program_does_itself_still_works(earlier: bool) -> None:
    """The tracker can be imported before and afterwards, and OpenVINO's own conversions, which would report, go on."""
    done = guarded(OWN.format(earlier=earlier))
    assert done.returncode == 0 and "shape[?,2]" in done.stdout, done.stderr
