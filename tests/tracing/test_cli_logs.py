import json
from pathlib import Path

import pytest
from vllm_vitals.settings.tracing import AuditSettings
from vllm_vitals.tracing.audit.log import AuditSink
from vllm_vitals.tracing.counters import Counters
from vllm_vitals.tracing.request.records import RequestRecord, Trace


@pytest.fixture
def audit(tmp_path):
    """Write an audit log; returns its key file and file."""
    key_file, file = tmp_path / "audit.key", tmp_path / "audit.jsonl"
    key_file.write_text("0123456789abcdef0123456789abcdef\n")
    key_file.chmod(0o600)
    sink = AuditSink(AuditSettings(file=file, key_file=key_file, max_bytes=2000), Counters())
    for number in range(12):
        sink.take(RequestRecord(f"r{number}", "llama", "ok", 0.0, 1.0, Trace(1, 2)))
    sink.close(0.0)
    return key_file, file


def audit_files(file):
    return [path for path in file.parent.glob("audit.jsonl*") if path.suffix != ".lock"]


@pytest.mark.parametrize("words", [("logging-config",), ("audit", "verify"), ("audit",)])
def test_the_help_has_an_example(command, words):
    code, out, _ = command(*words, "--help")
    assert code == 0
    assert f"\n  vllm-vitals {' '.join(words)}" in out


def test_logging_config_prints_json_and_nothing_else(command):
    code, out, err = command("logging-config")
    assert (code, err) == (0, "")
    assert json.loads(out)["formatters"]["json"]["names"] == "ecs"


def test_logging_config_passes_every_option_on(command):
    _, out, _ = command(
        "logging-config", "--names", "flat", "--service-name", "chat", "--level", "debug",
        "--redact", "email,card", "--redact", "ssn", "--redact-pattern", "ticket=TCK-[0-9]+=x",
    )  # fmt: skip
    config = json.loads(out)
    assert config["loggers"]["vllm"]["level"] == "DEBUG"
    formatter = config["formatters"]["json"]
    del formatter["()"]
    assert formatter == {
        "names": "flat",
        "service_name": "chat",
        "redact": ["card", "email", "ssn"],
        "redact_patterns": {"ticket": "TCK-[0-9]+=x"},
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--redact", "emial"], "did you mean 'email'"),
        (["--redact-pattern", "x"], "NAME=REGEX"),
        (["--level", "x"], "INFO"),
    ],
)
def test_logging_config_refuses_what_is_wrong(command, options, words):
    code, out, err = command("logging-config", *options)
    assert (code, out) == (2, "")
    assert words in err


def test_audit_verify_says_intact_and_prints_the_head_last(command, audit):
    key_file, file = audit
    files = audit_files(file)
    code, out, _ = command("audit", "verify", "--key-file", key_file, *sorted(files))
    assert code == 0
    *_, verdict, first, head = out.splitlines()
    assert f"intact, {12 + len(files)} good records in {len(files)} files" in verdict
    assert first == "first seq 0"
    code, _, _ = command("audit", "verify", "--key-file", key_file, "--expect", head.split()[1], *files)
    assert code == 0


def test_audit_verify_names_file_line_and_number_of_what_was_edited(command, audit):
    key_file, file = audit
    file.write_text(file.read_text().replace("llama", "lama_", 1))
    seq = json.loads(file.read_text().splitlines()[1])["seq"]
    code, out, _ = command("audit", "verify", "--key-file", key_file, *audit_files(file))
    assert code == 1
    assert f"{file}:2: seq {seq}: edited" in out
    assert "BROKEN" in out


def test_audit_verify_of_an_empty_file_says_what_that_means(command, audit, tmp_path):
    key_file, file = audit
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    code, out, _ = command("audit", "verify", "--key-file", key_file, empty)
    said = "EMPTY: nothing was ever written to it, or somebody emptied it, 0 good records in 1 files"
    assert (code, out) == (1, f"{empty}: {said}\n")
    code, out, _ = command("audit", "verify", "--key-file", key_file, "--expect", f"3:{'a' * 64}", empty)
    assert (code, "expected records up to here, there is none" in out) == (1, True)
    file.write_bytes(b"")  # the youngest of a chain
    code, out, _ = command("audit", "verify", "--key-file", key_file, *audit_files(file))
    assert code == 1
    assert f"{file}:0: truncated: the file is empty, and each begins with its head record" in out
    assert "BROKEN (1 problem)" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--key-file", "/nowhere/key"], "/nowhere/key"),
        (["--expect", "12"], "SEQ:HASH"),
        (["/nowhere/audit.jsonl"], "/nowhere/audit.jsonl"),
    ],
)
def test_audit_verify_refuses_wrong_input(command, audit, options, words):
    key_file, file = audit
    code, out, err = command("audit", "verify", "--key-file", key_file, Path(file), *options)
    assert code == 2
    assert words in err
    assert "Traceback" not in out + err
