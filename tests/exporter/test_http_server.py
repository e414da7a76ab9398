import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from support.http import get
from support.waiting import wait_for
from vllm_vitals.exporter.http.server import HttpRequest, HttpResponse, HttpServer, Limits


class Served:
    """An HttpServer on a loop of its own in a thread; the handler answers what the path asks for."""

    BIG = b"x" * 8_000_000  # more than the kernel buffers on both sides

    def __init__(self, limits: Limits):
        self.gate = threading.Event()
        self.handled: list[HttpRequest] = []
        self.loop = asyncio.new_event_loop()
        self.server = HttpServer(self._handle, "127.0.0.1", 0, limits=limits)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.do(self.server.start())
        self.url = f"http://127.0.0.1:{self.server.port}"

    def do(self, work, timeout: float = 20.0):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    async def _handle(self, request: HttpRequest) -> HttpResponse:
        self.handled.append(request)
        if request.path == "/gated":
            await asyncio.to_thread(self.gate.wait, 20)
        if request.path == "/never":
            await asyncio.sleep(3600)
        if request.path == "/broken":
            raise RuntimeError("broken on purpose")
        return HttpResponse(200, self.BIG if request.path == "/big" else f"{request.path}\n".encode())

    @property
    def connections(self) -> int:
        return len(self.server._connections)

    def rejected(self, reason: str) -> int:
        return self.server.rejected[reason]

    def close(self) -> None:
        self.gate.set()
        self.do(self.server.close(grace=1.0))
        self.do(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def serve() -> Iterator:
    started: list[Served] = []

    def serve(**limits: float) -> Served:
        started.append(Served(Limits(**limits)))
        return started[-1]

    yield serve
    for served in started:
        wait_for(lambda served=served: served.connections == 0 or served.server._busy, "only busy connections")
        served.close()
        assert (served.connections, len(served.server._busy)) == (0, 0)


@pytest.fixture
def talk() -> Iterator:
    with contextlib.ExitStack() as opened:

        def talk(served: Served, data: bytes = b"") -> socket.socket:
            channel = opened.enter_context(socket.create_connection(("127.0.0.1", served.server.port), timeout=20))
            channel.sendall(data)
            return channel

        yield talk


def answer(channel: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := channel.recv(65536):
            received += data
    return received


def bodies(channel: socket.socket, count: int) -> list[bytes]:
    """Return the bodies of the next answers, by their stated lengths."""
    found: list[bytes] = []
    with channel.makefile("rb") as stream:
        while len(found) < count:
            lines = list(iter(stream.readline, b"\r\n"))
            (length,) = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
            found.append(stream.read(length))
    return found


GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_serves_one_request_after_another(serve, talk):
    channel = talk(serve())
    for name in (b"a", b"b", b"c"):
        channel.sendall(GET % name)
        assert bodies(channel, 1) == [b"/%b\n" % name]


def test_pipelined_requests_are_answered_in_order(serve, talk):
    channel = talk(serve(), GET % b"a" + GET % b"b" + GET % b"c")
    assert bodies(channel, 3) == [b"/a\n", b"/b\n", b"/c\n"]


def test_connection_close_and_http_1_0_end_the_connection(serve, talk):
    served = serve()
    assert answer(talk(served, b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).endswith(b"/a\n")
    assert answer(talk(served, b"GET /a HTTP/1.0\r\n\r\n")).endswith(b"/a\n")


def test_head_has_the_headers_and_no_body(serve, talk):
    channel = talk(serve(), b"HEAD /abc HTTP/1.1\r\nHost: x\r\n\r\n" + GET % b"a" + b"nonsense\r\n\r\n")
    first, second, _refusal = answer(channel).split(b"HTTP/1.1 ")[1:]
    assert b"\r\ncontent-length: 5\r\n" in first
    assert first.endswith(b"\r\n\r\n")
    assert second.endswith(b"\r\n\r\n/a\n")


def test_a_small_body_is_read_and_dropped(serve, talk):
    channel = talk(serve(), b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" + GET % b"b")
    assert bodies(channel, 2) == [b"/a\n", b"/b\n"]


def test_a_large_body_is_refused(serve, talk):
    served = serve(body_bytes=1000)
    for body in (
        b"Content-Length: 5000\r\n\r\n" + b"x" * 5000,
        b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000,
    ):
        received = answer(talk(served, b"POST / HTTP/1.1\r\nHost: x\r\n" + body))
        assert received.startswith(b"HTTP/1.1 413 ")
    assert served.rejected("body_too_large") == 2
    assert not served.handled


def test_headers_that_are_too_large_are_refused(serve, talk):
    served = serve(header_bytes=1000)
    received = answer(talk(served, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 5000))
    assert received.startswith(b"HTTP/1.1 431 ")
    assert served.rejected("bad_request") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\xff" * 100 + b"\r\n\r\n",
        b"hello\n\n",
    ],
)
def test_what_is_not_http_is_refused(serve, talk, data):
    served = serve()
    assert answer(talk(served, data)).startswith(b"HTTP/1.1 400 ")
    assert served.rejected("bad_request") == 1
    assert not served.handled


def test_slow_headers_end_at_their_deadline_however_the_bytes_drip(serve, talk):
    served = serve(request_seconds=0.3)
    channel = talk(served)

    def one_more() -> bool:
        with contextlib.suppress(ConnectionError):
            channel.sendall(b"x")
        return served.rejected("slow_request") == 1

    channel.sendall(b"GET / HTTP/1.1\r\nX: ")
    wait_for(one_more, "the refusal")
    assert answer(channel).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed_without_a_word(serve, talk):
    served = serve(idle_seconds=0.1)
    channel = talk(served)
    assert answer(channel) == b""
    assert not served.server.rejected


def test_a_kept_connection_that_says_nothing_more_is_closed(serve, talk):
    assert answer(talk(serve(idle_seconds=0.1), GET % b"a")).endswith(b"/a\n")


def test_a_client_that_does_not_read_is_dropped(serve, talk):
    served = serve(write_seconds=0.2)
    channel = talk(served, GET % b"big")
    wait_for(lambda: served.rejected("slow_reader") == 1, "the refusal")
    assert len(answer(channel)) < len(served.BIG)


def test_a_client_that_reads_gets_everything(serve):
    served = serve(write_seconds=20)
    assert get(f"{served.url}/big").body == served.BIG


def test_a_client_that_leaves_in_mid_answer_leaves_nothing_behind(serve, talk):
    served = serve()
    channel = talk(served, GET % b"big")
    assert channel.recv(1000)
    channel.close()
    wait_for(lambda: served.connections == 0, "the end of the connection")


def test_a_client_that_leaves_before_the_answer_leaves_nothing_behind(serve, talk):
    served = serve()
    channel = talk(served, GET % b"gated")
    wait_for(lambda: served.handled, "the request")
    channel.close()
    served.gate.set()
    wait_for(lambda: served.connections == 0, "the end of the connection")


def test_more_connections_than_allowed_are_dropped_and_those_inside_stay(serve, talk):
    served = serve(connections=3)
    inside = [talk(served) for _ in range(3)]
    wait_for(lambda: served.connections == 3, "three connections")
    assert answer(talk(served, GET % b"a")) == b""
    assert served.rejected("connections") == 1
    inside[0].sendall(GET % b"a")
    assert bodies(inside[0], 1) == [b"/a\n"]
    inside[1].close()
    wait_for(lambda: served.connections == 2, "room")
    assert get(f"{served.url}/b").body == b"/b\n"


def test_an_answer_that_takes_too_long_is_503(serve):
    assert get(f"{serve(handler_seconds=0.1).url}/never").status == 503


def test_a_fault_of_ours_is_500_and_the_connection_lives(serve, talk):
    served = serve()
    broken = get(f"{served.url}/broken")
    assert broken.status == 500
    assert b"on purpose" not in broken.body
    assert bodies(talk(served, GET % b"broken" + GET % b"a"), 2)[1] == b"/a\n"


def test_closing_lets_a_request_in_flight_finish(serve, talk):
    served = serve()
    idle = talk(served)
    busy = talk(served, GET % b"gated")
    wait_for(lambda: served.handled, "the request")
    closing = asyncio.run_coroutine_threadsafe(served.server.close(grace=20), served.loop)
    assert answer(idle) == b""  # at once
    with pytest.raises(ConnectionError):
        talk(served)
    served.gate.set()
    assert answer(busy).endswith(b"\r\n\r\n/gated\n")
    closing.result(20)


def test_closing_does_not_wait_longer_than_its_grace(serve, talk):
    served = serve()
    busy = talk(served, GET % b"never")
    wait_for(lambda: served.handled, "the request")
    served.do(served.server.close(grace=0.1))
    assert answer(busy) == b""


def test_the_handler_sees_the_request(serve):
    served = serve()
    get(f"{served.url}/a/b?x=1&y=%20", {"X-Thing": "Value"})
    (request,) = served.handled
    assert (request.method, request.path, request.query) == ("GET", "/a/b", "x=1&y=%20")
    assert request.headers["x-thing"] == "Value"
