"""A headless browser for the tests of pages: the needed part of WebDriver's protocol over HTTP."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = None if DRIVER and BROWSER else "chromium and chromium-driver are not installed: make browser"

KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Left": "\ue012", "Up": "\ue013"} | {
    "Right": "\ue014",
    "Down": "\ue015",
}


class Browser:
    """A context manager: one chromium with one page."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", *arguments]

    def __enter__(self) -> Browser:
        assert DRIVER
        self._driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def _start(self) -> None:
        assert self._driver.stdout
        port = next(found[1] for line in self._driver.stdout if (found := re.search(r"on port (\d+)\.$", line)))
        self._root = f"http://127.0.0.1:{port}"
        options = {"binary": BROWSER, "args": self._arguments}
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        self._root += f"/session/{session['sessionId']}"

    def _stop(self) -> None:
        self._driver.terminate()
        self._driver.wait()
        if self._driver.stdout:
            self._driver.stdout.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._stop()

    def _call(self, method: str, path: str, data: object | None = None) -> Any:
        body = None if method != "POST" else json.dumps(data or {}).encode()
        request = urllib.request.Request(self._root + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"].splitlines()[0]) from None

    def open(self, page: Path) -> None:
        """Load a file and wait until it is shown."""
        self._call("POST", "/url", {"url": page.as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """The result of a function with this body."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """Click on an element as a person does: it must be visible."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/click")

    def press(self, *keys: str) -> None:
        """Send keys one after another to the focused element."""
        strokes = [
            {"type": kind, "value": value}
            for key in keys
            for value in (KEYS.get(key, key) if key in KEYS else key)
            for kind in ("keyDown", "keyUp")
        ]
        source = {"type": "key", "id": "keyboard", "actions": strokes}
        self._call("POST", "/actions", {"actions": [source]})

    def errors(self) -> list[str]:
        """The messages of the console since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def wait(self, script: str) -> None:
        """Wait until a function with this body returns a true value."""
        for _ in range(100):
            if self.run(script):
                return
            time.sleep(0.05)
        raise AssertionError(f"still not so: {script}")
