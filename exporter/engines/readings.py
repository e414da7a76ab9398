"""The few numbers that health and the live page need, scanned out of a server's page."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..pages.relabel import ServerPage
from ..pages.request_pages import RequestPage

_LINE: Final = re.compile(rb"(?m)^([^{\n]*)\{([^\n]*)\} (\S+)")
_LABEL: Final = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*(?:\\.[^"\\\n]*)*)"')
_TOKENS: Final = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
_ESCAPE: Final = re.compile(r"\\(.)")
_START_TIME: Final = re.compile(rb"(?m)^process_start_time_seconds (\S+)")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative bucket counts by upper bound, summed over the rows of one server; the last bound is infinity."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one page says; None where the page does not say it.

    Attributes:
        at: monotonic time of the fetch, in seconds.
        pairs: (engine, model_name) rows, sorted.
        kv_cache_ratio: the fullest engine's share.
        progress: a number that moves whenever the engine works: steps and tokens.
        start_time: Unix time at which the API process started (single-process servers only).
    """

    at: float
    kind: str
    pairs: tuple[tuple[str, str], ...]
    running: float | None
    waiting: float | None
    kv_cache_ratio: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    preemptions: float | None
    prefix_queries: float | None
    prefix_hits: float | None
    finished: float | None
    ttft: Histogram | None
    tpot: Histogram | None
    progress: float | None
    start_time: float | None


def read(page: ServerPage, raw: bytes, at: float) -> Reading:
    """Return the numbers of a page; `raw` is the page as it came, since process_* is not on ours."""

    def total(family: str, reduce: Callable[[Iterable[float]], float] = sum) -> float | None:
        values = [value for _, _, value in samples(page, family)]
        return reduce(values) if values else None

    started = _START_TIME.search(raw)
    moving = [value for name, _, value in samples(page, "vllm:iteration_tokens_total") if name.endswith(b"_count")]
    moving += [value for family in _TOKENS for _, _, value in samples(page, family)]
    return Reading(
        at=at,
        kind="sglang" if b"# TYPE sglang:" in raw else "vllm" if b"# TYPE vllm:" in raw else "unknown",
        pairs=_pairs(page),
        running=total("vllm:num_requests_running"),
        waiting=total("vllm:num_requests_waiting"),
        kv_cache_ratio=total("vllm:kv_cache_usage_perc", max),
        prompt_tokens=total("vllm:prompt_tokens_total"),
        generation_tokens=total("vllm:generation_tokens_total"),
        preemptions=total("vllm:num_preemptions_total"),
        prefix_queries=total("vllm:prefix_cache_queries_total"),
        prefix_hits=total("vllm:prefix_cache_hits_total"),
        finished=total("vllm:request_success_total"),
        ttft=_histogram(page, "vllm:time_to_first_token_seconds"),
        # per request where the engine has it (0.11 on), else gap by gap
        tpot=_histogram(page, "vllm:request_time_per_output_token_seconds")
        or _histogram(page, "vllm:inter_token_latency_seconds"),
        progress=sum(moving) if moving else None,
        start_time=_finite(started[1]) if started else None,
    )


def samples(page: ServerPage | RequestPage, family: str) -> Iterator[tuple[bytes, dict[str, str], float]]:
    """Yield (sample name, labels, value) of a family; what is no finite number is left out."""
    found = page.families.get(family.encode())
    if found is None:
        return
    for name, labels, text in _LINE.findall(found.lines):
        value = _finite(text)
        if value is not None:
            yield name, {k.decode(): unescaped(v.decode()) for k, v in _LABEL.findall(labels)}, value


def unescaped(value: str) -> str:
    """Return a label value as it was before the exposition format escaped it."""
    return _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], value)


def _finite(text: bytes) -> float | None:
    """Return the number, None for what says nothing: NaN, infinity or no number at all."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _pairs(page: ServerPage) -> tuple[tuple[str, str], ...]:
    rows = {
        (labels.get("engine", ""), labels.get("model_name", ""))
        for _, labels, _ in samples(page, "vllm:num_requests_running")
    }
    return tuple(sorted(rows))


def _histogram(page: ServerPage, family: str) -> Histogram | None:
    counts: dict[float, float] = {}
    for name, labels, value in samples(page, family):
        if name.endswith(b"_bucket") and "le" in labels:
            bound = math.inf if labels["le"] == "+Inf" else _finite(labels["le"].encode())
            if bound is not None:
                counts[bound] = counts.get(bound, 0.0) + value
    if math.inf not in counts:
        return None  # without the last bucket nobody knows how many there were
    bounds = tuple(sorted(counts))
    return Histogram(bounds, tuple(counts[bound] for bound in bounds))
