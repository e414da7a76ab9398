"""Unit tests for promtool from the same SLA: what each alert does when a promise is kept, broken, and kept again.

A promise's tests read only its own rules, since promtool evaluates every rule of a file at every step. Assertions count
firing alerts, because `exp_alerts` would repeat every label and annotation word for word.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .alert_names import BURNS
from .buckets import HISTOGRAMS, le, position
from .limit_rules import machine_group, of_target_of_page, service_groups
from .objective_rules import AT_BEST, objective_groups, slo_name
from .promises import Limit
from .rules import HEADER, Alert, Group, as_yaml, dump
from .selectors import of_requests_page, of_target
from .sla import LATENCIES, Indicator, Objective, Service, Sla
from .tiers import Tier, tiers

_COUNTED: Final = ("-fast", "-slow")  # groups of the counts over windows
_SLOW_STEP: Final = 15  # minutes between evaluations where days pass
_HEALTHY: Final = 70  # minutes of good traffic before anything happens: longer than the fast tier's window
_PER_MINUTE: Final = 600


class LoadPhase(NamedTuple):
    """Some minutes of steady traffic; `reset` begins with the counters at 0."""

    minutes: int
    total: float
    bad: float
    reset: bool = False


def test_files(sla: Sla) -> dict[str, str]:
    """Return promtool's files by name: tests, and the rules that each of them reads."""
    files: dict[str, str] = {}
    for service in sla.services:
        for indicator, objective in service.objectives:
            name = f"{service.name}-{slo_name(service, indicator)}"
            needed = _needed(sla, service, indicator, objective)
            files[f"{name}.rules.yml"] = as_yaml(needed)
            files[f"{name}.test.yml"] = _file(name, needed, 1, _burn_tests(sla, service, indicator, objective))
            if _alerts(objective):
                slow = _slow_tests(sla, service, indicator, objective)
                files[f"{name}-slow.test.yml"] = _file(name, needed, _SLOW_STEP, slow)
        groups = [*service_groups(sla, service)]
        files |= _limit_files(f"{service.name}-limits", groups, _service_cases(service))
    return files | _limit_files("gpus-limits", [machine_group(sla)], _gpu_cases(sla))


def _needed(sla: Sla, service: Service, indicator: Indicator, objective: Objective) -> list[Group]:
    """Return the groups that an objective's alerts read; goodput's bounds read two other promises."""
    groups = [*objective_groups(sla, service, indicator, objective)]
    if slo_name(service, indicator) != AT_BEST:
        return groups
    others: list[Group] = []
    for other in ("ttft", "tpot"):
        its = getattr(service.objectives, other)
        others += [group for group in objective_groups(sla, service, other, its) if group.name.endswith(_COUNTED)]
    return [*others, *groups]


def _file(rules: str, groups: Sequence[Group], minutes: int, tests: Iterator[dict[str, Any]]) -> str:
    return HEADER + dump(
        {
            "rule_files": [f"{rules}.rules.yml"],
            "evaluation_interval": f"{minutes}m",
            # Else promtool takes the groups in any order, and an alert may read what was recorded a step ago.
            "group_eval_order": [group.name for group in groups],
            "tests": [*tests],
        }
    )


