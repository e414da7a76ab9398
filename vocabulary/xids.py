"""What NVIDIA's XID codes mean, and which of them say that hardware or driver is gone until somebody acts.

Critical are the codes whose immediate action in NVIDIA's catalogue is a GPU reset or a restart of the machine, and
those whose workflow ends there. Left out on purpose: 155, which is also logged when a link is taken down as intended.
"""

from typing import Final, NamedTuple

_CATALOGUE = "docs.nvidia.com/deploy/xid-errors, catalogue for Ampere and newer"
_PUSHED = f"{_CATALOGUE}; action depends on the sub-code"
_OLDER = "docs.nvidia.com/deploy/xid-errors, list for Volta and older"


class Xid(NamedTuple):
    """One code: meaning in a few words, whether it is critical, and where that stands."""

    meaning: str
    critical: bool
    source: str


XIDS: Final[dict[int, Xid]] = {
    13: Xid("graphics engine exception, mostly an application error", False, _CATALOGUE),
    31: Xid("memory page fault, mostly an application error", False, _CATALOGUE),
    32: Xid("corrupted push buffer stream", False, _CATALOGUE),
    38: Xid("firmware watchdog timeout", False, _CATALOGUE),
    43: Xid("application stopped after a software fault", False, _CATALOGUE),
    45: Xid("channel removed because an application ended or another error came first", False, _CATALOGUE),
    46: Xid("GPU stopped processing", True, _CATALOGUE),
    48: Xid("uncorrectable ECC error (double bit)", True, _CATALOGUE),
    54: Xid("auxiliary power is not connected", True, _CATALOGUE),
    61: Xid("micro-controller breakpoint", False, _OLDER),
    62: Xid("micro-controller halt", True, _CATALOGUE),
    63: Xid("memory row remapped or page retired", False, _CATALOGUE),
    64: Xid("row remapping or page retirement failed", True, _CATALOGUE),
    66: Xid("illegal access by the driver", False, _CATALOGUE),
    68: Xid("video decoder exception", False, _CATALOGUE),
    69: Xid("graphics engine class error", False, _CATALOGUE),
    74: Xid("NVLink error", True, _CATALOGUE),
    79: Xid("GPU has fallen off the bus", True, _CATALOGUE),
    92: Xid("high rate of single-bit ECC errors", False, _CATALOGUE),
    93: Xid("InfoROM wear limit exceeded", False, _CATALOGUE),
    94: Xid("contained memory error: one application has to restart", False, _CATALOGUE),
    95: Xid("uncontained memory error", True, _CATALOGUE),
    109: Xid("context switch timeout", True, _CATALOGUE),
    110: Xid("security fault", True, _CATALOGUE),
    119: Xid("GSP firmware did not answer", True, _CATALOGUE),
    120: Xid("GSP firmware error", True, _CATALOGUE),
    121: Xid("corrected error on the chip-to-chip link", False, _CATALOGUE),
    136: Xid("NVLink training failed", True, _CATALOGUE),
    137: Xid("NVLink privilege error, mostly an application error", False, _CATALOGUE),
    140: Xid("unrecovered ECC error", True, _CATALOGUE),
    141: Xid("CUDA fast path error", False, _CATALOGUE),
    143: Xid("GPU initialisation failed", True, _CATALOGUE),
    144: Xid("NVLink 5 SAW error", False, _PUSHED),
    145: Xid("NVLink 5 RLW error", False, _PUSHED),
    146: Xid("NVLink 5 TLW error", False, _PUSHED),
    147: Xid("NVLink 5 TREX error", False, _PUSHED),
    148: Xid("NVLink 5 power control error", False, _PUSHED),
    149: Xid("NVLink 5 network interface error", True, _PUSHED),
    150: Xid("NVLink 5 management engine error", True, _PUSHED),
    151: Xid("key rotation error", False, _CATALOGUE),
    154: Xid("recovery action changed; accompanies another code", False, _CATALOGUE),
    155: Xid("NVLink taken down by software", False, _CATALOGUE),
    156: Xid("resource retired: wants a GPU reset", True, _CATALOGUE),
    157: Xid("resource retirement failed", False, _CATALOGUE),
    158: Xid("GPU fatal timeout", True, _CATALOGUE),
    160: Xid("memory channel retired", False, _CATALOGUE),
    161: Xid("memory channel retirement failed", False, _CATALOGUE),
    167: Xid("PCIe fatal timeout", True, f"{_CATALOGUE}; names no action"),
    171: Xid("details of an uncorrectable DRAM error (accompanies 48)", False, _CATALOGUE),
    172: Xid("details of an uncorrectable SRAM error (accompanies 48)", False, _CATALOGUE),
}

CRITICAL_XIDS: Final = frozenset(code for code, xid in XIDS.items() if xid.critical)


def meaning(code: int) -> str:
    """Return what a code means in a few words."""
    return XIDS[code].meaning if code in XIDS else "not in our table; see NVIDIA's XID catalogue"
