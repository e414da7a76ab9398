"""The middleware as an ASGI server would call it, with the running plugin behind it."""

import asyncio
import os
import random
import time
from types import SimpleNamespace

import pytest
from support.exposition import value
from support.waiting import wait_for
from vllm_vitals.settings.tracing import PrivacySettings, RequestLogSettings, SamplingSettings, TracingSettings
from vllm_vitals.tracing.counters import HOOK_FAILURES, REQUESTS_DROPPED, Counters
from vllm_vitals.tracing.logs.context import SERVED
from vllm_vitals.tracing.metrics.self_metrics import SelfMetrics
from vllm_vitals.tracing.metrics.share import MetricsPage
from vllm_vitals.tracing.middleware import Vitals
from vllm_vitals.tracing.report import runtime
from vllm_vitals.tracing.report.reporter import Reporter, Reporting
from vllm_vitals.tracing.report.runtime import Runtime
from vllm_vitals.tracing.request.in_flight import UNWANTED
from vllm_vitals.tracing.request.sampling import Sampler
from vllm_vitals.tracing.spans.otlp_settings import otlp_settings

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collecting:
    """Keeps what it is given."""

    name = "collecting"

    def __init__(self):
        self.requests = []
        self.closed = False

    def take(self, request):
        self.requests.append(request)

    def idle(self):
        pass

    def close(self, deadline):
        assert deadline > time.monotonic()
        self.closed = True


class Hashing:
    """Hashes so that a test can read it."""

    def hash(self, text):
        return f"hash({text})" if text else ""


class Plugin:
    """A running plugin with a sink that collects."""

    def __init__(
        self, *, queue_size=4096, rewrites=False, body_bytes=65536, sinks=None, only_traces=False, incoming="continue"
    ):
        self.counters = Counters()
        self.sink = Collecting()
        settings = TracingSettings(
            sampling=SamplingSettings(incoming=incoming),
            request_log=RequestLogSettings(enabled=False),
            privacy=PrivacySettings(hash_headers=("authorization",)),
        )
        sampler = Sampler(settings.sampling, {})
        export = otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})  # only says that there is one
        reporting = Reporting(settings, Hashing(), export, {}, ("tiny",), None)
        reporter = Reporter(reporting, self.counters, sampler, *(sinks or [self.sink]))
        self.live = Runtime(
            reports=reporter,
            page=MetricsPage(reporter.values, SelfMetrics(self.counters, {}), dict),
            sampler=sampler,
            counters=self.counters,
            queue_size=queue_size,
            body_bytes=body_bytes,
            capture_content=False,
            rewrites_traceparent=rewrites,
            only_traces=only_traces,
        )
        self.live.start()

    def requests(self, number=1):
        wait_for(lambda: len(self.sink.requests) >= number, "the report")
        return self.sink.requests


@pytest.fixture
def plugin():
    """A running plugin."""
    plugin = Plugin()
    yield plugin
    plugin.live.close()


@pytest.fixture
def plugins():
    """Make running plugins; the last one is the current one."""
    made = []

    def make(**options):
        made.append(Plugin(**options))
        return made[-1]

    yield make
    for plugin in made:
        plugin.live.close()


def scope(path="/v1/completions", headers=(), method="POST"):
    return {
        "type": "http", "method": method, "path": path, "scheme": "http", "headers": [*headers],
        "client": ("10.0.0.9", 5123), "server": ("127.0.0.1", 8000),
    }  # fmt: skip


