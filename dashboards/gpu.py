"""GPU: everything that NVML says, with the load of the engines that it carries on the same time axis."""

from ..alerts.limit_rules import HARMFUL
from ..vocabulary.xids import XIDS
from .dashboard import Page
from .fields import (
    BYTES,
    BYTES_PER_SECOND,
    CELSIUS,
    COUNT,
    GREEN,
    HERTZ,
    JOULES_PER_TOKEN,
    NO_UNIT,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    SINCE,
    TOKENS_PER_JOULE,
    TOKENS_PER_SECOND,
    WATTS,
    YELLOW,
    above,
    dashed,
    data_link,
    mapping,
    to_dashboard,
)
from .layout import Row
from .limits import Limits
from .panels import NO_TRAFFIC, node_graph, timeline, timeseries
from .tables import Column, labels_table, table
from .targets import column, query, rate, total
from .variables import GPU, INSTANCE, MODEL, SERVER, job

_GPU = "instance, gpu"
_LEGEND = "{{instance}} GPU {{gpu}}"
_KEYS = "job, instance, gpu, uuid"
_NO_SUPPORT = "Not supported"
_NOT_HELD = "Nothing holds the clocks down"
# One per engine and GPU; several engines on one GPU each get the whole GPU, which is what they share.
_PLACED = f"group by ({_KEYS}, server, model_name) (vllm_vitals_engine_gpu_info)"
_BUSY = f"sum by ({_KEYS}) ({rate('nvidia_gpu_busy_seconds_total')})"
_RECOVERY = {
    "0": ("none", GREEN),
    "1": ("GPU reset", RED),
    "2": ("node reboot", RED),
    "3": ("drain P2P", ORANGE),
    "4": ("drain and reset", RED),
    "5": ("recover IMEX domain", RED),
    "6": ("bus reset", RED),
    "7": ("system reboot", RED),
}
_XID_TEXTS = mapping(
    {str(code): (f"{code}: {xid.meaning}", RED if xid.critical else YELLOW) for code, xid in XIDS.items()}
)
_TO_ENGINE = data_link("This server", to_dashboard("vitals-engine", server="${__field.labels.server}"))


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    return Page(
        "vitals-gpu",
        "Is hardware the cause? What does each GPU do, for which engine, and is it well?",
        (job("vllm_vitals_build_info"), INSTANCE, GPU, SERVER, MODEL),
        (
            _load(),
            _placement(),
            _utilisation(),
            _memory(limits),
            _power(limits),
            _heat(limits),
            _throttling(limits),
            _health(limits),
            _links(),
            _inventory(),
            _mig(),
        ),
    )


def joined(per_gpu: str, by: str = "server, model_name", how: str = "sum") -> str:
    """Return a value per GPU as one per engine, through the placement."""
    return f"{how} by ({by}) ({_PLACED} * on ({_KEYS}) group_left () {per_gpu})"


def _each(metric: str, matchers: str = "") -> str:
    return f"max by ({_KEYS}) ({metric}{f'{{{matchers}}}' if matchers else ''})"


def _identified(expr: str, label: str, *parts: str) -> str:
    """Return an expression with one more label, made of others."""
    names = ", ".join(f'"{part}"' for part in parts)
    return f'label_join({expr}, "{label}", " ", {names})'


