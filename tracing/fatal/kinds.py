"""What ends engines, recognised in log records: a table of texts and exceptions."""

import logging
from collections.abc import Iterator
from typing import Final, NamedTuple


class FatalKind(NamedTuple):
    """One kind of end.

    Attributes:
        name: the metric's `kind`.
        exceptions: names of exception classes, without module.
        texts: parts of a message or of an exception's text, in lower case.
        ends_engine: the engine cannot go on, so an engine's life has one of it, whoever reports it.
        source: where the texts come from.
    """

    name: str
    exceptions: tuple[str, ...]
    texts: tuple[str, ...]
    ends_engine: bool
    source: str


KINDS: Final = (
    FatalKind(
        "cuda_oom",
        ("OutOfMemoryError",),
        ("cuda out of memory", "hip out of memory", "cuda error: out of memory", "not enough gpu memory"),
        ends_engine=True,
        source="torch.OutOfMemoryError; vllm/v1/worker/gpu_model_runner.py load_model, _dummy_sampler_run",
    ),
    FatalKind(
        "too_little_memory",
        (),
        (
            "no available memory for the cache blocks",
            "which is larger than the available kv cache",
            "is less than desired gpu memory utilization",
            "is less than desired cpu memory utilization",
        ),
        ends_engine=True,
        source="vllm/v1/core/kv_cache_utils.py _check_enough_kv_cache_memory; "
        "vllm/v1/worker/utils.py request_memory; vllm/v1/worker/cpu_worker.py: at start-up",
    ),
    FatalKind(
        "host_oom",
        ("MemoryError",),
        ("cannot allocate memory", "defaultcpuallocator: can't allocate memory", "exit code: -9)", "exit code -9"),
        ends_engine=False,
        source="errno ENOMEM; c10 CPU allocator; vllm/v1/executor/multiproc_executor.py monitor_workers, "
        "vllm/v1/utils.py wait_for_completion_or_failure: the kernel's OOM killer sends SIGKILL",
    ),
    FatalKind(
        "cuda_error",
        ("AcceleratorError",),
        ("cuda error:", "device-side assert", "illegal memory access", "cublas_status_", "cudnn_status_"),
        ends_engine=True,
        source="torch.AcceleratorError, c10/cuda/CUDAException.h; cuBLAS and cuDNN status names",
    ),
    FatalKind(
        "nccl_error",
        ("DistBackendError",),
        ("nccl error", "ncclunhandledcudaerror", "ncclsystemerror", "ncclremoteerror", "ncclinternalerror"),
        ends_engine=True,
        source="torch.distributed.DistBackendError; vllm/distributed/device_communicators/pynccl_wrapper.py NCCL_CHECK",
    ),
    FatalKind(
        "worker_dead",
        (),
        ("worker proc ", "rayworkerproc rank"),
        ends_engine=True,
        source="vllm/v1/executor/multiproc_executor.py monitor_workers; vllm/v1/executor/ray_executor_v2.py",
    ),
    FatalKind(
        "engine_dead",
        ("EngineDeadError",),
        (
            "enginecore encountered a fatal error",
            "enginecore encountered an issue",
            "engine core exited unexpectedly",
            "engine core process ",
            "engine core proc ",
        ),
        ends_engine=True,
        source="vllm/v1/engine/core.py run_engine_core; exceptions.py EngineDeadError; core_client.py "
        "monitor_engine_cores; vllm/v1/utils.py",
    ),
    FatalKind(
        "start_failed",
        (),
        ("enginecore failed to start", "engine core initialization failed", "workerproc failed to start"),
        ends_engine=True,
        source="vllm/v1/engine/core.py run_engine_core; vllm/v1/engine/utils.py; "
        "vllm/v1/executor/multiproc_executor.py",
    ),
)
BY_NAME: Final = {kind.name: kind for kind in KINDS}
# These begin other lines, too, so they count only where the death is said as well.
_NEEDS: Final = {
    "worker proc ": "died unexpectedly",
    "rayworkerproc rank": "died unexpectedly",
    "engine core process ": "died unexpectedly",
    "engine core proc ": "died unexpectedly",
}
_OWN_BUFFER: Final = "space in the data buffer"  # vLLM's shared buffer is full: a MemoryError of its own making
_EXAMINED: Final = 16 * 1024  # characters; an error's first lines say what it is
_CAUSES: Final = 8


def kinds_of(record: logging.LogRecord) -> list[str]:
    """Return the kinds of end that a record tells of, by message, exception and the exception's causes."""
    if record.levelno < logging.WARNING:
        return []
    errors = list(_errors(record))
    names = {parent.__name__ for error in errors for parent in type(error).__mro__}
    texts = [record.getMessage(), *(str(error) for error in errors)]
    text = "\n".join(part[:_EXAMINED] for part in texts).lower()
    if _OWN_BUFFER in text:
        names.discard("MemoryError")
    found = [kind.name for kind in KINDS if names.intersection(kind.exceptions) or _says(text, kind)]
    if "cuda_oom" in found and "cuda_error" in found:  # torch says the one with the other
        found.remove("cuda_error")
    if record.levelno < logging.ERROR:  # of all this, vLLM warns of one: that the engine core exited
        return [name for name in found if name == "engine_dead"]
    return found


def _says(text: str, kind: FatalKind) -> bool:
    return any(part in text and _NEEDS.get(part, "") in text for part in kind.texts)


def _errors(record: logging.LogRecord) -> Iterator[BaseException]:
    """Yield a record's exception and what caused it."""
    error = record.exc_info[1] if record.exc_info else None
    for _ in range(_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
