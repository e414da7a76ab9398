"""GPM ratios (Hopper and newer): one sample kept between cycles, so that nothing has to sleep."""

import ctypes
import struct
from math import isfinite
from time import monotonic
from typing import Final

from ...pages.samples import Sample
from . import codes
from .library import NvmlLibrary

METRICS: Final = (
    (2, "sm_active_ratio"),
    (3, "sm_occupancy_ratio"),
    (5, "tensor_active_ratio"),
    (10, "dram_active_ratio"),
)
_SLOTS = 477  # NVML_GPM_METRIC_MAX of nvml.h 13.5; the driver touches only the first `count`
_VERSION = 1
_LEAST_SECONDS = 0.1  # what the header asks for between two samples
_METRIC: Final = struct.Struct("<IId24x")


class _Metric(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint),
        ("code", ctypes.c_uint),
        ("value", ctypes.c_double),
        ("info", ctypes.c_void_p * 3),
    )


class _MetricsGet(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("metrics", _Metric * _SLOTS),
    )


class _Support(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("supported", ctypes.c_uint))


class GpmMetrics:
    """The 19 KB struct of nvmlGpmMetricsGet, shared by a GPU and its MIG devices."""

    def __init__(self, library: NvmlLibrary) -> None:
        self.query = library.function("nvmlGpmQueryDeviceSupport")
        self.allocate = library.function("nvmlGpmSampleAlloc")
        self.free = library.function("nvmlGpmSampleFree")
        self.sample = library.function("nvmlGpmSampleGet")
        self.sample_mig = library.function("nvmlGpmMigSampleGet")
        self._get = library.function("nvmlGpmMetricsGet")
        self._struct = _MetricsGet(version=_VERSION, count=len(METRICS))
        for place, (metric, _) in enumerate(METRICS):
            self._struct.metrics[place].id = metric
        self._argument = ctypes.byref(self._struct)
        start = _MetricsGet.metrics.offset
        self._answers = memoryview(self._struct).cast("B")[start : start + len(METRICS) * _METRIC.size]

    def supported(self, handle: object) -> int:
        """Return SUCCESS when the GPU has GPM, else NVML's code."""
        if not (self.query and self.allocate and self.sample and self._get):
            return codes.FUNCTION_NOT_FOUND
        support = _Support(_VERSION, 0)
        code = self.query(handle, ctypes.byref(support))
        return code or (codes.SUCCESS if support.supported else codes.NOT_SUPPORTED)

    def between(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> tuple[int, list[float | None]]:
        """Return NVML's code and the ratios between two samples, None where this GPU has no such metric."""
        if self._get is None:
            return codes.FUNCTION_NOT_FOUND, []
        self._struct.first, self._struct.second = first, second
        code = self._get(self._argument)
        if code:
            return code, []
        # NaN where nothing was counted between the samples
        return code, [
            value / 100 if not one and isfinite(value) else None for _, one, value in _METRIC.iter_unpack(self._answers)
        ]


class GpmReader:
    """Ratios of one GPU, or of one GPU instance of it.

    Args:
        metrics: the shared struct.
        handle: the GPU, for an instance its parent.
        gpu_instance: id of the instance, None for the whole GPU.
        labels: own labels of the samples: one text per MIG device of the instance, or one empty text.
    """

    def __init__(
        self, metrics: GpmMetrics, handle: object, gpu_instance: int | None = None, labels: tuple[str, ...] = ("",)
    ) -> None:
        self._metrics = metrics
        self._handle = handle
        self._instance = None if gpu_instance is None else ctypes.c_uint(gpu_instance)
        self.labels = labels
        prefix = "nvidia_gpu_" if gpu_instance is None else "nvidia_gpu_mig_"
        self._families = tuple(prefix + name for _, name in METRICS)
        self._samples: list[ctypes.c_void_p] = []
        self._taken_at = 0.0

    def __call__(self, samples: list[Sample]) -> int:
        """Append the samples and return NVML's code; the first cycle only takes the first GPM sample."""
        now = monotonic()
        if now - self._taken_at <= _LEAST_SECONDS:
            return codes.SUCCESS
        if not self._samples and (code := self._allocate()):
            return code
        older, newer = self._samples
        code = self._take(newer)
        if code:
            self._taken_at = 0.0
            return code
        ratios: list[float | None] = []
        if self._taken_at:
            code, ratios = self._metrics.between(older, newer)
        self._samples.reverse()
        self._taken_at = now
        for family, ratio in zip(self._families, ratios, strict=False):
            if ratio is not None:
                samples.extend(Sample(family, labels, ratio) for labels in self.labels)
        return code

    def close(self) -> None:
        """Give the driver its two buffers back."""
        for sample in self._samples:
            if self._metrics.free is not None:
                self._metrics.free(sample)
        self._samples = []
        self._taken_at = 0.0

    def _take(self, sample: ctypes.c_void_p) -> int:
        if self._instance is None:
            function = self._metrics.sample
            return codes.FUNCTION_NOT_FOUND if function is None else function(self._handle, sample)
        function = self._metrics.sample_mig
        return codes.FUNCTION_NOT_FOUND if function is None else function(self._handle, self._instance, sample)

    def _allocate(self) -> int:
        allocate = self._metrics.allocate
        if allocate is None:
            return codes.FUNCTION_NOT_FOUND
        for _ in range(2):
            sample = ctypes.c_void_p()
            code = allocate(ctypes.byref(sample))
            if code:
                self.close()
                return code
            self._samples.append(sample)
        return codes.SUCCESS
