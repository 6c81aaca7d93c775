"""A page in headless Chromium, spoken to through pipes by Chrome's DevTools protocol: no driver is to be installed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from lilliput.errors import InputError
from lilliput.web.package import NAME, Package, package


def _brought() -> Package | None:
    try:
        return package() if shutil.which("node") else None
    except InputError:
        return None


RUNTIME = _brought()  # onnxruntime-web, where Node.js is there to run it
LACKS = f"needs Node.js, and npm install {NAME} beside the tests"
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SETTINGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
_WAIT = """new Promise((done) => {{
  const look = () => ({condition}) ? done(true) : setTimeout(look, 20);
  look();
}})"""


class Page:
    """One page at an address; what its scripts say on the console, and each request it makes, is kept.

    With `offline`, the browser has no network.
    """

    def __init__(self, address: str, *, width: int = 1000, dark: bool = False, offline: bool = True) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._asked = 0
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._start()
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.ask(f"{domain}.enable")
        if offline:
            self.ask(
                "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
            )
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=address)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._ask("Browser.close")
        self._to.close()
        self._from.close()
        self._process.wait(20)
        self._folder.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the page answers to a command of the protocol."""
        return self._ask(method, session=self._session, **parameters)

    def value(self, script: str) -> Any:
        """What a script in the page comes to, waited for where it is a promise."""
        done = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise AssertionError(json.dumps(done["exceptionDetails"])[:2000])
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a condition of the page's holds."""
        self.value(_WAIT.format(condition=condition))

    def give(self, selector: str, path: Path) -> None:
        """Choose a file in the field that a selector finds."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path) -> None:
        """Write what is seen of the whole page as PNG."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _start(self) -> None:
        assert PROGRAM is not None
        (read, self_write), (self_read, write) = os.pipe(), os.pipe()
        self._to, self._from = os.fdopen(self_write, "wb", 0), os.fdopen(self_read, "rb")
        shell = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, PROGRAM, *_SETTINGS, f"--user-data-dir={self._folder.name}"],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        question = {"id": self._asked, "method": method, "params": parameters}
        self._to.write(json.dumps({**question, **({"sessionId": session} if session else {})}).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._asked:
                if "error" in told:
                    raise AssertionError(f"{method}: {told['error']}")
                return dict(told["result"])
            self._hear(told)

    def _read(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            if not byte:
                raise EOFError("Chromium ended")
            parts += byte
        return dict(json.loads(parts))

    def _hear(self, told: dict[str, Any]) -> None:
        method, given = told.get("method"), told.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(one.get("value", one.get("description"))) for one in given["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(given["exceptionDetails"])[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
