"""`export: process`: a child of ours reports, no death on either side hurts the other, and nothing is lost by one."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.otlp_receiver import HANG, elapsed, settled
from support.seen_requests import sampled, timeline
from support.waiting import wait_for
from vllm_vitals.settings.tracing import AuditSettings, RequestLogSettings, SamplingSettings, TracingSettings
from vllm_vitals.tracing.audit.hashing import Hasher
from vllm_vitals.tracing.audit.verify import verify
from vllm_vitals.tracing.counters import (
    AUDIT_FAILURES,
    EXPORT_FAILURES,
    REQUESTS_DROPPED,
    SINK_FAILURES,
    SPANS_DROPPED,
    SPANS_EMITTED,
    SPANS_FAILED,
    Counters,
)
from vllm_vitals.tracing.report import process_reporter
from vllm_vitals.tracing.report.process_reporter import ProcessReporter
from vllm_vitals.tracing.report.reporter import Reporting
from vllm_vitals.tracing.request.assembly import Assembly
from vllm_vitals.tracing.request.sampling import Sampler
from vllm_vitals.tracing.spans.otlp_settings import otlp_settings
from vllm_vitals.tracing.spans.tree import span_count

SPANS = span_count(Assembly(Sampler(SamplingSettings(), {}), hash_text=str).request(*sampled()))
SILENT = RequestLogSettings(enabled=False)


def reporting_to(url, protocol="http/protobuf", *, settings=None, **variables):
    environ = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=s3cret",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_BSP_MAX_QUEUE_SIZE": "16384",
        **variables,
    }
    resource = {"service.name": "test", "process.pid": os.getpid()}
    settings = settings or TracingSettings(request_log=SILENT)
    return Reporting(settings, Hasher(b"k" * 32), otlp_settings(environ), resource, ("tiny",), 0)


@pytest.fixture
def reporter_to():
    """Make reporters that are closed at the end."""
    made = []

    def make(*where, **how):
        counters = Counters()
        made.append(ProcessReporter(reporting_to(*where, **how), counters, Sampler(SamplingSettings(), {})))
        made[-1].counters = counters
        return made[-1]

    yield make
    for reporter in made:
        reporter.close(time.monotonic() + 5)


def report(reporter, *numbers):
    """Report requests of some numbers, as the drain thread does."""
    for number in numbers:
        reporter.request(*sampled(number))
    reporter.flush()


def traces(receiver):
    return {int.from_bytes(span.trace_id) - 0xABC0 for _, span in receiver.spans()}


def counts(reporter):
    """Return how many spans were emitted, failed and dropped so far."""
    reporter.idle()
    total = reporter.counters.total
    return total(SPANS_EMITTED), total(SPANS_FAILED), total(SPANS_DROPPED)


def served(reporter):
    """Return the number of requests that the metrics tell."""
    reporter.idle()
    return sum(count for (family, _), count in reporter.values().numbers.items() if family.endswith("_requests_total"))


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def pid_of(reporter):
    """Return the child's process id; it tells it when it runs."""

    def told():
        reporter.idle()
        return reporter.child_pid

    return wait_for(told, "the child", pause=0.01)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_spans_metrics_and_counts_come_through_the_child(receiver, reporter_to, protocol):
    reporter = reporter_to(receiver.url(protocol), protocol)
    report(reporter, *range(10))
    found = receiver.wait_for(lambda spans: len(spans) == 10 * SPANS)
    assert {resource["process.pid"] for resource, _ in found} == {os.getpid()}
    assert receiver.calls[0].headers["x-key"] == "s3cret"
    settled(lambda: counts(reporter) == (10 * SPANS, 0, 0), "the counts")
    assert served(reporter) == 10
    assert reporter.waiting == 0
    exemplars = reporter.values().histograms["vllm_vitals_request_e2e_seconds", ("tiny",)].exemplars
    assert {int(one.trace_id, 16) - 0xABC0 for one in exemplars if one is not None} <= {*range(10)}