def _burn_tests(sla: Sla, service: Service, indicator: Indicator, objective: Objective) -> Iterator[dict[str, Any]]:
    every = tiers(sla.window)
    fast = every[0]
    budget = objective.promise.budget
    slo = slo_name(service, indicator)
    firing = {tier.name: _firing(BURNS[indicator], f'slo="{slo}",burn_tier="{tier.name}"') for tier in every}

    def test(name: str, phases: Sequence[LoadPhase], *checks: dict[str, Any]) -> dict[str, Any]:
        series = _series(service, indicator, objective, phases)
        return {"name": name, "interval": "1m", "input_series": series, "promql_expr_test": [*checks]}

    if _alerts(objective):
        error = min(1.0, 4 * fast.threshold(budget))
        at = fast.long / 60 * fast.threshold(budget) / error
        early, late = _HEALTHY + max(0, math.floor(at) - 1), _HEALTHY + math.ceil(at) + 4
        ends = late + 5
        healed = _is(firing["fast"], ends + math.ceil(fast.short / 60) + 6, 0)
        trouble = [LoadPhase(_HEALTHY, _PER_MINUTE, 0), LoadPhase(ends - _HEALTHY, _PER_MINUTE, _PER_MINUTE * error)]
        yield test(
            f"an error ratio of {error:.3g} alerts within {late - _HEALTHY} minutes, and its end ends the alert",
            [*trouble, LoadPhase(60, _PER_MINUTE, 0)],
            _is(firing["fast"], early, 0),
            _is(firing["fast"], late, 1),
            healed,
        )
        few = max(1, objective.min_bad_events - 1)
        yield test(
            f"{few} bad among few at night are silent",
            [LoadPhase(30, 0.1, 0), LoadPhase(1, few, few), LoadPhase(30, 0.1, 0)],
            *(_is(firing[tier.name], minute, 0) for tier in every for minute in (32, 60)),
        )
        again = LoadPhase(10, _PER_MINUTE, 0, reset=True)
        yield test(
            "a restart of the engines is silent, and errors after it are not",
            [LoadPhase(_HEALTHY, _PER_MINUTE, 0), again, LoadPhase(late - _HEALTHY, _PER_MINUTE, _PER_MINUTE * error)],
            *(_is(firing[tier.name], _HEALTHY + 9, 0) for tier in every),
            _is(firing["fast"], late + 9, 1),
        )
    ratio = f'count(slo:sli_error:ratio5m{{slo="{slo}"}}) or vector(0)'
    spent = f'count(slo:error_budget_spent:ratio{{slo="{slo}"}} > 0.001) or vector(0)'
    yield test(
        "no traffic gives no ratio and spends nothing", [LoadPhase(20, 0, 0)], _is(ratio, 15, 0), _is(spent, 15, 0)
    )


def _slow_tests(sla: Sla, service: Service, indicator: Indicator, objective: Objective) -> Iterator[dict[str, Any]]:
    """Yield the tests over a day and more: what the slow tier finds and no faster one, and what is silent for good."""
    fast, medium, slow, trickle = tiers(sla.window)
    budget = objective.promise.budget
    error = (slow.factor + medium.factor) / 2 * budget
    detected = _stepped(slow.long / 60 * slow.threshold(budget) / error + 30)
    slo = slo_name(service, indicator)

    def count(tier: Tier) -> str:
        return _firing(BURNS[indicator], f'slo="{slo}",burn_tier="{tier.name}"')

    def test(name: str, phases: Sequence[LoadPhase], *checks: dict[str, Any]) -> dict[str, Any]:
        series = _series(service, indicator, objective, phases)
        return {"name": name, "interval": "1m", "input_series": series, "promql_expr_test": [*checks]}

    begins = _stepped(slow.long / 60 + 60)
    yield test(
        f"a slow burn ({error:.3g}) becomes a ticket within {detected} minutes and pages nobody",
        [LoadPhase(begins, _PER_MINUTE, 0), LoadPhase(detected + 30, _PER_MINUTE, _PER_MINUTE * error)],
        _is(count(slow), begins + 2 * _SLOW_STEP, 0),
        _is(count(slow), begins + detected, 1),
        _is(count(fast), begins + detected, 0),
        _is(count(medium), begins + detected, 0),
    )
    day = _stepped(slow.long / 60)
    yield test(
        "half of the budget is silent",
        [LoadPhase(day, _PER_MINUTE, _PER_MINUTE * budget / 2)],
        *(_is(count(tier), day, 0) for tier in (fast, medium, slow, trickle)),
    )


def _stepped(minutes: float) -> int:
    """Return the first evaluation after some minutes, where they are seldom."""
    return math.ceil(minutes / _SLOW_STEP) * _SLOW_STEP


