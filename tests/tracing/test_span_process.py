"""`export: process`: a child of ours builds and sends the spans, and no death on either side hurts the other."""

import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
from support.finished_requests import T0, request, sequence
from support.otlp_receiver import HANG, elapsed, settled
from support.span_sinks import SPANS, counts, sampled
from support.waiting import wait_for
from vllm_vitals.tracing import span_process
from vllm_vitals.tracing.counters import EXPORT_FAILURES
from vllm_vitals.tracing.records import Gpu, Http, NativeSpan, Request, Sequence, Trace
from vllm_vitals.tracing.request_wire import packed, unpacked
from vllm_vitals.tracing.span_process import ProcessSpanSink


@pytest.fixture
def sink_to(open_sink):
    return functools.partial(open_sink, ProcessSpanSink, HEADERS="x-key=s3cret")


def traces(receiver):
    return {int.from_bytes(span.trace_id) - 0xABC0 for _, span in receiver.spans()}


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def pid_of(sink):
    """Return the child's process id; it tells it when it runs."""

    def told():
        sink.idle()
        return sink.child_pid

    return wait_for(told, "the child", pause=0.01)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_spans_and_counts_come_through_the_child(receiver, sink_to, protocol):
    sink = sink_to(receiver.url(protocol), protocol)
    for number in range(10):
        sink.take(sampled(number))
    found = receiver.wait_for(lambda spans: len(spans) == 10 * SPANS)
    assert {resource["process.pid"] for resource, _ in found} == {os.getpid()}
    assert receiver.calls[0].headers["x-key"] == "s3cret"
    settled(lambda: counts(sink) == (10 * SPANS, 0, 0), "the counts")
    assert sink.waiting == 0


