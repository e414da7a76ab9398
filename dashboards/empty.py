"""Runs every query against a Prometheus and tells which find nothing there."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..scalars import ConfigError
from .queries import Query


class Result(NamedTuple):
    """What one query found.

    Attributes:
        series: how many; 0 where it failed.
        error: Prometheus' words, empty when it worked.
    """

    query: Query
    series: int
    error: str


def results(some: Iterable[Query], prometheus: str, timeout: float) -> Iterator[Result]:
    """Yield what each PromQL query finds now; raises ConfigError where no Prometheus answers at all."""
    known: dict[str, tuple[int, str]] = {}  # panels share queries
    for query in some:
        if query.source != "prometheus":
            continue
        text = query.runnable()
        if text not in known:
            known[text] = _ask(prometheus, text, timeout)
        yield Result(query, *known[text])


def _ask(prometheus: str, text: str, timeout: float) -> tuple[int, str]:
    url = f"{prometheus.rstrip('/')}/api/v1/query"
    body = urllib.parse.urlencode({"query": text, "time": time.time()}).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=timeout) as answer:
            return len(json.load(answer)["data"]["result"]), ""
    except urllib.error.HTTPError as error:
        words = error.read().decode(errors="replace")
        try:
            return 0, str(json.loads(words)["error"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{url}: expected Prometheus, found HTTP {error.code}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"{url}: expected Prometheus, found {reason}") from None
