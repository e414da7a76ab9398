import dataclasses
import json
import logging
import subprocess
import sys

import pytest
from vllm_vitals.settings.tracing import RequestLogSettings
from vllm_vitals.tracing.logs.request_line import RequestLogSink, fields, text
from vllm_vitals.tracing.request.records import Gpu, Http, RequestRecord, SequenceRecord, Trace

AT = 1_790_000_000.0
HTTP = Http("POST", "/v1/chat/completions", 200, AT, AT + 0.812, AT + 0.1, client="10.0.0.5:4242", streamed=True)
ONE = SequenceRecord(
    response_id="chatcmpl-r", engine_id="chatcmpl-r-1", index=0, model="llama", arrival=AT, finished=AT + 0.8125,
    queued=AT + 0.002, scheduled=AT + 0.01, first_token=AT + 0.1, last_token=AT + 0.88 - 0.0875,
    input_tokens=12, cached_tokens=8, output_tokens=40, finish_reason="stop",
)  # fmt: skip
REQUEST = RequestRecord(
    request_id="r", model="llama", outcome="ok", started=AT, ended=AT + 0.812, trace=Trace(0xABC, 0xDEF, sampled=True),
    http=HTTP, sequences=(ONE,), session_id="s", operation="chat", stream=True, user="0f0f",
    headers={"x-tenant": "beef"},
)  # fmt: skip


def but(record, **changes):
    return dataclasses.replace(record, **changes)


def test_a_request_has_every_field_that_operators_search():
    line = fields(REQUEST)
    duration = line.pop("event.duration")
    assert duration == pytest.approx(812_000_000, abs=1000)
    assert line == {
        "request_id": "r", "session_id": "s", "trace.id": f"{0xABC:032x}", "span.id": f"{0xDEF:016x}",
        "trace.sampled": True, "model": "llama", "outcome": "ok", "event.outcome": "success",
        "http.request.method": "POST", "url.path": "/v1/chat/completions", "http.response.status_code": 200,
        "status": 200, "client.address": "10.0.0.5", "client.port": 4242, "client_disconnect": False, "stream": True,
        "operation": "chat", "user.hash": "0f0f", "labels.x_tenant": "beef",
        "input_tokens": 12, "output_tokens": 40, "cached_tokens": 8, "cache_hit": True, "finish_reason": "stop",
        "preemptions": 0, "timing": "events", "ingress_ms": 2.0, "queue_ms": 8.0, "prefill_ms": 90.0,
        "decode_ms": 692.5, "ttft_ms": 100.0, "tpot_ms": 17.756, "e2e_ms": 812.5,
    }  # fmt: skip


def test_what_is_not_known_is_absent():
    bare = RequestRecord("r", "", "client_error", AT, AT, Trace(0, 0), error_type="404")
    assert fields(bare) == {
        "request_id": "r",
        "outcome": "client_error",
        "event.outcome": "failure",
        "error.type": "404",
        "event.duration": 0,
    }


def test_an_aborted_request_before_its_first_token_has_no_times_of_phases():
    waiting = but(ONE, queued=None, scheduled=None, first_token=None, last_token=None, output_tokens=0,
                  finish_reason="abort")  # fmt: skip
    line = fields(
        but(REQUEST, outcome="disconnected", http=but(HTTP, status=0, disconnected=True), sequences=(waiting,))
    )
    assert line["client_disconnect"] is True
    assert line["finish_reason"] == "abort"
    assert line["e2e_ms"] == 812.5
    assert not {"status", "queue_ms", "ttft_ms", "tpot_ms", "decode_ms"} & set(line)


def test_one_token_has_no_time_per_output_token():
    line = fields(but(REQUEST, sequences=(but(ONE, output_tokens=1, last_token=ONE.first_token),)))
    assert "tpot_ms" not in line
    assert line["ttft_ms"] == 100.0


def test_preemptions_come_with_their_time():
    line = fields(but(REQUEST, sequences=(but(ONE, preemptions=((AT + 0.2, AT + 0.3), (AT + 0.4, AT + 0.45))),)))
    assert (line["preemptions"], line["preempted_ms"]) == (2, 150.0)


