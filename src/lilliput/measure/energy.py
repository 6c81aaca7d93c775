"""The energy that the processor says it has used, where the system lets one read it (Intel's RAPL, by powercap)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


@dataclass
class Energy:
    """Called, it gives the joules that all processor packages have used since the first call; NaN where unknown.

    All that runs on the machine is in it. The counters begin again after some hours at full power, which is seen as
    long as calls are not that far apart. Many systems let their administrator alone read them.

    >>> Energy(Path("/nowhere"))()
    nan
    """

    root: Path = _POWERCAP
    _joules: float = 0.0
    _last: dict[Path, int] = field(default_factory=dict)

    def __call__(self) -> float:
        packages = self._packages()
        try:
            now = {package: int((package / "energy_uj").read_text()) for package in packages}
            ranges = {package: int((package / "max_energy_range_uj").read_text()) for package in packages}
        except (OSError, ValueError):
            return math.nan
        if not now:
            return math.nan
        for package, count in now.items():
            used = count - self._last.get(package, count)
            self._joules += 1e-6 * (used if used >= 0 else used + ranges[package])
        self._last = now
        return self._joules

    def _packages(self) -> list[Path]:
        """Of a machine, one a socket; what lies within them (cores, memory) is counted in them or apart."""
        found = sorted(self.root.glob("*-rapl:*")) if self.root.is_dir() else []
        return [place for place in found if _named(place).startswith("package")]


def _named(place: Path) -> str:
    try:
        return (place / "name").read_text().strip()
    except OSError:
        return ""