def _alerts(objective: Objective) -> bool:
    return objective.severity != "off"


def _firing(name: str, labels: str = "") -> str:
    comma = "," if labels else ""
    return f'count(ALERTS{{alertname="{name}",alertstate="firing"{comma}{labels}}}) or vector(0)'


def _is(expression: str, minute: int, value: float) -> dict[str, Any]:
    return {
        "expr": expression,
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{}", "value": value}] if value is not None else [],
    }


def _series(
    service: Service, indicator: Indicator, objective: Objective, phases: Sequence[LoadPhase]
) -> list[dict[str, str]]:
    """Return the input series of one engine whose events are these."""
    engine = {**_example(service.selector), "instance": "a:1", "model_name": "m", "engine": "0"}
    if service.via == "exporter":
        engine["server"] = "one"
    engine = _example(service.selector) | {name: engine[name] for name in engine if name not in service.selector}
    total = _counter([(phase.minutes, phase.total, phase.reset) for phase in phases])
    good = _counter([(phase.minutes, phase.total - phase.bad, phase.reset) for phase in phases])
    bad = _counter([(phase.minutes, phase.bad, phase.reset) for phase in phases])
    minutes = sum(phase.minutes for phase in phases)
    target = {name: value for name, value in engine.items() if name not in {"model_name", "engine"}}
    serving = [
        _input("vllm:num_requests_running", engine, f"1x{minutes}"),
        _input("up", {name: value for name, value in target.items() if name != "server"}, f"1x{minutes}"),
    ]
    if indicator in LATENCIES:
        return serving + _latency_series(service, indicator, objective, engine, total, good)
    if indicator == "availability":
        http = {**target, "handler": "/v1/completions", "method": "POST"}
        return [
            *serving,
            _input("http_requests_total", {**http, "status": "2xx"}, good),
            _input("http_requests_total", {**http, "status": "5xx"}, bad),
        ]
    if indicator == "engine_errors":
        return [
            *serving,
            _input("vllm:request_success_total", {**engine, "finished_reason": "stop"}, good),
            _input("vllm:request_success_total", {**engine, "finished_reason": "error"}, bad),
        ]
    if slo_name(service, indicator) == AT_BEST:
        result = serving
        for other in ("ttft", "tpot"):
            its = getattr(service.objectives, other)
            result = result + _latency_series(service, other, its, engine, total, good)
        return result
    page = {"instance": "a:1", "server": "one", "model_name": "m"} | _example(of_requests_page(service))
    return [
        _input("vllm_vitals_requests_total", {**page, "outcome": "ok"}, total),
        _input("vllm_vitals_requests_good_total", page, good),
    ]


def _latency_series(
    service: Service, indicator: Indicator, objective: Objective, engine: Mapping[str, str], total: str, good: str
) -> list[dict[str, str]]:
    histogram = HISTOGRAMS[indicator]
    assert objective.promise.threshold is not None
    where = position(indicator, objective.promise.threshold, custom=service.custom_buckets)
    bounds = {le(where.lower), le(where.upper)}
    return [
        _input(f"{histogram}_count", engine, total),
        *(_input(f"{histogram}_bucket", {**engine, "le": bound}, good) for bound in sorted(bounds)),
        _input(f"{histogram}_bucket", {**engine, "le": "+Inf"}, total),
    ]


def _example(selector: Mapping[str, str]) -> dict[str, str]:
    """Return labels that a selector takes; of a regular expression its first alternative without wildcards."""
    return {
        label: text[1:].split("|")[0].replace(".*", "x").replace(".+", "x").strip("()?^$")
        if text.startswith("~")
        else text
        for label, text in selector.items()
    }


def _input(name: str, labels: Mapping[str, str], values: str) -> dict[str, str]:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{pairs}}}", "values": values}


