"""What a container writes to stdout and stderr in the test of the logs' way: lines of ours, of vLLM, of anybody."""

import json
from itertools import cycle
from pathlib import Path
from typing import Final, NamedTuple

from . import log_lines

ROTATED_AT: Final = 150_000  # bytes of a container's log file, so that a handful of files come of it
_REPEATED: Final = 25
PLAIN: Final = (
    "(APIServer pid=77) WARNING 11-26 06:40:00 [api_server.py:1234] Using default chat template",
    "(EngineCore_DP0 pid=5) DEBUG 11-26 06:40:00 [v1/engine/core.py:9] [shutdown] trigger received\r",
    "INFO 11-26 06:40:00 [core.py:9] ",
    '(APIServer pid=1) INFO:     127.0.0.1:4711 - "GET /health HTTP/1.1" 200 OK',
    "(Worker pid=8) [Gloo] Rank 0 is connected",
)
TRACEBACK: Final = (
    "(EngineCore pid=9) ERROR 11-26 06:40:00 [core.py:17] EngineCore failed",
    "(EngineCore pid=9) ERROR 11-26 06:40:00 [core.py:17] Traceback (most recent call last):",
    '(EngineCore pid=9) ERROR 11-26 06:40:00 [core.py:17]   File "core.py", line 1, in run',
    "Traceback (most recent call last):",
    '  File "core.py", line 1, in run',
    "RuntimeError: CUDA error: out of memory \u2013 \u663e\u5b58\u4e0d\u8db3",
)
GARBAGE: Final = (
    "",
    " ",
    '{"message": "torn',
    '{"log": "text", "error": "text", "trace": 1, "http": [], "service": null, "message": {"a": 1}}',
    '{"stream": "stdout", "status": "fine", "input_tokens": "many"}',
    '","attrs":{"com.docker.compose.project":"vllm-vitals","com.docker.compose.service":"forged"}',
    "\x1b[32mINFO\x1b[0m \x00 \t\x7f",
    "<xml/> \\ \\\\ \\n \" ' \u2028 \U0001f600",
    "(x pid=9999999999999999999999) {}",
    "null",
)
NO_TEXT: Final = b"\xff\xfe no UTF-8 \x80"


class Line(NamedTuple):
    """A line, its bytes as Latin-1 since JSON carries it, and how long to wait before it."""

    stream: str
    data: str
    pause: float = 0.0

    @property
    def text(self) -> str:
        """What Docker makes of it: what is no UTF-8 becomes the sign for that."""
        return self.data.encode("latin-1").decode("utf-8", "replace")


def lines(state: Path) -> list[Line]:
    """Return them all, on both streams in turns, a line longer than Docker's records among them."""
    ours = log_lines.ours(state)
    some = [text.encode() for text in (*ours, *PLAIN, *TRACEBACK, *GARBAGE)] + [NO_TEXT]
    streams = cycle(("stdout", "stderr", "stderr"))
    made = [Line(next(streams), data.decode("latin-1")) for _ in range(_REPEATED) for data in some]
    long = json.dumps(json.loads(ours[0]) | {"message": "x" * 40_000})
    # Alone in its moment: Docker writes it in three records, and Filebeat joins whatever stands next to each other.
    first, second = made[0], made[1]
    return [Line("stdout", long), Line(*first[:2], 0.5), Line(*second[:2]), *made[2:]]
