"""Limits and events become threshold alerts: no promises to callers, but why one breaks, or that it will."""

from collections.abc import Iterator, Mapping
from typing import Final

from ..vocabulary.xids import CRITICAL_XIDS
from .alert_names import BY_NAME
from .buckets import HISTOGRAMS, le, position
from .promises import Limit, Memory, Power, Severity, duration
from .rules import Alert, Group
from .selectors import identity, matchers, of_requests_page, of_target, summed
from .sla import LATENCIES, Service, Sla

_INTERVAL: Final = 30.0
_KEEP_FIRING: Final = 300.0
_MINUTE: Final = 60.0
# Reasons that cost speed and that somebody can do something about. A GPU that draws all the power it may draw
# (sw_power_cap) does what it was bought for; idle clocks and a user's own settings are nobody's fault.
HARMFUL: Final = 'reason=~"hw_thermal|sw_thermal|hw_power_brake|board_limit|reliability"'
_FATAL_XIDS: Final = "|".join(str(code) for code in sorted(CRITICAL_XIDS))
_WHERE: Final = (
    "{{ with $labels.model_name }}: {{ . }}{{ end }}{{ with $labels.server }}: {{ . }}{{ end }}"
    "{{ with $labels.gpu }}: GPU {{ . }} on {{ $labels.instance }}{{ end }}"
)
# Said in the alert itself, since a join in its condition would lose GPUs without an engine.
_ENGINES: Final = (
    '{{ range printf "vllm_vitals_engine_gpu_info{uuid=%q}" $labels.uuid | query }}'
    " It serves {{ .Labels.model_name }} on {{ .Labels.server }}.{{ end }}"
)


def service_groups(sla: Sla, service: Service) -> Iterator[Group]:
    """Yield the groups of a service's limits and events."""
    make = _Maker(sla, {"service": service.name} | ({"owner": service.owner} if service.owner else {}))
    rules = [*_service_limits(make, service), *_service_events(sla, make, service)]
    yield Group(f"{service.name}-limits", _INTERVAL, rules)


def machine_group(sla: Sla) -> Group:
    """Return the group of GPUs, their machines and our exporter."""
    make = _Maker(sla, {"service": "gpus"})
    return Group("gpus-limits", _INTERVAL, [*_gpu_limits(sla, make), *_gpu_events(sla, make)])


class _Maker:
    """Makes alerts that share labels."""

    def __init__(self, sla: Sla, labels: Mapping[str, str]) -> None:
        self._sla = sla
        self._labels = labels

    def limit(self, name: str, limit: Limit | None, expression: str, value: str, *, where: str = "") -> Iterator[Alert]:
        """Yield the alert of a limit, if there is one; `value` is a template of what was found."""
        if limit is not None:
            sign = ">" if limit.bound == "most" else "<"
            text = f"{value}; the limit is {limit}."
            condition = f"{expression} {sign} {limit.value:.12g}{where}"
            yield self.alert(name, limit.severity, condition, limit.hold, text, _KEEP_FIRING)

    def event(
        self, name: str, severity: Severity, expression: str, hold: float, text: str, **labels: str
    ) -> Iterator[Alert]:
        """Yield the alert of an event, unless it is off."""
        if severity != "off":
            yield self.alert(name, severity, expression, hold, text, 0.0, **labels)

    def alert(
        self, name: str, severity: Severity, expression: str, hold: float, text: str, keep: float, **more: str
    ) -> Alert:
        """Return an alert."""
        labels = {"severity": severity, **self._labels, **more}
        annotations = {
            "summary": BY_NAME[name].meaning.rstrip(".") + _WHERE,
            "description": text,
            "runbook_url": f"{self._sla.runbooks}/{name}.md",
        }
        return Alert(name, expression, hold, labels, annotations, keep)


def _service_limits(make: _Maker, service: Service) -> Iterator[Alert]:
    limits, chosen = service.limits, matchers(service.selector)
    tokens = summed(service.by, f"rate(vllm:generation_tokens_total{chosen}[5m])")
    busy = summed(service.by, f"min_over_time(vllm:num_requests_running{chosen}[5m])")
    yield from make.limit(
        "VLLMThroughputLow",
        limits.throughput,
        tokens,
        "{{ $value | humanize }} tokens per second",
        where=f"\nand\n{busy} > 0",
    )
    yield from make.limit(
        "VLLMQueueLong", limits.queue_length, f"vllm:num_requests_waiting{chosen}", "{{ $value }} requests wait"
    )
    yield from make.limit(
        "VLLMKVCacheFull",
        limits.kv_cache,
        f"vllm:kv_cache_usage_perc{chosen}",
        "{{ $value | humanizePercentage }} of the KV blocks are in use",
    )
    yield from make.limit(
        "VLLMPreemptionsHigh",
        limits.preemptions,
        f"rate(vllm:num_preemptions_total{chosen}[5m])",
        "{{ $value | humanize }} preemptions per second",
    )


