"""Finds the inference servers of this machine when nobody named one."""

import http.client
from pathlib import Path
from typing import Final

from ...settings.config import EngineSettings
from ..machine.process_tree import find_vllm_servers, read_tree

# vLLM's default, those that people count up from it, and SGLang's default
COMMON_PORTS: Final = (8000, 8001, 8002, 8003, 8080, 30000)
_DEADLINE: Final = 2.0
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
    found = []
    for host, port in addresses:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if authority not in known and is_inference_server(host, port):
            found.append(EngineSettings(url=f"http://{authority}"))
    return found


def is_inference_server(host: str, port: int) -> bool:
    """Tell whether /metrics there begins as vLLM's or SGLang's does; within seconds."""
    connection = http.client.HTTPConnection(host, port, timeout=_DEADLINE)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.status == 200 and any(mark in answer.read(_LOOK_BYTES) for mark in _MARKS)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
