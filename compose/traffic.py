"""Requests to a vLLM at a steady mean rate, so that a bundle has something to show; runs in the service `traffic`."""

import argparse
import json
import random
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ..runtime.exchange import exchange

_PROMPTS: Final = (
    "Write a haiku about a graphics card.",
    "Explain the difference between prefill and decode in two sentences.",
    "List five things to check when a server is slow.",
    "Translate to French: the queue is long today.",
)
_MOST_TOKENS: Final = (16, 64, 128, 256)
_AT_ONCE: Final = 32
_DEADLINE: Final = 120.0  # for a whole answer
_MOST_BYTES: Final = 4 << 20
_ALIVE_SECONDS: Final = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Send requests until somebody ends us; with --was-alive only say whether the last turn is under a minute old."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", help="base address of the engine")
    parser.add_argument("--rate", type=float, default=0.5, metavar="RPS", help="mean requests per second (default 0.5)")
    parser.add_argument("--alive", type=Path, metavar="FILE", help="touched at every turn")
    parser.add_argument("--was-alive", type=Path, metavar="FILE", help="exit code 0 when touched within a minute")
    options = parser.parse_args(arguments)
    if options.was_alive is not None:
        file = options.was_alive
        return 0 if file.exists() and time.time() - file.stat().st_mtime < _ALIVE_SECONDS else 1
    if options.url is None or options.rate <= 0:
        parser.error("expected an address, and a rate above 0")
    _send_forever(options.url.rstrip("/"), options.rate, options.alive)
    return 0


def _send_forever(url: str, rate: float, alive: Path | None) -> None:
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while True:
            if alive is not None:
                alive.touch()
            waiting = [one for one in waiting if not one.done()]
            if len(waiting) < _AT_ONCE:  # a stuck engine gets no heap of requests from us
                waiting.append(pool.submit(send, url))
            time.sleep(min(random.expovariate(rate), _ALIVE_SECONDS / 2))


def send(url: str) -> None:
    """Send one traced request; a failure is a line on stderr."""
    trace_id = secrets.token_hex(16)
    try:
        model = json.loads(_call(f"{url}/v1/models"))["data"][0]["id"]
        headers = {"Content-Type": "application/json", "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": secrets.choice(_PROMPTS)}],
            "max_tokens": secrets.choice(_MOST_TOKENS),
        }
        _call(f"{url}/v1/chat/completions", headers, json.dumps(asked).encode())
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"traffic: {trace_id}: {error}", file=sys.stderr, flush=True)


def _call(url: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """Return the answer's body; raises OSError for any status but 200."""
    answer = exchange(
        url,
        method="POST" if body else "GET",
        headers=headers,
        body=body,
        deadline=_DEADLINE,
        limit=_MOST_BYTES,
        use_proxy=True,
    )
    if answer.status != 200:
        raise OSError(f"HTTP {answer.status} {answer.reason}")
    return answer.body


if __name__ == "__main__":
    sys.exit(main())
