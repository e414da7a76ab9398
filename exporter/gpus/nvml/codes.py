"""NVML's return codes, and what each means for the collector."""

from typing import Final

from ....vocabulary.reasons import DriverCode, GpuCode

SUCCESS: Final = 0
INVALID_ARGUMENT: Final = 2
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
INSUFFICIENT_SIZE: Final = 7
FUNCTION_NOT_FOUND: Final = 13  # our own answer for a symbol that the library lacks
ARGUMENT_VERSION_MISMATCH: Final = 25
DEPRECATED: Final = 26

# Take the GPU down, or the whole driver.
FATAL: Final[dict[int, GpuCode]] = {
    1: "driver_reload",  # UNINITIALIZED after a successful nvmlInit: the driver was unloaded under us
    9: "no_driver",
    15: "lost",
    16: "reset_required",
    18: "version_mismatch",
}
# Take the call away for this GPU; 25 means that this driver wants another version of the struct.
UNSUPPORTED: Final = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED})

OPEN_REASONS: Final[dict[int, DriverCode]] = {
    **FATAL,
    NO_PERMISSION: "no_permission",
    12: "no_library",
    28: "no_gpus",
}
