# SPDX-License-Identifier: Apache-2.0
"""A browser for tests: Debian's Chromium through chromedriver, by the WebDriver protocol (W3C), with
the standard library alone."""

import base64
import json
import pathlib
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from ports import free_port

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Control": "\ue009", "Tab": "\ue004",
        "Right": "\ue014"}


class Browser:
    def __init__(self, width=1280, height=900):
        self.port = free_port()
        self.process = subprocess.Popen(["chromedriver", f"--port={self.port}"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.profile = tempfile.TemporaryDirectory(prefix="kivi-browser-")
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     f"--user-data-dir={self.profile.name}", f"--window-size={width},{height}"]
        wanted = {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"}}}}
        deadline = time.monotonic() + 60
        while True:
            try:
                self.session = self.call("POST", "/session", wanted)["sessionId"]
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def call(self, method, path, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.loads(reply.read())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.loads(error.read())["value"]["message"]) from None

    def do(self, method, path, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def open(self, url):
        self.do("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        return self.do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script, *arguments):
        return self.do("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def audit(self, axe):
        """(impact, rule, elements) of what axe-core, the file `axe`, finds in the page, from moderate on."""
        self.run(pathlib.Path(axe).read_text() + ";")
        found = self.run_async("axe.run(document).then((r) => arguments[0](r.violations.map("
                               "(v) => [v.impact, v.id, v.nodes.map((n) => n.html)])))")
        return [v for v in found if v[0] in ("moderate", "serious", "critical")]

    def find(self, css):
        found = self.do("POST", "/element", {"using": "css selector", "value": css})
        return found[ELEMENT]

    def click(self, css):
        self.do("POST", f"/element/{self.find(css)}/click", {})

    def type(self, css, text):
        self.do("POST", f"/element/{self.find(css)}/value", {"text": text})

    def clear(self, css):
        self.do("POST", f"/element/{self.find(css)}/clear", {})

    def text(self, css):
        return self.do("GET", f"/element/{self.find(css)}/text")

    def until(self, condition, what, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not after {seconds} s: {what}; the page says "
                                     f"{self.text('#status')!r}")
            time.sleep(0.05)

    def console(self):
        """What the page has complained of: errors of scripts and of the content policy."""
        return [entry["message"] for entry in self.do("POST", "/se/log", {"type": "browser"})
                if entry["level"] in ("SEVERE", "WARNING")]

    def allow_clipboard(self, url):
        """Lets the page at `url` write and read the clipboard."""
        self.do("POST", "/goog/cdp/execute", {"cmd": "Browser.grantPermissions", "params": {
            "origin": url.rstrip("/"),
            "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}})

    def resize(self, width, height):
        self.do("POST", "/window/rect", {"width": width, "height": height})

    def screenshot(self, path):
        pathlib.Path(path).write_bytes(base64.b64decode(self.do("GET", "/screenshot")))

    def close(self):
        try:
            self.do("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()
            self.profile.cleanup()
