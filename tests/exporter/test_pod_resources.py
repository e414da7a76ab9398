"""The kubelet's pod-resources API, spoken by a real gRPC server on a unix socket."""

import asyncio
import socket
import threading
from collections.abc import Mapping

import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from vllm_vitals.exporter.placement.pod_resources import LIST_METHOD, PodDevices, list_pods, messages, pod_names

GPU_A = "GPU-aaaaaaaa-0000-1111-2222-333333333333"
GPU_B = "GPU-bbbbbbbb-0000-1111-2222-333333333333"
MIG = "MIG-cccccccc-0000-1111-2222-333333333333"


class Kubelet:
    """Answers List with what it is given: an answer, a status or silence."""

    def __init__(self, answer):
        self.answer = answer

    async def list(self, stream):
        await stream.recv_message()
        if isinstance(self.answer, Status):
            raise GRPCError(self.answer, "no")
        if self.answer is None:
            await asyncio.sleep(60)
        await stream.send_message(self.answer)

    def __mapping__(self) -> Mapping[str, Handler]:
        kinds = messages()
        return {LIST_METHOD: Handler(self.list, Cardinality.UNARY_UNARY, kinds.request, kinds.response)}


@pytest.fixture
def kubelet(tmp_path):
    """Serve answers on a unix socket; returns start(answer) -> path."""
    path = tmp_path / "kubelet.sock"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = []

    async def listen(answer):
        server = Server([Kubelet(answer)])
        await server.start(path=str(path))
        servers.append(server)

    async def close():
        for server in servers:
            server.close()
            await server.wait_closed()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def start(answer):
        asyncio.run_coroutine_threadsafe(listen(answer), loop).result(5)
        return path

    yield start
    asyncio.run_coroutine_threadsafe(close(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def answer(*pods):
    """Return a response; a pod is (namespace, name, {resource: [ids]}, [(driver, device, [cdi names])])."""
    response = messages().response()
    for namespace, name, devices, claims in pods:
        pod = response.pod_resources.add(name=name, namespace=namespace)
        container = pod.containers.add(name="vllm")
        for resource, ids in devices.items():
            container.devices.add(resource_name=resource, device_ids=ids)
        for driver, device, names in claims:
            claim = container.dynamic_resources.add(claim_name="gpu").claim_resources.add(
                driver_name=driver, device_name=device, pool_name="node"
            )
            for cdi in names:
                claim.cdi_devices.add(name=cdi)
    return response


def test_gpus_of_each_pod_come_from_a_real_grpc_call(kubelet):
    path = kubelet(
        answer(
            ("llm", "vllm-0", {"nvidia.com/gpu": [GPU_A, GPU_B], "nvidia.com/hostdev": ["0000:01:00.0"]}, []),
            ("llm", "vllm-1", {"nvidia.com/mig-3g.40gb": [MIG]}, []),
            ("web", "nginx", {}, []),
        )
    )
    assert list_pods(path) == (PodDevices("llm", "vllm-0", (GPU_A, GPU_B)), PodDevices("llm", "vllm-1", (MIG,)))


def test_replicas_under_time_slicing_are_one_gpu(kubelet):
    path = kubelet(answer(("llm", "a", {"nvidia.com/gpu.shared": [f"{GPU_A}::0", f"{GPU_A}::1"]}, [])))
    assert list_pods(path) == (PodDevices("llm", "a", (GPU_A,)),)


def test_devices_of_dynamic_resource_claims_are_found(kubelet):
    path = kubelet(
        answer(
            ("llm", "minor", {}, [("gpu.nvidia.com", "gpu-3", ["k8s.gpu.nvidia.com/claim=abc"])]),
            ("llm", "mig", {}, [("gpu.nvidia.com", "gpu-2-mig-9-0-1", [])]),
            ("llm", "cdi", {}, [("", "", [f"nvidia.com/gpu={GPU_B}"])]),
            ("llm", "net", {}, [("dra.networking", "gpu-1", [])]),
        )
    )
    assert {pod.pod: pod.devices for pod in list_pods(path)} == {
        "minor": ("minor:3",),
        "mig": ("minor:2",),
        "cdi": (GPU_B,),
    }


def test_kubelet_that_hangs_is_a_timeout_within_the_deadline(kubelet):
    with pytest.raises(TimeoutError):
        list_pods(kubelet(None), deadline=0.3)


def test_kubelet_that_refuses_is_a_runtime_error(kubelet):
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        list_pods(kubelet(Status.RESOURCE_EXHAUSTED))


def test_socket_where_something_else_answers_is_an_error_within_the_deadline(tmp_path):
    path = tmp_path / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def answer_http_1():
            client, _ = other.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer_http_1)
        thread.start()
        with pytest.raises((RuntimeError, OSError)):
            list_pods(path, deadline=1.0)
        thread.join(5)


def test_socket_without_a_kubelet_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        list_pods(tmp_path / "kubelet.sock")


def test_pod_uid_gets_its_name_from_the_kubelets_log_folders(tmp_path):
    (tmp_path / "llm_vllm-0_0f1e2d3c-aaaa-bbbb-cccc-0123456789ab" / "vllm").mkdir(parents=True)
    (tmp_path / "stray").mkdir()
    assert pod_names(tmp_path) == {"0f1e2d3c-aaaa-bbbb-cccc-0123456789ab": ("llm", "vllm-0")}
    assert pod_names(tmp_path / "missing") == {}
