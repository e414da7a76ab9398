"""Traffic of every kind against one vLLM, and what everybody said about it."""

import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .calls import Reply, begun, chat, completion, hang_up, post
from .exposition import values
from .traced_vllm import TracedVllm
from .waiting import wait_for

SAMPLED = "00-{:032x}-00000000000000aa-01"
UNSAMPLED = "00-{:032x}-00000000000000bb-00"
LONG = "The scheduler admits a sequence when its blocks fit and the batch has room for another one. " * 3


class Sent(NamedTuple):
    """A request that was sent under its own X-Request-Id, and what came back."""

    request_id: str
    path: str
    body: Any
    reply: Reply


@dataclass
class Traffic:
    """Sends requests and keeps them by name."""

    url: str
    sent: dict[str, Sent] = field(default_factory=dict)

    def send(self, name: str, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        reply = post(self.url, path, body, {"x-request-id": name, **(headers or {})})
        self.sent[name] = Sent(name, path, body, reply)
        return reply

    def hang_up(self, name: str, server: TracedVllm, body: Any) -> None:
        """Leave a request in the middle, where the engine (sabotage `hold`) waits until the server told of it."""

        def tokens() -> float:
            return sum(values(server.page(), "vllm:generation_tokens_total"))

        before = tokens()
        server.hold.touch()
        connection = begun(self.url, "/v1/completions", body, {"x-request-id": name})
        wait_for(lambda: tokens() >= before + 3, "the first tokens")
        hang_up(connection)
        wait_for(lambda: name in {line["request_id"] for line in server.request_lines()}, f"the line of {name}")
        server.hold.unlink()
        self.sent[name] = Sent(name, "/v1/completions", body, Reply(0, {}, b""))

    def every_kind(self, server: TracedVllm) -> None:
        """Plain and streamed, chats and completions, several sequences, errors, callers that hang up."""
        self.send("plain", "/v1/completions", completion(), {"traceparent": SAMPLED.format(0xA1), "tracestate": "k=v"})
        self.send("chat", "/v1/chat/completions", chat(user="mary@example.org", session_id="session-1"))
        self.send("stream", "/v1/chat/completions", chat(stream=True, max_tokens=12), {"x-session-id": "session-2"})
        self.send("usage", "/v1/completions", completion(stream=True, stream_options={"include_usage": True}))
        self.send("siblings", "/v1/completions", completion(n=2, temperature=0.7, max_tokens=6))
        self.send("two-prompts", "/v1/completions", completion(prompt=["One", "Two and more"], max_tokens=5))
        self.send("one-token", "/v1/completions", completion(max_tokens=1))
        for number in range(3):
            self.send(f"prefix-{number}", "/v1/completions", completion(prompt=LONG + str(number)))
        self.send("unsampled", "/v1/completions", completion(), {"traceparent": UNSAMPLED.format(0xB1)})
        self.send("malformed", "/v1/completions", completion(), {"traceparent": "00-zz-1-1", "tracestate": "=" * 600})
        self.send("too-long", "/v1/completions", completion(prompt="word " * 2000))
        self.send("no-model", "/v1/completions", completion(model="unknown"))
        self.send("no-json", "/v1/completions", b'{"model": ')
        self.hang_up("hung-up-stream", server, completion(stream=True, max_tokens=400))
        self.hang_up("hung-up-plain", server, completion(max_tokens=400))

    def crowd(self, number: int = 8, max_tokens: int = 200) -> None:
        """Send more at once than the KV cache holds, so that sequences are preempted."""
        threads = [
            threading.Thread(
                target=self.send,
                args=(f"crowd-{n}", "/v1/completions", completion(prompt=f"{n} {LONG}", max_tokens=max_tokens)),
            )
            for n in range(number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
