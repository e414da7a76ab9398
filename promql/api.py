"""Questions to a Prometheus, or whatever speaks its HTTP API, with a deadline."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from ..runtime.exchange import exchange
from ..settings.scalars import ConfigError

DEADLINE: Final = 30.0
_MOST_BYTES: Final = 64 << 20


class QueryError(Exception):
    """Prometheus was reached and refuses the query; the text is its reason."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels and (Unix seconds, value) pairs, one for an instant query."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The last value."""
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server's address.

    Attributes:
        url: such as http://127.0.0.1:9090, a path before /api included.
        token: sent as a bearer token.
        deadline: seconds per question.
    """

    url: str
    token: str | None = None
    deadline: float = DEADLINE

    def __post_init__(self) -> None:
        """Raise ConfigError for what is no HTTP URL."""
        if urlsplit(self.url).scheme not in {"http", "https"} or not urlsplit(self.url).netloc:
            raise ConfigError(f"--prometheus: expected a URL such as http://127.0.0.1:9090, found {self.url!r}")

    def instant(self, expression: str, at: float | None = None) -> list[Series]:
        """Return an expression's series now, or at a Unix time.

        Raises QueryError when Prometheus refuses the query, ConfigError when there is none at the address.
        """
        asked = {"query": expression} | ({"time": f"{at:.3f}"} if at is not None else {})
        return self._series("/api/v1/query", asked)

    def range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Return an expression's series from start to end (Unix seconds), one point every step; raises as instant."""
        asked = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return self._series("/api/v1/query_range", asked)

    def _series(self, path: str, asked: Mapping[str, str]) -> list[Series]:
        try:
            return _series(self._ask(path, asked))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise self._stranger() from None

    def _stranger(self) -> ConfigError:
        return ConfigError(f"--prometheus: {self.url} does not answer as Prometheus does")

    def _ask(self, path: str, asked: Mapping[str, str]) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            answer = exchange(
                self.url.rstrip("/") + path,
                method="POST",  # generated expressions outgrow a URL
                headers={"Content-Type": "application/x-www-form-urlencoded", **headers},
                body=urlencode(asked).encode(),
                deadline=self.deadline,
                limit=_MOST_BYTES,
                use_proxy=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"--prometheus: expected a Prometheus at {self.url}, found none: {error}") from None
        if answer.status not in {200, 400, 422, 503}:
            raise ConfigError(f"--prometheus: {self.url} answers {answer.status} {answer.reason}")
        try:
            data = json.loads(answer.body)
            status = data["status"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._stranger() from None
        if status != "success":
            raise QueryError(str(data.get("error", "no reason given")))
        return data["data"]


def _series(data: Any) -> list[Series]:
    kind, result = data["resultType"], data["result"]
    if kind in {"scalar", "string"}:
        return [Series({}, (_point(result),))]
    return [
        Series(one["metric"], tuple(map(_point, one["values"] if kind == "matrix" else [one["value"]])))
        for one in result
    ]


def _point(pair: Any) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
