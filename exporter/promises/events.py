"""What a server's page says of a promise: events and good ones by series, counted as the generated rules count them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from ..engines.readings import samples
from ..pages.relabel import ServerPage
from ..pages.request_pages import RequestPage
from .promised import Answered, Ended, Good, Late, Promised

_HTTP: Final = "http_requests_total"
_FINISHED: Final = "vllm:request_success_total"
_REQUESTS: Final = "vllm_vitals_requests_total"
_GOOD: Final = "vllm_vitals_requests_good_total"
_OF_PAGES: Final = frozenset(("server", "model_name", "engine"))  # labels that a series without them does not match
_COUNTED_OUTCOMES: Final = frozenset(("ok", "server_error", "rejected"))

Group = tuple[tuple[str, str], ...]  # the labels that keep a budget of their own
Series = frozenset[tuple[str, str]]  # the labels that tell a series from the others of its server


class Events(NamedTuple):
    """Counters of one series since its engine began.

    Attributes:
        group: whose budget they belong to.
        series: its labels.
        total: all events.
        good: the good ones, at most `total` once interpolated.
    """

    group: Group
    series: Series
    total: float
    good: float


class Counted(NamedTuple):
    """A page's events of one promise; without any, `lacks` says in words why and `groups` whose are missing."""

    events: tuple[Events, ...]
    lacks: str = ""
    groups: tuple[Group, ...] = ()


def count(promised: Promised, server: Mapping[str, str], page: ServerPage, requests: RequestPage | None) -> Counted:
    """Return a promise's events.

    Args:
        promised: what is counted.
        server: labels that all of the server's series carry, its own and those of its target.
        page: the server's page.
        requests: the plugin's page, None where there is none.
    """
    match promised.events:
        case Late():
            rows, lacks = _late(promised.events, page)
        case Answered(by_model):
            rows, lacks = _answered(page, by_model=by_model)
        case Ended():
            rows, lacks = _ended(page)
        case Good():
            rows, lacks = _good(requests)
        case _:
            return Counted(())  # the two promises behind it are counted
    untold = {"engine"} if isinstance(promised.events, Answered) else set()  # the API server speaks for all engines
    selector = {name: wanted for name, wanted in promised.selector.items() if name not in untold}
    found = tuple(
        Events(_group(promised, {**server, **labels}), frozenset(labels.items()), total, good)
        for labels, total, good in rows
        if _chosen(selector, {**server, **labels})
    )
    if found:
        return Counted(found)
    served = [{**server, **labels} for _, labels, _ in samples(page, "vllm:num_requests_running")]
    groups = {_group(promised, labels): None for labels in served if _chosen(selector, labels)}
    # A server that its selector does not mean owes nothing.
    return Counted((), lacks, tuple(groups)) if lacks and (groups or not served) else Counted(())


def _late(events: Late, page: ServerPage) -> tuple[list[tuple[dict[str, str], float, float]], str]:
    totals: dict[Series, float] = {}
    within: dict[Series, dict[float, float]] = defaultdict(dict)
    for name, labels, value in samples(page, events.family):
        bound = labels.pop("le", None)
        key = frozenset(labels.items())
        if name.endswith(b"_count"):
            totals[key] = value
        elif bound is not None and (at := _number(bound)) in {events.lower, events.upper}:
            within[key][at] = value
    if not totals:
        return [], f"the engine does not tell {events.family}"
    rows = []
    for key, total in totals.items():
        bounds = within[key]
        if events.lower in bounds and events.upper in bounds:
            good = (1 - events.share) * bounds[events.lower] + events.share * bounds[events.upper]
            rows.append((dict(key), total, good))
    return rows, "" if rows else f"its histogram has no bucket of {events.upper:g} s"


def _answered(page: ServerPage, *, by_model: bool) -> tuple[list[tuple[dict[str, str], float, float]], str]:
    models = {labels.get("model_name", "") for _, labels, _ in samples(page, "vllm:num_requests_running")}
    if by_model and len(models) != 1:
        return [], "it serves several models, and HTTP statuses do not say whose" if models else "no model is told"
    model = {"model_name": models.pop()} if by_model else {}
    rows = [
        (labels | model, value, 0.0 if labels.get("status") == "5xx" else value)
        for _, labels, value in samples(page, _HTTP)
        if labels.get("method") == "POST"
    ]
    return rows, "" if rows else "no POST request was counted"


def _ended(page: ServerPage) -> tuple[list[tuple[dict[str, str], float, float]], str]:
    rows = [
        (labels, value, 0.0 if labels.get("finished_reason") == "error" else value)
        for _, labels, value in samples(page, _FINISHED)
        if labels.get("finished_reason") != "abort"
    ]
    return rows, "" if rows else f"the engine does not tell {_FINISHED}"


def _good(page: RequestPage | None) -> tuple[list[tuple[dict[str, str], float, float]], str]:
    if page is None:
        return [], "no request metrics: the plugin is not there, or does not answer"
    rows: list[tuple[dict[str, str], float, float]] = []
    for labels, value in _lines(page, _REQUESTS):
        if labels.get("outcome") in _COUNTED_OUTCOMES:
            rows.append((labels, value, 0.0))
    counted = [(labels, 0.0, value) for labels, value in _lines(page, _GOOD)]
    if not counted:
        return [], "the plugin counts no good requests: tracing.goodput is not set there"
    return rows + counted, ""


def _lines(page: RequestPage, family: str) -> Iterator[tuple[dict[str, str], float]]:
    for _, labels, value in samples(page, family):
        labels.pop("server", None)
        yield labels, value


def _chosen(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Tell whether a series is meant; a label of the target that nobody here knows is taken to match."""
    for name, wanted in selector.items():
        value = labels.get(name, "" if name in _OF_PAGES else None)
        if value is None:
            continue
        if wanted.startswith("~"):
            if re.fullmatch(wanted[1:], value) is None:
                return False
        elif value != wanted:
            return False
    return True


def _group(promised: Promised, labels: Mapping[str, str]) -> Group:
    return tuple((name, labels.get(name, "")) for name in promised.by)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