def _counter(phases: Sequence[tuple[int, float, bool]]) -> str:
    """Return a counter in promtool's notation, one sample a minute."""
    parts = []
    value = 0.0
    for number, (minutes, step, reset) in enumerate(phases):
        begin = 0.0 if number == 0 or reset else value + step
        count = minutes if number == 0 else minutes - 1
        parts.append(f"{begin:.10g}+{step:.10g}x{count}")
        value = begin + step * count
    return " ".join(parts)


class Case(NamedTuple):
    """How to break a limit or to make an event happen.

    Attributes:
        alert: that must fire.
        labels: that tell it from others of its name.
        broken: series -> value, or `+STEP` for a counter, while it is broken.
        healthy: the same before and after.
        severity: off leaves the case out.
        minutes: that it takes at most.
        over: minutes after the trouble until it must have ended; more where a window is an hour.
    """

    alert: str
    broken: Mapping[str, str]
    healthy: Mapping[str, str]
    minutes: int
    labels: str = ""
    over: int = 30


def _limit_files(name: str, groups: Sequence[Group], cases: Iterator[Case]) -> dict[str, str]:
    there = {rule.alert for group in groups for rule in group.rules if isinstance(rule, Alert)}
    tests = [_limit_test(case) for case in cases if case.alert in there]
    rules = as_yaml(groups)
    return {
        f"{name}.rules.yml": rules,
        f"{name}.test.yml": HEADER
        + dump({"rule_files": [f"{name}.rules.yml"], "evaluation_interval": "1m", "tests": tests}),
    }


def _limit_test(case: Case) -> dict[str, Any]:
    before, after = 30, case.over
    series = []
    for name in dict.fromkeys((*case.healthy, *case.broken)):
        phases = [
            (before, case.healthy.get(name, "_")),
            (case.minutes, case.broken.get(name, "_")),
            (after, case.healthy.get(name, "_")),
        ]
        series.append({"series": name, "values": _values(phases)})
    firing = _firing(case.alert, case.labels)
    return {
        "name": case.alert,
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            _is(firing, before - 1, 0),
            _is(firing, before + case.minutes - 1, 1),
            _is(firing, before + case.minutes + after - 1, 0),
        ],
    }


def _values(phases: Sequence[tuple[int, str]]) -> str:
    """Return samples a minute: `_` none, `+STEP` a counter that goes on, else a constant."""
    parts: list[str] = []
    counted = 0.0
    for minutes, what in phases:
        if what == "_":
            # A series that a scrape no longer finds is marked stale; without the mark its last value stands for 5 min.
            parts.append(f"stale _x{minutes - 1}" if parts and not parts[-1].startswith("_") else f"_x{minutes}")
        elif what.startswith("+"):
            step = float(what)
            parts.append(f"{counted + step:.10g}+{step:.10g}x{minutes - 1}")
            counted += step * minutes
        else:
            parts.append(f"{what}x{minutes - 1}")
    return " ".join(parts)


def _beyond(limit: Limit | None) -> tuple[float, float]:
    """Return a value that breaks a limit and one that keeps it."""
    if limit is None:
        return 0.0, 0.0
    return (limit.value * 1.1, limit.value * 0.5) if limit.bound == "most" else (limit.value * 0.5, limit.value * 2)


def _minutes(limit: Limit | None, more: int = 3) -> int:
    return math.ceil((limit.hold if limit is not None else 0) / 60) + more


