"""Finds the inference servers of this machine when nobody named one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ...runtime.exchange import exchange
from ...settings.config import EngineSettings
from ..machine.process_tree import find_vllm_servers, read_tree

# vLLM's default, those that people count up from it, and SGLang's default
COMMON_PORTS: Final = (8000, 8001, 8002, 8003, 8080, 30000)
_DEADLINE: Final = 2.0
_AT_ONCE: Final = 16  # whoever hangs must not make the others wait
_LOOK_BYTES: Final = 256 * 1024
_MARKS: Final = (b"# TYPE vllm:", b"# TYPE sglang:")


def find_local_servers(procfs: Path, known: frozenset[str]) -> list[EngineSettings]:
    """Return the servers on common loopback ports and behind listening vLLM and SGLang processes; blocking.

    Args:
        procfs: where the processes are looked up.
        known: HOST:PORT of servers that need no second look.
    """
    addresses = dict.fromkeys(("127.0.0.1", port) for port in COMMON_PORTS)
    addresses |= dict.fromkeys((server.host, server.port) for server in find_vllm_servers(read_tree(procfs)))
    new = [url for host, port in addresses if (url := _authority(host, port)) not in known]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="local-servers") as pool:
        found = list(pool.map(is_inference_server, new))
    return [EngineSettings(url=f"http://{url}") for url, is_one in zip(new, found, strict=True) if is_one]


def is_inference_server(authority: str) -> bool:
    """Tell whether /metrics at HOST:PORT begins as vLLM's or SGLang's does; within two seconds, however it drips."""
    try:
        answer = exchange(f"http://{authority}/metrics", deadline=_DEADLINE, limit=_LOOK_BYTES, enough=_is_marked)
    except (OSError, ValueError):
        return False
    return answer.status == 200 and _is_marked(answer.body)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_marked(body: bytes) -> bool:
    return any(mark in body for mark in _MARKS)
