"""What counts as an event and what as a bad one, in PromQL over a window, for each indicator.

The forms were chosen for what they do at the edges: an idle server gives no NaN, a restart gives nothing negative, and
the first failure of a server, whose series is born with it, is seen.
"""

from typing import Final, NamedTuple

from .buckets import HISTOGRAMS, le, position
from .selectors import ENGINE_LABELS, identity, matchers, of_requests_page, of_target, summed
from .sla import LATENCIES, Indicator, Objective, Service

# Inference is asked for by POST; GET /v1/models is what load balancers poll.
_POST: Final = 'method="POST"'


class Counts(NamedTuple):
    """Two expressions with the same labels: all events of the window, and the bad ones."""

    total: str
    bad: str


def labels_of(service: Service, objective: Objective) -> tuple[str, ...]:
    """Return the labels that keep a budget of their own."""
    return service.by if objective.by is None else objective.by


def counts(service: Service, indicator: Indicator, objective: Objective, window: str) -> Counts:
    """Return an indicator's counts; those of goodput come from the plugin's page, as no engine counts them."""
    by = labels_of(service, objective)
    if indicator in LATENCIES:
        return _latency(service, indicator, objective, by, window)
    if indicator == "availability":
        return _availability(service, by, window)
    if indicator == "engine_errors":
        return _engine_errors(service, by, window)
    return _goodput(service, by, window)


def _latency(service: Service, indicator: Indicator, objective: Objective, by: tuple[str, ...], window: str) -> Counts:
    histogram = HISTOGRAMS[indicator]
    assert objective.promise.threshold is not None
    where = position(indicator, objective.promise.threshold, custom=service.custom_buckets)

    def within(bound: float) -> str:
        bucket = matchers(service.selector, f'le="{le(bound)}"')
        return summed(by, f"increase({histogram}_bucket{bucket}[{window}])")

    total = summed(by, f"increase({histogram}_count{matchers(service.selector)}[{window}])")
    if where.exact:
        return Counts(total, f"{total}\n-\n{within(where.lower)}")
    # Between two bounds: as if times were spread evenly there, which is an estimate.
    good = f"({1 - where.share:g} * {within(where.lower)} + {where.share:g} * {within(where.upper)})"
    return Counts(total, f"{total}\n-\n{good}")


def _availability(service: Service, by: tuple[str, ...], window: str) -> Counts:
    target = of_target(service)
    requests = "http_requests_total" + matchers(target, _POST)
    errors = "http_requests_total" + matchers(target, _POST, 'status="5xx"')
    all_of, failed = f"increase({requests}[{window}])", f"increase({errors}[{window}])"
    if service.via == "engine":
        # vLLM makes the child of 5xx at the first failure, which increase() does not see: it is added as it is, unless
        # Prometheus only just found the target.
        known = f"up{matchers(target)} offset {window} == 1"
        failed = f"((({errors} unless {errors} offset {window}) and on (job, instance) ({known})) or {failed})"
    if ENGINE_LABELS & {*by, *service.selector}:
        model = _served_model(service)
        all_of, failed = f"{all_of} {model}", f"{failed} {model}"
    total = summed(by, all_of)
    return Counts(total, f"{summed(by, failed)}\nor\n0 * {total}")


def _served_model(service: Service) -> str:
    """Return the join that gives HTTP metrics their model; a server with two models has no answer and is left out."""
    names = ", ".join(identity(service))
    series = f"last_over_time(vllm:num_requests_running{matchers(service.selector)}[10m])"
    models = f"group by ({names}, model_name) ({series})"
    return f"* on ({names}) group_left (model_name) ({models} unless on ({names}) count by ({names}) ({models}) > 1)"


def _engine_errors(service: Service, by: tuple[str, ...], window: str) -> Counts:
    ended = "vllm:request_success_total" + matchers(service.selector, 'finished_reason!="abort"')
    failed = "vllm:request_success_total" + matchers(service.selector, 'finished_reason="error"')
    return Counts(summed(by, f"increase({ended}[{window}])"), summed(by, f"increase({failed}[{window}])"))


def _goodput(service: Service, by: tuple[str, ...], window: str) -> Counts:
    selector = of_requests_page(service)
    requests = "vllm_vitals_requests_total" + matchers(selector, 'outcome=~"ok|server_error|rejected"')
    good = "vllm_vitals_requests_good_total" + matchers(selector)
    total = summed(by, f"increase({requests}[{window}])")
    return Counts(total, f"{total}\n-\n{summed(by, f'increase({good}[{window}])')}")
