from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from lilliput.measure import cpu, environment
from lilliput.measure.environment import parse_cpu

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu avx avx2 avx512f avx512_vnni hypervisor
power management:

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu avx avx2 avx512f avx512_vnni hypervisor
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp i8mm crc32\nCPU implementer\t: 0x41\n"


def test_no_host_user_or_path_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: f"6.1.0-{socket.gethostname()}")
    text = json.dumps(environment(threads=2))
    assert "/" not in text
    assert "\\\\" not in text
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text


def test_the_conditions_of_a_figure_are_told() -> None:
    told = environment(threads=3)
    assert told["threads"] == 3
    assert told["torch"] == torch.__version__
    assert isinstance(told["logical_cores"], int)
    assert told["logical_cores"] >= 1
    assert set(told) >= {"cpu", "flags", "os", "python", "numpy", "onnx", "onnxruntime", "lilliput"}


def test_flags_are_read_on_x86_and_arm() -> None:
    intel = parse_cpu(INTEL, "x86_64")
    assert intel.model == "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz"
    assert intel.flags == ("avx", "avx2", "avx512_vnni", "avx512f")
    assert parse_cpu(ARM, "aarch64").flags == ("asimd", "asimddp", "i8mm")
    assert parse_cpu("", "arm64").flags == ()


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "saturates"),
    [
        (INTEL, "x86_64", False),
        (INTEL.replace(" avx512_vnni", ""), "x86_64", True),
        (INTEL.replace("avx512_vnni", "avx_vnni"), "x86_64", False),
        ("", "AMD64", True),  # unknown: prudence
        (ARM, "aarch64", False),
        ("", "arm64", False),
    ],
)
def test_only_x86_without_vnni_may_saturate(cpuinfo: str, machine: str, saturates: bool) -> None:
    assert parse_cpu(cpuinfo, machine).may_saturate is saturates


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system tells nothing of its CPU")
def test_this_machine_is_read() -> None:
    assert cpu().flags
