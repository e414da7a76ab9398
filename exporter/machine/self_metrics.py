"""What the sidecar costs and does itself."""

import os
import platform
import time
from pathlib import Path
from typing import Final

from ... import __version__
from ..pages.samples import Sample, label_pairs

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STARTED: Final = time.time()
_BUILD: Final = label_pairs(version=__version__, python_version=platform.python_version())


def self_samples() -> list[Sample]:
    """Return build info, CPU, memory, descriptors and threads of this process; read from /proc, 0.1 ms."""
    times = os.times()
    samples = [
        Sample("vllm_vitals_build_info", _BUILD, 1),
        Sample("vllm_vitals_process_cpu_seconds_total", "", times.user + times.system),
        Sample("vllm_vitals_process_start_time_seconds", "", round(_STARTED, 3)),
    ]
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        samples += [
            Sample("vllm_vitals_process_resident_memory_bytes", "", int(stat[21]) * _PAGE_BYTES),
            Sample("vllm_vitals_process_threads", "", int(stat[17])),
            Sample("vllm_vitals_process_open_fds", "", sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1),
        ]
    except OSError:
        pass  # not Linux, or out of descriptors: absent, not wrong
    return samples
