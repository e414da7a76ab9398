"""What we read through nvmlDeviceGetFieldValues: the table of field ids, and the reader that asks for all at once."""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ...pages.samples import Sample, label_pairs
from . import codes

# scope: the driver's own sum; nvml.h offers it for 138 to 141, NVIDIA's DCGM reads 201 to 222 with it on NVLink 5
ALL_LINKS: Final = 0xFFFFFFFF
EACH_LINK: Final = -1  # scope: we ask every link and add
_KIB = 1024
_MILLI = 1000
_NANO = 1_000_000_000


class Field(NamedTuple):
    """One field id; the value on the page is raw * multiply / divide.

    Where several rows name the same family and label, the first that the driver supports is read.

    Attributes:
        signed: 32 bits with a sign, whatever type the driver states.
        wraps: a counter of 32 bits in the hardware, which the sum of its steps is shown of.
        most: what lies above is no value, but what the driver says instead of one.
    """

    group: str
    slow: bool
    id: int
    family: str
    label: tuple[str, str] | None = None
    scope: int = 0
    multiply: int = 1
    divide: int = 1
    signed: bool = False
    wraps: bool = False
    most: int | None = None


def _power(kind: str, id_: int, *, slow: bool = False, family: str = "nvidia_gpu_power_watts") -> Field:
    return Field("power", slow, id_, family, ("kind", kind), divide=_MILLI)


def _throttled(reason: str, id_: int) -> Field:
    return Field("throttle", False, id_, "nvidia_gpu_throttle_seconds_total", ("reason", reason), divide=_NANO)


def _nvlink_error(kind: str, id_: int, scope: int = EACH_LINK) -> Field:
    return Field("nvlink", True, id_, "nvidia_gpu_nvlink_errors_total", ("type", kind), scope)


def _nvlink_5_error(kind: str, id_: int) -> tuple[Field, Field]:
    return _nvlink_error(kind, id_, ALL_LINKS), _nvlink_error(kind, id_)


def _pcie_bytes(direction: str, id_: int) -> Field:
    # They do not block, unlike GetPcieThroughput. "Value can be wrapped" (nvml.h): the driver's own control call counts
    # in 32 bits (NV2080_CTRL_BUS_GET_PEX_UTIL_COUNTERS_PARAMS), so more than 4 GiB between two cycles cannot be seen.
    return Field("pcie", False, id_, "nvidia_gpu_pcie_bytes_total", ("direction", direction), wraps=True)


def _pcie_error(kind: str, id_: int) -> Field:
    return Field("pcie", True, id_, "nvidia_gpu_pcie_errors_total", ("type", kind))


def _margin_limit(kind: str, id_: int) -> Field:
    # 193 to 196 are distances (T.limit), not degrees on a thermometer: -8 for a shutdown at 8 degrees past the limit
    return Field("temperature", True, id_, "nvidia_gpu_temperature_margin_limit_celsius", ("kind", kind), signed=True)


_LIMIT = "nvidia_gpu_power_limit_watts"
_NVLINK_BYTES = "nvidia_gpu_nvlink_bytes_total"
_RETIRED = "nvidia_gpu_retired_pages"

