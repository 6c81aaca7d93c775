"""`subjects` can be imported by the tests here."""

from __future__ import annotations

import sys
from pathlib import Path

from lilliput.targets.openvino import openvino_package

sys.path.insert(0, str(Path(__file__).parent))

openvino_package()  # before a test imports it by itself, which would be reported