def _service_events(sla: Sla, make: _Maker, service: Service) -> Iterator[Alert]:
    events, exporter = sla.events, service.via == "exporter"
    names = identity(service)
    target, chosen = matchers(of_target(service)), matchers(service.selector)
    up = f"vllm_vitals_server_up{target}" if exporter else f"up{target}"
    answers = summed(names, up, "max")  # without the reason, whose change would start `for` again
    yield from make.event(
        "VLLMServerDown",
        events.server_down,
        f"{answers} == 0",
        2 * _MINUTE,
        "Its /metrics was not answered for two minutes; vllm_vitals_server_up says why."
        if exporter
        else "Its /metrics was not answered for two minutes.",
    )
    yield from make.event(
        "VLLMNoServers", events.no_servers, f"absent({up})", 5 * _MINUTE,
        "Nothing matches the service's selector: wrong labels, or all targets are gone.",
    )  # fmt: skip
    yield from make.event(
        "VLLMMetricsDark",
        events.metrics_dark,
        f"{answers} == 1\nunless on ({', '.join(names)})\nvllm:num_requests_running{chosen}",
        5 * _MINUTE,
        "It answers, but without vllm: series: --disable-log-stats, or another model than the selector wants.",
    )
    lost = f"{answers} == 0"
    if exporter:
        stalled, hold = f"vllm_vitals_server_stalled{target} == 1", _MINUTE
        unhealthy = f"vllm_vitals_server_healthy{target} == 0"
        lost = f"{lost} or {unhealthy} or {stalled}"
        yield from make.event(
            "VLLMEngineUnhealthy", events.engine_unhealthy, unhealthy, _MINUTE,
            "Its /health answers 5xx: the engine core is gone and will not come back by itself.",
        )  # fmt: skip
        restarts = f"increase(vllm_vitals_server_restarts_total{target}[1h])"
    else:
        # Five minutes and `for`: a step without outputs, such as one very long prefill, moves no counter either.
        one = (*names, "model_name", "engine")
        running = summed(one, f"vllm:num_requests_running{chosen}", "max")
        steps = summed(one, f"increase(vllm:iteration_tokens_total_count{chosen}[5m])")
        stalled, hold = f"{running} > 0\nand\n{steps} == 0", 2 * _MINUTE
        restarts = summed(names, f"resets(vllm:generation_tokens_total{chosen}[1h])", "max")
    # What a server that is gone had served is remembered for a day.
    on = f"on ({', '.join(names)})"
    models = summed((*names, "model_name"), f"last_over_time(vllm:num_requests_running{chosen}[1d])", "group")
    yield from make.event(
        "VLLMModelDown",
        events.model_down,
        f"group by (model_name) ({models} and {on} ({lost}))\nunless\n"
        f"group by (model_name) ({models} and {on} ({answers} == 1 unless {on} ({lost})))",
        _MINUTE,
        "Each of its servers is down, unhealthy or hangs.",
    )
    yield from make.event(
        "VLLMEngineStalled", events.engine_stalled, stalled, hold, "Requests run, and no token was produced."
    )
    yield from make.event(
        "VLLMEngineRestarting", events.engine_restarts, f"{restarts} >= 3", 0, "{{ $value }} restarts within an hour."
    )
    if service.requests_page:
        yield from _plugin_events(sla, make, service)
    yield from make.event(
        "VLLMTracingDrops",
        events.tracing_drops,
        f"increase(vllm_vitals_tracing_requests_dropped_total{target}[15m]) > 0",
        0,
        "{{ $value | humanize }} requests of the last 15 minutes have no line, no metrics and no spans.",
    )
    for indicator, objective in service.objectives:
        if indicator not in LATENCIES:
            continue
        histogram = HISTOGRAMS[indicator]
        where = position(indicator, objective.promise.threshold, custom=service.custom_buckets)
        bucket = matchers(service.selector, f'le="{le(where.upper)}"')
        yield from make.event(
            "VLLMBucketMissing",
            events.missing_bucket,
            f"{summed(names, f'{histogram}_count{chosen}', 'count')}\nunless\n"
            f"{summed(names, f'{histogram}_bucket{bucket}', 'count')}",
            10 * _MINUTE,
            f"Its histogram {histogram} has no bucket of {where.upper:g} s, so every event counts as bad for "
            f"{indicator} {objective.promise}. `vllm-vitals rules build` prints the flag.",
            slo=indicator,
        )