FIELDS: Final[tuple[Field, ...]] = (
    Field("utilization", False, 297, "nvidia_gpu_matrix_stall_ratio", divide=100),
    _power("average", 185),
    _power("instant", 186),
    # DCGM, too, takes more than 200 degrees for "no sensor"
    Field("temperature", False, 82, "nvidia_gpu_temperature_celsius", ("sensor", "memory"), most=200),
    _throttled("sw_power_cap", 74),
    _throttled("sync_boost", 76),
    _throttled("board_limit", 77),
    _throttled("low_utilization", 78),
    _throttled("reliability", 79),
    _throttled("sw_thermal", 269),
    _throttled("sw_thermal", 75),  # what older drivers call the thermal policy
    _throttled("hw_thermal", 270),
    _throttled("hw_power_brake", 271),
    _throttled("power_smoothing", 309),
    _pcie_bytes("tx", 197),
    _pcie_bytes("rx", 198),
    Field("nvlink", False, 138, _NVLINK_BYTES, ("direction", "tx"), ALL_LINKS, multiply=_KIB),
    Field("nvlink", False, 139, _NVLINK_BYTES, ("direction", "rx"), ALL_LINKS, multiply=_KIB),
    Field("nvlink", False, 202, _NVLINK_BYTES, ("direction", "tx"), ALL_LINKS),  # from here on NVLink 5
    Field("nvlink", False, 204, _NVLINK_BYTES, ("direction", "rx"), ALL_LINKS),
    Field("nvlink", False, 202, _NVLINK_BYTES, ("direction", "tx"), EACH_LINK),
    Field("nvlink", False, 204, _NVLINK_BYTES, ("direction", "rx"), EACH_LINK),
    Field("recovery", False, 230, "nvidia_gpu_recovery_action"),
    _power("min", 187, slow=True, family=_LIMIT),
    _power("max", 188, slow=True, family=_LIMIT),
    _power("default", 189, slow=True, family=_LIMIT),
    _power("enforced", 190, slow=True, family=_LIMIT),
    _power("requested", 192, slow=True, family=_LIMIT),
    _margin_limit("shutdown", 193),
    _margin_limit("slowdown", 194),
    _margin_limit("memory_max", 195),
    _margin_limit("gpu_max", 196),
    Field("remapped_rows", True, 29, _RETIRED, ("cause", "single_bit")),
    Field("remapped_rows", True, 30, _RETIRED, ("cause", "double_bit")),
    _pcie_error("replay", 94),
    _pcie_error("replay_rollover", 95),
    _pcie_error("l0_to_recovery", 169),
    _pcie_error("correctable", 173),
    _pcie_error("nak_received", 174),
    _pcie_error("receiver", 175),
    _pcie_error("bad_tlp", 176),
    _pcie_error("nak_sent", 177),
    _pcie_error("bad_dllp", 178),
    _pcie_error("non_fatal", 179),
    _pcie_error("fatal", 180),
    _pcie_error("unsupported_request", 181),
    _pcie_error("lcrc", 182),
    _nvlink_error("replay", 161),
    _nvlink_error("replay", 52, 0),  # before Hopper: a total of its own
    _nvlink_error("recovery", 162),
    _nvlink_error("recovery", 59, 0),
    _nvlink_error("crc", 163),
    _nvlink_error("crc_flit", 38, 0),
    _nvlink_error("crc_data", 45, 0),
    _nvlink_error("ecc_data", 160, 0),
    *_nvlink_5_error("malformed_packet", 206),
    *_nvlink_5_error("buffer_overrun", 207),
    *_nvlink_5_error("receive", 208),
    *_nvlink_5_error("receive_remote", 209),
    *_nvlink_5_error("receive_general", 210),
    *_nvlink_5_error("local_link_integrity", 211),
    *_nvlink_5_error("transmit_discard", 212),
    *_nvlink_5_error("link_recovery_successful", 213),
    *_nvlink_5_error("link_recovery_failed", 214),
    *_nvlink_5_error("effective", 219),
    *_nvlink_5_error("symbol", 221),
)


