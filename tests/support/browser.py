"""A real Chromium for tests of the live page, and what it saw."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium with a fresh profile."""
    assert CHROMIUM.exists(), f"{CHROMIUM} is missing: apt-get install chromium (./vitals test does it)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


class Visit:
    """One page in a context of its own.

    Attributes:
        urls: everything that the page asked for.
        complaints: errors and warnings of its console and script.
    """

    def __init__(self, context: BrowserContext):
        self.page: Page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.urls: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", self._requested)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _requested(self, request: Request) -> None:
        self.urls.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def polls(self) -> int:
        return sum(url.endswith("/api/vitals") for url in self.urls)
