"""What the benchmarks share: programs under test, their CPU, memory, threads and descriptors from /proc."""

import http.client
import http.server
import os
import random
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the fake NVML library and the ways to start programs are the tests' own

PAGE = ROOT / "tests/data/vllm-0.32.0-metrics.prom"
T = TypeVar("T")
_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """One look at a process and its children: CPU seconds, resident MiB, threads, open descriptors."""

    cpu: float
    rss: float
    threads: int
    fds: int


def usage(pid: int) -> Usage:
    """Return the usage of a process."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Usage(
        cpu=(int(stat[11]) + int(stat[12])) / _TICKS,
        rss=int(status["VmRSS"].split()[0]) / 1024,
        threads=int(status["Threads"]),
        fds=len(list(Path(f"/proc/{pid}/fd").iterdir())),
    )


def serve_page(page: bytes) -> str:
    """Serve a page as an engine would, from a thread of this process; returns its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, else Nagle and delayed ACKs cost 40 ms
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = page if self.path == "/metrics" else b""
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=1.0.0; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


class Scraper:
    """Fetches a page again and again as Prometheus does: kept-alive where the server allows it, gzip accepted."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._path = parts.path
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)

    def __call__(self) -> bytes:
        """Return the body as it came."""
        headers = {"Accept-Encoding": "gzip", "X-Prometheus-Scrape-Timeout-Seconds": "10"}
        for last in (False, True):  # as Prometheus does: a kept connection that the server closed is no failure
            try:
                self._connection.request("GET", self._path, headers=headers)
                return self._connection.getresponse().read()
            except OSError:
                self._connection.close()
                if last:
                    raise
        raise AssertionError


def undisturbed(costs: Iterable[float]) -> float:
    """Return the cost that a tenth of all rounds stayed below: as if nobody else were on the machine."""
    found = sorted(costs)
    return found[len(found) // 10]


def estimate(statistic: Callable[[list[T]], float], rounds: list[T]) -> tuple[float, float, float]:
    """Return a statistic of rounds and what it lies between, 95 % sure: the percentile bootstrap, 2,000 times."""
    source = random.Random(0)  # the same rounds give the same interval
    drawn = sorted(statistic(source.choices(rounds, k=len(rounds))) for _ in range(2000))
    return statistic(rounds), drawn[50], drawn[-51]


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print rows as Markdown."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