class FieldValue(ctypes.Structure):
    """nvmlFieldValue_t."""

    _fields_ = (
        ("id", ctypes.c_uint32),
        ("scope", ctypes.c_uint32),
        ("timestamp", ctypes.c_int64),
        ("latency", ctypes.c_int64),
        ("kind", ctypes.c_uint32),
        ("code", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    )


# id, scope, timestamp, latency skipped; kind, code, raw 8 bytes of the union.
_ENTRY: Final = struct.Struct("<24xIIQ")
# an id that the driver never heard of is an invalid argument to it
_GONE: Final = codes.UNSUPPORTED | {codes.INVALID_ARGUMENT, codes.NO_PERMISSION}
_UNSIGNED_64: Final = (2, 3)  # unsigned long is 64 bits wide, too, on the platforms with a driver
_SMALLEST_DOUBLE: Final = 1 << 52  # read as an integer; below it lie only denormal doubles, smaller than 1e-307
_WRAP: Final = 1 << 32


def union_value(kind: int, raw: int) -> float:
    """Return what the union holds: only the bytes of the stated type are defined.

    Kinds: 0 double, 1 u32, 2 unsigned long, 3 u64, 4 i64, 5 i32, 6 u16 (nvmlValueType_t).
    """
    if kind in _UNSIGNED_64:
        return raw
    if kind == 1:
        return raw & 0xFFFFFFFF
    if kind == 0 and raw < _SMALLEST_DOUBLE:  # an integer whose type the driver forgot to state, as R545 does for 82
        return raw
    form = {0: "<d", 4: "<q", 5: "<i4x", 6: "<H6x"}.get(kind, "<Q")
    value: float = struct.unpack(form, raw.to_bytes(8, "little"))[0]
    return value


class _Series(NamedTuple):
    """One sample on the page and how to scale it."""

    family: str
    labels: str
    multiply: int
    divide: int
    signed: bool
    wraps: bool
    most: int | None

    @property
    def plain(self) -> bool:
        """Whether the value needs nothing but scaling."""
        return not self.signed and not self.wraps and self.most is None


class FieldReader:
    """Reads the supported ones of some fields of one GPU in one call, with one array for all cycles.

    Args:
        function: nvmlDeviceGetFieldValues.
        handle: the GPU.
        fields: rows of FIELDS.
        failures: counts by code; entries that fail although they were supported are added.
    """

    def __init__(
        self, function: Callable[..., int], handle: object, fields: Sequence[Field], failures: dict[int, int]
    ) -> None:
        self._function = function
        self._handle = handle
        self._fields = fields
        self._failures = failures
        self._series: list[_Series] = []  # entry i of the array belongs to series i; links come after them
        self._sums: list[tuple[_Series, list[int], dict[int, float]]] = []  # series, links asked, last value per link
        self._wrapped: dict[_Series, tuple[int, int]] = {}  # last value, and what was added for its wraps
        self._allocate([])
        self.unsupported = 0

    def families(self) -> set[str]:
        """Return the families that the last probe found supported."""
        return {series.family for series in (*self._series, *(one[0] for one in self._sums))}

    def probe(self, links: Sequence[int]) -> int:
        """Ask for everything, on these links, keep what the driver answers, and return NVML's code."""
        entries = [
            (row, link)
            for row, field in enumerate(self._fields)
            for link in (links if field.scope == EACH_LINK else (field.scope,))
        ]
        code, answers = self._ask(entries)
        if code:
            return code
        supported: dict[int, list[int]] = {}
        for (row, link), answer in zip(entries, answers, strict=True):
            if answer in codes.FATAL:
                return answer
            if answer not in _GONE:
                supported.setdefault(row, []).append(link)
        self._keep(supported)
        return codes.SUCCESS

    def read(self, samples: list[Sample]) -> int:
        """Append the samples and return NVML's code."""
        if not self._count:
            return codes.SUCCESS
        code = self._function(self._handle, self._count_argument, self._array)
        if code:
            return code
        entries = _ENTRY.iter_unpack(self._buffer)
        for series, (kind, answer, raw) in zip(self._series, entries, strict=False):
            if answer:
                if answer in codes.FATAL:
                    return int(answer)
                if answer not in _GONE:
                    self._failures[answer] = self._failures.get(answer, 0) + 1
                continue
            value = raw if kind == 3 else union_value(kind, raw)
            if not series.plain:
                if series.most is not None and value > series.most:
                    continue
                value = self._special(series, value)
            if series.multiply != 1:
                value *= series.multiply
            if series.divide != 1:
                value /= series.divide
            samples.append(Sample(series.family, series.labels, value))
        if self._sums:
            self._read_sums(samples)
        return codes.SUCCESS

    def _special(self, series: _Series, value: float) -> float:
        if series.signed and _WRAP // 2 <= value < _WRAP:
            return value - _WRAP
        if series.wraps:
            last, added = self._wrapped.get(series, (0, 0))
            number = int(value)
            if number < last < _WRAP:
                added += _WRAP
            self._wrapped[series] = (number, added)
            return number + added
        return value

    def _read_sums(self, samples: list[Sample]) -> None:
        at = len(self._series) * _ENTRY.size
        for series, links, last in self._sums:
            for link in links:
                kind, answer, raw = _ENTRY.unpack_from(self._buffer, at)
                at += _ENTRY.size
                if not answer:  # a link that went down keeps its share, else the sum would look like a counter reset
                    last[link] = union_value(kind, raw)
            if last:
                value = sum(last.values()) * series.multiply / series.divide
                samples.append(Sample(series.family, series.labels, value))

    def _ask(self, entries: Sequence[tuple[int, int]]) -> tuple[int, list[int]]:
        """Return the code of the call and of each entry; a driver that refuses the whole list is asked one by one."""
        self._allocate([(self._fields[row].id, scope) for row, scope in entries])
        if not entries:
            return codes.SUCCESS, []
        code = self._function(self._handle, self._count_argument, self._array)
        if code != codes.INVALID_ARGUMENT or len(entries) == 1:
            return code, [answer for _, answer, _ in _ENTRY.iter_unpack(self._buffer)]
        answers = []
        for entry in entries:
            code, answer = self._ask([entry])
            if code and code != codes.INVALID_ARGUMENT:
                return code, []
            answers.append(code or answer[0])
        return codes.SUCCESS, answers

    def _keep(self, supported: dict[int, list[int]]) -> None:
        before = {series: last for series, _, last in self._sums}
        self._series, self._sums = [], []
        scopes: list[tuple[int, int]] = []
        tail: list[tuple[int, int]] = []
        taken: dict[tuple[str, tuple[str, str] | None], bool] = {}
        for row, field in enumerate(self._fields):
            key = (field.family, field.label)
            if taken.setdefault(key, False) or row not in supported:
                continue
            taken[key] = True
            labels = label_pairs(**{field.label[0]: field.label[1]}) if field.label else ""
            series = _Series(field.family, labels, field.multiply, field.divide, field.signed, field.wraps, field.most)
            if field.scope == EACH_LINK:
                self._sums.append((series, supported[row], before.get(series, {})))
                tail += [(field.id, link) for link in supported[row]]
            else:
                self._series.append(series)
                scopes.append((field.id, field.scope))
        self.unsupported = sum(not found for found in taken.values())
        self._allocate([*scopes, *tail])

    def _allocate(self, entries: Sequence[tuple[int, int]]) -> None:
        self._count = len(entries)
        self._count_argument = ctypes.c_int(len(entries))
        # the code says "not supported" until the driver writes another: it leaves ECC fields alone while ECC is off
        fresh = [FieldValue(id=id_, scope=scope, code=codes.NOT_SUPPORTED) for id_, scope in entries]
        self._array = (FieldValue * len(entries))(*fresh)
        self._buffer = memoryview(self._array).cast("B") if entries else memoryview(b"")
