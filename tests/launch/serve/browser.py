"""A real Chromium, headless, driven over DevTools' protocol through a pipe: nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 30.0
PLACES = ("/usr/lib/chromium/chromium", "chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network but this machine's own
)
KEYS = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "Backspace": 8}
SHIFT = 8


def chromium() -> str | None:
    """The program, None where there is none."""
    return next((found for place in PLACES if (found := shutil.which(place))), None)


class Browser:
    """One page of one browser. requests: addresses that it asked for; problems: what its console complains of."""

    def __init__(self, program: str, profile: Path) -> None:
        out_there, self._write = os.pipe()
        self._read, in_there = os.pipe()

        def pipes() -> None:
            copies = os.dup(out_there), os.dup(in_there)
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            arguments, close_fds=False, preexec_fn=pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(out_there)
        os.close(in_there)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    # ---- the protocol ------------------------------------------------------------------------------------------------
    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method and return its result."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            said = self._message()
            if said.get("id") == asked["id"]:
                assert "error" not in said, (method, said["error"])
                found: dict[str, Any] = said["result"]
                return found

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        said: dict[str, Any] = json.loads(text)
        self._note(said.get("method", ""), said.get("params", {}))
        return said

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"].get("exception", {}).get("description", params)))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    # ---- what a person does ------------------------------------------------------------------------------------------
    def size(self, width: int, height: int) -> None:
        """Show the page in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def open(self, address: str) -> None:
        """Go to an address, and wait until the page is there."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, (expression, said["exceptionDetails"])
        return said["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS, step: Callable[[], None] = lambda: None) -> None:
        """Wait until an expression is true. step: done each time that it is not."""
        limit = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < limit, (expression, self.value("document.body.innerText"), self.problems)
            step()
            time.sleep(0.05)

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key by its name."""
        text = {"Enter": "\r"}.get(key, "")
        same = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **same, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **same)

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def tab_to(self, id: str) -> None:
        """Press Tab until the element has the focus."""
        for _ in range(60):
            if self.value("document.activeElement.id") == id:
                return
            self.press("Tab")
        raise AssertionError(f"Tab never reaches {id}")

    def picture(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    with Browser(program, profile) as found:
        yield found
