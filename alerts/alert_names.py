"""Every alert that can come out of an SLA: rules, runbooks, tests and `explain` read this one list."""

from typing import Final, Literal, NamedTuple

from .sla import Indicator

Kind = Literal["burn", "limit", "event"]


class AlertName(NamedTuple):
    """One alert.

    Attributes:
        name: of the alert and its runbook page.
        kind: what makes it: a budget that burns, a limit that is broken, something that happened.
        key: in the SLA: an indicator, a limit or an event.
        meaning: one sentence for people.
    """

    name: str
    kind: Kind
    key: str
    meaning: str


ALERTS: Final = (
    AlertName("VLLMTTFTBudgetBurn", "burn", "ttft", "Too many first tokens come late."),
    AlertName("VLLMTPOTBudgetBurn", "burn", "tpot", "Too many answers are written too slowly."),
    AlertName("VLLMITLBudgetBurn", "burn", "itl", "Too many answers stall between two tokens."),
    AlertName("VLLME2EBudgetBurn", "burn", "e2e", "Too many answers take too long as a whole."),
    AlertName("VLLMQueueBudgetBurn", "burn", "queue", "Too many requests wait too long for the scheduler."),
    AlertName("VLLMAvailabilityBudgetBurn", "burn", "availability", "Too many requests are answered with HTTP 5xx."),
    AlertName("VLLMEngineErrorsBudgetBurn", "burn", "engine_errors", "Too many sequences end in an engine's error."),
    AlertName("VLLMGoodputBudgetBurn", "burn", "goodput", "Too few requests keep TTFT and TPOT together."),
    AlertName("VLLMThroughputLow", "limit", "throughput", "Requests run, but few tokens are generated."),
    AlertName("VLLMQueueLong", "limit", "queue_length", "Many requests wait for an engine."),
    AlertName("VLLMKVCacheFull", "limit", "kv_cache", "An engine's KV cache is nearly full."),
    AlertName("VLLMPreemptionsHigh", "limit", "preemptions", "An engine preempts many sequences."),
    AlertName("VLLMModelDown", "event", "model_down", "No server of a model answers."),
    AlertName("VLLMServerDown", "event", "server_down", "A server's metrics do not come."),
    AlertName("VLLMNoServers", "event", "no_servers", "No server of the service is known to Prometheus."),
    AlertName("VLLMEngineUnhealthy", "event", "engine_unhealthy", "A server says that its engine is dead."),
    AlertName("VLLMEngineStalled", "event", "engine_stalled", "Requests run, but no token comes."),
    AlertName("VLLMEngineRestarting", "event", "engine_restarts", "A server restarts again and again."),
    AlertName("VLLMEngineFatalError", "event", "engine_fatal", "An engine logged an error that ends it."),
    AlertName("VLLMMetricsDark", "event", "metrics_dark", "A server is up without statistics."),
    AlertName("VLLMBucketMissing", "event", "missing_bucket", "An engine lacks the bucket of a promise."),
    AlertName("VLLMGoodputTargetDiffers", "event", "missing_bucket", "The plugin counts goodput by other targets."),
    AlertName("VLLMTracingDrops", "event", "tracing_drops", "The tracing plugin loses requests or spans."),
    AlertName("VitalsExporterDown", "event", "exporter_down", "An exporter cannot be scraped."),
    AlertName(
        "VitalsPlacementFailing", "event", "placement_failing", "It is not known which engine runs on which GPU."
    ),
    AlertName("NVMLDown", "event", "nvml_down", "The driver does not answer."),
    AlertName("GPULost", "event", "gpu_lost", "A GPU cannot be read any more."),
    AlertName("GPUStaleSnapshot", "event", "stale_snapshot", "A GPU's values are old."),
    AlertName("GPUXidFatal", "event", "xid_fatal", "The driver reported an error that needs a reset."),
    AlertName("GPUXidApplication", "event", "xid_application", "The driver reported an error, mostly of software."),
    AlertName("GPUEccUncorrected", "event", "ecc_uncorrected", "A GPU's memory lost data."),
    AlertName("GPURowsRemapped", "event", "remapped_rows", "A GPU's memory rows were or have to be remapped."),
    AlertName("GPURowRemapFailure", "event", "row_remap_failure", "A GPU has no rows left to remap."),
    AlertName("GPURecoveryAction", "event", "recovery_action", "The driver asks for a reset or a reboot."),
    AlertName("HostSpotNotice", "event", "spot_notice", "The cloud takes this machine away."),
    AlertName("GPUTemperatureHigh", "limit", "temperature", "A GPU is hot."),
    AlertName("GPUMemoryTemperatureHigh", "limit", "memory_temperature", "A GPU's memory is hot."),
    AlertName("GPUMemoryFull", "limit", "memory", "A GPU's memory is nearly full."),
    AlertName("GPUPowerHigh", "limit", "power", "A GPU draws more than it should."),
    AlertName("GPUThrottled", "limit", "throttle", "A GPU's clocks are held down."),
    AlertName("GPUEccCorrected", "limit", "corrected_ecc", "A GPU's memory corrects many errors."),
)
BY_NAME: Final = {alert.name: alert for alert in ALERTS}
BURNS: Final = {alert.key: alert.name for alert in ALERTS if alert.kind == "burn"}
TITLES: Final[dict[Indicator, str]] = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end-to-end latency",
    "queue": "queue time",
    "availability": "availability",
    "engine_errors": "engine errors",
    "goodput": "goodput",
}