def _service_cases(service: Service) -> Iterator[Case]:
    own, limits = _example(service.selector), service.limits
    server = {"server": "one"} if service.via == "exporter" else {}
    target = _example(of_target(service)) | {"instance": "a:1"} | server
    engine = target | {"model_name": "m", "engine": "0"} | own

    def of(name: str, labels: Mapping[str, str], **more: str) -> str:
        return _input(name, {**labels, **more}, "")["series"]

    running = of("vllm:num_requests_running", engine)
    tokens = of("vllm:generation_tokens_total", engine)
    bad, good = _beyond(limits.throughput)
    yield Case(
        "VLLMThroughputLow",
        {running: "2", tokens: f"+{bad * 60:.10g}"},
        {running: "2", tokens: f"+{good * 60:.10g}"},
        _minutes(limits.throughput, 9),
    )
    for alert, limit, name, factor, slack in (
        ("VLLMQueueLong", limits.queue_length, "vllm:num_requests_waiting", 0, 3),
        ("VLLMKVCacheFull", limits.kv_cache, "vllm:kv_cache_usage_perc", 0, 3),
        ("VLLMPreemptionsHigh", limits.preemptions, "vllm:num_preemptions_total", 60, 9),
    ):
        bad, good = _beyond(limit)
        series = of(name, engine)
        text = ("+{:.10g}", factor) if factor else ("{:.10g}", 1)
        yield Case(
            alert,
            {series: text[0].format(bad * text[1])},
            {series: text[0].format(good * text[1])},
            _minutes(limit, slack),
        )
    up = of("vllm_vitals_server_up", target, reason="") if server else of("up", target)
    down = of("vllm_vitals_server_up", target, reason="refused") if server else up
    yield Case("VLLMServerDown", {down: "0"}, {up: "1", running: "0"}, 5)
    yield Case("VLLMModelDown", {down: "0"}, {up: "1", running: "0"}, 4)
    yield Case("VLLMNoServers", {}, {up: "1"}, 14)
    yield Case("VLLMMetricsDark", {up: "1"}, {up: "1", running: "0"}, 14)
    if server:
        healthy, stalled = of("vllm_vitals_server_healthy", target), of("vllm_vitals_server_stalled", target)
        yield Case("VLLMEngineUnhealthy", {healthy: "0"}, {healthy: "1"}, 4)
        yield Case("VLLMEngineStalled", {stalled: "1"}, {stalled: "0"}, 4)
        restarts = of("vllm_vitals_server_restarts_total", target)
        yield Case("VLLMEngineRestarting", {restarts: "+1"}, {restarts: "+0"}, 6, over=90)
    else:
        steps = of("vllm:iteration_tokens_total_count", engine)
        yield Case("VLLMEngineStalled", {running: "3", steps: "+0"}, {running: "3", steps: "+50"}, 10)
    drops = of("vllm_vitals_tracing_requests_dropped_total", target)
    yield Case("VLLMTracingDrops", {drops: "+5"}, {drops: "+0"}, 4)
    if service.requests_page:
        page = _example(of_target_of_page(service)) | {"instance": "a:1"} | server
        fatal = of("vllm_vitals_engine_fatal_errors_total", page, kind="cuda_oom")
        yield Case("VLLMEngineFatalError", {fatal: "+1"}, {fatal: "+0"}, 3)
        if service.objectives.goodput is not None:
            goal = service.objectives.ttft.promise.threshold if service.objectives.ttft else 0.0
            series = of("vllm_vitals_goodput_target_seconds", page, objective="ttft")
            yield Case("VLLMGoodputTargetDiffers", {series: "99"}, {series: f"{goal:.10g}"}, 13)
    for indicator, objective in service.objectives:
        if indicator in LATENCIES:
            where = position(indicator, objective.promise.threshold, custom=service.custom_buckets)
            count = of(f"{HISTOGRAMS[indicator]}_count", engine)
            bucket = of(f"{HISTOGRAMS[indicator]}_bucket", engine, le=le(where.upper))
            yield Case("VLLMBucketMissing", {count: "5"}, {count: "5", bucket: "5"}, 19, labels=f'slo="{indicator}"')


