"""What middleware and hooks saw crosses to the child: the record made of it there is the one that is made here."""

import enum
import marshal
from types import SimpleNamespace

import pytest
from support.seen_requests import PREEMPTED, QUEUED, SCHEDULED, event, exchange, sampled, timeline
from vllm_vitals.settings.tracing import SamplingSettings
from vllm_vitals.tracing.request.assembly import Assembly
from vllm_vitals.tracing.request.durations import Durations
from vllm_vitals.tracing.request.exchange_wire import packed, unpacked
from vllm_vitals.tracing.request.in_flight import Exchange, Timeline
from vllm_vitals.tracing.request.records import NativeSpan
from vllm_vitals.tracing.request.sampling import Head, Sampler


class FinishReason(enum.IntEnum):
    """As vLLM's."""

    STOP = 0

    def __str__(self):
        return "stop"


@pytest.fixture
def assembly(monkeypatch):
    """Makes records that two calls make alike: of one clock, with one new span id."""
    monkeypatch.setattr("vllm_vitals.tracing.request.assembly.new_span_id", lambda: 7)
    made = Assembly(
        Sampler(SamplingSettings(), {}),
        model="tiny",
        hash_text=lambda text: f"hash({text})",
        hash_headers=("authorization",),
        capture_content=True,
    )
    monkeypatch.setattr(made._clock, "offset", lambda: 1_000_000.0)
    return made


def everything():
    """Return an exchange and two sequences on which every attribute has another value than that of its class."""
    made, (one,) = sampled(
        authorization="Bearer abc",
        host="api.example.org:443",
        tracestate="a=b",
        user_agent="curl",
        x_session_id="s-1",
    )
    made.scope |= {"root_path": "/r", "path": "/r/v1/chat/completions", "scheme": "https", "client": ("10.0.0.9", 1)}
    made.__dict__["_head"] = Head(2**127 + 5, 2**63, sampled=True, forced=True, link=(2**127, 9))
    made.first_byte = made.started + 0.5
    made.status = 500
    made.answer_headers = [(b"Content-Type", b"text/event-stream; charset=utf-8")]
    made.disconnected = True
    made.error_type = "OSError"
    made.body = [b'{"model": "m", "user": "mary", "stream": true,', b'"messages": [{"role": "user", "content": "hi"}]}']
    one.events = [
        [event(QUEUED, 1.0), event(SCHEDULED, 2.0), event(PREEMPTED, one.stats.first_token_ts + 0.1)],
        [event(SCHEDULED, one.stats.first_token_ts + 0.2)],
    ]
    one.engine_index = 3
    one.finish_reason = FinishReason.STOP
    one.error_type = "EngineDeadError"
    one.output_text = "hello"
    one.session_id = "s-2"
    one.traceparent = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    one.remote_prefill = True
    one.native = NativeSpan(1, 2, 3, 4, sampled=True)
    other = timeline(exchange=made, request_index=1)
    other._times = ()
    other.durations = Durations(made.started, made.started + 0.1, *(made.started + at for at in (0.2, 0.3, 0.4)), 5)
    made.sequences = [one, other]
    return made, [one, other]


def test_the_record_of_what_crossed_is_the_same(assembly):
    made, timelines = everything()
    here = assembly.request(made, timelines)
    there = assembly.request(*unpacked(packed(made, timelines)))
    assert there == here
    assert (here.user, here.stream, here.session_id, len(here.sequences)) == ("hash(mary)", True, "s-2", 2)
    assert here.sequences[0].preemptions


def test_the_plainest_request_crosses(assembly):
    made = exchange()
    assert assembly.request(*unpacked(packed(made, []))) == assembly.request(made, [])


@pytest.mark.parametrize("late", [True, False])
def test_a_sequence_without_its_request_crosses(assembly, late):
    made, (one,) = sampled()
    one.exchange = made if late else None
    one.traceparent = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "tracestate": "a=b"}
    here = assembly.alone(one)
    _, (there,) = unpacked(packed(one.exchange, [one]))
    assert assembly.alone(there) == here
    assert here.late == late
    assert here.trace.trace_id == (made.head.trace_id if late else int("1" * 32, 16))


def attributes(kind, *left_out):
    known = {**kind.__annotations__, **{name: value for name, value in vars(kind).items() if not callable(value)}}
    return {name for name in known if not name.startswith("__")} - {*left_out}


def test_no_attribute_stays_behind():
    """Whoever adds one to Exchange or Timeline has to say here that it need not cross."""
    made, timelines = everything()
    there, found = unpacked(packed(made, timelines))
    while_served = {"receive", "send", "decide", "body_left", "complete", "released", "waits_until", "sequences"}
    for name in attributes(Exchange, *while_served, "scope"):
        assert getattr(there, name) == getattr(made, name), name
    assert {key: there.scope[key] for key in made.scope} == made.scope
    for mine, theirs in zip(timelines, found, strict=True):
        for name in attributes(Timeline, "exchange", "events", "finish_reason", "reported"):
            assert getattr(theirs, name) == getattr(mine, name), name
        assert theirs.finish_reason == str(mine.finish_reason)
        assert theirs.exchange is there
        pairs = [[[(e.type, e.timestamp) for e in some] for some in each.events or ()] for each in (mine, theirs)]
        assert pairs[0] == pairs[1]


def test_what_marshal_does_not_know_becomes_plain(assembly):
    class Text(str):
        __slots__ = ()

    class Raw(bytes):
        __slots__ = ()

    class Number(float):
        __slots__ = ()

    made, (one,) = sampled()
    made.scope["headers"] = [(Raw(b"host"), bytearray(b"h:1")), (b"user-agent", memoryview(b"curl"))]
    made.scope["path"] = Text("/v1/completions")
    made.scope["client"] = SimpleNamespace()  # whatever some server puts there
    one.facts = (*one.facts[:-3], Number(0.5), FinishReason.STOP, True)
    one.session_id = {"of": [Text("any"), None, object()]}
    with pytest.raises(ValueError, match="unmarshallable"):
        marshal.dumps(one.facts)
    there, (sequence,) = unpacked(packed(made, [one]))
    assert there.scope["headers"] == [(b"host", b"h:1"), (b"user-agent", b"curl")]
    assert sequence.facts[-3:] == (0.5, 0, True)
    made.scope["client"] = there.scope["client"] = None
    assert assembly.request(there, [sequence]).http.path == "/v1/completions"
