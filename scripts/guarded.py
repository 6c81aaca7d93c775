"""Run a command that must not reach the network, and must not write into the user's home; fail if it tries.

    python scripts/guarded.py COMMAND …

The command gets an empty home, and a folder of its own for caches and what is temporary. Every Python in it refuses to
look up or to reach another machine, or to write at home (guard/sitecustomize.py); where the system allows it, there is
no network but the loopback for programs that are not Python either. At the end the home must still be empty.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_GUARD = Path(__file__).resolve().parent / "guard"
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of unshare(2)


def main(command: Sequence[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="guarded-") as folder:
        home, notes = Path(folder) / "home", Path(folder) / "notes"
        home.mkdir()
        notes.touch()
        code = subprocess.call(command, env=_environment(Path(folder)), preexec_fn=_alone)
        tried = [*dict.fromkeys(notes.read_text().splitlines()), *(f"written: ~/{name}" for name in _names(home))]
    for line in tried:
        print(f"guarded: {line}", file=sys.stderr)
    return code or (1 if tried else 0)


def _environment(folder: Path) -> dict[str, str]:
    """Another home; what programs keep where the desktop's rules have it, such as caches, goes beside it."""
    scratch = folder / "tmp"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    kept |= {f"XDG_{kind}_HOME": str(scratch) for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
    scratch.mkdir()
    paths = [str(_GUARD), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "HOME": str(folder / "home"),
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join(paths),
        "GUARDED_NOTES": str(folder / "notes"),
    }


def _alone() -> None:
    """In the process that becomes the command: no network but the loopback, where the system allows that."""
    if sys.platform != "linux":
        return
    wanted = _NEW_NETWORK if os.geteuid() == 0 else _NEW_NETWORK | _NEW_USER
    if ctypes.CDLL(None, use_errno=True).unshare(wanted) == 0:
        _loopback()


def _loopback() -> None:
    """Switch the loopback on, which a new network has switched off: processes that train together talk over it."""
    import fcntl
    import socket
    import struct

    up = struct.pack("16sh14x", b"lo", 1)  # struct ifreq with IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS


def _names(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