def _gpu_cases(sla: Sla) -> Iterator[Case]:
    limits = sla.gpus.limits
    share: Limit | None
    machine = _example(sla.gpus.selector) | {"instance": "a:1"}
    gpu = machine | {"gpu": "0", "uuid": "GPU-1"}

    def of(name: str, labels: Mapping[str, str] = gpu, **more: str) -> str:
        return _input(name, {**labels, **more}, "")["series"]

    for alert, limit, sensor in (
        ("GPUTemperatureHigh", limits.temperature, "gpu"),
        ("GPUMemoryTemperatureHigh", limits.memory_temperature, "memory"),
    ):
        bad, good = _beyond(limit)
        series = of("nvidia_gpu_temperature_celsius", sensor=sensor)
        yield Case(alert, {series: f"{bad:.10g}"}, {series: f"{good:.10g}"}, _minutes(limit))
    for alert, share, value, whole in (
        ("GPUMemoryFull", limits.memory, of("nvidia_gpu_memory_used_bytes"), of("nvidia_gpu_memory_total_bytes")),
        (
            "GPUPowerHigh",
            limits.power,
            of("nvidia_gpu_power_watts", kind="average"),
            of("nvidia_gpu_power_limit_watts", kind="enforced"),
        ),
    ):
        bad, good = _beyond(share)
        unit = 1000.0 if share is not None and share.unit == "%" else 1.0
        yield Case(
            alert,
            {value: f"{bad * unit:.10g}", whole: "1000"},
            {value: f"{good * unit:.10g}", whole: "1000"},
            _minutes(share),
        )
    bad, good = _beyond(limits.throttle)
    throttled = of("nvidia_gpu_throttle_seconds_total", reason="hw_thermal")
    yield Case(
        "GPUThrottled",
        {throttled: f"+{bad * 60:.10g}"},
        {throttled: f"+{good * 60:.10g}"},
        _minutes(limits.throttle, 9),
    )
    bad, good = _beyond(limits.corrected_ecc)
    corrected = of("nvidia_gpu_ecc_errors_total", severity="corrected", scope="volatile")
    yield Case("GPUEccCorrected", {corrected: f"+{bad * 60 * 3:.10g}"}, {corrected: f"+{good * 6:.10g}"}, 60, over=90)
    built = of("vllm_vitals_build_info", machine, version="1")
    up = of("up", machine)
    yield Case("VitalsExporterDown", {up: "0"}, {up: "1", built: "1"}, 5)
    placement = of("vllm_vitals_placement_failures_total", machine, source="process")
    yield Case("VitalsPlacementFailing", {placement: "+1"}, {placement: "+0"}, 20)
    yield Case(
        "NVMLDown",
        {of("vllm_vitals_nvml_up", machine, reason="driver_reload"): "0"},
        {of("vllm_vitals_nvml_up", machine, reason=""): "1"},
        14,
    )
    yield Case("GPULost", {of("nvidia_gpu_up", reason="lost"): "0"}, {of("nvidia_gpu_up", reason=""): "1"}, 8)
    yield Case(
        "GPUStaleSnapshot",
        {of("nvidia_gpu_snapshot_age_seconds"): "60"},
        {of("nvidia_gpu_snapshot_age_seconds"): "1"},
        5,
    )
    fatal, other = (of("nvidia_gpu_xid_errors_total", xid=code) for code in ("79", "13"))
    yield Case("GPUXidFatal", {fatal: "+1"}, {fatal: "+0"}, 3)
    yield Case("GPUXidApplication", {other: "+1"}, {other: "+0"}, 3)
    uncorrected = of("nvidia_gpu_ecc_errors_total", severity="uncorrected", scope="volatile")
    yield Case("GPUEccUncorrected", {uncorrected: "+1"}, {uncorrected: "+0"}, 3)
    for alert, name in (
        ("GPURowsRemapped", "nvidia_gpu_row_remap_pending"),
        ("GPURowRemapFailure", "nvidia_gpu_row_remap_failure"),
        ("GPURecoveryAction", "nvidia_gpu_recovery_action"),
    ):
        yield Case(alert, {of(name): "1"}, {of(name): "0"}, 4)
    notice = of("vllm_vitals_spot_interruption_timestamp_seconds", machine, cloud="aws", action="terminate")
    yield Case("HostSpotNotice", {notice: "1750000000"}, {}, 3)
