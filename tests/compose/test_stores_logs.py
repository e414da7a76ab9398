"""Log lines from Docker's file to Elasticsearch's fields, through the shipped Filebeat, pipelines and mapping.

Filebeat and Elasticsearch are emulated (support/log_pipeline.py): neither can be had here. The lines are real ones.
"""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import log_lines
from support.log_pipeline import Indexed, Ingest, RejectedError, filebeat, holds, index
from vllm_vitals.compose import log_store
from vllm_vitals.compose.bundle import SHIPPED
from vllm_vitals.compose.log_fields import BY_NAME, FIELDS

FOLDER = SHIPPED / "elasticsearch"
FILEBEAT = yaml.safe_load((SHIPPED / "filebeat/filebeat.yml").read_text())
MAPPING = json.loads((FOLDER / "logs-fields.json").read_text())
PIPELINES = {
    log_store.PIPELINE: json.loads((FOLDER / "logs-pipeline.json").read_text()),
    log_store.JSON_PIPELINE: json.loads((FOLDER / "logs-json-pipeline.json").read_text()),
}
PREFIX = "(EngineCore pid=123) "


def stored(*lines: str, **how) -> list[tuple[dict, Indexed]]:
    """Return (document, what can be searched of it) for each line of a container."""
    events = filebeat(FILEBEAT, log_lines.json_file(lines, **how), {"PROJECT": "vllm-vitals"})
    documents = [Ingest(PIPELINES).run(log_store.PIPELINE, event) for event in events]
    return [(document, index(MAPPING, document)) for document in documents]


def one(line: str, **how) -> Indexed:
    ((_, indexed),) = stored(line, **how)
    return indexed


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return log_lines.ours(tmp_path_factory.mktemp("state") / "s")


def test_the_files_are_made_from_the_table():
    for path, text in log_store.files().items():
        assert path.read_text() == text, "run python -m vllm_vitals.compose.log_store"


def test_every_field_that_our_writers_write_has_a_place_and_a_type_that_fits(ours):
    for document, indexed in stored(*ours):
        assert indexed.unmapped == []
        assert indexed.ignored == []
        assert "pipeline_error" not in document


def test_no_field_of_the_table_is_one_that_nobody_writes(ours, tmp_path):
    written = {name for line in ours for name in json.loads(line)}
    names = {"labels" if name.startswith("labels.") else name for name in written}
    assert {field.name for field in FIELDS if not field.made_here} - names == set()


def test_values_are_those_of_the_line(ours):
    for line, (_, indexed) in zip(ours, stored(*ours), strict=True):
        for name, value in json.loads(line).items():
            if name in BY_NAME:
                assert indexed.fields[name] == value, name


def test_a_request_can_be_searched_by_all_that_it_is(ours):
    _, indexed = stored(ours[0])[0]
    assert indexed.fields["@timestamp"].startswith("20")
    assert indexed.fields["@timestamp"] != log_lines.DOCKER_TIME
    assert indexed.fields["trace.id"] == f"{0xABC:032x}"
    assert indexed.fields["stream"] is True
    assert indexed.fields["log.iostream"] == "stdout"
    assert indexed.fields["labels.x_tenant"] == "beef"
    assert indexed.fields["container.name"] == "vllm-vitals-vllm-1"
    assert not [name for name in indexed.fields if name.startswith("json")]


def test_flat_names_come_to_the_same(ours, tmp_path):
    flat = log_lines.ours(tmp_path / "s", flat=True)
    for (_, ecs), (_, indexed) in zip(stored(*ours), stored(*flat), strict=True):
        moving = {"@timestamp", "error.stack_trace", "stack_info", "log.origin.file.line", "json.labels.error"}
        labels = {name for name in ecs.fields if name.startswith("labels.")}  # any name: these stay as json.labels_NAME
        for name in ecs.fields.keys() - moving - labels:
            assert indexed.fields[name] == ecs.fields[name], name


