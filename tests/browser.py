"""Headless Chromium for tests, with everything it says on the console and asks of the network kept."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest


# Without the background flags, Chromium asks for hosts of its own.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@contextmanager
def chromium() -> Iterator:
    """A playwright `Browser`: $CHROMIUM, else Chromium on the PATH; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable or not os.path.exists(executable):
        pytest.skip("there is no Chromium: install it, or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


class Watch:
    """What goes wrong on a page: errors on the console, exceptions, failed answers, requests to other hosts.

    Failed answers to addresses with one of `allowed` in them do not count, nor do their lines on the console.
    """

    def __init__(self, page, allowed: tuple[str, ...] = ()):
        self.problems: list[str] = []
        self.allowed = allowed
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message):
        if message.type == "error" and not self._is_allowed(message.location.get("url", "")):
            self.problems.append(f"console: {message.text}")

    def _request(self, request):
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1":
            self.problems.append(f"request to {request.url}")

    def _response(self, response):
        if response.status >= 400 and not self._is_allowed(response.url):
            self.problems.append(f"{response.status} for {response.url}")

    def _is_allowed(self, url: str) -> bool:
        return any(text in url for text in self.allowed)
