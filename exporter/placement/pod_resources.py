"""Which devices the kubelet gave to which pod: its pod-resources API (gRPC v1 List on a unix socket)."""

import asyncio
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

KUBELET_SOCKET: Final = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
POD_LOGS: Final = Path("/var/log/pods")
LIST_METHOD: Final = "/v1.PodResourcesLister/List"
DEADLINE_SECONDS: Final = 2.0
_GPU_RESOURCE: Final = re.compile(r"^nvidia\.com/(gpu|mig-)")
_DRA_DRIVER: Final = "gpu.nvidia.com"


@dataclass(frozen=True, slots=True)
class PodDevices:
    """GPU devices of one pod.

    Attributes:
        namespace: of the pod.
        pod: its name; List tells no uid.
        devices: `GPU-<uuid>`, `MIG-<uuid>` or, from DRA, `minor:<number>`; replicas under time slicing are one.
    """

    namespace: str
    pod: str
    devices: tuple[str, ...]


class Messages(NamedTuple):
    """The protobuf classes of the API."""

    request: type[Any]
    response: type[Any]


# message -> fields of the part of the kubelet's api.proto (package v1) that we read. Kubernetes 1.28 (GA) to 1.34;
# unknown fields are skipped by protobuf. `=` marks a repeated field.
_FIELDS: Final = {
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": (("pod_resources", 1, "=PodResources"),),
    "PodResources": (("name", 1, "string"), ("namespace", 2, "string"), ("containers", 3, "=ContainerResources")),
    "ContainerResources": (
        ("name", 1, "string"),
        ("devices", 2, "=ContainerDevices"),
        ("dynamic_resources", 5, "=DynamicResource"),
    ),
    "ContainerDevices": (("resource_name", 1, "string"), ("device_ids", 2, "=string")),
    "DynamicResource": (
        ("claim_name", 2, "string"),
        ("claim_namespace", 3, "string"),
        ("claim_resources", 4, "=ClaimResource"),
    ),
    "ClaimResource": (
        ("cdi_devices", 1, "=CDIDevice"),
        ("driver_name", 2, "string"),
        ("pool_name", 3, "string"),
        ("device_name", 4, "string"),
    ),
    "CDIDevice": (("name", 1, "string"),),
}


@cache
def messages() -> Messages:
    """Return the message classes, built from the table above; needs protobuf (extra `kubernetes`)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: PLC0415 - 5 MiB, rarely needed

    file = descriptor_pb2.FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, number, wanted in fields:
            entry = message.field.add(name=field_name, number=number)
            entry.label = kind.LABEL_REPEATED if wanted.startswith("=") else kind.LABEL_OPTIONAL
            entry.type = kind.TYPE_STRING if wanted.endswith("string") else kind.TYPE_MESSAGE
            if entry.type == kind.TYPE_MESSAGE:
                entry.type_name = f".v1.{wanted.removeprefix('=')}"
    pool = descriptor_pool.DescriptorPool()  # our own: another package may have registered `v1` in the default one
    pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([file.name], pool)
    return Messages(classes["v1.ListPodResourcesRequest"], classes["v1.ListPodResourcesResponse"])


def list_pods(socket: Path = KUBELET_SOCKET, deadline: float = DEADLINE_SECONDS) -> tuple[PodDevices, ...]:
    """Return the pods of this node that hold GPUs.

    Args:
        socket: the kubelet's; mount its folder, since a kubelet restart makes a new socket.
        deadline: seconds for the whole call.

    Raises:
        ImportError: the extra `kubernetes` is not installed.
        OSError: no socket, or nobody answers within the deadline (TimeoutError).
        RuntimeError: the kubelet refused, or answered with something else.
    """
    try:
        answer = asyncio.run(_call(str(socket), deadline))
    except (ImportError, OSError):
        raise
    except Exception as error:  # grpclib lets h2's and protobuf's own errors through
        raise RuntimeError(f"{socket}: {error!r}") from error
    return pod_devices(answer)


def pod_devices(answer: Any) -> tuple[PodDevices, ...]:
    """Return what a ListPodResourcesResponse says of GPUs; pods without any are left out."""
    found = []
    for pod in answer.pod_resources:
        devices: dict[str, None] = {}  # a set that keeps the order
        for container in pod.containers:
            for resource in container.devices:
                if _GPU_RESOURCE.match(resource.resource_name):
                    devices |= {device_id.partition("::")[0]: None for device_id in resource.device_ids}
            for claim in (claim for dynamic in container.dynamic_resources for claim in dynamic.claim_resources):
                devices |= dict.fromkeys(_claimed(claim))
        if devices:
            found.append(PodDevices(pod.namespace, pod.name, tuple(devices)))
    return tuple(found)


def pod_names(logs: Path = POD_LOGS) -> dict[str, tuple[str, str]]:
    """Return pod uid -> (namespace, name) from the kubelet's log folders `NAMESPACE_NAME_UID`; empty when not mounted.

    List gives names while a cgroup gives the uid; this folder is the one place on a node that has both.
    """
    try:
        parts = [folder.name.split("_") for folder in logs.iterdir()]
    except OSError:
        return {}
    return {part[2]: (part[0], part[1]) for part in parts if len(part) == 3}


async def _call(socket: str, deadline: float) -> Any:
    from grpclib.client import Channel, UnaryUnaryMethod  # noqa: PLC0415 - 10 MiB, only inside Kubernetes

    kinds = messages()
    channel = Channel(path=socket)
    try:
        call: UnaryUnaryMethod[Any, Any] = UnaryUnaryMethod(channel, LIST_METHOD, kinds.request, kinds.response)
        async with asyncio.timeout(deadline):
            return await call(kinds.request(), timeout=deadline)
    finally:
        channel.close()


_UUID = re.compile(r"(?:MIG|GPU)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# NVIDIA's DRA driver names a device gpu-<minor> and a MIG device gpu-<minor>-mig-<profile>-<start>-<size>.
_DRA_NAME = re.compile(r"^gpu-(\d+)(?:-mig-\d+-\d+-\d+)?$")


def _claimed(claim: Any) -> list[str]:
    if claim.driver_name not in {_DRA_DRIVER, ""}:
        return []
    if named := _DRA_NAME.match(claim.device_name):
        return [f"minor:{named[1]}"]
    names = [claim.device_name, *(device.name for device in claim.cdi_devices)]
    return [uuid[0] for name in names if (uuid := _UUID.search(name))]