def test_no_secret_stands_in_the_childs_arguments_and_it_is_nice(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(sampled())
    receiver.wait_for(lambda spans: spans)
    command = Path(f"/proc/{pid_of(sink)}/cmdline").read_bytes()
    assert b"vllm_vitals.tracing.span_process" in command
    assert b"s3cret" not in command
    assert b"http" not in command
    assert os.getpriority(os.PRIO_PROCESS, pid_of(sink)) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert os.getsid(pid_of(sink)) != os.getsid(0)
    assert psutil.Process(pid_of(sink)) not in psutil.Process().children(recursive=True)


def test_the_child_imports_neither_vllm_nor_grpc_nor_opentelemetry():
    found = subprocess.run(
        [sys.executable, "-c", "import sys, vllm_vitals.tracing.span_process; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    roots = {name.partition(".")[0] for name in found}
    assert not roots & {"torch", "vllm", "grpc", "opentelemetry", "urllib3", "numpy"}
    assert "vllm_vitals.exporter" not in found


def test_an_unsampled_request_starts_no_child(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(request(sequence()))
    assert sink.child_pid is None


def test_a_killed_child_is_replaced_and_its_spans_are_accounted_for(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(sampled(1))
    receiver.wait_for(lambda spans: spans)
    settled(lambda: counts(sink) == (SPANS, 0, 0), "the counts")
    first = pid_of(sink)
    os.kill(first, signal.SIGSTOP)
    sink.take(sampled(2))  # goes down with it
    os.kill(first, signal.SIGKILL)
    settled(lambda: sink.idle() or sink.child_pid not in {None, first}, "another child")
    sink.take(sampled(3))
    settled(lambda: counts(sink) == (2 * SPANS, 0, SPANS), "the counts")
    assert traces(receiver) == {1, 3}
    assert sink._counters.snapshot()[EXPORT_FAILURES, "process"] == 1


def test_a_child_that_dies_at_once_is_not_started_in_a_loop(receiver, sink_to, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    sink = sink_to(receiver.http_url)
    for number in range(200):
        sink.take(sampled(number))
        sink.idle()
    assert sink._counters.snapshot().get((EXPORT_FAILURES, "process"), 0) <= 2
    sink.close(time.monotonic() + 1)
    assert counts(sink) == (0, 0, 200 * SPANS)


def test_no_interpreter_costs_spans_only(receiver, sink_to, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    sink = sink_to(receiver.http_url)
    for number in range(20):
        sink.take(sampled(number))
    assert caplog.text.count("does not start") == 1
    sink.close(time.monotonic() + 1)
    assert counts(sink) == (0, 0, 20 * SPANS)


def test_close_brings_out_what_is_left_and_ends_the_child(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    for number in range(300):
        sink.take(sampled(number))
    child = pid_of(sink)
    sink.close(time.monotonic() + 15)
    assert len(receiver.spans()) == 300 * SPANS
    assert counts(sink) == (300 * SPANS, 0, 0)
    assert is_gone(child)


def test_close_keeps_its_deadline_with_a_collector_that_hangs(receiver, sink_to):
    receiver.answers = [HANG]
    sink = sink_to(receiver.http_url)
    sink.take(sampled())
    child = pid_of(sink)
    receiver.wait_for_calls(1)
    assert elapsed(lambda: sink.close(time.monotonic() + 1)) < 5
    assert counts(sink) == (0, 0, SPANS)
    assert is_gone(child)
    assert sink._counters.total(EXPORT_FAILURES) == 1, "the child ended by itself, so it could tell of its failure"


def test_a_stopped_child_fills_the_backlog_and_the_oldest_go(receiver, sink_to, monkeypatch):
    monkeypatch.setattr(span_process, "_BACKLOG_MESSAGES", 50)
    sink = sink_to(receiver.http_url)
    sink.take(sampled(1))
    receiver.wait_for(lambda spans: spans)
    os.kill(pid_of(sink), signal.SIGSTOP)
    for number in range(2000):
        sink.take(sampled(number))
    assert len(sink._backlog) == 50
    assert counts(sink)[2] > 0
    os.kill(pid_of(sink), signal.SIGCONT)
    sink.close(time.monotonic() + 15)
    emitted, failed, dropped = counts(sink)
    assert failed == 0
    assert emitted + dropped == 2001 * SPANS
    assert emitted == len(receiver.spans())
    assert 1999 in traces(receiver)


def test_what_no_socket_carries_is_dropped_and_counted(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(sampled(1, input_messages="x" * 5_000_000))
    sink.take(sampled(2))
    receiver.wait_for(lambda spans: spans)
    settled(lambda: counts(sink) == (SPANS, 0, SPANS), "the counts")
    assert traces(receiver) == {2}


def test_what_marshal_does_not_know_is_dropped_and_counted(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(sampled(1, session_id=object()))
    assert counts(sink) == (0, 0, SPANS)


def test_a_request_that_the_child_cannot_take_costs_only_its_spans(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(replace(sampled(1), trace=Trace(2**200, 1, sampled=True)))
    sink.take(sampled(2))
    settled(lambda: counts(sink) == (SPANS, 0, SPANS), "the counts")
    assert traces(receiver) == {2}


def test_signals_do_not_end_the_child_before_its_parent(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(sampled(1))
    receiver.wait_for(lambda spans: spans)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(sink), number)
    sink.take(sampled(2))
    sink.close(time.monotonic() + 10)
    assert traces(receiver) == {1, 2}


def test_the_child_flushes_and_ends_when_its_parent_is_killed(receiver, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, signal, sys\n"
        "from vllm_vitals.tracing.counters import Counters\n"
        "from vllm_vitals.tracing.otlp_settings import otlp_settings\n"
        "from vllm_vitals.tracing.request_wire import unpacked\n"
        "from vllm_vitals.tracing.span_process import ProcessSpanSink\n"
        "sink = ProcessSpanSink(otlp_settings(os.environ), {}, Counters())\n"
        "sink.take(unpacked(bytes.fromhex(sys.argv[1])))\n"
        "while sink.child_pid is None:\n"
        "    sink.idle()\n"
        "print(sink.child_pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environ = os.environ | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.http_url}
    parent = subprocess.Popen(
        [sys.executable, program, packed(sampled(5)).hex()], env=environ, stdout=subprocess.PIPE, text=True
    )
    with parent:
        child = int(parent.stdout.readline())
    assert parent.returncode == -signal.SIGKILL
    receiver.wait_for(lambda spans: len(spans) == SPANS)
    settled(lambda: is_gone(child), "the child's end")


def test_a_forked_process_neither_sends_nor_closes(receiver, sink_to):
    sink = sink_to(receiver.http_url)
    sink.take(sampled(1))
    if (pid := os.fork()) == 0:
        sink.take(sampled(7))
        sink.idle()
        sink.close(time.monotonic() + 5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sink.take(sampled(2))
    sink.close(time.monotonic() + 10)
    assert traces(receiver) == {1, 2}


def test_every_field_of_a_request_crosses():
    whole = Request(
        "r1",
        "m",
        "aborted",
        T0,
        T0 + 1,
        Trace(2**127, 2**63, 9, sampled=True, tracestate="a=b", link=(1, 2), keep_reason="ttft"),
        Http("POST", "/p", 500, T0, T0 + 1, T0 + 0.5, True, True, "1.2.3.4:5", "https", "h", 1, "ua", "E"),
        (
            Sequence(
                *("c", "e", 1, "m", T0, T0 + 1, "lora", 3, T0, T0, T0, T0, ((T0, T0 + 1),), (T0, T0), True),
                *("durations", True, 1, 2, 3, "stop", "E", 4, 0.5, 0.9, 2, "text", NativeSpan(1, 2, 3, 4, True)),
            ),
            sequence(),
        ),
        "s",
        "499",
        "chat",
        False,
        "u",
        {"x": "y"},
        "[]",
        (Gpu("u", "H100", 5, 6.5),),
        late=True,
    )
    assert unpacked(packed(whole)) == whole
    assert unpacked(packed(request())) == request()
    for part in (whole, whole.trace, whole.http, whole.sequences[0], whole.gpus[0]):
        for field in fields(part):
            assert getattr(part, field.name) != field.default or field.name == "stream", f"{field.name} is not tried"
