"""Which container and which pod a process belongs to, read off its cgroup paths (v1 and v2)."""

import re
from typing import NamedTuple

# docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope, or the bare id as last folder
# (cgroupfs driver). Ids of all these runtimes are 64 hex digits.
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?=/|$)")
# kubepods/burstable/pod<uid> (cgroupfs driver) or kubepods-burstable-pod<uid with underscores>.slice (systemd driver).
# A static pod's uid is 32 hex digits without dashes.
_POD = re.compile(r"(?:^|[/-])pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?(?=[/:]|$)")


class Membership(NamedTuple):
    """Container id and pod uid; empty when the process is in none, or when a private cgroup namespace hides it."""

    container: str = ""
    pod_uid: str = ""


def membership(cgroup: str) -> Membership:
    """Return what a `/proc/PID/cgroup` text says; the innermost container counts (a container inside another one)."""
    container = pod = ""
    for line in cgroup.splitlines():
        path = line.split(":", 2)[-1]
        if ids := _CONTAINER.findall(path):
            container = ids[-1]
        if uids := _POD.findall(path):
            pod = uids[-1].replace("_", "-")
    return Membership(container, pod)
