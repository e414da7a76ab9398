import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm_vitals.settings.scalars import ConfigError
from vllm_vitals.settings.tracing import AuditSettings
from vllm_vitals.tracing.audit.chain import canonical
from vllm_vitals.tracing.audit.log import AuditSink, entry
from vllm_vitals.tracing.audit.verify import Head, chains, verify
from vllm_vitals.tracing.counters import AUDIT_FAILURES, Counters
from vllm_vitals.tracing.request.records import Http, RequestRecord, SequenceRecord, Trace

AT = 1_790_000_000.0
KEY = b"0123456789abcdef0123456789abcdef"
SEQUENCE = SequenceRecord("c-r", "c-r-1", 0, "llama", AT, AT + 1, input_tokens=12, cached_tokens=8, output_tokens=40,
                    finish_reason="stop", max_tokens=64, output_text="the answer")  # fmt: skip


def request(number=0):
    http = Http("POST", "/v1/completions", 200, AT, AT + 1, client="10.0.0.5:4242")
    return RequestRecord(f"r{number}", "llama", "ok", AT, AT + 1, Trace(7, 8), http=http, sequences=(SEQUENCE,),
                   user="0f0f", headers={"x-tenant": "beef"}, input_messages="the prompt")  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Audit:
    """A sink over real files."""

    def __init__(self, folder, **options):
        self.file = folder / "audit.jsonl"
        self.key_file = folder / "audit.key"
        if not self.key_file.exists():
            self.key_file.write_bytes(KEY)
            self.key_file.chmod(0o600)
        self.settings = AuditSettings(file=self.file, key_file=self.key_file, **options)
        self.counters = Counters()
        self.clock = Clock()
        self.sink = AuditSink(self.settings, self.counters, self.clock)

    def write(self, *numbers):
        for number in numbers:
            self.sink.take(request(number))
        return self

    def close(self):
        self.sink.close(0.0)
        return self

    @property
    def files(self):
        (files,) = chains(path for path in self.file.parent.glob("audit.jsonl*") if path.suffix != ".lock")
        return files

    @property
    def records(self):
        return [json.loads(line) for file in self.files for line in file.read_text().splitlines()]

    def verify(self, expect=None):
        return verify(self.files, KEY, expect)


@pytest.fixture
def audit(tmp_path):
    made = []

    def audit(**options):
        made.append(Audit(tmp_path, **options))
        return made[-1]

    yield audit
    for one in made:
        one.close()


def test_a_record_says_who_asked_for_what_and_never_what_was_said():
    record = entry(request(5))
    assert record == {
        "time": "2026-09-21T14:13:21.000Z", "request_id": "r5", "model": "llama", "outcome": "ok", "status": 200,
        "who": {"user": "0f0f", "headers": {"x-tenant": "beef"}, "client": "10.0.0.5:4242"},
        "method": "POST", "path": "/v1/completions", "duration_ms": 1000.0, "trace_id": f"{7:032x}",
        "tokens": {"input": 12, "cached": 8, "output": 40}, "sequences": 1, "finish_reasons": ["stop"],
        "max_tokens": 64,
    }  # fmt: skip


def test_why_sequences_ended_is_told_once_each():
    many = [dataclasses.replace(SEQUENCE, finish_reason=reason) for reason in ["stop", "length"] * 300]
    record = entry(dataclasses.replace(request(), sequences=tuple(many)))
    assert (record["sequences"], record["finish_reasons"]) == (600, ["length", "stop"])


def test_records_are_numbered_and_chained_and_only_the_owner_reads_them(audit):
    one = audit().write(0, 1).close()
    assert [(record["kind"], record["seq"]) for record in one.records] == [("head", 0), ("request", 1), ("request", 2)]
    assert [record["prev"] for record in one.records][1:] == [record["hash"] for record in one.records][:-1]
    assert stat.S_IMODE(one.file.stat().st_mode) == 0o600
    report = one.verify()
    assert report.intact
    assert (report.records, report.first.seq, report.head.seq) == (3, 0, 2)


def test_another_key_finds_nothing_of_it_genuine(audit):
    one = audit().write(0).close()
    report = verify(one.files, b"another key another key")
    assert not report.intact
    assert {problem.what for problem in report.problems} == {"foreign"}


