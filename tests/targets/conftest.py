"""`subjects` can be imported by the tests here."""

from __future__ import annotations

import sys
from pathlib import Path

from lilliput.runtimes import openvino

sys.path.insert(0, str(Path(__file__).parent))

openvino.package()  # before a test imports it by itself, which would be reported
