"""The simulated servers over real HTTP."""

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from vllm_vitals.demo.fleet import Fleet
from vllm_vitals.demo.serve import DemoServers

DEADLINE = 20.0


def get(url: str, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read()
    finally:
        connection.close()


def refuses(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=5.0).close()
    except ConnectionRefusedError:
        return True
    return False


def serving(fleet: Fleet, visit: Callable[[dict[str, str]], None], speed: float = 1.0) -> None:
    """Run `visit` in a thread, like any client, while the servers run."""

    async def run() -> None:
        servers = DemoServers(fleet, base_port=0, speed=speed)
        await servers.start()
        try:
            await asyncio.wait_for(asyncio.to_thread(visit, servers.urls), 2 * DEADLINE)
        finally:
            await servers.close()
        assert all(refuses(url) for url in servers.urls.values())

    asyncio.run(run())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def test_each_server_answers_as_vllm_does_on_its_own_port():
    def visit(urls: dict[str, str]) -> None:
        assert len(set(urls.values())) == 2
        for url, model in zip(urls.values(), ("meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-8B"), strict=True):
            status, content_type, body = get(url, "/metrics")
            assert (status, content_type) == (200, "text/plain; version=1.0.0; charset=utf-8")
            assert f'model_name="{model}"'.encode() in body
            assert get(url, "/health")[0] == 200
            assert json.loads(get(url, "/version")[2]) == {"version": "0.32.0"}
            (described,) = json.loads(get(url, "/v1/models")[2])["data"]
            assert (described["id"], described["max_model_len"]) == (model, 32768)
            assert get(url, "/nothing")[0] == 404

    serving(Fleet.build("steady"), visit)


def test_time_passes_between_two_scrapes():
    def tokens(url: str) -> float:
        lines = get(url, "/metrics")[2].decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("vllm:generation_tokens_total{"))

    def visit(urls: dict[str, str]) -> None:
        url = urls["qwen3-8b"]
        until(lambda: tokens(url) > 0)
        before = tokens(url)
        until(lambda: tokens(url) > before)

    serving(Fleet.build("steady"), visit, speed=10.0)


def test_a_crashed_engine_refuses_connections_and_comes_back_on_its_port():
    def visit(urls: dict[str, str]) -> None:
        url = urls["llama-3.1-70b"]
        assert get(url, "/health")[0] == 200
        until(lambda: refuses(url))
        assert get(urls["qwen3-8b"], "/health")[0] == 200
        until(lambda: not refuses(url))
        assert get(url, "/health")[0] == 200

    serving(Fleet.build("engine-crash"), visit, speed=10.0)


def test_a_crash_ends_kept_alive_connections_too():
    def visit(urls: dict[str, str]) -> None:
        connection = http.client.HTTPConnection(urlsplit(urls["llama-3.1-70b"]).netloc, timeout=DEADLINE)
        connection.request("GET", "/health")
        connection.getresponse().read()
        assert connection.sock.recv(1) == b""  # closed by the crash, not by us
        connection.close()

    serving(Fleet.build("engine-crash"), visit, speed=10.0)


def test_the_pages_tell_the_present_time():
    def visit(urls: dict[str, str]) -> None:
        lines = get(urls["qwen3-8b"], "/metrics")[2].decode().splitlines()
        started = float(next(line.split()[1] for line in lines if line.startswith("process_start_time_seconds ")))
        assert abs(time.time() - started) < 60

    serving(Fleet.build("steady"), visit)


def taken_port_after_a_free_one() -> socket.socket:
    for _ in range(100):
        taken = socket.create_server(("127.0.0.1", 0))
        try:
            socket.create_server(("127.0.0.1", taken.getsockname()[1] - 1)).close()
        except OSError:
            taken.close()
        else:
            return taken
    raise AssertionError("no two ports side by side")


def test_a_taken_port_is_an_error_and_leaves_no_socket_behind():
    with taken_port_after_a_free_one() as taken:
        port = taken.getsockname()[1]

        async def run() -> None:
            servers = DemoServers(Fleet.build("steady"), base_port=port - 1)
            with pytest.raises(OSError, match="in use"):
                await servers.start()

        asyncio.run(run())
        assert refuses(f"http://127.0.0.1:{port - 1}")
