"""A headless Chromium driven over its debugging pipe: no driver program and no package is needed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-pipe",
    "--window-size=1400,1000",
)
PLACE_PIPES = """
import os, sys
reads, writes = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
os.dup2(reads, 3)
os.dup2(writes, 4)
os.set_inheritable(3, True)
os.set_inheritable(4, True)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The protocol wants its pipes at descriptors 3 and 4 of the browser."""
ANSWER_DEADLINE_S = 60.0


def find_chromium() -> str | None:
    """Return a Chromium of this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


class Page:
    """One tab. Messages are JSON objects ended by a zero byte (Chrome DevTools Protocol over pipes)."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out = to_browser
        self._in = from_browser
        self._buffer = b""
        self._id = 0
        self._session: str | None = None
        self.console: list[str] = []

    def open(self, url: str) -> None:
        """Open the tab and go to an address."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Runtime.enable")
        self.send("Page.enable")
        self.send("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Run JavaScript, wait for its promise, return its value.

        Raises:
            RuntimeError: the script threw.
        """
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, deadline_s: float = 120.0) -> Any:
        """Evaluate until the value is true; a page that is still loading counts as false."""
        deadline = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(RuntimeError):
                if value := self.evaluate(expression):
                    return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {deadline_s:g} s: {expression}\n" + "\n".join(self.console[-20:]))
            time.sleep(0.2)

    def screenshot(self) -> bytes:
        """Return a PNG of the tab, base64-coded."""
        return str(self.send("Page.captureScreenshot")["data"]).encode()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events met on the way are noted."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_DEADLINE_S
        while True:
            received = self._receive(deadline)
            if received.get("id") == self._id:
                if "error" in received:
                    raise RuntimeError(f"{method}: {received['error']['message']}")
                result: dict[str, Any] = received["result"]
                return result
            self._note(received)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.consoleAPICalled":
            words = [str(part.get("value", part.get("description", ""))) for part in event["params"]["args"]]
            self.console.append(f"{event['params']['type']}: {' '.join(words)}")
        elif event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.console.append(f"thrown: {details.get('exception', {}).get('description', details['text'])}")

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser did not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message


@contextlib.contextmanager
def running_browser(executable: str, profile: Path) -> Iterator[Page]:
    """Run a browser with a fresh profile until the block ends."""
    child_in, to_browser = os.pipe()
    from_browser, child_out = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PLACE_PIPES,
            str(child_in),
            str(child_out),
            executable,
            *FLAGS,
            f"--user-data-dir={profile}",
        ],
        pass_fds=(child_in, child_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(child_in)
    os.close(child_out)
    page = Page(to_browser, from_browser)
    try:
        yield page
    finally:
        with contextlib.suppress(RuntimeError, TimeoutError, OSError):
            page._session = None
            page.send("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(to_browser)
        os.close(from_browser)