def test_a_sequence_without_its_request_is_reported_by_the_child(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    late, (one,) = sampled(3)
    reporter.request(late, [])
    one.exchange = late
    reporter.alone(one)
    reporter.alone(timeline())
    reporter.flush()
    settled(lambda: served(reporter) == 2, "two requests; what is late is none")
    found = receiver.wait_for(lambda spans: sum(span.name == "llm_request" for _, span in spans) == 2)
    (below,) = [span for _, span in found if span.name == "llm_request" and traces(receiver) and span.parent_span_id]
    assert int.from_bytes(below.parent_span_id) == late.span_id


def test_no_secret_stands_in_the_childs_arguments_and_it_is_nice(receiver, reporter_to):
    def family():
        return {*psutil.Process().children(recursive=True)}

    before = family()  # servers of other tests
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    receiver.wait_for(lambda spans: spans)
    command = Path(f"/proc/{pid_of(reporter)}/cmdline").read_bytes()
    assert b"vllm_vitals.tracing.report.child" in command
    assert b"s3cret" not in command
    assert b"http" not in command
    assert os.getpriority(os.PRIO_PROCESS, pid_of(reporter)) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert os.getsid(pid_of(reporter)) != os.getsid(0)
    assert family() <= before, "neither the child nor the zombie of what started it"


def test_the_child_imports_neither_vllm_nor_grpc_nor_opentelemetry():
    found = subprocess.run(
        [sys.executable, "-c", "import sys, vllm_vitals.tracing.report.child; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    roots = {name.partition(".")[0] for name in found}
    assert not roots & {"torch", "vllm", "grpc", "opentelemetry", "urllib3", "numpy"}
    assert "vllm_vitals.exporter" not in found


def test_there_is_no_child_before_the_first_request(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    reporter.start()
    reporter.idle()
    reporter.flush()
    assert reporter._frames is None


def test_a_killed_child_is_replaced_and_what_it_had_is_reported_here_without_spans(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    receiver.wait_for(lambda spans: spans)
    settled(lambda: counts(reporter) == (SPANS, 0, 0), "the counts")
    settled(lambda: served(reporter) == 1, "the metrics")
    first = pid_of(reporter)
    os.kill(first, signal.SIGSTOP)
    report(reporter, 2)  # goes down with it
    os.kill(first, signal.SIGKILL)
    settled(lambda: reporter.idle() or reporter.child_pid is None, "the news of its death")
    assert served(reporter) == 2

    def another():
        reporter._next_start = 0.0  # not what is tried here
        report(reporter, 3)
        return reporter._frames is not None

    assert another()
    settled(lambda: counts(reporter) == (2 * SPANS, 0, SPANS), "the counts")
    settled(lambda: served(reporter) == 3, "the metrics")
    assert traces(receiver) == {1, 3}
    assert pid_of(reporter) != first
    assert reporter.counters.snapshot()[EXPORT_FAILURES, "process"] == 1


def test_a_count_never_falls_while_children_die(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    seen = []
    for number in range(3):
        report(reporter, number)
        seen.append(served(reporter))
        pid = pid_of(reporter)
        seen.append(served(reporter))
        os.kill(pid, signal.SIGKILL)
        settled(lambda: reporter.idle() or reporter.child_pid is None, "the news of its death")
        seen.append(served(reporter))
        reporter._next_start = 0.0
    assert seen == sorted(seen)
    assert seen[-1] == 3


def test_a_child_that_dies_at_once_costs_spans_only_and_is_not_started_in_a_loop(receiver, reporter_to, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    reporter = reporter_to(receiver.http_url)
    for number in range(200):
        report(reporter, number)
        reporter.idle()
    assert reporter.counters.snapshot().get((EXPORT_FAILURES, "process"), 0) <= 2
    reporter.close(time.monotonic() + 5)
    assert counts(reporter) == (0, 0, 200 * SPANS)
    assert served(reporter) == 200


def test_no_interpreter_costs_spans_only(receiver, reporter_to, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    reporter = reporter_to(receiver.http_url)
    report(reporter, *range(20))
    assert caplog.text.count("does not start") == 1
    assert served(reporter) == 20
    assert counts(reporter) == (0, 0, 20 * SPANS)


def test_close_brings_out_what_is_left_and_ends_the_child(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    report(reporter, *range(300))
    child = pid_of(reporter)
    reporter.close(time.monotonic() + 15)
    assert len(receiver.spans()) == 300 * SPANS
    assert counts(reporter) == (300 * SPANS, 0, 0)
    assert served(reporter) == 300
    assert is_gone(child)


def test_close_keeps_its_deadline_with_a_collector_that_hangs(receiver, reporter_to):
    receiver.answers = [HANG]
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    child = pid_of(reporter)
    receiver.wait_for_calls(1)
    assert elapsed(lambda: reporter.close(time.monotonic() + 1)) < 5
    assert counts(reporter) == (0, 0, SPANS)
    assert served(reporter) == 1
    assert is_gone(child)
    assert reporter.counters.total(EXPORT_FAILURES) == 1, "the child ended by itself, so it could tell of its failure"


def test_close_kills_a_child_that_hangs_and_reports_what_it_had(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    child = pid_of(reporter)
    settled(lambda: served(reporter) == 1, "the first")
    os.kill(child, signal.SIGSTOP)
    report(reporter, 2, 3)
    assert elapsed(lambda: reporter.close(time.monotonic() + 1)) < 5
    settled(lambda: is_gone(child), "its end")
    assert served(reporter) == 3


def test_a_stopped_child_fills_the_backlog_and_the_oldest_go(receiver, reporter_to, monkeypatch):
    monkeypatch.setattr(process_reporter, "_BACKLOG_MESSAGES", 50)
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    settled(lambda: reporter.idle() or reporter.waiting == 0, "the confirmation")
    os.kill(pid_of(reporter), signal.SIGSTOP)
    for number in range(2000):
        reporter.request(*sampled(number))
        reporter._send()  # not flush, which is patient
    dropped = reporter.counters.total(REQUESTS_DROPPED)
    assert dropped > 0
    assert reporter.waiting == 2000 - dropped
    os.kill(pid_of(reporter), signal.SIGCONT)
    reporter.close(time.monotonic() + 20)
    assert served(reporter) == 2001 - dropped
    assert 1999 in traces(receiver)
    assert counts(reporter) == (len(receiver.spans()), 0, 0)
    assert len(receiver.spans()) == (2001 - dropped) * SPANS


def test_a_body_of_any_size_crosses(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    large, timelines = sampled(1)
    large.body = [b'{"model": "large", "prompt": "', b"x" * 5_000_000, b'"}']
    reporter.request(large, timelines)
    report(reporter, 2)
    settled(lambda: counts(reporter) == (2 * SPANS, 0, 0), "the counts")
    assert traces(receiver) == {1, 2}


def test_a_request_that_the_child_cannot_take_costs_itself_only(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    broken, timelines = sampled(1)
    broken.started = "yesterday"
    reporter.request(broken, timelines)
    report(reporter, 2)
    settled(lambda: counts(reporter) == (SPANS, 0, 0), "the counts")
    assert reporter.counters.snapshot()[SINK_FAILURES, "assembly"] == 1
    settled(lambda: reporter.idle() or reporter.waiting == 0, "the confirmations")
    assert traces(receiver) == {2}


def test_signals_do_not_end_the_child_before_its_parent(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    receiver.wait_for(lambda spans: spans)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(reporter), number)
    report(reporter, 2)
    reporter.close(time.monotonic() + 10)
    assert traces(receiver) == {1, 2}


def test_the_child_flushes_and_ends_when_its_parent_is_killed(receiver, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, pickle, signal, sys\n"
        "from support.seen_requests import sampled\n"
        "from vllm_vitals.tracing.counters import Counters\n"
        "from vllm_vitals.tracing.report.process_reporter import ProcessReporter\n"
        "from vllm_vitals.tracing.request.sampling import Sampler\n"
        "from vllm_vitals.settings.tracing import SamplingSettings\n"
        "reporting = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "reporter = ProcessReporter(reporting, Counters(), Sampler(SamplingSettings(), {}))\n"
        "reporter.request(*sampled(5))\n"
        "reporter.flush()\n"
        "while reporter.child_pid is None:\n"
        "    reporter.idle()\n"
        "print(reporter.child_pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    setup = pickle.dumps(reporting_to(receiver.http_url)).hex()
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, program, setup], env=environ, stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
    assert parent.returncode == -signal.SIGKILL
    receiver.wait_for(lambda spans: len(spans) == SPANS)
    settled(lambda: is_gone(child), "the child's end")


def test_a_forked_process_neither_sends_nor_closes(receiver, reporter_to):
    reporter = reporter_to(receiver.http_url)
    report(reporter, 1)
    if (pid := os.fork()) == 0:
        report(reporter, 7)
        reporter.idle()
        reporter.close(time.monotonic() + 5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    report(reporter, 2)
    reporter.close(time.monotonic() + 10)
    assert traces(receiver) == {1, 2}


def test_the_audit_log_has_one_writer_at_a_time_and_no_gap(receiver, reporter_to, tmp_path):
    key, file = tmp_path / "key", tmp_path / "audit.jsonl"
    key.write_text("0" * 64)
    settings = TracingSettings(request_log=SILENT, audit=AuditSettings(file=file, key_file=key))
    reporter = reporter_to(receiver.http_url, settings=settings)

    def written():
        return [record["request_id"] for record in map(json.loads, file.read_text().splitlines()) if "who" in record]

    def confirmed():
        reporter.idle()
        return not reporter.waiting

    for life in range(3):
        report(reporter, life)
        settled(confirmed, "the child")
        os.kill(pid_of(reporter), signal.SIGKILL)
        settled(lambda: reporter.idle() or reporter.child_pid is None, "the news of its death")
        reporter._next_start = float("inf")
        report(reporter, 10 + life)  # by this process
        reporter._next_start = 0.0
    report(reporter, 20)
    reporter.close(time.monotonic() + 10)
    assert written() == ["r0", "r10", "r1", "r11", "r2", "r12", "r20"]
    assert [path.name for path in sorted(tmp_path.glob("audit*.jsonl"))] == ["audit.jsonl"]
    assert not verify([file], key.read_bytes()).problems
    assert reporter.counters.total(AUDIT_FAILURES) == 0