def _load() -> Row:
    watts = joined(_each("nvidia_gpu_power_watts"))
    joules = joined(f"sum by ({_KEYS}) ({rate('nvidia_gpu_energy_joules_total')})", "server")
    tokens = total("server", "vllm:generation_tokens_total")
    return Row(
        "What does the load do to the GPUs?",
        (
            timeseries(
                "Running sequences",
                "How much do the engines work on?",
                query("sum by (server, model_name) (vllm:num_requests_running)", "{{server}} {{model_name}}"),
                unit=COUNT,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Generated tokens",
                "How much do the engines write?",
                query(total("server, model_name", "vllm:generation_tokens_total"), "{{server}} {{model_name}}"),
                unit=TOKENS_PER_SECOND,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Busy GPUs by engine",
                "Are an engine's GPUs busy when it has work? Integrated, so nothing falls between two scrapes.",
                query(joined(_BUSY, how="avg"), "{{server}} {{model_name}}"),
                unit=RATIO,
                highest=1,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Power by engine",
                "How much power do an engine's GPUs draw?",
                query(watts, "{{server}} {{model_name}}"),
                unit=WATTS,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Energy per generated token",
                "What does a token cost, prefill and idling included?",
                query(f"{joules} / ({tokens} > 0)", "{{server}}"),
                unit=JOULES_PER_TOKEN,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
            timeseries(
                "Generated tokens per joule",
                "How well is energy used? Larger batches use it better.",
                query(f"{tokens} / ({joules} > 0)", "{{server}}"),
                unit=TOKENS_PER_JOULE,
                no_value=NO_TRAFFIC,
                data_links=[_TO_ENGINE],
            ),
        ),
        see="vitals-engine",
    )


def _placement() -> Row:
    # How busy each is, and 0 where that is not known, so that no node goes missing.
    engines = f"({joined(_BUSY, 'server', 'avg')} or 0 * group by (server) (vllm_vitals_engine_gpu_info))"
    for label, text in (("id", "server $1"), ("title", "$1"), ("subtitle", "engine")):
        engines = f'label_replace({engines}, "{label}", "{text}", "server", "(.*)")'
    gpus = f"(max by ({_GPU}) ({_BUSY}) or 0 * group by ({_GPU}) (nvidia_gpu_info))"
    gpus = _identified(_identified(gpus, "id", "instance", "gpu"), "title", "gpu")
    gpus = f'label_replace({gpus}, "subtitle", "GPU on $1", "instance", "(.*)")'
    edges = _identified("group by (server, instance, gpu) (vllm_vitals_engine_gpu_info)", "target", "instance", "gpu")
    edges = _identified(edges, "id", "server", "instance", "gpu")
    edges = f'label_replace({edges}, "source", "server $1", "server", "(.*)")'
    return Row(
        "Who is where?",
        (
            node_graph(
                "Engines and their GPUs",
                "Which engine runs on which GPU, how busy are they, and what is shared or empty?",
                column(f"{engines} or {gpus}"),
                column(edges),
                unit=RATIO,
            ),
            table(
                "Placement",
                "Which engine holds how much of which GPU, and how busy is it?",
                {"instance": "Node", "gpu": "GPU", "server": "Server"},
                Column("Engines", "count by (instance, gpu, server) (vllm_vitals_engine_gpu_info)", COUNT),
                Column("Memory held", "sum by (instance, gpu, server) (vllm_vitals_engine_gpu_memory_bytes)", BYTES),
                Column("Busy", joined(_BUSY, "instance, gpu, server", "max"), RATIO),
                links={"Server": ("This server", to_dashboard("vitals-engine", server="${__data.fields.Server}"))},
                width=12,
                height=12,
            ),
        ),
        see="vitals-fleet",
    )


def _utilisation() -> Row:
    return Row(
        "How busy is each GPU, and with what?",
        (
            timeseries(
                "Busy time",
                "For which share of the time did a kernel run? It says nothing about how much of the GPU.",
                query(f"max by ({_GPU}) ({rate('nvidia_gpu_busy_seconds_total')})", _LEGEND),
                unit=RATIO,
                highest=1,
            ),
            timeseries(
                "SMs active",
                "Which share of the SMs had work? Hopper and newer.",
                query(f"max by ({_GPU}) (nvidia_gpu_sm_active_ratio)", _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Tensor cores active",
                "Is arithmetic the bottleneck, as in prefill? Hopper and newer.",
                query(f"max by ({_GPU}) (nvidia_gpu_tensor_active_ratio)", _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Memory bandwidth used",
                "Is bandwidth the bottleneck, as in decode? Hopper and newer.",
                query(f"max by ({_GPU}) (nvidia_gpu_dram_active_ratio)", _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "SM occupancy",
                "How many warps are resident, of those that fit?",
                query(f"max by ({_GPU}) (nvidia_gpu_sm_occupancy_ratio)", _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Driver's sample",
                "What did the driver last say of kernels and of memory?",
                query(f"max by ({_GPU}) (nvidia_gpu_utilization_ratio)", f"{_LEGEND} kernels"),
                query(f"max by ({_GPU}) (nvidia_gpu_memory_utilization_ratio)", f"{_LEGEND} memory"),
                unit=RATIO,
                highest=1,
            ),
            timeseries(
                "Matrix units stalled",
                "Do the matrix units wait for data?",
                query(f"max by ({_GPU}) (nvidia_gpu_matrix_stall_ratio)", _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Video engines",
                "Are encoder and decoder used, as by multi-modal input?",
                query(f"max by ({_GPU}) (nvidia_gpu_encoder_utilization_ratio)", f"{_LEGEND} encoder"),
                query(f"max by ({_GPU}) (nvidia_gpu_decoder_utilization_ratio)", f"{_LEGEND} decoder"),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Processes",
                "Who else is on the GPU?",
                query(f"max by ({_GPU}) (nvidia_gpu_processes)", _LEGEND),
                unit=COUNT,
            ),
        ),
        see="vitals-engine",
    )


def _memory(limits: Limits) -> Row:
    used, whole = (_each(f"nvidia_gpu_memory_{what}_bytes") for what in ("used", "total"))
    return Row(
        "Whose memory is it?",
        (
            timeseries(
                "Memory in use",
                "How much of the memory is taken? vLLM takes its share at start, so a flat line is normal.",
                query(f"max by ({_GPU}) ({used} / ({whole} > 0))", _LEGEND),
                unit=RATIO,
                highest=1,
                steps=above(limits.memory_share),
            ),
            timeseries(
                "Memory by engine",
                "How much does each engine hold, where the driver says it?",
                query(
                    "sum by (server, instance, gpu) (vllm_vitals_engine_gpu_memory_bytes)",
                    "{{server}} on {{instance}} GPU {{gpu}}",
                ),
                unit=BYTES,
                stacked=True,
            ),
            timeseries(
                "Free and reserved",
                "How much is left, and how much does the driver keep?",
                query(f"min by ({_GPU}) (nvidia_gpu_memory_free_bytes)", f"{_LEGEND} free"),
                query(f"max by ({_GPU}) (nvidia_gpu_memory_reserved_bytes)", f"{_LEGEND} reserved"),
                unit=BYTES,
            ),
            timeseries(
                "BAR1 window",
                "How much of the window that the host sees is mapped?",
                query(
                    f"max by ({_GPU}) ({_each('nvidia_gpu_bar1_memory_used_bytes')} / "
                    f"({_each('nvidia_gpu_bar1_memory_total_bytes')} > 0))",
                    _LEGEND,
                ),
                unit=RATIO,
                highest=1,
            ),
        ),
        see="vitals-engine",
        width=6,
    )


def _power(limits: Limits) -> Row:
    enforced = _each("nvidia_gpu_power_limit_watts", 'kind="enforced"')
    return Row(
        "How much power does it draw?",
        (
            timeseries(
                "Power",
                "How much does each GPU draw?",
                query(f"max by ({_GPU}, kind) (nvidia_gpu_power_watts)", f"{_LEGEND} {{{{kind}}}}"),
                unit=WATTS,
            ),
            timeseries(
                "Power of the limit",
                "How near is each GPU to its limit? At the limit its clocks go down.",
                query(f"max by ({_GPU}) ({_each('nvidia_gpu_power_watts')} / ({enforced} > 0))", _LEGEND),
                unit=RATIO,
                steps=above(limits.power_share),
            ),
            timeseries(
                "Power limits",
                "Did somebody change what the GPUs may draw? The lowest limit of each node.",
                query("min by (instance, kind) (nvidia_gpu_power_limit_watts)", "{{instance}} {{kind}}"),
                unit=WATTS,
            ),
            timeseries(
                "Energy used",
                "What does the hardware counter say? It misses nothing between two scrapes.",
                query(f"max by ({_GPU}) ({rate('nvidia_gpu_energy_joules_total')})", _LEGEND),
                unit=WATTS,
            ),
        ),
        see="vitals-fleet",
        width=6,
    )


def _heat(limits: Limits) -> Row:
    return Row(
        "Is it hot, and how fast does it run?",
        (
            timeseries(
                "GPU temperature",
                "How hot is the chip?",
                query(f'max by ({_GPU}) (nvidia_gpu_temperature_celsius{{sensor="gpu"}})', _LEGEND),
                unit=CELSIUS,
                lowest=None,
                steps=above(limits.temperature),
            ),
            timeseries(
                "Memory temperature",
                "How hot is the memory?",
                query(f'max by ({_GPU}) (nvidia_gpu_temperature_celsius{{sensor="memory"}})', _LEGEND),
                unit=CELSIUS,
                lowest=None,
                steps=above(limits.memory_temperature),
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Margin to the thermal limit",
                "How many degrees are left before the GPU slows down?",
                query(f"min by ({_GPU}) (nvidia_gpu_temperature_margin_celsius)", _LEGEND),
                query("min by (kind) (nvidia_gpu_temperature_margin_limit_celsius)", "acts at: {{kind}}"),
                unit=CELSIUS,
                lowest=None,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Thermal limits",
                "Where does the GPU slow down or switch off?",
                query(f"min by ({_GPU}, kind) (nvidia_gpu_temperature_limit_celsius)", f"{_LEGEND} {{{{kind}}}}"),
                unit=CELSIUS,
                lowest=None,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "SM clock",
                "Do all GPUs run at their full speed?",
                query(f'min by ({_GPU}) (nvidia_gpu_clock_hertz{{domain="sm"}})', _LEGEND),
                query('max(nvidia_gpu_clock_max_hertz{domain="sm"})', "highest"),
                unit=HERTZ,
                overrides=[dashed("highest")],
            ),
            timeseries(
                "Memory and video clocks",
                "Are the other clocks where they should be?",
                query(
                    f'min by ({_GPU}, domain) (nvidia_gpu_clock_hertz{{domain=~"memory|video"}})',
                    f"{_LEGEND} {{{{domain}}}}",
                ),
                unit=HERTZ,
            ),
            timeseries(
                "Fans",
                "Do the fans turn? GPUs of servers have none.",
                query(f"max by ({_GPU}, fan) (nvidia_gpu_fan_speed_ratio)", f"{_LEGEND} fan {{{{fan}}}}"),
                unit=RATIO,
                highest=1,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Performance state",
                "Is the GPU awake? 0 is the fastest state, 15 the slowest.",
                query(f"max by ({_GPU}) (nvidia_gpu_performance_state)", _LEGEND),
                unit=NO_UNIT,
                highest=15,
            ),
        ),
        see="vitals-fleet",
        width=6,
    )


def _throttling(limits: Limits) -> Row:
    return Row(
        "Who holds the clocks down?",
        (
            timeseries(
                "Time held down, by reason",
                "For which share of the time did each reason hold the clocks down?",
                query(
                    f"max by ({_GPU}, reason) ({rate('nvidia_gpu_throttle_seconds_total')}) > 0",
                    f"{_LEGEND} {{{{reason}}}}",
                ),
                unit=RATIO,
                no_value=_NOT_HELD,
                width=12,
                height=10,
            ),
            timeseries(
                "Held down for a reason that costs speed",
                "Heat, a power brake, the board: should somebody look? The worst reason of each GPU.",
                query(f"max by ({_GPU}) ({rate('nvidia_gpu_throttle_seconds_total', HARMFUL)})", _LEGEND),
                unit=RATIO,
                width=12,
                height=10,
                steps=above(limits.throttle),
            ),
            timeline(
                "Reasons now",
                "Which reason held when?",
                query(f"max by ({_GPU}, reason) (nvidia_gpu_throttle_active) > 0", f"{_LEGEND} {{{{reason}}}}"),
                states={"1": ("held down", ORANGE)},
                width=24,
                height=10,
                no_value=_NOT_HELD,
            ),
        ),
        see="vitals-fleet",
    )


def _health(limits: Limits) -> Row:
    corrected = rate("nvidia_gpu_ecc_errors_total", 'severity="corrected",scope="volatile"')
    return Row(
        "Is it well?",
        (
            timeline(
                "Readable",
                "Does the driver answer for each GPU?",
                query(f"min by ({_GPU}) (nvidia_gpu_up)", _LEGEND),
                states={"0": ("lost", RED), "1": ("up", GREEN)},
            ),
            timeline(
                "What the driver asks for",
                "Does a GPU want a reset, or the node a reboot?",
                query(f"max by ({_GPU}) (nvidia_gpu_recovery_action)", _LEGEND),
                states=_RECOVERY,
                no_value=_NO_SUPPORT,
            ),
            timeline(
                "XID events",
                "Which errors did the driver log, and when? Each is shown for five minutes.",
                query(
                    f"max by ({_GPU}, xid) (time() - nvidia_gpu_xid_last_timestamp_seconds < bool 300) > 0",
                    f"{_LEGEND} XID {{{{xid}}}}",
                ),
                states={"1": ("logged", RED)},
                no_value="No XID events",
            ),
            table(
                "Last XID events",
                "Which errors came last, on which GPU?",
                {"instance": "Node", "gpu": "GPU", "xid": "XID"},
                Column("Last", f"max by ({_GPU}, xid) (nvidia_gpu_xid_last_timestamp_seconds) * 1000", SINCE),
                Column(
                    "In this time",  # known codes are on the page with 0 from the start; any other's first is not seen
                    f"sum by ({_GPU}, xid) (increase(nvidia_gpu_xid_errors_total[$__range])) > 0",
                    COUNT,
                ),
                texts={"XID": _XID_TEXTS},
                width=12,
                no_value="No XID events",
            ),
            timeseries(
                "ECC errors",
                "Does memory lose or repair data?",
                query(
                    f"sum by ({_GPU}, severity) (increase(nvidia_gpu_ecc_errors_total"
                    '{scope="volatile"}[$__rate_interval]))',
                    f"{_LEGEND} {{{{severity}}}}",
                ),
                unit=COUNT,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Corrected ECC errors",
                "Does a GPU repair more than the SLA allows? Often the first sign.",
                query(f"max by ({_GPU}) ({corrected})", _LEGEND),
                unit=PER_SECOND,
                steps=above(limits.corrected_ecc),
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Remapped rows",
                "How many memory rows were replaced?",
                query(f"max by ({_GPU}, cause) (nvidia_gpu_remapped_rows)", f"{_LEGEND} {{{{cause}}}}"),
                unit=COUNT,
                no_value=_NO_SUPPORT,
            ),
            timeline(
                "Row remapping",
                "Does a remapping wait for a reset, or did it fail?",
                query(f"max by ({_GPU}) (nvidia_gpu_row_remap_pending)", f"{_LEGEND} pending"),
                query(f"2 * max by ({_GPU}) (nvidia_gpu_row_remap_failure)", f"{_LEGEND} failed"),
                states={"0": ("no", GREEN), "1": ("pending", YELLOW), "2": ("failed", RED)},
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "Retired pages",
                "How many pages were retired? Before Ampere.",
                query(f"max by ({_GPU}, cause) (nvidia_gpu_retired_pages)", f"{_LEGEND} {{{{cause}}}}"),
                unit=COUNT,
                no_value=_NO_SUPPORT,
                width=12,
            ),
        ),
        see="vitals-fleet",
    )


def _links() -> Row:
    return Row(
        "Do PCIe and NVLink carry what they should?",
        (
            timeseries(
                "PCIe traffic",
                "How much goes over PCIe? Much of it in steady decoding means offloading or a lack of P2P.",
                query(
                    f"sum by ({_GPU}, direction) ({rate('nvidia_gpu_pcie_bytes_total')})",
                    f"{_LEGEND} {{{{direction}}}}",
                ),
                unit=BYTES_PER_SECOND,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "NVLink traffic",
                "How much do tensor-parallel ranks exchange?",
                query(
                    f"sum by ({_GPU}, direction) ({rate('nvidia_gpu_nvlink_bytes_total')})",
                    f"{_LEGEND} {{{{direction}}}}",
                ),
                unit=BYTES_PER_SECOND,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "NVLink links up",
                "Is a link missing?",
                query(f"min by ({_GPU}) (nvidia_gpu_nvlink_links_active)", _LEGEND),
                unit=COUNT,
                no_value=_NO_SUPPORT,
            ),
            table(
                "PCIe link",
                "Does each GPU sit in a slot that is wide and fast enough? An idle link runs slowly.",
                {"instance": "Node", "gpu": "GPU"},
                *(
                    Column(
                        f"{name}, {kind}", f'max by ({_GPU}) (nvidia_gpu_pcie_link_{metric}{{kind="{kind}"}})', NO_UNIT
                    )
                    for metric, name in (("generation", "Generation"), ("width_lanes", "Lanes"))
                    for kind in ("current", "max")
                ),
                width=8,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "PCIe errors",
                "Is a slot, riser or cable bad?",
                query(f"sum by ({_GPU}, type) ({rate('nvidia_gpu_pcie_errors_total')})", f"{_LEGEND} {{{{type}}}}"),
                unit=PER_SECOND,
                no_value=_NO_SUPPORT,
            ),
            timeseries(
                "NVLink errors",
                "Is a link bad?",
                query(f"sum by ({_GPU}, type) ({rate('nvidia_gpu_nvlink_errors_total')})", f"{_LEGEND} {{{{type}}}}"),
                unit=PER_SECOND,
                no_value=_NO_SUPPORT,
            ),
        ),
        see="vitals-fleet",
    )


def _inventory() -> Row:
    return Row(
        "What is it?",
        (
            labels_table(
                "GPUs",
                "Which hardware is this?",
                "nvidia_gpu_info",
                {
                    "instance": "Node",
                    "gpu": "GPU",
                    "name": "Name",
                    "pci_bus_id": "PCI",
                    "serial": "Serial",
                    "uuid": "UUID",
                    "compute_capability": "Compute capability",
                    "vbios": "VBIOS",
                    "mig_mode": "MIG",
                },
                width=16,
            ),
            labels_table(
                "Drivers",
                "Do all nodes run the same driver?",
                "vllm_vitals_nvml_info",
                {"instance": "Node", "driver_version": "Driver", "nvml_version": "NVML", "cuda_version": "CUDA"},
                width=8,
            ),
            timeseries(
                "Age of values",
                "How old is what is shown here?",
                query(f"max by ({_GPU}) (nvidia_gpu_snapshot_age_seconds)", _LEGEND),
                unit=SECONDS,
                width=12,
            ),
            timeseries(
                "Driver calls that fail",
                "Does the driver refuse calls that it supports?",
                query(
                    f"sum by ({_GPU}, code) ({rate('nvidia_gpu_call_failures_total')})", f"{_LEGEND} code {{{{code}}}}"
                ),
                unit=PER_SECOND,
                width=12,
                no_value="No failures",
            ),
        ),
        see="vitals-pipeline",
    )


def _mig() -> Row:
    by = f"{_GPU}, mig_uuid"
    legend = f"{_LEGEND} {{{{mig_uuid}}}}"
    return Row(
        "What do MIG devices do?",
        (
            labels_table(
                "MIG devices",
                "How is each GPU cut?",
                "nvidia_gpu_mig_info",
                {
                    "instance": "Node",
                    "gpu": "GPU",
                    "mig_uuid": "MIG UUID",
                    "profile": "Profile",
                    "gpu_instance": "GPU instance",
                    "compute_instance": "Compute instance",
                },
                width=12,
            ),
            timeseries(
                "Memory of MIG devices",
                "How full is each device?",
                query(
                    f"max by ({by}) (nvidia_gpu_mig_memory_used_bytes) / "
                    f"(max by ({by}) (nvidia_gpu_mig_memory_total_bytes) > 0)",
                    legend,
                ),
                unit=RATIO,
                highest=1,
                width=12,
            ),
            *(
                timeseries(
                    title,
                    question,
                    query(f"max by ({by}) (nvidia_gpu_mig_{name}_ratio)", legend),
                    unit=RATIO,
                    highest=1,
                    width=6,
                    no_value=_NO_SUPPORT,
                )
                for name, title, question in (
                    ("sm_active", "SMs of MIG devices active", "Which share of a device's SMs had work?"),
                    ("sm_occupancy", "SM occupancy of MIG devices", "How many warps are resident, of those that fit?"),
                    ("tensor_active", "Tensor cores of MIG devices", "Is arithmetic the bottleneck of a device?"),
                    ("dram_active", "Memory bandwidth of MIG devices", "Is bandwidth the bottleneck of a device?"),
                )
            ),
        ),
        needs="MIG mode",
        see="vitals-engine",
    )