def test_json_behind_the_process_that_older_vllm_puts_in_front(ours):
    for (_, plain), (_, prefixed) in zip(stored(*ours), stored(*(PREFIX + line for line in ours)), strict=True):
        assert plain.fields == prefixed.fields


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (
            "(APIServer pid=77) WARNING 11-26 06:40:00 [api_server.py:1234] Using default chat template",
            {
                "process.name": "APIServer",
                "process.pid": 77,
                "log.level": "warning",
                "log.origin.file.name": "api_server.py",
                "log.origin.file.line": 1234,
                "message": "Using default chat template",
            },
        ),
        (
            "(EngineCore_DP0 pid=5) DEBUG 11-26 06:40:00 [v1/engine/.../core.py:9] [shutdown] trigger received\r",
            {"process.name": "EngineCore_DP0", "log.level": "debug", "message": "[shutdown] trigger received"},
        ),
        ("INFO 11-26 06:40:00 [core.py:9] ", {"log.level": "info", "message": "", "log.origin.file.line": 9}),
        (
            '(APIServer pid=1) INFO:     127.0.0.1:4711 - "GET /health HTTP/1.1" 200 OK',
            {"log.level": "info", "message": '127.0.0.1:4711 - "GET /health HTTP/1.1" 200 OK', "process.pid": 1},
        ),
        (
            "2026-11-26 06:40:00,815 WARNING server llama: down",
            {"log.level": "warning", "message": "server llama: down"},
        ),
        (
            "(Worker pid=8) [Gloo] Rank 0 is connected",
            {"process.name": "Worker", "message": "[Gloo] Rank 0 is connected"},
        ),
        ("Traceback (most recent call last):", {"message": "Traceback (most recent call last):"}),
        ('  File "core.py", line 1, in f', {"message": '  File "core.py", line 1, in f'}),
        (
            'time=2026-11-26T06:40:00Z level=ERROR source=main.go:1 msg="no"',
            {"log.level": "error", "message": 'time=2026-11-26T06:40:00Z level=ERROR source=main.go:1 msg="no"'},
        ),
        ("2026-11-26T06:40:00.1Z\tinfo\tservice.go:1\tReady", {"log.level": "info"}),
        (
            '{"level":"info","ts":1790000000.1,"caller":"a.go:1","msg":"Query server started","port":16686}',
            {"log.level": "info", "message": "Query server started", "json.caller": "a.go:1", "json.port": 16686},
        ),
    ],
)
def test_lines_of_vllm_and_of_others(line, fields):
    indexed = one(line)
    assert {name: indexed.fields.get(name) for name in fields} == fields
    assert indexed.fields["@timestamp"] == log_lines.DOCKER_TIME, "a line without year and zone keeps Docker's time"
    assert indexed.fields["service.name"] == "vllm"


def test_each_line_of_a_traceback_is_kept_with_level_and_place():
    head = "(EngineCore pid=9) ERROR 11-26 06:40:00 [core.py:17] "
    lines = [f"{head}EngineCore failed", f"{head}Traceback (most recent call last):", f'{head}  File "core.py", line 1']
    found = [indexed.fields["message"] for _, indexed in stored(*(f"{line}\r" for line in lines))]
    assert found == ["EngineCore failed", "Traceback (most recent call last):", '  File "core.py", line 1']


FOREIGN = [
    '{"log": "text", "error": "text", "trace": 1, "http": [], "service": null, "message": {"a": 1}}',
    '{"stream": "stdout", "status": "fine", "late": "perhaps", "input_tokens": "many", "e2e_ms": {}}',
    '{"log": {"level": {"a": 1}}, "error": {"type": ["a", "b"]}, "client": {"address": {}}}',
    '{"log.level": "info", "log": "a text in the way"}',
    '{"@timestamp": "yesterday", "message": "m"}',
    '{"@timestamp": 17, "level": 30, "msg": "pino"}',
    '{"a": {"b": {"c": [1, {"d": null}]}}, "": 1, "..": 2, "x.": 3}',
    '{"message": "one", "message": "two"}',
    '{"message": "torn',
    '{"number": NaN}',
    "{}",
    "{not json}",
    "[1, 2]",
    "17",
    "null",
    "",
    " ",
    "\x1b[32mINFO\x1b[0m \x00 \ufffd",
    "(",
    "(x pid=9999999999999999999999) {}",
]  # fmt: skip


@pytest.mark.parametrize("line", FOREIGN)
def test_nothing_is_lost_whatever_a_program_writes(line):
    (document, indexed), *more = stored(line)
    assert more == []
    assert document["message"] or not line.strip() or line == PREFIX
    everything = json.dumps(document, ensure_ascii=False)
    try:
        said = json.loads(line)
    except ValueError:
        assert document["message"] in line
        return
    for leaf in _texts(said):
        assert leaf in everything
    assert indexed.fields["@timestamp"]


def _texts(value) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def test_a_time_that_is_none_is_kept_and_the_line_marked():
    ((document, indexed),) = stored('{"@timestamp": "yesterday", "message": "m"}')
    assert indexed.fields["@timestamp"] == log_lines.DOCKER_TIME
    assert indexed.fields["json.@timestamp"] == "yesterday"
    assert document["pipeline_error"]["processor"] == "date"


