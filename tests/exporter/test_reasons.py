"""Each reason code that we report has its row in vocabulary/reasons.py, and each row is a code that we report."""

import ast
import typing
from dataclasses import fields
from pathlib import Path

import pytest
import vllm_vitals
from vllm_vitals.exporter.engines.engine import Engine, Fetched
from vllm_vitals.exporter.gpus.nvml.fields import FIELDS
from vllm_vitals.exporter.gpus.types import GPU_REASONS, SOURCE_REASONS, GpuError
from vllm_vitals.exporter.live.health import engine_verdict
from vllm_vitals.exporter.live.rows import GpuRow
from vllm_vitals.exporter.live.wording import gpu_notes, messages
from vllm_vitals.settings.config import EngineSettings, HealthSettings
from vllm_vitals.vocabulary import reasons
from vllm_vitals.vocabulary.ours import OURS, VALUES
from vllm_vitals.vocabulary.reasons import DRIVER, FETCH, GPU, HOST, REFUSAL, THROTTLE

ROOT = Path(vllm_vitals.__file__).parent
TABLES = {"Fetch": FETCH, "Gpu": GPU, "Gpus": DRIVER, "Throttle": THROTTLE, "Host": HOST, "Refusal": REFUSAL}
# Where the codes of a table are made, and the calls that take one, by the place of the argument.
EMITTERS = {
    "Fetch": ("exporter/engines", {"FetchError": 0, "_failed": 1, "Fetched": 4}),
    "Gpu": ("exporter/gpus", {"down": 0, "count_failure": 0, "_fail": 0}),
    "Gpus": ("exporter", {"GpuError": 0, "UnreadableGpu": 1, "_not_open": 0}),
    "Throttle": ("exporter/gpus", {"_throttled": 0}),
    "Host": ("exporter/machine/host.py", {"_up": 0}),
    "Refusal": ("exporter/http", {"_RefusedError": 0}),
}


def members(code: object) -> set[str]:
    """Return the members of a union of Literals."""
    arguments = typing.get_args(code)
    return {one for each in arguments for one in (members(each) if typing.get_args(each) else {each})}


def syntax_of(place: str) -> list[ast.AST]:
    paths = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    return [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def strings(node: ast.AST) -> set[str]:
    """Return what an expression may be: a string, or one of two."""
    if isinstance(node, ast.IfExp):
        return strings(node.body) | strings(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


@pytest.mark.parametrize("name", TABLES)
def test_the_type_of_a_code_and_its_table_name_the_same(name):
    table = TABLES[name]
    assert members(getattr(reasons, f"{name}Code")) == {*table}
    assert all(code == row.code for code, row in table.items())


@pytest.mark.parametrize("name", TABLES)
def test_a_code_that_is_emitted_is_explained(name):
    folder, calls = EMITTERS[name]
    emitted = {
        code
        for node in syntax_of(folder)
        if isinstance(node, ast.Call)
        and (place := calls.get(getattr(node.func, "id", getattr(node.func, "attr", "")))) is not None
        and place < len(node.args)
        for code in strings(node.args[place])
    }
    assert emitted
    assert emitted - {"", "unsupported"} <= TABLES[name].keys()  # a call that is not supported takes no GPU down


@pytest.mark.parametrize("name", TABLES)
def test_a_code_that_is_explained_is_emitted(name):
    written = {code for node in syntax_of(EMITTERS[name][0]) for code in strings(node)}
    assert {*TABLES[name]} - written == set()


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_words_and_not_the_code_again(name):
    for row in TABLES[name].values():
        for words in (row.meaning, row.advice):
            assert not words.endswith(".")
            assert words != row.code
        assert " " in row.meaning


def test_every_label_named_reason_has_its_values_and_each_is_explained():
    explained = {code for table in TABLES.values() for code in table}
    for metric in OURS.values():
        if "reason" in metric.labels:
            assert set(VALUES[metric.name, "reason"]) <= explained


def test_every_label_of_a_field_value_has_a_declared_value():
    for field in FIELDS:
        if field.label is not None and (field.family, field.label[0]) in VALUES:
            assert field.label[1] in VALUES[field.family, field.label[0]]


def test_every_declared_throttle_reason_is_read():
    times = {field.label[1] for field in FIELDS if field.family == "nvidia_gpu_throttle_seconds_total"}
    assert set(VALUES["nvidia_gpu_throttle_seconds_total", "reason"]) == times


@pytest.mark.parametrize("code", sorted(FETCH))
def test_health_explains_every_failed_fetch(code):
    settings = EngineSettings(url="http://127.0.0.1:1")
    engine = Engine(settings, "config", raw_names=False, max_page_bytes=1000, sample_interval=1.0)
    (words,) = engine_verdict(engine, Fetched(1.0, 0.1, b"", None, code, "HTTP 500"), HealthSettings()).reasons
    assert words.startswith(f"down ({code}): {FETCH[code].meaning}")
    assert words.endswith(": HTTP 500") == FETCH[code].open


@pytest.mark.parametrize("code", sorted(SOURCE_REASONS))
def test_the_page_explains_why_no_gpu_is_read_and_what_to_do(code):
    (words,) = messages(code, engines=1)
    assert DRIVER[code].meaning in words
    assert DRIVER[code].advice[1:] in words
    assert words.endswith(".")


@pytest.mark.parametrize("code", sorted(GPU_REASONS))
def test_the_page_explains_why_a_gpu_is_not_readable(code):
    row = dict.fromkeys(field.name for field in fields(GpuRow))
    made = GpuRow(**row | {"up": False, "reason": code, "symptoms": (), "throttle": (), "xid": ()})
    (note,) = gpu_notes(made, 0.0)
    assert note.words == f"not readable: {GPU[code].meaning}"


@pytest.mark.parametrize("code", sorted({*SOURCE_REASONS, "unsupported", "something new"}))
def test_what_ails_the_driver_is_reported_of_a_gpu_only_by_a_gpus_code(code):
    assert reasons.gpu_code(GpuError(code).reason) in GPU_REASONS
    assert reasons.driver_code(GpuError(code).reason) in SOURCE_REASONS
