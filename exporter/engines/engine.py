"""One inference server as the sidecar sees it: its page on request, its recent past, what went wrong."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from ...settings.config import EngineSettings
from ...vocabulary.reasons import FetchCode
from ..inline import RELABELLING, inline_or_thread
from ..pages.relabel import Relabeler, ServerPage
from ..pages.request_pages import RequestPage, is_request_page, relabelled
from ..pages.samples import Sample, label_pairs
from .history import ReadingRing, Track
from .page_client import FetchError, PageClient
from .readings import read

log = logging.getLogger("vllm_vitals")

_HEALTH_ROUNDS: Final = (
    3  # a dead engine behind a living page is seen within three samples; asking gently is worth that
)

_NO_PLUGIN_SECONDS: Final = 60.0  # how long a server without request metrics is left alone

_LONGEST_SECONDS: Final = 120.0  # of a request; the callers' deadlines end it earlier


@dataclass(frozen=True, slots=True)
class Fetched:
    """One attempt at the server's page; `page` is None and `reason` set when it failed."""

    at: float
    seconds: float
    raw: bytes
    page: ServerPage | None
    reason: FetchCode | Literal[""]
    detail: str


class Engine:
    """A server with its connection, its labels and its counters.

    Args:
        settings: where it is.
        origin: how we know of it: config, file, dns or process.
        raw_names, max_page_bytes, sample_interval: see Settings.
    """

    TRACKS = ("running", "waiting", "kv_cache_ratio", "prompt_tokens_per_second", "generation_tokens_per_second")
    QUANTILE_TRACKS = ("ttft_p95_seconds", "tpot_p95_seconds")

    def __init__(
        self, settings: EngineSettings, origin: str, *, raw_names: bool, max_page_bytes: int, sample_interval: float
    ) -> None:
        self.settings = settings
        self.origin = origin
        self.server = settings.server
        self.ring = ReadingRing(sample_interval)
        self.tracks = {name: Track(sample_interval) for name in (*self.TRACKS, *self.QUANTILE_TRACKS)}
        self.latest = Fetched(0.0, 0.0, b"", None, "pending", "not looked at yet")
        self.healthy: bool | None = None
        self._rounds = 0
        self.type_conflicts = 0
        self._client = PageClient(settings, max_page_bytes)
        self._relabeler = Relabeler(self.server, raw_names=raw_names)
        self._labels = label_pairs(server=self.server)
        self._in_flight: asyncio.Task[Fetched] | None = None
        self._waiting = 0
        self._dropped_lines = 0
        self._duplicates = 0
        self._request_page_failures: Counter[FetchCode] = Counter()
        self._no_plugin_until = 0.0

    def close(self) -> None:
        """Drop connections."""
        if self._in_flight is not None:
            self._in_flight.cancel()
        self._client.close()

    async def fetch(self, timeout: float) -> Fetched:
        """Return the server's page within `timeout` seconds.

        Callers at the same time share one request, which goes on as long as one of them has patience. Never raises for
        a sick server: that is a Fetched with a reason.
        """
        if self._in_flight is None or self._in_flight.done():
            self._in_flight = asyncio.create_task(self._fetch())
        task = self._in_flight
        started = time.monotonic()
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(task)
        except TimeoutError:
            fetched = _failed(started, "timeout", f"no whole page within {timeout:.1f} s")
            if self._waiting == 1:
                self._take(fetched)
            return fetched
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not task.cancelled() or (caller is not None and caller.cancelling()):
                raise
            return _failed(started, "removed", "the server left the list")
        finally:
            self._waiting -= 1
            if not self._waiting and not task.done():
                task.cancel()
                self._in_flight = None

    async def _fetch(self) -> Fetched:
        started = time.monotonic()
        try:
            fetched = await self._fetch_page(started)
        except FetchError as error:
            fetched = _failed(started, error.reason, error.detail)
        except Exception as error:
            if self.latest.reason != "internal":
                log.exception("server %s", self.server)
            fetched = _failed(started, "internal", type(error).__name__)
        self._take(fetched)
        return fetched

    async def _fetch_page(self, started: float) -> Fetched:
        raw = await self._client.metrics(_LONGEST_SECONDS)
        seconds = time.monotonic() - started
        page = await inline_or_thread(len(raw), RELABELLING, partial(self._relabeler.relabel, raw))
        self._dropped_lines += page.dropped_lines
        self._duplicates += page.duplicates
        self.type_conflicts += page.type_conflicts
        if page.dropped_lines and not page.samples:
            raise FetchError("not_metrics", "not one of its lines is a sample")
        return Fetched(started, seconds, raw, page, "", "")

    def _take(self, fetched: Fetched) -> None:
        if fetched.reason != self.latest.reason:
            if fetched.reason:
                log.warning("server %s: %s: %s", self.server, fetched.reason, fetched.detail)
            else:
                log.info("server %s: up", self.server)
        self.latest = fetched

    async def fetch_requests(self, timeout: float, *, openmetrics: bool) -> RequestPage | None:
        """Return the plugin's page of request metrics within `timeout` seconds, None where there is none.

        Never raises for a sick server: that is counted. One that is seen to be without the plugin is left alone for a
        minute.
        """
        if time.monotonic() < self._no_plugin_until:
            return None
        try:
            raw = await self._client.request_metrics(timeout, openmetrics=openmetrics)
            if raw is None or not is_request_page(raw):
                self._no_plugin_until = time.monotonic() + _NO_PLUGIN_SECONDS
                return None
            relabel = partial(relabelled, raw, self.server, openmetrics=openmetrics)
            page = await inline_or_thread(len(raw), RELABELLING, relabel)
        except FetchError as error:
            self._request_page_failures[error.reason] += 1
            return None
        except Exception:
            self._request_page_failures["internal"] += 1
            log.exception("request metrics of server %s", self.server)
            return None
        self._dropped_lines += page.dropped_lines
        self._duplicates += page.duplicates
        return page

    async def observe(self, interval: float, timeout: float) -> None:
        """Take a reading for health and the live page; a page that a scrape just brought is used again."""
        fetched = self.latest
        if fetched.page is None or time.monotonic() - fetched.at > interval / 2:
            fetched = await self.fetch(timeout)
        if fetched.page is None:
            self.ring.lost()
            self.healthy = None
            self._rounds = 0
        else:
            self.ring.add(read(fetched.page, fetched.raw, fetched.at))
            if self._rounds % _HEALTH_ROUNDS == 0:
                self.healthy = await self._health(timeout)
            self._rounds += 1
        self._track()

    async def _health(self, timeout: float) -> bool | None:
        try:
            status = await self._client.health(timeout)
        except FetchError:
            return None  # the page came, so this says nothing that server_up does not
        return True if status == 200 else False if status >= 500 else None

    def _track(self) -> None:
        last = self.ring.last
        values = {
            "running": last.running if last else None,
            "waiting": last.waiting if last else None,
            "kv_cache_ratio": last.kv_cache_ratio if last else None,
            "prompt_tokens_per_second": self.ring.latest_rate(lambda r: r.prompt_tokens),
            "generation_tokens_per_second": self.ring.latest_rate(lambda r: r.generation_tokens),
            "ttft_p95_seconds": self.ring.quantile(0.95, lambda r: r.ttft),
            "tpot_p95_seconds": self.ring.quantile(0.95, lambda r: r.tpot),
        }
        for name, value in values.items():
            self.tracks[name].add(value)

    def samples(self, fetched: Fetched, stalled: bool) -> list[Sample]:
        """Return our own series about this server for a page that shows `fetched`."""
        labels = self._labels
        known = self.ring.known
        kind = known.kind if known else "unknown"
        info = label_pairs(server=self.server, url=self.settings.url, kind=kind, origin=self.origin)
        up = fetched.page is not None
        samples = [
            Sample("vllm_vitals_server_up", label_pairs(server=self.server, reason=fetched.reason), int(up)),
            Sample("vllm_vitals_server_info", info, 1),
            Sample("vllm_vitals_server_fetch_duration_seconds", labels, fetched.seconds),
            Sample("vllm_vitals_server_dropped_lines_total", labels, self._dropped_lines),
            Sample("vllm_vitals_server_duplicate_series_total", labels, self._duplicates),
            Sample("vllm_vitals_server_type_conflicts_total", labels, self.type_conflicts),
            Sample("vllm_vitals_server_restarts_total", labels, self.ring.restarts),
        ]
        for reason, count in self._request_page_failures.items():
            pairs = label_pairs(server=self.server, reason=reason)
            samples.append(Sample("vllm_vitals_server_request_page_failures_total", pairs, count))
        if fetched.page is not None:
            samples += [
                Sample("vllm_vitals_server_page_bytes", labels, len(fetched.raw)),
                Sample("vllm_vitals_server_page_samples", labels, fetched.page.samples),
                Sample("vllm_vitals_server_stalled", labels, int(stalled)),
            ]
        if self.healthy is not None:
            samples.append(Sample("vllm_vitals_server_healthy", labels, int(self.healthy)))
        return samples


def _failed(started: float, reason: FetchCode, detail: str) -> Fetched:
    return Fetched(started, time.monotonic() - started, b"", None, reason, detail)