def test_a_long_line_that_docker_cut_is_one_again(ours):
    line = json.loads(ours[0]) | {"message": "x" * 100_000, "user.hash": "y" * 3000}
    _, indexed = stored(json.dumps(line))[0]
    assert len(indexed.fields["message"]) == 100_000
    assert indexed.ignored == ["user.hash"]  # kept, too long to be searched


def test_a_long_line_takes_in_what_the_other_stream_wrote_between_its_records():
    """Not what one would want, but what Filebeat does: its parser joins records of both streams."""
    first, rest = log_lines.json_file(["x" * 20_000]).splitlines(keepends=True)
    (event,) = filebeat(FILEBEAT, first + log_lines.json_file(["y"], stream="stderr"), {"PROJECT": "vllm-vitals"})
    assert (event["message"], event["log"]["iostream"]) == ("x" * 16384 + "y", "stdout")
    (event,) = filebeat(FILEBEAT, rest, {"PROJECT": "vllm-vitals"})
    assert event["message"] == "x" * (20_000 - 16384)


def test_a_log_message_cannot_pretend_to_be_a_field():
    indexed = one('INFO 11-26 06:40:00 [logger.py:1] {"trace.id": "forged"}')
    assert "trace.id" not in indexed.fields
    assert indexed.fields["message"] == '{"trace.id": "forged"}'


def test_only_vllm_and_our_services_are_read():
    assert stored("line", service="somebody-elses") == []
    assert stored("line", service="elasticsearch") == []
    assert stored("line", service="gateway")
    forged = '"com.docker.compose.project":"vllm-vitals","com.docker.compose.service":"vllm"'
    assert stored(forged, service="other") == []


def test_a_container_outside_of_the_bundle_is_read_by_its_tag():
    record = {"log": "INFO 11-26 06:40:00 [a.py:1] hello\n", "stream": "stderr", "attrs": {"tag": "vllm-vitals/big"},
              "time": log_lines.DOCKER_TIME}  # fmt: skip
    text = json.dumps(record, separators=(",", ":")) + "\n"
    (event,) = filebeat(FILEBEAT, text.encode(), {"PROJECT": "vllm-vitals"})
    indexed = index(MAPPING, Ingest(PIPELINES).run(log_store.PIPELINE, event))
    assert indexed.fields["container.name"] == "vllm-vitals/big"
    assert indexed.fields["log.iostream"] == "stderr"


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
names = st.sampled_from(
    [field.name for field in FIELDS] + ["log", "error", "msg", "level", "ts", "labels.a"]
) | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
                      max_leaves=6)  # fmt: skip


@given(st.dictionaries(names, values, max_size=6))
def test_any_object_becomes_a_document_with_its_time_and_message(line):
    events = filebeat(FILEBEAT, log_lines.json_file([json.dumps(line)]), {"PROJECT": "vllm-vitals"})
    (event,) = events
    document = Ingest(PIPELINES).run(log_store.PIPELINE, event)
    assert isinstance(document["message"], str)
    try:
        index(MAPPING, document)
    except RejectedError as error:  # then the failure store has it: a list of objects where a word belongs
        assert "cannot be an object" in str(error) or "depth" in str(error)  # noqa: PT017


@given(st.text())
def test_any_text_keeps_its_line(text):
    line = " ".join(text.splitlines()).replace("\n", " ").replace("\r", " ")
    ((document, _),) = stored(f"x{line}")
    assert document["message"] == f"x{line}"


def test_a_condition_never_fails_since_that_would_end_the_pipeline(ours):
    processors = PIPELINES[log_store.JSON_PIPELINE]["processors"]
    conditions = [options["if"] for one in processors for options in one.values() if "if" in options]
    assert len(conditions) > len(FIELDS)
    odd = {name.split(".")[0]: "scalar" for name in BY_NAME} | {"@timestamp": []}
    for condition in conditions:
        holds(condition, {"json": odd})
        holds(condition, {"json": {}})


def test_the_index_template_is_for_the_stream_that_filebeat_writes():
    template = json.loads((FOLDER / "logs-template.json").read_text())
    settings = json.loads((FOLDER / "logs-settings.json").read_text())["template"]["settings"]
    assert FILEBEAT["output.elasticsearch"]["index"] == "logs-vllm-default"
    assert template["index_patterns"] == ["logs-vllm-*"]
    assert template["priority"] > 100  # of the built-in logs-*-*
    assert template["template"]["data_stream_options"]["failure_store"]["enabled"] is True
    assert settings["index.default_pipeline"] == log_store.PIPELINE
    assert settings["index.number_of_replicas"] == 0
    assert settings["index.mapping.ignore_malformed"] is True
