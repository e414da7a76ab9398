"""Why something is not there, or is held back: each code that we report, what it means and what to do about it.

The codes are label values of metrics, and `reason` in /health and /api/vitals. Health, doctor and the live page take
their words from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar, cast

Code_co = TypeVar("Code_co", bound=str, covariant=True)


@dataclass(frozen=True, slots=True)
class Reason(Generic[Code_co]):
    """One code.

    Attributes:
        code: the label value.
        meaning: what is the case, as a clause: it may follow `down (refused): ` or `not readable: `.
        advice: what to do; empty where there is nothing to do. Of an engine's page it may hold `{url}`, the page's, and
            `{address}`, host and port.
        open: whether only the detail of the single failure says what the matter is.
    """

    code: Code_co
    meaning: str
    advice: str = ""
    open: bool = False


@dataclass(frozen=True, slots=True)
class Throttle(Reason[Code_co]):
    """One reason for which a GPU's clocks are held down.

    Attributes:
        weight: quiet is what nobody is to blame for, a note is worth a word, a warning is a fault of cooling or power.
    """

    weight: Literal["quiet", "note", "warning"] = "note"


# --- An engine's page: label `reason` of vllm_vitals_server_up. -------------------------------------------------------
FetchCode = Literal[
    "refused",
    "timeout",
    "dns",
    "tls",
    "network",
    "closed",
    "truncated",
    "protocol",
    "unauthorized",
    "redirect",
    "http_status",
    "too_large",
    "encoding",
    "not_metrics",
    "credentials",
    "removed",
    "internal",
    "pending",
]
_FETCH: Final[tuple[Reason[FetchCode], ...]] = (
    Reason("refused", "nobody listens at its address", "start the server, or correct the address"),
    Reason(
        "timeout",
        "its page did not come within the deadline",
        "the server is overloaded or hangs; try: curl -m 5 {url}",
    ),
    Reason("dns", "its name does not resolve", "correct the host name"),
    Reason(
        "tls",
        "its certificate is not accepted, or the TLS handshake failed",
        "look at the server's certificate: openssl s_client -connect {address}",
    ),
    Reason(
        "network",
        "no way leads to its address",
        "no way to that address from here: look at routes, firewalls and network policies",
        open=True,
    ),
    Reason(
        "closed",
        "the connection was closed without an answer",
        "something hung up: a proxy without a server behind it, or a server that only speaks TLS",
    ),
    Reason(
        "truncated",
        "its page broke off",
        "the server died while it answered, or a proxy cut it off; try: curl {url}",
    ),
    Reason(
        "protocol",
        "its answer is not HTTP",
        "that is no HTTP: correct the port, or write https:// for a server that speaks TLS",
        open=True,
    ),
    Reason("unauthorized", "it refuses our credentials", "set bearer_token_file or basic_auth for this engine"),
    Reason(
        "redirect",
        "it sends us to another address, which is not followed",
        "name the final address; credentials must not follow redirects",
        open=True,
    ),
    Reason(
        "http_status",
        "it answers with an error status",
        "vLLM serves /metrics unless a proxy in front hides it; try: curl -i {url}",
        open=True,
    ),
    Reason("too_large", "its page is larger than allowed", "raise max_page_bytes if this is a page of metrics"),
    Reason(
        "encoding",
        "its page is compressed in a way that cannot be read",
        "let the proxy in front of it send pages as they are or with gzip",
        open=True,
    ),
    Reason(
        "not_metrics",
        "its answer is not a metrics page",
        "the address must be the server's own, such as http://127.0.0.1:8000",
    ),
    Reason(
        "credentials",
        "our token or password for it cannot be read or sent",
        "let the user that runs this read the file, and put one line into it",
        open=True,
    ),
    Reason("removed", "it left the list of servers while its page was on the way"),
    Reason(
        "internal",
        "the exporter failed while it read the page",
        "this is a fault of ours: report what the log says",
        open=True,
    ),
    Reason("pending", "it was not looked at yet"),
)

# --- A GPU that cannot be read: label `reason` of nvidia_gpu_up and nvidia_gpu_collect_failures_total. ----------------
GpuCode = Literal[
    "starting",
    "lost",
    "hang",
    "reset_required",
    "no_permission",
    "no_driver",
    "driver_reload",
    "version_mismatch",
    "failed",
]
_RELOAD: Final = "the driver was upgraded underneath: reboot, or reload the nvidia modules"
_ACCESS: Final = "give this user read and write access to /dev/nvidiactl and /dev/nvidia*: reading needs both"
_LOOK: Final = "look at dmesg"
_GPU: Final[tuple[Reason[GpuCode], ...]] = (
    Reason("starting", "being opened"),
    Reason("lost", "lost, it fell off the bus", "reset or restart the machine; nothing less brings it back"),
    Reason("hang", "the driver does not answer", "look at dmesg for XIDs; a hung GPU mostly needs a restart"),
    Reason("reset_required", "it needs a reset", "drain it, then nvidia-smi --gpu-reset"),
    Reason("no_permission", "no permission", _ACCESS),
    Reason("no_driver", "the driver is gone", "load the driver: modprobe nvidia"),
    Reason("driver_reload", "the driver was reloaded", "wait: the driver is opened again"),
    Reason("version_mismatch", "driver and library differ in version", _RELOAD),
    Reason("failed", "the driver reports an error", _LOOK),
)

# --- The GPUs as a whole: label `reason` of vllm_vitals_nvml_up; `off` is where nobody asks the driver. ---------------
DriverCode = GpuCode | Literal["no_library", "no_gpus"]
GpusCode = DriverCode | Literal["off"]
_DRIVER: Final[tuple[Reason[GpusCode], ...]] = (
    Reason("starting", "being opened; without persistence mode the driver takes seconds"),
    Reason("off", "switched off in the settings (gpus.enabled)"),
    Reason(
        "no_library",
        "libnvidia-ml.so.1 is not here (or the Python package nvidia-ml-py is not)",
        "install the NVIDIA driver; in a container: nvidia runtime and NVIDIA_DRIVER_CAPABILITIES=utility",
    ),
    Reason(
        "no_driver",
        "the NVIDIA driver is not loaded (nvidia-smi says the same)",
        "load the driver: modprobe nvidia, then nvidia-smi must answer",
    ),
    Reason(
        "no_gpus",
        "the driver is loaded but shows none to this process",
        "in a container set NVIDIA_VISIBLE_DEVICES=all or the devices to watch; else look at nvidia-smi -L",
    ),
    Reason("no_permission", "/dev/nvidiactl refuses this process", _ACCESS),
    Reason("version_mismatch", "driver and library differ in version, as after an upgrade without reboot", _RELOAD),
    Reason(
        "hang",
        "the driver does not answer",
        "nvidia-smi will not answer either; enable persistence mode, look at dmesg for XIDs",
    ),
    Reason("lost", "a GPU fell off the bus and the driver does not open", "reset or restart the machine"),
    Reason(
        "reset_required",
        "a GPU needs a reset before the driver opens",
        "stop what uses it, then nvidia-smi --gpu-reset",
    ),
    Reason("driver_reload", "the driver was unloaded", "wait: the driver is opened again"),
    Reason("failed", "the driver reports an error", _LOOK),
)

# --- Clocks: label `reason` of nvidia_gpu_throttle_active and nvidia_gpu_throttle_seconds_total. ----------------------
_COOLING: Final = "look at fans, air flow and the temperature of the air that comes in"
_POWER: Final = "look at power supplies and cables; the signal comes from outside the GPU"
_NOT_OURS: Final = "expected under full load; a higher limit of power is set with nvidia-smi --power-limit"
ThrottleCode = Literal[
    "application_clocks",
    "display_clocks",
    "low_utilization",
    "sw_power_cap",
    "board_limit",
    "reliability",
    "sync_boost",
    "power_smoothing",
    "sw_thermal",
    "hw_thermal",
    "hw_slowdown",
    "hw_power_brake",
]
_THROTTLE: Final[tuple[Throttle[ThrottleCode], ...]] = (
    Throttle(
        "application_clocks",
        "at the clocks that were set",
        "reset them: nvidia-smi --reset-applications-clocks",
        weight="quiet",
    ),
    Throttle("display_clocks", "at the clocks that the display allows", weight="quiet"),
    Throttle("low_utilization", "has too little to do for higher clocks", weight="quiet"),
    Throttle("sw_power_cap", "at its power limit", _NOT_OURS),
    Throttle("board_limit", "at the limit of its board"),
    Throttle("reliability", "at its voltage limit"),
    Throttle("sync_boost", "clocks follow its sync boost group"),
    Throttle("power_smoothing", "power is being smoothed"),
    Throttle("sw_thermal", "slowed down: too hot", _COOLING, weight="warning"),
    Throttle("hw_thermal", "slowed down by its hardware: too hot", _COOLING, weight="warning"),
    Throttle("hw_slowdown", "slowed down by its hardware", f"{_COOLING}, and at its power", weight="warning"),
    Throttle("hw_power_brake", "slowed down: power brake from outside", _POWER, weight="warning"),
)

# --- The machine: label `reason` of vllm_vitals_host_up. --------------------------------------------------------------
HostCode = Literal["off", "node_exporter", "failed"]
_HOST: Final[tuple[Reason[HostCode], ...]] = (
    Reason("off", "switched off in the settings (host.mode)"),
    Reason("node_exporter", "node_exporter runs on this machine and reads the same"),
    Reason("failed", "the machine's counters cannot be read", "look at the exporter's log"),
)

# --- Requests to us that are refused: label `reason` of vllm_vitals_http_rejected_total. ------------------------------
RefusalCode = Literal["connections", "tls_handshake", "bad_request", "body_too_large", "slow_request", "slow_reader"]
_REFUSAL: Final[tuple[Reason[RefusalCode], ...]] = (
    Reason("connections", "more connections at a time than allowed", "find out who holds so many"),
    Reason("tls_handshake", "the TLS handshake failed or took too long", "let the scraper speak TLS and know our CA"),
    Reason("bad_request", "no HTTP that can be understood", "find out what else talks to this port"),
    Reason("body_too_large", "a body larger than allowed: GET needs none"),
    Reason("slow_request", "the request did not come whole in time"),
    Reason("slow_reader", "the answer was not read in time", "look at the network and at the scraper's load"),
)

FETCH: Final[Mapping[FetchCode, Reason[FetchCode]]] = {row.code: row for row in _FETCH}
GPU: Final[Mapping[GpuCode, Reason[GpuCode]]] = {row.code: row for row in _GPU}
DRIVER: Final[Mapping[GpusCode, Reason[GpusCode]]] = {row.code: row for row in _DRIVER}
THROTTLE: Final[Mapping[ThrottleCode, Throttle[ThrottleCode]]] = {row.code: row for row in _THROTTLE}
HOST: Final[Mapping[HostCode, Reason[HostCode]]] = {row.code: row for row in _HOST}
REFUSAL: Final[Mapping[RefusalCode, Reason[RefusalCode]]] = {row.code: row for row in _REFUSAL}


def gpu_code(code: str) -> GpuCode:
    """Return what is reported of one GPU for a failure that may be of the whole driver, or of nobody's list."""
    row = GPU.get(cast("GpuCode", code))
    return row.code if row is not None else "failed"


def driver_code(code: str) -> DriverCode:
    """Return what is reported of the whole driver for a failure that may be of nobody's list."""
    return cast("DriverCode", code) if code in DRIVER and code != "off" else "failed"


def sentence(words: str) -> str:
    """Return a meaning or an advice as a sentence of its own."""
    return f"{words[:1].upper()}{words[1:]}."