def test_a_restart_goes_on_with_the_chain(audit):
    audit().write(0, 1).close()
    two = audit().write(2).close()
    assert [record["seq"] for record in two.records] == [0, 1, 2, 3]
    assert two.verify().intact


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_rotation_carries_number_and_chain_over_and_keeps_so_many_files(audit, fsync):
    one = audit(max_bytes=2000, keep_files=2, fsync=fsync).write(*range(30)).close()
    assert [file.name for file in one.files] == ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]
    assert all(file.stat().st_size <= 2000 for file in one.files)
    heads = [json.loads(file.read_text().splitlines()[0]) for file in one.files]
    assert all(head["kind"] == "head" and head["previous_seq"] == head["seq"] - 1 for head in heads)
    report = one.verify()
    assert report.intact
    assert report.first.seq > 0, "the oldest files are gone"


def test_a_rotated_file_that_lacks_in_the_middle_is_found(audit):
    one = audit(max_bytes=2000, keep_files=9).write(*range(20)).close()
    lost = one.files[2]
    first, *_, last = (json.loads(line)["seq"] for line in lost.read_text().splitlines())
    lost.unlink()
    (problem,) = one.verify().problems
    assert (problem.what, problem.seq) == ("removed", first)
    assert f"up to seq {last}" in problem.detail


def test_a_crash_between_two_steps_of_a_rotation_does_not_break_the_chain(audit):
    one = audit().write(0, 1).close()
    one.file.rename(f"{one.file}.1")
    one.file.write_bytes(b"")
    two = audit().write(2).close()
    assert two.verify().intact
    assert two.records[-1]["seq"] == 4


def test_a_line_torn_by_a_crash_is_closed_off_by_a_record_that_names_it(audit):
    one = audit().write(0, 1, 2).close()
    data = one.file.read_bytes()
    one.file.write_bytes(data[:-20])
    two = audit().write(3).close()
    report = two.verify()
    assert report.intact, report.problems
    assert report.notes == (f"{one.file}:4: torn by a crash, closed off by repair record 3",)
    lines = two.file.read_bytes().splitlines(keepends=True)
    two.file.write_bytes(b"".join((*lines[:3], b"x" + lines[3], *lines[4:])))
    assert two.verify().problems[0].line == 4, "who edits the torn line is found"


def test_a_last_line_that_lacks_only_its_newline_is_a_record(audit):
    one = audit().write(0, 1).close()
    one.file.write_bytes(one.file.read_bytes()[:-1])
    two = audit().write(2).close()
    assert two.verify().intact
    assert [record["seq"] for record in two.records] == [0, 1, 2, 3]


def test_a_cut_that_nobody_closed_off_is_found(audit):
    one = audit().write(0, 1).close()
    one.file.write_bytes(one.file.read_bytes()[:-20])
    (problem,) = one.verify().problems
    assert (problem.what, problem.line, problem.seq) == ("torn", 3, 2)


def test_a_truncated_end_is_found_by_a_head_noted_elsewhere(audit):
    one = audit().write(0, 1, 2).close()
    head = one.verify().head
    one.file.write_text("".join(one.file.read_text().splitlines(keepends=True)[:-1]))
    assert one.verify().intact, "nothing in the file itself tells"
    (problem,) = one.verify(head).problems
    assert (problem.what, problem.seq) == ("truncated", 3)
    audit().write(9).close()
    (problem,) = one.verify(head).problems
    assert "written anew" in problem.detail