def test_several_sequences_tell_of_the_first_answer_the_longest_decode_and_the_sum_of_tokens():
    later = but(ONE, index=1, first_token=AT + 0.2, last_token=AT + 2.2, finished=AT + 2.25, output_tokens=101,
                finish_reason="length", engine_index=1, lora="poet")  # fmt: skip
    line = fields(but(REQUEST, sequences=(later, ONE)))
    assert line["sequences"] == 2
    assert line["finish_reasons"] == ["length", "stop"]
    assert "finish_reason" not in line
    assert (line["input_tokens"], line["output_tokens"], line["cached_tokens"]) == (24, 141, 16)
    assert (line["ttft_ms"], line["queue_ms"], line["prefill_ms"]) == (100.0, 8.0, 90.0)
    assert (line["decode_ms"], line["e2e_ms"]) == (2000.0, 2250.0)
    assert line["tpot_ms"] == pytest.approx((2000 + 692.5) / (100 + 39), abs=0.001)
    assert line["lora"] == "poet"
    assert "engine_index" not in line, "they ran on different ranks"


@pytest.mark.parametrize(
    ("memory", "expected"), [((10_000_000, 2_500_000), 12.5), ((10_000_000, None), None), ((), None)]
)
def test_gpu_memory_is_the_sum_over_the_engines_gpus_or_absent(memory, expected):
    gpus = tuple(Gpu(f"GPU-{index}", "H100", used) for index, used in enumerate(memory))
    assert fields(but(REQUEST, gpus=gpus)).get("gpu_memory_mb") == expected


def test_the_worst_timing_is_told():
    assert fields(but(REQUEST, sequences=(ONE, but(ONE, timing="durations"))))["timing"] == "durations"


def test_prompt_and_answer_are_in_no_line():
    secret = but(REQUEST, input_messages="my secret", sequences=(but(ONE, output_text="my secret"),))
    assert "secret" not in json.dumps(fields(secret)) + text(secret)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (REQUEST, "POST /v1/chat/completions 200 stop 12+40 tokens in 812 ms"),
        (but(REQUEST, http=None), "request stop 12+40 tokens in 812 ms"),
        (
            but(REQUEST, outcome="client_error", error_type="404", sequences=(), http=but(HTTP, status=404)),
            "POST /v1/chat/completions 404 in 812 ms",
        ),
        (
            but(
                REQUEST, outcome="disconnected", error_type="disconnected", sequences=(but(ONE, finish_reason="abort"),)
            ),
            "POST /v1/chat/completions 200 disconnected abort 12+40 tokens in 812 ms",
        ),
        (
            but(
                REQUEST, outcome="server_error", error_type="EngineDeadError", sequences=(), http=but(HTTP, status=500)
            ),
            "POST /v1/chat/completions 500 EngineDeadError in 812 ms",
        ),
    ],
)
def test_the_text_is_short_and_human(request_, expected):
    assert text(request_) == expected


@pytest.mark.parametrize(("outcome", "level"), [("ok", "INFO"), ("disconnected", "INFO"), ("server_error", "WARNING")])
def test_each_request_is_one_record_at_its_level(caplog, outcome, level):
    caplog.set_level(logging.INFO, "vllm_vitals")
    RequestLogSink(RequestLogSettings()).take(but(REQUEST, outcome=outcome))
    (record,) = [record for record in caplog.records if record.name == "vllm_vitals.request"]
    assert record.levelname == level
    assert record.vitals["request_id"] == "r"


PROGRAM = """
import logging, sys
from pathlib import Path
{setup}
from vllm_vitals.tracing.fatal.watch import install
from vllm_vitals.tracing.request.records import RequestRecord, Trace
from vllm_vitals.tracing.logs.request_line import RequestLogSink
from vllm_vitals.settings.tracing import RequestLogSettings
install(Path(sys.argv[1]))
for _ in range(2):
    sink = RequestLogSink(RequestLogSettings(names="flat"))
sink.take(RequestRecord("r", "m", "ok", 0.0, 1.0, Trace(1, 2)))
"""


def run(setup, tmp_path):
    program = [sys.executable, "-c", PROGRAM.format(setup=setup), str(tmp_path / "state")]
    return subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_where_nobody_configured_logging_lines_go_to_stdout_once(tmp_path):
    (line,) = run("", tmp_path)
    assert json.loads(line)["trace_id"] == f"{1:032x}"


def test_where_root_has_a_handler_lines_go_there_although_its_level_is_warning(tmp_path):
    assert run("logging.basicConfig(stream=sys.stdout, format='mine %(message)s')", tmp_path) == [
        "mine request in 1000 ms"
    ]
