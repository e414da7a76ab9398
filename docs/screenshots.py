"""Takes the pictures of the live page that the documentation shows; needs Chromium and, to fill the lines, ten minutes.

.venv/bin/python docs/screenshots.py [--minutes 10]
"""

import argparse
import contextlib
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from vllm_vitals.docs.pictures import store

DOCS: Final = Path(__file__).parent
VITALS: Final = Path(sys.executable).with_name("vllm-vitals")
CHROMIUM: Final = "/usr/bin/chromium"
OPTIONS: Final = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
CYCLE_SECONDS: Final = 200.0  # the longest scene repeats within this
SERVERS: Final = 2


class Picture(NamedTuple):
    """One picture: its file, what the demo plays, words of the verdict to wait for, and how it is seen."""

    file: str
    scene: str
    verdict: str
    colours: str
    width: int
    height: int


PICTURES: Final = (
    Picture("live-page.png", "steady", "All well", "light", 1280, 860),
    Picture("live-page-dark.png", "xid", "1 engine down", "dark", 1280, 860),
    Picture("live-page-phone.png", "steady", "All well", "light", 390, 844),
)


def main() -> None:
    """Play every scene that is wanted until the lines are full, then take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the demo runs before (default 10)")
    minutes = parser.parse_args().minutes
    with contextlib.ExitStack() as stack:
        urls = {scene: stack.enter_context(demo(scene)) for scene in sorted({one.scene for one in PICTURES})}
        browser = stack.enter_context(chromium())
        time.sleep(minutes * 60)
        for picture in PICTURES:
            url = urls[picture.scene]
            wait_for(lambda url=url: vitals(url)["verdict"]["words"], picture.verdict)
            take(browser, url, picture)
            print(DOCS / picture.file)


@contextlib.contextmanager
def demo(scene: str) -> Iterator[str]:
    """Run the demo; yields its URL."""
    listen, *_ = free_ports(1)
    base = min(free_ports(SERVERS))
    url = f"http://127.0.0.1:{listen}"
    command = (VITALS, "demo", "--scene", scene, "--listen", f"127.0.0.1:{listen}", "--base-port", str(base))
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            wait_for(lambda: vitals(url)["verdict"]["words"], "All well")
            yield url
        finally:
            process.terminate()


def free_ports(count: int) -> range:
    """Return free ports in a row."""
    while True:
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return range(first, first + count)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium with a fresh profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def take(browser: Browser, url: str, picture: Picture) -> None:
    """Take one picture of the whole page."""
    page = browser.new_page(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme="dark" if picture.colours == "dark" else "light",
        device_scale_factor=2 if picture.width < 600 else 1,
    )
    page.goto(url)
    page.wait_for_selector(".gpu .spark path[d]")
    taken = page.screenshot(full_page=True)
    page.close()
    store(Image.open(io.BytesIO(taken)), DOCS / picture.file)


def vitals(url: str) -> Any:
    """Return what the page shows."""
    with urllib.request.urlopen(f"{url}/api/vitals", timeout=10) as answer:
        return json.load(answer)


def wait_for(verdict: Callable[[], str], words: str) -> None:
    """Wait for a verdict, at most one cycle of a scene; raises SystemExit after it."""
    deadline = time.monotonic() + CYCLE_SECONDS
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = verdict()
        except OSError as error:
            last = error
        if words in str(last):
            return
        time.sleep(0.5)
    sys.exit(f"{words!r} did not come within {CYCLE_SECONDS:.0f} s, but {last!r}")


if __name__ == "__main__":
    main()