def test_a_new_beginning_by_the_same_writer_is_found_by_the_noted_head(audit):
    one = audit().write(0, 1).close()
    head = one.verify().head
    one.file.unlink()
    two = audit().write(2).close()
    assert [problem.what for problem in two.verify(head).problems] == ["truncated"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Three files of one chain, as (file name, line) pairs, and its head."""
    one = Audit(tmp_path_factory.mktemp("chain"), max_bytes=2500, keep_files=9).write(*range(9)).close()
    assert len(one.files) >= 3
    return one.files, [(file, line) for file in one.files for line in file.read_bytes().splitlines()], one.verify().head


def damaged(chain, lines, folder: Path):
    files, _, head = chain
    for file in files:
        (folder / file.name).write_bytes(b"".join(line + b"\n" for name, line in lines if name == file))
    return verify([folder / file.name for file in files], KEY, head)


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_undamaged_chain_is_intact(chain, tmp_path):
    assert damaged(chain, chain[1], tmp_path).intact


@SLOW
@given(data=st.data())
def test_any_edited_byte_is_found_and_named(chain, tmp_path, data):
    lines = list(chain[1])
    at = data.draw(st.integers(0, len(lines) - 1))
    file, line = lines[at]
    byte = data.draw(st.integers(0, len(line) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value not in {line[byte], 10}))
    lines[at] = (file, line[:byte] + bytes([new]) + line[byte + 1 :])
    (problem, *others) = damaged(chain, lines, tmp_path).problems
    assert (problem.what, problem.seq, problem.file.name) == ("edited", at, file.name)
    assert {other.what for other in others} <= {"truncated"}, "the last record is the noted head, too"


@SLOW
@given(data=st.data())
def test_any_edited_value_is_found_and_named(chain, tmp_path, data):
    lines = list(chain[1])
    at = data.draw(st.integers(0, len(lines) - 1))
    file, line = lines[at]
    record = json.loads(line)
    name = data.draw(st.sampled_from(sorted(record)))
    if data.draw(st.booleans()):
        del record[name]
    else:
        record[name] = "changed"
    lines[at] = (file, canonical(record))
    problem = damaged(chain, lines, tmp_path).problems[0]
    assert (problem.what, problem.seq) == ("edited", at)


@SLOW
@given(data=st.data())
def test_any_removed_record_is_found_and_named(chain, tmp_path, data):
    lines = list(chain[1])
    at = data.draw(st.integers(0, len(lines) - 1))
    del lines[at]
    (problem,) = damaged(chain, lines, tmp_path).problems
    last = at == len(lines)
    first = at == 0  # only the head that lacks tells: the record that stands first is named
    assert (problem.what, problem.seq) == ("truncated" if last else "removed", 1 if first else at)


@SLOW
@given(data=st.data())
def test_any_two_swapped_records_are_found_and_the_earlier_one_named(chain, tmp_path, data):
    lines = list(chain[1])
    one, other = sorted(data.draw(st.sets(st.integers(0, len(lines) - 1), min_size=2, max_size=2)))
    lines[one], lines[other] = (lines[one][0], lines[other][1]), (lines[other][0], lines[one][1])
    problems = damaged(chain, lines, tmp_path).problems
    assert ("re-ordered", one) in {(problem.what, problem.seq) for problem in problems}


@SLOW
@given(data=st.data())
def test_any_duplicated_record_is_found_and_named(chain, tmp_path, data):
    lines = list(chain[1])
    at = data.draw(st.integers(0, len(lines) - 1))
    to = data.draw(st.integers(at + 1, len(lines)))
    lines.insert(to, (lines[min(to, len(lines) - 1)][0], lines[at][1]))
    (problem,) = damaged(chain, lines, tmp_path).problems
    assert (problem.what, problem.seq) == ("duplicated", at)


@SLOW
@given(data=st.data(), text=st.binary(max_size=20).filter(lambda text: b"\n" not in text))
def test_any_inserted_line_is_found_and_named(chain, tmp_path, data, text):
    lines = list(chain[1])
    at = data.draw(st.integers(1, len(lines) - 1))
    lines.insert(at, (lines[at][0], text))
    (problem,) = damaged(chain, lines, tmp_path).problems
    assert problem.what == "foreign"
    assert problem.file.name == lines[at][0].name


def test_files_are_put_in_order_and_chains_apart():
    names = ["a.jsonl", "b.jsonl.1", "a.jsonl.10", "a.jsonl.2", "b.jsonl", "a-1.jsonl"]
    assert chains(Path(name) for name in names) == [
        [Path("a.jsonl.10"), Path("a.jsonl.2"), Path("a.jsonl")],
        [Path("b.jsonl.1"), Path("b.jsonl")],
        [Path("a-1.jsonl")],
    ]


def test_a_second_process_writes_a_chain_of_its_own_and_its_name_is_free_again_afterwards(audit, tmp_path):
    one, two = audit().write(0), audit().write(1)
    beside = tmp_path / "audit-1.jsonl"
    assert json.loads(beside.read_text().splitlines()[1])["request_id"] == "r1"
    one.close()
    two.close()
    audit().write(2).close()
    assert verify([one.file], KEY).head.seq == 2
    assert verify([beside], KEY).head.seq == 1


def test_a_forked_process_takes_a_file_of_its_own(audit, tmp_path):
    one = audit().write(0)
    child = os.fork()
    if not child:
        one.write(1).close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    one.write(2).close()
    assert verify([one.file], KEY).intact
    assert verify([one.file], KEY).head.seq == 2
    assert verify([tmp_path / "audit-1.jsonl"], KEY).head.seq == 1


def test_a_file_that_somebody_moved_away_is_begun_again_and_the_chain_goes_on(audit, tmp_path):
    one = audit().write(0)
    one.file.rename(tmp_path / "audit.jsonl.1")
    one.write(1).close()
    assert one.verify().intact
    assert [record["kind"] for record in one.records] == ["head", "request", "head", "request"]


def test_a_chain_sealed_with_another_key_is_put_aside(audit, tmp_path):
    (tmp_path / "audit.key").write_bytes(b"the old key the old key")
    audit().write(0).close()
    (tmp_path / "audit.key").write_bytes(KEY)
    two = audit().write(1).close()
    assert verify([two.file], KEY).intact
    assert verify([tmp_path / "audit.jsonl.1"], b"the old key the old key").intact


def test_a_link_or_a_device_is_never_written(audit, tmp_path, caplog):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "audit.jsonl").symlink_to(victim)
    one = audit().write(0)
    assert victim.read_text() == "mine"
    assert one.counters.total(AUDIT_FAILURES) == 1
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    one.clock.now += 2
    one.write(1)
    assert one.counters.total(AUDIT_FAILURES) == 2


@pytest.mark.parametrize("change", [{"file": Path("/nowhere/audit.jsonl")}, {"key_file": Path("/nowhere/key")}])
def test_a_wrong_place_is_said_at_once(audit, change):
    with pytest.raises(ConfigError, match="nowhere"):
        AuditSink(dataclasses.replace(audit().settings, **change), Counters())


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_audit import Audit, AUDIT_FAILURES
import logging
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
audit = Audit(Path(sys.argv[1]), fsync={fsync!r})
audit.write(0, 1)
size = audit.file.stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))  # the third record fits by half
audit.write(2, 3, 4)
for _ in range(3):  # it is tried again, in vain
    audit.clock.now += 2
    audit.sink.idle()
assert audit.counters.total(AUDIT_FAILURES) == 3
assert audit.file.stat().st_size == size, "no half record stays"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
audit.clock.now += 2
audit.sink.idle()
audit.write(5).close()
"""


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_full_disk_costs_records_and_says_so_in_the_log_and_the_chain(tmp_path, fsync, audit):
    program = FULL_DISK.format(here=str(Path(__file__).parent), fsync=fsync)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    failed, well = done.stdout.splitlines()
    assert failed.startswith("ERROR audit log: ")
    assert "File too large" in failed
    assert "3 records were lost" in well
    one = audit()
    assert one.verify().intact
    assert [(record["kind"], record.get("lost")) for record in one.records] == [
        ("head", None), ("request", None), ("request", None), ("gap", 3), ("request", None),
    ]  # fmt: skip


def test_a_head_is_read_as_it_is_printed():
    head = Head(12, "ab" * 32)
    assert Head.read(str(head), "--expect") == head
    with pytest.raises(ConfigError, match="SEQ:HASH"):
        Head.read("12:xyz", "--expect")


def test_a_record_that_cannot_be_made_is_a_gap_that_is_told(audit):
    one = audit().write(1)
    with pytest.raises(AttributeError):
        one.sink.take(None)
    one.write(2)
    assert [record.get("lost", record.get("request_id")) for record in one.records][1:] == ["r1", 1, "r2"]
