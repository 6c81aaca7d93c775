"""The conditions a figure was taken under, with nothing in them that names a person, a host or a path."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("lilliput", "torch", "numpy", "onnx", "onnxruntime", "openvino")
_X86_FLAGS = (
    "sse4_1 avx avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 "
    "avx_vnni avx_vnni_int8 amx_tile amx_int8 amx_bf16"
)
_ARM_FLAGS = "asimd neon asimdhp asimddp i8mm bf16 sve sve2 sme"
_INTERESTING = frozenset((*_X86_FLAGS.split(), *_ARM_FLAGS.split()))
_VNNI = frozenset(("avx512_vnni", "avx_vnni"))
_X86 = frozenset(("x86_64", "amd64", "i386", "i686"))


@dataclass(frozen=True)
class Cpu:
    """A processor: its model name, architecture, and those flags that matter for speed or exactness."""

    model: str
    machine: str
    flags: tuple[str, ...]

    @property
    def may_saturate(self) -> bool:
        """Whether sums of u8 * s8 products may saturate at 16 bits: x86 that is not known to have VNNI.

        >>> Cpu("", "x86_64", ("avx2",)).may_saturate, Cpu("", "x86_64", ("avx2", "avx_vnni")).may_saturate
        (True, False)
        """
        return self.machine.lower() in _X86 and not _VNNI & set(self.flags)


def cpu() -> Cpu:
    """This machine's processor; without /proc/cpuinfo its model and flags are empty.

    >>> cpu().machine == platform.machine()
    True
    """
    source = Path("/proc/cpuinfo")
    return parse_cpu(source.read_text(errors="replace") if source.exists() else "", platform.machine())


def parse_cpu(cpuinfo: str, machine: str) -> Cpu:
    """The processor that the text of a /proc/cpuinfo describes.

    >>> parse_cpu("model name : Some CPU\\nflags : fpu avx2 avx_vnni\\n", "x86_64")
    Cpu(model='Some CPU', machine='x86_64', flags=('avx2', 'avx_vnni'))
    """
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*?)\s*$", cpuinfo, flags=re.MULTILINE))
    flags = str(fields.get("flags", fields.get("Features", ""))).split()
    return Cpu(str(fields.get("model name", "")), machine, tuple(sorted(_INTERESTING.intersection(flags))))


def environment(threads: int) -> dict[str, object]:
    """Processor, threads, system and library versions (None where one is not installed), ready for JSON.

    >>> environment(threads=2)["threads"]
    2
    """
    processor = cpu()
    release = re.match(r"\d+(\.\d+)?", platform.release())  # what follows the numbers may name a host
    return {
        "cpu": processor.model,
        "machine": processor.machine,
        "flags": list(processor.flags),
        "logical_cores": os.cpu_count(),
        "threads": threads,
        "os": f"{platform.system()} {release.group() if release else ''}".strip(),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
