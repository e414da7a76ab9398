"""What an operator needs to know of each alert beyond its condition: impact, the first thing to do, where to look."""

from typing import Final, NamedTuple


class Runbook(NamedTuple):
    """Of one alert.

    Attributes:
        impact: what callers feel, or will.
        now: what to do first, when somebody was woken by it.
        causes: keys of CAUSES in the order in which to look.
    """

    impact: str
    now: str
    causes: tuple[str, ...]


_LOAD: Final = ("queue", "kv-cache", "arrivals", "prompt-length", "prefix-cache", "preemptions")
_HARDWARE: Final = ("odd-replica", "throttle", "api-server")
_DRAIN: Final = "Take the engine on this GPU out of the load balancer, so that nothing new is lost."

RUNBOOKS: Final = {
    "VLLMTTFTBudgetBurn": Runbook(
        "People wait for the first word; interactive callers give up and try again, which adds load.",
        "If requests wait, add replicas or turn away what can wait (batch jobs share the queue).",
        (*_LOAD, *_HARDWARE),
    ),
    "VLLMTPOTBudgetBurn": Runbook(
        "Answers are written more slowly than promised; streams look sluggish.",
        "Fewer sequences at a time: lower `--max-num-seqs` or spread the load over more replicas.",
        ("batch", "preemptions", "kv-cache", "prompt-length", "throttle", "clocks", "odd-replica", "api-server"),
    ),
    "VLLMITLBudgetBurn": Runbook(
        "Streams stop for a moment and go on; voice and typing-like interfaces suffer most.",
        "Look for long prompts: a chunk of prefill holds up each running answer.",
        ("batch", "prompt-length", "preemptions", "throttle", "odd-replica", "api-server"),
    ),
    "VLLME2EBudgetBurn": Runbook(
        "Whole answers come late; callers with a time limit see failures.",
        "Find the phase that grew, then follow its row.",
        ("phases", *_LOAD, "finish-reasons", *_HARDWARE),
    ),
    "VLLMQueueBudgetBurn": Runbook(
        "Requests wait before they are computed at all; the time to first token grows with them.",
        "Capacity: more replicas, or room for more sequences in each.",
        (*_LOAD, "running", "odd-replica"),
    ),
    "VLLMAvailabilityBudgetBurn": Runbook(
        "Callers get HTTP 5xx.",
        "See which handler and which server fail; restart or take out the one that does.",
        ("http-errors", "admission", "server-up", "finish-reasons", "fatal-errors", "restarts", "host"),
    ),
    "VLLMEngineErrorsBudgetBurn": Runbook(
        "Sequences end in an error of the engine: a 500, or a stream that breaks off.",
        "Read vLLM's log around one failed request; its id is in our request line.",
        ("finish-reasons", "fatal-errors", "xid", "ecc", "gpu-memory", "restarts"),
    ),
    "VLLMGoodputBudgetBurn": Runbook(
        "Too few answers are both begun and written in time; the capacity that is paid for does not arrive.",
        "See whether first tokens or the writing is late: the two other alerts have their own pages.",
        ("phases", *_LOAD, "batch", *_HARDWARE),
    ),
    "VLLMThroughputLow": Runbook(
        "Requests run but are hardly written; soon they time out.",
        "Look whether the engine hangs. If so, restart it.",
        ("running", "preemptions", "throttle", "xid", "batch"),
    ),
    "VLLMQueueLong": Runbook(
        "Those who come now wait long.",
        "Add replicas, or turn away what can wait.",
        ("queue", "arrivals", "kv-cache", "prompt-length", "odd-replica"),
    ),
    "VLLMKVCacheFull": Runbook(
        "No room for new sequences: the queue grows and running ones are preempted.",
        "Admit fewer: lower `--max-num-seqs` or limit the callers with the longest contexts.",
        ("kv-cache", "preemptions", "prompt-length", "queue", "prefix-cache"),
    ),
    "VLLMPreemptionsHigh": Runbook(
        "Work is thrown away and done again; answers stall in the middle.",
        "Lower `--max-num-seqs` until it stops.",
        ("preemptions", "kv-cache", "prompt-length", "arrivals"),
    ),
    "VLLMModelDown": Runbook(
        "Nobody gets an answer from this model.",
        "Start a server of it, or point callers at another model.",
        ("server-up", "restarts", "fatal-errors", "xid", "gpu-up", "host"),
    ),
    "VLLMServerDown": Runbook(
        "The others carry its load; alone, the model is gone (VLLMModelDown says so).",
        "Is the process there? Look at the container's exit code and its last lines.",
        ("server-up", "restarts", "fatal-errors", "xid", "gpu-up", "host"),
    ),
    "VLLMNoServers": Runbook(
        "Nothing of this service is watched any more; none of its other alerts can fire.",
        "Compare the SLA's selector with what Prometheus scrapes (Status, Targets).",
        ("server-up", "exporter"),
    ),
    "VLLMEngineUnhealthy": Runbook(
        "The API process lives, its engine does not: each request gets a 500.",
        "Restart the server. A liveness probe on /health does it by itself.",
        ("fatal-errors", "xid", "gpu-up", "gpu-memory", "host"),
    ),
    "VLLMEngineStalled": Runbook(
        "Running requests get no token and will time out; new ones queue behind them.",
        "Take it out of the load balancer, keep a dump (`py-spy dump --pid`), restart it.",
        ("running", "xid", "gpu-up", "throttle", "host"),
    ),
    "VLLMEngineRestarting": Runbook(
        "Each restart ends all running requests, and minutes of loading follow.",
        "Look at the exit codes: 137 is the kernel's or Kubernetes' kill, else vLLM's log says why.",
        ("restarts", "fatal-errors", "host", "xid", "gpu-memory"),
    ),
    "VLLMEngineFatalError": Runbook(
        "The engine ends or has ended; requests on it are lost. Our log lines name them.",
        "See the kind: memory of the GPU, of the host, or a fault.",
        ("fatal-errors", "gpu-memory", "host", "xid"),
    ),
    "VLLMMetricsDark": Runbook(
        "The server works unwatched: no promise of it is counted.",
        "Remove `--disable-log-stats`, or correct the SLA's selector.",
        ("server-up", "running"),
    ),
    "VLLMBucketMissing": Runbook(
        "Every answer of this engine counts as late, and budgets burn for nothing.",
        "Start it with the flag that `vllm-vitals rules build` prints.",
        ("restarts",),
    ),
    "VLLMGoodputTargetDiffers": Runbook(
        "Goodput is counted by other times than those promised.",
        "Set `tracing.goodput` in the plugin's vitals.yaml as the SLA says.",
        ("running",),
    ),
    "VLLMTracingDrops": Runbook(
        "Some requests have no span, line or count. vLLM itself is not touched.",
        "See whether the collector answers.",
        ("tracing-drops", "host"),
    ),
    "VitalsExporterDown": Runbook(
        "GPUs and engines behind it are not seen; the engines may be fine.",
        "Is the process there? `vllm-vitals doctor` on that machine says what is wrong.",
        ("exporter", "host"),
    ),
    "VitalsPlacementFailing": Runbook(
        "Costs and GPU alerts may name the wrong engine.",
        "`vllm-vitals doctor` on that machine.",
        ("placement", "nvml"),
    ),
    "NVMLDown": Runbook(
        "No GPU of this machine is watched; engines often still run.",
        "`nvidia-smi` on that machine. If it fails too, the driver is gone.",
        ("nvml", "xid", "gpu-up"),
    ),
    "GPULost": Runbook(
        "The engine on it hangs or dies; with tensor parallelism the whole group does.",
        _DRAIN + " Then restart the machine.",
        ("gpu-up", "xid", "recovery", "placement"),
    ),
    "GPUStaleSnapshot": Runbook(
        "What is shown of this GPU is old. A driver that hangs often goes on to lose the GPU.",
        "`nvidia-smi` on that machine: does it answer?",
        ("gpu-up", "xid", "exporter"),
    ),
    "GPUXidFatal": Runbook(
        "Hardware or driver failed; the engine on this GPU is lost or will be.",
        _DRAIN + " Reset the GPU or restart the machine; a second time, replace it.",
        ("xid", "recovery", "ecc", "rows", "placement"),
    ),
    "GPUXidApplication": Runbook(
        "One process crashed on the GPU; others go on.",
        "Look at the engine's log at that minute.",
        ("xid", "fatal-errors", "placement"),
    ),
    "GPUEccUncorrected": Runbook(
        "Data in GPU memory was lost: answers may have been wrong, and the process was or will be ended.",
        _DRAIN + " Reset the GPU so that its rows are remapped.",
        ("ecc", "rows", "xid", "recovery"),
    ),
    "GPURowsRemapped": Runbook(
        "Memory wears; one more error may end the engine.",
        "Plan a drain and a reset.",
        ("rows", "ecc"),
    ),
    "GPURowRemapFailure": Runbook(
        "The next bad row cannot be replaced.",
        _DRAIN + " Have the GPU replaced.",
        ("rows", "ecc"),
    ),
    "GPURecoveryAction": Runbook(
        "The GPU does not work right until it is done.",
        _DRAIN + " Then do what the driver asks for.",
        ("recovery", "xid", "rows"),
    ),
    "HostSpotNotice": Runbook(
        "All engines of this machine end in a minute or two.",
        "Drain them: take them out of the load balancer and let answers end.",
        ("server-up", "placement"),
    ),
    "GPUTemperatureHigh": Runbook(
        "Near its limit the GPU slows down, and with it every answer.",
        "Look at fans and neighbours; move load away.",
        ("temperature", "throttle", "power"),
    ),
    "GPUMemoryTemperatureHigh": Runbook(
        "Hot memory slows down and fails sooner.",
        "Look at fans and neighbours; move load away.",
        ("temperature", "throttle", "ecc"),
    ),
    "GPUMemoryFull": Runbook(
        "The next allocation may fail and end the engine.",
        "See which processes hold the memory.",
        ("gpu-memory", "placement", "fatal-errors"),
    ),
    "GPUPowerHigh": Runbook(
        "Clocks fall to keep the limit, or the machine's supply is strained.",
        "Compare the limit with the board's default.",
        ("power", "throttle", "clocks"),
    ),
    "GPUThrottled": Runbook(
        "The engine on it is slow, and with tensor parallelism its whole group.",
        "Thermal: cooling. Power brake: the machine's supply.",
        ("throttle", "temperature", "power", "clocks"),
    ),
    "GPUEccCorrected": Runbook(
        "Nothing yet; many corrected errors come before uncorrected ones.",
        "Plan a reset and a field diagnosis.",
        ("ecc", "rows"),
    ),
}
