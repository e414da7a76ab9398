"""What a device name means: indices, UUIDs, MIG UUIDs and the CUDA and container variables that list them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_SAYS_NOTHING: Final = frozenset({"", "all", "void", "none"})
# Before driver 470 a MIG device was called MIG-GPU-<uuid of its GPU>/<GPU instance>/<compute instance>.
_OLD_MIG = re.compile(r"^MIG-(GPU-[0-9a-f-]+)/\d+/\d+$", re.IGNORECASE)
_MIG_INDEX = re.compile(r"^(\d+):\d+$")  # NVIDIA_VISIBLE_DEVICES only: GPU:MIG device


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What placement needs to know of one GPU.

    Attributes:
        index: NVML's, which is PCI bus order.
        uuid: `GPU-...`.
        pids: (pid, bytes or None, MIG UUID or "") of each compute process that the driver tells.
        mig_uuids: its MIG devices.
        name: product name; CUDA's own order of devices is trusted only when all names are equal.
        minor: number of /dev/nvidiaN, by which NVIDIA's DRA driver calls it; None when not known.
    """

    index: int
    uuid: str
    pids: tuple[tuple[int, int | None, str], ...] = ()
    mig_uuids: tuple[str, ...] = ()
    name: str = ""
    minor: int | None = None


def named(token: str, gpus: Sequence[GpuFacts]) -> GpuFacts | None:
    """Return the GPU of a UUID, of a unique beginning of one, of a MIG UUID (its parent) or of `minor:N`."""
    if token.startswith("minor:"):
        return _single([gpu for gpu in gpus if str(gpu.minor) == token.removeprefix("minor:")])
    if old := _OLD_MIG.match(token):
        token = old[1]
    if not token.upper().startswith(("GPU-", "MIG-")) or len(token) == 4:
        return None
    wanted = token.lower()
    return _single([gpu for gpu in gpus if any(u.lower().startswith(wanted) for u in (gpu.uuid, *gpu.mig_uuids))])


def configured(token: str, gpus: Sequence[GpuFacts]) -> GpuFacts | None:
    """Return the GPU that a config entry means: an NVML index or what `named` takes."""
    if token.isdigit():
        return _single([gpu for gpu in gpus if gpu.index == int(token)])
    return named(token, gpus)


def visible(
    environ: Mapping[str, str],
    gpus: Sequence[GpuFacts],
    *,
    container: str = "",
    own_container: str = "",
    own_visible: str = "",
) -> tuple[GpuFacts, ...] | None:
    """Return the GPUs that the environment of a process names, in CUDA's order; None when it does not say.

    An empty result means that it says: none.

    Args:
        environ: of the process.
        gpus: all that NVML shows us.
        container: id of its container.
        own_container: id of ours.
        own_visible: our own NVIDIA_VISIBLE_DEVICES: when it lists devices, our indices are not the machine's.
    """
    ordered = sorted(gpus, key=lambda gpu: gpu.index)
    listing = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    pool: Sequence[GpuFacts] | None
    if listing not in _SAYS_NOTHING:
        pool = ordered if listing == own_visible else _listed(listing, ordered, own_visible)
    elif own_visible not in _SAYS_NOTHING and container != own_container:
        pool = None  # we see a part of the machine, and the process another part
    elif listing == "all" or container == own_container or not container:
        pool = ordered
    else:
        pool = None  # a container that got its devices by other means (CDI, volume mounts)
    cuda = environ.get("CUDA_VISIBLE_DEVICES")
    if cuda is not None:
        return _by_cuda(cuda, pool, ordered, environ.get("CUDA_DEVICE_ORDER", ""))
    return tuple(pool) if pool is not None and listing not in _SAYS_NOTHING else None


def _listed(listing: str, ordered: Sequence[GpuFacts], own_visible: str) -> Sequence[GpuFacts] | None:
    found = []
    for token in (token.strip() for token in listing.split(",")):
        if mig := _MIG_INDEX.match(token):
            token = mig[1]  # noqa: PLW2901 - the parent GPU's index
        # An index counts over the whole machine, which we know only when we see all of it.
        gpu = named(token, ordered) if own_visible not in _SAYS_NOTHING else configured(token, ordered)
        if gpu is None:
            return None
        found.append(gpu)
    return [gpu for gpu in ordered if gpu in found]  # inside the container the order is PCI's, not the list's


def _by_cuda(
    cuda: str, pool: Sequence[GpuFacts] | None, gpus: Sequence[GpuFacts], order: str
) -> tuple[GpuFacts, ...] | None:
    found: list[GpuFacts] = []
    for token in (token.strip() for token in cuda.split(",")):
        if token.isdigit():
            if pool is None or not _counts_like_nvml(pool, order):
                return None
            if int(token) >= len(pool):
                break  # CUDA ignores an invalid entry and all after it
            gpu: GpuFacts | None = pool[int(token)]
        elif token.upper().startswith(("GPU-", "MIG-")):
            gpu = named(token, gpus)
            if gpu is None:
                return None
        else:
            break  # "", -1, NoDevFiles
        if gpu is not None and gpu not in found:
            found.append(gpu)
    return tuple(found)


def _counts_like_nvml(pool: Sequence[GpuFacts], order: str) -> bool:
    """CUDA puts the fastest GPU first by default, so orders agree only when asked for or when all GPUs are the same."""
    if any(gpu.mig_uuids for gpu in pool):
        return False  # with MIG, CUDA counts compute instances
    return order == "PCI_BUS_ID" or len(pool) == 1 or (len({gpu.name for gpu in pool}) == 1 and bool(pool[0].name))


def _single(found: Sequence[GpuFacts]) -> GpuFacts | None:
    return found[0] if len(found) == 1 else None