def _plugin_events(sla: Sla, make: _Maker, service: Service) -> Iterator[Alert]:
    chosen = matchers(of_target_of_page(service))
    yield from make.event(
        "VLLMEngineFatalError",
        sla.events.engine_fatal,
        f"increase(vllm_vitals_engine_fatal_errors_total{chosen}[10m]) > 0",
        0,
        "The log told of {{ $labels.kind }}; the requests that it took along are named there.",
    )
    goodput = service.objectives.goodput
    for indicator in ("ttft", "tpot") if goodput is not None else ():
        promise = getattr(service.objectives, indicator).promise  # there: goodput needs both
        objective = matchers(of_target_of_page(service), f'objective="{indicator}"')
        yield from make.event(
            "VLLMGoodputTargetDiffers",
            sla.events.missing_bucket,
            f"vllm_vitals_goodput_target_seconds{objective} != {promise.threshold:.12g}",
            10 * _MINUTE,
            f"The plugin calls {indicator} within {{{{ $value }}}} s good, the SLA says {duration(promise.threshold)}: "
            f"set tracing.goodput.{indicator} in its vitals.yaml.",
            slo=indicator,
        )


def of_target_of_page(service: Service) -> dict[str, str]:
    """Return the part of the requests page's selector that families without a model have, too."""
    return {label: value for label, value in of_requests_page(service).items() if label not in {"model_name", "engine"}}


def _gpu_limits(sla: Sla, make: _Maker) -> Iterator[Alert]:
    limits, selector = sla.gpus.limits, sla.gpus.selector
    chosen = matchers(selector)
    for name, limit, sensor in (
        ("GPUTemperatureHigh", limits.temperature, "gpu"),
        ("GPUMemoryTemperatureHigh", limits.memory_temperature, "memory"),
    ):
        of_sensor = matchers(selector, f'sensor="{sensor}"')
        yield from make.limit(
            name, limit, f"nvidia_gpu_temperature_celsius{of_sensor}", "{{ $value }} degrees Celsius." + _ENGINES
        )
    used = f"nvidia_gpu_memory_used_bytes{chosen}"
    if isinstance(limits.memory, Memory) and limits.memory.unit == "%":
        used, value = f"{used} / (nvidia_gpu_memory_total_bytes{chosen} > 0)", "{{ $value | humanizePercentage }} used"
    else:
        value = "{{ $value | humanize1024 }}B used"
    yield from make.limit("GPUMemoryFull", limits.memory, used, value + "." + _ENGINES)
    drawn = f"max without (kind) (nvidia_gpu_power_watts{chosen})"  # average or instant, by what the GPU measures
    if isinstance(limits.power, Power) and limits.power.unit == "%":
        enforced = matchers(selector, 'kind="enforced"')
        drawn = f"{drawn}\n/ ignoring (kind)\n(nvidia_gpu_power_limit_watts{enforced} > 0)"
        value = "{{ $value | humanizePercentage }} of the enforced limit"
    else:
        value = "{{ $value | humanize }} W"
    yield from make.limit("GPUPowerHigh", limits.power, drawn, value + "." + _ENGINES)
    yield from make.limit(
        "GPUThrottled",
        limits.throttle,
        f"rate(nvidia_gpu_throttle_seconds_total{matchers(selector, HARMFUL)}[5m])",
        "{{ $value | humanizePercentage }} of the time for {{ $labels.reason }}." + _ENGINES,
    )
    corrected = matchers(selector, 'severity="corrected"', 'scope="volatile"')
    yield from make.limit(
        "GPUEccCorrected",
        limits.corrected_ecc,
        f"rate(nvidia_gpu_ecc_errors_total{corrected}[1h])",
        "{{ $value | humanize }} corrected errors per second over an hour." + _ENGINES,
    )


