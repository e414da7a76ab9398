import asyncio
import io
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_vitals.tracing.json_logs import VitalsJsonFormatter
from vllm_vitals.tracing.logs.context import SERVED, IdFilter

SERVING = SimpleNamespace(request_id="rid-1", session_id="chat-7", trace_id=0xABC, span_id=0xDEF, sampled=True)


class Unprintable:
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


class Log:
    """A real logger over a real handler, whose lines are parsed."""

    def __init__(self, name="vllm.engine", **options):
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(VitalsJsonFormatter(**options))
        handler.addFilter(IdFilter())
        self.logger = logging.Logger(name)  # noqa: LOG001  none that others see
        self.logger.addHandler(handler)

    @property
    def lines(self):
        return [json.loads(text, parse_constant=pytest.fail) for text in self.stream.getvalue().splitlines()]

    @property
    def line(self):
        (line,) = self.lines
        return line


@pytest.fixture(autouse=True)
def errors_of_logging(monkeypatch):
    """No line may need logging's own last resort."""
    monkeypatch.setattr(logging.Handler, "handleError", lambda handler, record: pytest.fail(f"{sys.exc_info()}"))
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)


def test_a_line_has_time_level_message_service_logger_and_process():
    log = Log(service_name="chat")
    record = log.logger.makeRecord("vllm.engine", logging.WARNING, "core.py", 17, "%d blocks", (12,), None)
    record.created = 1_790_000_000.0419
    log.logger.handle(record)
    assert log.line == {
        "@timestamp": "2026-09-21T14:13:20.041Z",
        "log.level": "warning",
        "message": "12 blocks",
        "service.name": "chat",
        "log.logger": "vllm.engine",
        "log.origin.file.name": "core.py",
        "log.origin.file.line": 17,
        "process.pid": record.process,
        "process.name": "MainProcess",
    }


def test_vllms_process_name_goes_before_pythons():
    log = Log()
    log.logger.info("up", extra={"vllm_process_name": "EngineCore"})
    assert log.line["process.name"] == "EngineCore"
    assert "vllm_process_name" not in log.line


@pytest.mark.parametrize(("variable", "name"), [(None, "vllm"), ("llama", "llama")])
def test_the_service_is_named_by_opentelemetrys_variable(monkeypatch, variable, name):
    if variable:
        monkeypatch.setenv("OTEL_SERVICE_NAME", variable)
    log = Log()
    log.logger.info("up")
    assert log.line["service.name"] == name


def test_flat_names_have_underscores_and_keep_the_timestamp():
    log = Log(names="flat")
    log.logger.info("up", extra={"vitals": {"trace.id": "ab", "queue_ms": 1.5}})
    assert {"@timestamp", "log_level", "service_name", "log_logger", "process_pid", "trace_id", "queue_ms"} <= set(
        log.line
    )
    assert not [name for name in log.line if "." in name]


def test_lines_of_the_serving_task_carry_its_ids_and_others_none():
    log = Log()

    async def serve(served):
        SERVED.set(served)
        log.logger.info("in")

    async def main():
        log.logger.info("before")
        await asyncio.create_task(serve(SERVING))
        await asyncio.create_task(serve(SimpleNamespace(**{**vars(SERVING), "trace_id": 0, "session_id": ""})))
        log.logger.info("after")

    asyncio.run(main())
    before, full, unsampled, after = log.lines
    ids = {"request_id", "session_id", "trace.id", "span.id"}
    assert {name: full[name] for name in ids} == {
        "request_id": "rid-1",
        "session_id": "chat-7",
        "trace.id": f"{0xABC:032x}",
        "span.id": f"{0xDEF:016x}",
    }
    assert ids & set(unsampled) == {"request_id"}, "no zero ids"
    assert not ids & (set(before) | set(after))


def test_a_context_that_is_broken_costs_the_ids_and_not_the_line():
    log = Log()
    token = SERVED.set(object())
    try:
        log.logger.info("still here")
    finally:
        SERVED.reset(token)
    assert log.line["message"] == "still here"


