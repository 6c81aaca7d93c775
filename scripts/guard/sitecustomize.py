"""Imported by every Python that starts under scripts/guarded.py: refuses, and notes, what would leave or write home."""

from __future__ import annotations

import os
import sys
from typing import Any

_LOCAL = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MAKES = {  # events, and which of their arguments are paths that are written
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "sqlite3.connect": (0,),
}


def _outside(event: str, args: tuple[Any, ...]) -> str:
    """The host that an event would reach outside this machine; empty where it reaches none."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else ""  # others are sockets of this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return ""
    told = host.decode() if isinstance(host, bytes) else str(host or "")
    return "" if told in _LOCAL or told == _here() else told


def _here() -> str:
    return os.uname().nodename if hasattr(os, "uname") else ""


def _written(event: str, args: tuple[Any, ...]) -> list[Any]:
    """The paths that an event would write."""
    if event == "open":
        return [args[0]] if args[2] & _WRITES else []
    return [args[i] for i in _MAKES.get(event, ())]


def _at_home(path: Any, home: str) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False  # a descriptor
    found = os.path.abspath(os.fsdecode(path))
    return found == home or found.startswith(home + os.sep)


def _install(home: str, notes: str) -> None:
    sink = os.open(notes, os.O_WRONLY | os.O_APPEND)

    def refuse(event: str, what: str) -> None:
        os.write(sink, f"{event}: {what}\n".encode())  # for whoever catches the error, and goes on
        raise PermissionError(f"guarded: {event} {what}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if host := _outside(event, args):
            refuse(event, host)
        for path in _written(event, args):
            if _at_home(path, home):
                refuse(event, os.fsdecode(path))

    sys.addaudithook(hook)


if "GUARDED_NOTES" in os.environ:
    _install(os.path.abspath(os.environ["HOME"]), os.environ["GUARDED_NOTES"])