def _gpu_events(sla: Sla, make: _Maker) -> Iterator[Alert]:
    events, selector = sla.events, sla.gpus.selector
    chosen = matchers(selector)
    minute = _MINUTE

    def some(*more: str) -> str:
        return matchers(selector, *more)

    # A machine without an NVIDIA driver is no failure; one whose driver went away is.
    driver = some('reason!~"no_library|no_gpus|"')
    uncorrected = some('severity="uncorrected"', 'scope="volatile"')
    fatal, other = some(f'xid=~"{_FATAL_XIDS}"'), some(f'xid!~"{_FATAL_XIDS}"')
    born = f"(nvidia_gpu_xid_errors_total{other} unless nvidia_gpu_xid_errors_total{other} offset 10m)"
    fewer = f"vllm_vitals_gpus{chosen} < max_over_time(vllm_vitals_gpus{chosen}[1h])"
    for name, severity, expression, hold, text in (
        ("VitalsExporterDown", events.exporter_down,
         "up == 0\nand on (job, instance)\nlast_over_time(vllm_vitals_build_info[1d])", 2 * minute,
         "The GPUs and servers of {{ $labels.instance }} are not seen."),
        ("VitalsPlacementFailing", events.placement_failing,
         f"increase(vllm_vitals_placement_failures_total{chosen}[15m]) > 0", 15 * minute,
         "The source {{ $labels.source }} on {{ $labels.instance }} fails: joins of engines and GPUs may be wrong."),
        ("NVMLDown", events.nvml_down, f"vllm_vitals_nvml_up{driver} == 0", 5 * minute,
         "On {{ $labels.instance }}: {{ $labels.reason }}."),
        ("GPULost", events.gpu_lost,
         f"max without (reason) (nvidia_gpu_up{chosen}) == 0\nor\n{fewer}", minute,
         ("{{ if $labels.gpu }}It answered before; nvidia_gpu_up says why it does not now." + _ENGINES
          + "{{ else }}{{ $labels.instance }} has {{ $value }} GPUs, it had more within the last hour.{{ end }}")),
        ("GPUStaleSnapshot", events.stale_snapshot, f"nvidia_gpu_snapshot_age_seconds{chosen} > 30", 2 * minute,
         "Its values are {{ $value | humanizeDuration }} old: the driver hangs." + _ENGINES),
        ("GPUXidFatal", events.xid_fatal, f"increase(nvidia_gpu_xid_errors_total{fatal}[10m]) > 0", 0,
         "XID {{ $labels.xid }}: the GPU needs a reset, or the machine a reboot." + _ENGINES),
        ("GPUXidApplication", events.xid_application,
         f"{born} > 0\nor\nincrease(nvidia_gpu_xid_errors_total{other}[10m]) > 0", 0,
         "XID {{ $labels.xid }}, mostly an application's fault." + _ENGINES),
        ("GPUEccUncorrected", events.ecc_uncorrected,
         f"increase(nvidia_gpu_ecc_errors_total{uncorrected}[10m]) > 0", 0,
         "Results may be wrong, and the process that used the page was or will be ended." + _ENGINES),
        ("GPURowsRemapped", events.remapped_rows,
         f"nvidia_gpu_row_remap_pending{chosen} == 1\nor\ndelta(nvidia_gpu_remapped_rows{chosen}[1d]) > 0", 0,
         ("{{ if $labels.cause }}{{ $value | humanize }} rows more within a day ({{ $labels.cause }}).{{ else }}"
          "Rows are remapped at the next reset; until then bad ones stay in use.{{ end }}" + _ENGINES)),
        ("GPURowRemapFailure", events.row_remap_failure, f"nvidia_gpu_row_remap_failure{chosen} == 1", 0,
         "It has no spare rows left and wants replacement." + _ENGINES),
        ("GPURecoveryAction", events.recovery_action, f"nvidia_gpu_recovery_action{chosen} > 0", minute,
         "The driver asks for {{ $value }}: 1 GPU reset, 2 node reboot, 3 drain P2P, 4 both." + _ENGINES),
        ("HostSpotNotice", events.spot_notice,
         f"vllm_vitals_spot_interruption_timestamp_seconds{chosen} > 0", 0,
         "{{ $labels.instance }} goes at {{ $value | humanizeTimestamp }}: {{ $labels.cloud }} {{ $labels.action }}."),
    ):  # fmt: skip
        yield from make.event(name, severity, expression, hold, text)