def test_uvicorns_access_line_becomes_fields_and_loses_the_query():
    log = Log("uvicorn.access")
    log.logger.info('%s - "%s %s HTTP/%s" %d', "10.0.0.5:4242", "GET", "/v1/models?api_key=hush", "1.1", 404)
    line = log.line
    assert line["http.request.method"] == "GET"
    assert line["url.path"] == "/v1/models"
    assert line["http.response.status_code"] == 404
    assert (line["client.address"], line["client.port"]) == ("10.0.0.5", 4242)
    assert line["message"] == '10.0.0.5:4242 - "GET /v1/models HTTP/1.1" 404'
    assert "hush" not in log.stream.getvalue()


def test_an_exception_becomes_type_message_and_stack_trace():
    log = Log()
    try:
        raise json.JSONDecodeError("Expecting value", "x", 0)
    except ValueError:
        log.logger.exception("bad")
    line = log.line
    assert line["error.type"] == "json.decoder.JSONDecodeError"
    assert line["error.message"].startswith("Expecting value")
    assert "test_json_logs.py" in line["error.stack_trace"]


def test_an_extra_that_would_hide_an_object_becomes_a_label():
    log = Log()
    log.logger.error("x", extra={"error": "plain text", "model": "llama"})
    assert log.line["labels.error"] == "plain text"
    assert log.line["model"] == "llama"


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("%d tokens", ("many",)),
        ("%s and %s", ("one",)),
        ("no place", (1, 2)),
        ("%s", (Unprintable(),)),
        (Unprintable(), ()),
        (b"\xff\x00", ()),
        ({"message": "a dict", "loss": float("nan")}, ()),
        ("lone \ud800 surrogate", ()),
        ("two\nlines", ()),
        ("%(name)s", ({"other": 1},)),
    ],
)
def test_a_broken_message_is_still_one_line(message, arguments):
    log = Log()
    log.logger.error(message, *arguments)
    assert isinstance(log.line["message"], str)


def circle():
    ring: dict = {}
    ring["ring"] = ring
    return ring


def deep():
    value: list = []
    for _ in range(5000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (b"\xffabc", "\\xffabc"),
        ({1, 2}, [1, 2]),
        ({("a", 1): 2}, {"('a', 1)": 2}),
        (Unprintable(), "<Unprintable>"),
        (re.compile("x"), "re.compile('x')"),
        pytest.param(1 << 40000, None, id="huge"),
        pytest.param(circle(), None, id="circle"),
        pytest.param(deep(), None, id="deep"),
    ],
)
@pytest.mark.parametrize("where", ["extra", "vitals"])
def test_a_value_that_json_cannot_hold_never_costs_the_line(value, written, where):
    log = Log()
    extra = {"odd": value} if where == "extra" else {"vitals": {"odd": value}}
    log.logger.info("kept", extra=extra)
    assert log.line["message"] == "kept"
    if written is not None or isinstance(value, float):
        assert log.line["odd"] == written


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(message=st.text() | st.binary() | json_like, arguments=st.lists(json_like, max_size=3), extra=json_like)
def test_whatever_is_logged_is_one_line_of_json(message, arguments, extra):
    for options in ({}, {"names": "flat", "redact": ["email", "card"]}):
        log = Log(**options)
        log.logger.info(message, *arguments, extra={"given": extra})
        assert log.line["@timestamp"].endswith("Z")


def test_a_record_with_ready_fields_is_written_from_them():
    log = Log()
    log.logger.info("GET / 200", extra={"vitals": {"request_id": "r", "ttft_ms": 12.5, "stream": True}})
    line = log.line
    assert (line["request_id"], line["ttft_ms"], line["stream"]) == ("r", 12.5, True)
    assert "log.origin.file.name" not in line


def test_redaction_reaches_message_extras_exception_and_nested_values_but_not_ids():
    log = Log(redact=["email", "card"])
    card = "4111111111111111"
    try:
        raise ValueError("mail to eve@example.org")
    except ValueError:
        log.logger.exception(
            "from %s",
            "bob@example.com",
            extra={"note": {"to": ["amy@example.net"]}, "request_id": card, "paid_with": card},
        )
    text = log.stream.getvalue()
    assert "@example" not in text
    assert log.line["message"] == "from [email]"
    assert log.line["error.message"] == "mail to [email]"
    assert log.line["note"] == {"to": ["[email]"]}
    assert log.line["request_id"] == card
    assert log.line["paid_with"] == "[card]"