async def answer(scope, receive, send):
    """Answer as vLLM answers a plain request: read the body, then one piece."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


def call(app, scope, messages=({"type": "http.request", "body": b"{}"},)):
    """Serve one request; returns what was sent."""
    sent = []
    left = [*messages]

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def serve():  # in a context of its own, as servers do
        await Vitals(app)(scope, receive, send)

    asyncio.run(serve())
    return sent


def headers_of(sent):
    return dict(sent[0]["headers"])


def test_without_a_running_plugin_it_is_transparent():
    assert runtime.current() is None
    sent = call(answer, scope())
    assert sent[0]["headers"] == [(b"content-type", b"application/json")]


def test_with_only_traces_what_is_not_sampled_passes_untouched(plugins):
    plugin = plugins(only_traces=True)
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, SERVED.get()))
        await answer(scope, receive, send)

    unsampled = scope(headers=[(b"traceparent", TRACEPARENT[:-1] + b"0")])
    call(app, unsampled)
    sampled = scope(headers=[(b"traceparent", TRACEPARENT)])
    call(app, sampled)
    assert seen[0][0] is unsampled
    assert seen[0][2] is UNWANTED
    (only,) = plugin.requests()
    assert only.trace.sampled
    assert only.trace.trace_id == seen[1][2].trace_id


def test_other_paths_pass_untouched(plugin):
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send))
        await answer(scope, receive, send)

    wanted = scope("/health", method="GET")
    call(app, wanted)
    assert seen[0][0] is wanted
    call(answer, scope())
    assert [request.http.path for request in plugin.requests()] == ["/v1/completions"]


@pytest.mark.parametrize(
    ("root", "sent"),
    [("/tenant", "/tenant/v1/completions"), ("/tenant", "/v1/completions"), ("/v1", "/v1/completions")],
)
def test_a_root_path_is_no_part_of_the_path(plugin, root, sent):
    call(answer, scope(sent) | {"root_path": root})
    assert [request.http.path for request in plugin.requests()] == ["/v1/completions"]


def test_what_only_begins_like_the_root_path_is_not_ours(plugin):
    call(answer, scope("/tenants/v1/completions") | {"root_path": "/tenant"})
    call(answer, scope())
    assert len(plugin.requests()) == 1


def test_a_browsers_question_whether_it_may_ask_is_no_request(plugin):
    call(answer, scope(method="OPTIONS"))
    call(answer, scope())
    assert [request.http.method for request in plugin.requests()] == ["POST"]


def test_an_old_vllm_starts_us_with_the_first_request():
    starts = []
    engine = SimpleNamespace(output_processor=object())
    app = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
    runtime.when_server_shows(starts.append)
    call(answer, scope("/health", method="GET") | {"app": app})
    call(answer, scope() | {"app": app})
    assert starts == [engine.output_processor]


def test_a_request_is_reported_with_what_was_seen_of_it(plugin):
    body = b'{"model": "lora-a", "user": "mary@example.org", "session_id": "s1", "stream": false, "prompt": "secret"}'
    headers = [(b"host", b"api.example.org:443"), (b"user-agent", b"curl"), (b"authorization", b"Bearer abc")]
    call(answer, scope("/v1/chat/completions", headers), [{"type": "http.request", "body": body}])
    (request,) = plugin.requests()
    http = request.http
    assert (http.method, http.path, http.status) == ("POST", "/v1/chat/completions", 200)
    assert (http.client, http.server_address, http.user_agent) == ("10.0.0.9:5123", "api.example.org", "curl")
    assert http.started <= http.first_byte <= http.ended
    assert (request.model, request.session_id, request.stream) == ("lora-a", "s1", False)
    assert request.operation == "chat"
    assert request.user == "hash(mary@example.org)"
    assert request.headers == {"authorization": "hash(Bearer abc)"}
    assert (request.outcome, request.error_type) == ("ok", "")
    assert "secret" not in repr(request)


def test_the_callers_request_id_goes_in_and_out(plugin):
    seen = []

    async def app(scope, receive, send):
        seen.append(dict(scope["headers"]).get(b"x-request-id"))
        await answer(scope, receive, send)

    sent = call(app, scope(headers=[(b"x-request-id", b"abc-1")]))
    assert headers_of(sent)[b"x-request-id"] == b"abc-1" == seen[0]
    sent = call(app, scope())
    made = headers_of(sent)[b"x-request-id"]
    assert made == seen[1]
    assert len(made) == 32
    assert [request.request_id for request in plugin.requests(2)] == ["abc-1", made.decode()]


@pytest.mark.parametrize("bad", [b"a b", b"x" * 257, b"a\nb", b"\xff\xfe", b'"q"\x00'])
def test_a_request_id_that_would_break_logs_is_replaced(plugin, bad):
    seen = []

    async def app(scope, receive, send):
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")
        await answer(scope, receive, send)

    sent = call(app, scope(headers=[(b"x-request-id", bad)]))
    assert seen == [headers_of(sent)[b"x-request-id"]]
    assert seen != [bad]


def test_vllms_own_header_is_not_doubled(plugin):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Request-Id", b"own")]})
        await send({"type": "http.response.body", "body": b""})

    assert call(app, scope())[0]["headers"] == [(b"X-Request-Id", b"own")]


def test_a_callers_trace_goes_on_and_reaches_vllm_only_where_vllm_traces(plugins):
    seen = []

    async def app(scope, receive, send):
        seen.append(dict(scope["headers"]).get(b"traceparent"))
        await answer(scope, receive, send)

    own = plugins()
    call(app, scope(headers=[(b"traceparent", TRACEPARENT)]))
    assert seen == [TRACEPARENT]
    trace = own.requests()[0].trace
    assert trace.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert trace.parent_span_id == 0xB7AD6B7169203331
    alongside = plugins(rewrites=True)
    call(app, scope(headers=[(b"traceparent", TRACEPARENT)]))
    trace = alongside.requests()[0].trace
    assert seen[1] == b"00-0af7651916cd43dd8448eb211c80319c-%016x-01" % trace.span_id


@pytest.mark.parametrize(
    ("incoming", "traceparent"),
    [("continue", TRACEPARENT), ("continue", b"garbage"), ("restart", TRACEPARENT), ("ignore", TRACEPARENT)],
)
def test_tracestate_reaches_vllm_only_with_the_trace_that_it_belongs_to(plugins, incoming, traceparent):
    plugin = plugins(rewrites=True, incoming=incoming)
    seen = []

    async def app(scope, receive, send):
        seen.extend(value for name, value in scope["headers"] if name == b"tracestate")
        await answer(scope, receive, send)

    states = [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    call(app, scope(headers=[(b"traceparent", traceparent), *states]))
    (request,) = plugin.requests()
    goes_on = (incoming, traceparent) == ("continue", TRACEPARENT)
    assert seen == ([b"a=1", b"b=2"] if goes_on else [])
    assert request.trace.tracestate == ("a=1,b=2" if goes_on else "")


def test_a_streams_first_byte_and_end(plugin):
    async def app(scope, receive, send):
        headers = [(b"Content-Type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        await receive()
        await receive()  # a disconnect, as a server says once all is sent

    call(app, scope())
    http = plugin.requests()[0].http
    assert http.streamed
    assert http.first_byte
    assert not http.disconnected


def test_a_caller_who_hangs_up_is_seen_though_vllm_says_200(plugin):
    async def app(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"null"})

    call(app, scope())
    (request,) = plugin.requests()
    assert request.http.disconnected
    assert (request.outcome, request.error_type) == ("disconnected", "disconnected")


def test_a_server_that_refuses_to_send_means_a_lost_caller(plugin):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        raise OSError("gone")

    async def receive():
        return {"type": "http.request", "body": b""}

    with pytest.raises(OSError, match="gone"):
        asyncio.run(Vitals(app)(scope(), receive, send))
    assert plugin.requests()[0].outcome == "disconnected"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"),
        (400, "client_error"),
        (404, "client_error"),
        (429, "rejected"),
        (503, "rejected"),
        (500, "server_error"),
    ],
)
def test_each_status_has_its_outcome(plugin, status, outcome):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    call(app, scope())
    (request,) = plugin.requests()
    assert (request.outcome, request.error_type) == (outcome, "" if status == 200 else str(status))


def test_an_exception_goes_on_and_is_reported(plugin):
    async def app(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        call(app, scope())
    (request,) = plugin.requests()
    assert (request.outcome, request.error_type) == ("server_error", "RuntimeError")


def test_log_records_of_the_serving_task_find_the_ids(plugin):
    seen = []

    async def app(scope, receive, send):
        await asyncio.create_task(look())
        await answer(scope, receive, send)

    async def look():
        served = SERVED.get()
        seen.append((served.request_id, served.session_id, served.trace_id, served.span_id, served.sampled))

    call(app, scope(headers=[(b"x-request-id", b"a"), (b"x-session-id", b"s"), (b"traceparent", TRACEPARENT)]))
    (request,) = plugin.requests()
    assert seen == [("a", "s", request.trace.trace_id, request.trace.span_id, True)]
    assert SERVED.get() is None


def test_a_large_body_is_not_kept(plugins):
    plugin = plugins(body_bytes=100)
    pieces = [{"type": "http.request", "body": b'{"user":"mary",' + b" " * 60, "more_body": True}]
    pieces.append({"type": "http.request", "body": b" " * 60 + b'"n":1}'})
    call(answer, scope(), pieces)
    assert plugin.requests()[0].user == ""


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff\xfe", b'{"model": 5, "user": {}, "stream": "x"}', b"[" * 9999]
)
def test_a_body_that_is_none_of_ours_is_reported_all_the_same(plugin, body):
    call(answer, scope(), [{"type": "http.request", "body": body}])
    (request,) = plugin.requests()
    assert request.model == "tiny"
    assert request.user == ""


def test_a_hook_that_fails_leaves_the_request_alone(plugin):
    sent = call(answer, {**scope(), "headers": [None]})
    assert sent[0]["status"] == 200
    assert plugin.counters.snapshot() == {(HOOK_FAILURES, "middleware"): 1}


def test_a_sink_that_fails_does_not_keep_others_from_the_request(plugins):
    class Failing(Collecting):
        name = "failing"

        def take(self, request):
            raise RuntimeError

    good = Collecting()
    plugin = plugins(sinks=[Failing(), good])
    for _ in range(3):
        call(answer, scope())
    wait_for(lambda: len(good.requests) == 3, "three reports")
    assert plugin.counters.snapshot() == {("sink_failures", "failing"): 3}


def test_a_full_queue_drops_the_oldest_and_counts(plugins):
    class Blocked(Collecting):
        def take(self, request):
            super().take(request)
            assert go.wait(30)

    import threading

    go = threading.Event()
    sink = Blocked()
    plugin = plugins(queue_size=16, sinks=[sink])
    call(answer, scope(headers=[(b"x-request-id", b"first")]))
    wait_for(lambda: sink.requests, "the first report")
    for number in range(50):
        call(answer, scope(headers=[(b"x-request-id", b"%d" % number)]))
    go.set()
    wait_for(lambda: len(sink.requests) == 17, "the rest")
    assert plugin.counters.total(REQUESTS_DROPPED) == 34
    assert [request.request_id for request in sink.requests] == ["first", *map(str, range(34, 50))]


def test_what_is_left_comes_out_at_the_end(plugins):
    plugin = plugins()
    for _ in range(20):
        call(answer, scope())
    plugin.live.close()
    assert len(plugin.sink.requests) == 20
    assert plugin.sink.closed
    assert runtime.current() is None


def test_request_metrics_are_served_beside_vllms_own(plugin):
    sent = call(answer, scope("/metrics/requests", [(b"accept", b"text/plain")], "GET"))
    assert sent[0]["status"] == 200
    assert (b"content-type", b"text/plain; version=0.0.4; charset=utf-8") in sent[0]["headers"]
    assert value(sent[1]["body"].decode(), "vllm_vitals_requests_total", model_name="tiny", outcome="ok") == 0
    assert call(answer, scope("/metrics/requests", method="POST"))[0]["status"] == 405


def fuzzed_headers(chance, parent=TRACEPARENT):
    """Return some headers that a hostile or broken client may send: noise, and good ones with a few bytes changed."""
    names = (b"traceparent", b"tracestate", b"x-request-id", b"x-session-id", b"host", b"user-agent", b"authorization")
    headers = []
    for _ in range(chance.randrange(1, 8)):
        value = bytearray(chance.choice((parent, b"00-" + b"0" * 32 + parent[35:], b"k=v,x=y", b"id-1", b"")))
        for _ in range(chance.randrange(4)):
            value[chance.randrange(len(value) + 1) : chance.randrange(len(value) + 1)] = chance.randbytes(
                chance.choice((0, 1, 2, 40, 600))
            )
        headers.append((chance.choice(names), bytes(value)))
    return headers


def test_none_of_10000_broken_headers_ever_hurts_a_request(plugin):
    chance = random.Random(20261122)

    async def serve(headers):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"{}"}

        async def send(message):
            sent.append(message)

        await Vitals(answer)(scope(headers=headers), receive, send)
        assert sent[0]["status"] == 200
        returned = headers_of(sent)[b"x-request-id"]
        assert returned.isascii()
        assert 0 < len(returned) <= 256

    async def serve_all():
        for _ in range(10_000):
            await serve(fuzzed_headers(chance))
            if len(plugin.live.queue) > 2000:  # the drain thread is not what is tested here
                await asyncio.sleep(0.01)

    asyncio.run(serve_all())
    assert len(plugin.requests(10_000)) == 10_000
    assert plugin.counters.snapshot() == {}


def test_a_forked_process_is_dark(plugin):
    child = os.fork()
    if child == 0:
        os._exit(0 if runtime.current() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert runtime.current() is plugin.live
