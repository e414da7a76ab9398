"""The hooks' targets in every vLLM release."""

import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from vllm_vitals.tracing import start
from vllm_vitals.tracing.hooks import vllm_methods as hooks
from vllm_vitals.tracing.hooks.vllm_methods import HOOKS, mismatch
from vllm_vitals.tracing.logs.context import SERVED
from vllm_vitals.tracing.request.in_flight import _FIELDS, UNWANTED, Timeline, Times

DATA = Path(__file__).parents[1] / "data/vllm-signatures.json"


def releases():
    """Return version -> (signatures, fields), each whole."""
    signatures, fields, result = {}, {}, {}
    for version, changes in json.loads(DATA.read_text()).items():
        signatures = {**signatures, **changes["signatures"]}
        fields = {**fields, **changes["fields"]}
        result[version] = (signatures, fields)
    return result


RELEASES = releases()


def signature(parameters):
    namespace = {}
    exec(f"def method({parameters}): ...", namespace)
    return inspect.signature(namespace["method"])


def test_the_file_holds_the_releases_that_we_promise():
    assert {"0.10.2", "0.11.0", "0.11.1", "0.20.0", "0.32.0", "0.33.0"} <= RELEASES.keys()
    assert len(RELEASES) >= 20


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_hook_fits(hook, version):
    assert mismatch(signature(RELEASES[version][0][hook.name]), hook.parameters) == ""


@pytest.mark.parametrize("version", RELEASES)
def test_what_is_read_of_vllms_objects_is_there(version):
    _, fields = RELEASES[version]
    read = {*_FIELDS, "parent_req", "stats"} - {"external_req_id"}
    assert read <= {*fields["RequestState"]}
    assert {*Times._fields} <= {*fields["RequestStateStats"]}
    assert {"request_id", "sampling_params", "trace_headers"} <= {*fields["EngineCoreRequest"]}
    durations = {"e2e_latency", "queued_time", "inference_time", "decode_time", "num_generation_tokens"}
    assert durations | {"num_prompt_tokens", "finish_reason", "max_tokens_param"} <= {*fields["FinishedRequestStats"]}
    assert {"QUEUED", "SCHEDULED", "PREEMPTED"} <= {*fields["EngineCoreEventType"]}


@pytest.mark.parametrize("version", RELEASES)
def test_stat_logger_takes_what_vllm_gives_it(version):
    signatures, _ = RELEASES[version]
    has_plugins = tuple(map(int, version.split("."))) >= (0, 11, 1)
    assert (signatures.get("AggregateStatLoggerBase.__init__") is not None) == has_plugins
    if has_plugins:
        assert [*signature(signatures["AggregateStatLoggerBase.__init__"]).parameters] == [
            "self", "vllm_config", "engine_indexes",
        ]  # fmt: skip
    record = [*signature(signatures["StatLoggerBase.record"]).parameters]
    assert record[1:3] == ["scheduler_stats", "iteration_stats"]
    assert "engine_idx" in record


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("self, request_ids, internal", ""),
        ("self, request_ids, *more, **others", ""),
        ("self, ids", "expected the parameters request_ids, found ids"),
        ("self", "expected the parameters request_ids, found none"),
        ("self, *, request_ids", "expected request_ids to be positional parameters"),
        ("self, internal, request_ids", "expected the parameters request_ids, found internal"),
    ],
)
def test_a_changed_signature_is_told(parameters, reason):
    assert mismatch(signature(parameters), ("request_ids",)) == reason


@pytest.fixture
def old_vllm(monkeypatch):
    """The two classes that the hooks go around, with the signatures of a vLLM that has no stat logger plugins."""
    added = []

    class OutputProcessor:
        def __init__(self):
            self.request_states = {}

        def add_request(self, request, prompt, parent_req=None, request_index=0, queue=None):
            added.append(request.request_id)
            if prompt == "end":  # of a streamed input that was answered already
                del self.request_states[request.request_id]
            elif request.request_id not in self.request_states:
                self.request_states[request.request_id] = SimpleNamespace(stats=None)

        def _update_stats_from_finished(self, req_state, finish_reason, iteration_stats):
            pass

    class IterationStats:
        pass

    for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, owner in (("engine.output_processor", OutputProcessor), ("metrics.stats", IterationStats)):
        module = ModuleType(f"vllm.v1.{name}")
        setattr(module, owner.__name__, owner)
        monkeypatch.setitem(sys.modules, f"vllm.v1.{name}", module)
    return SimpleNamespace(OutputProcessor=OutputProcessor, added=added)


class Live:
    """What the hooks need of the running plugin."""

    processor = tracing = None
    capture_content = waits_for_native = many_engines = only_traces = False

    def __init__(self):
        self.submitted = []

    def submit(self, done):
        self.submitted.append(done)

    def hook_failed(self, hook, error):
        raise AssertionError(hook) from error


@pytest.mark.parametrize("starts_first", ["request", "middleware"])
def test_an_old_vllm_is_hooked_when_it_shows_itself(old_vllm, starts_first):
    live = Live()
    starts = []

    def start(_processor=None):
        starts.append(1)
        assert hooks.install(live)["OutputProcessor.add_request"] == ""

    hooks.when_first_called("OutputProcessor.add_request", start)
    if starts_first == "middleware":
        start()
    processor = old_vllm.OutputProcessor()
    for name in ("a", "b"):
        processor.add_request(request(name), None)
    assert old_vllm.added == ["a", "b"]
    assert starts == [1]
    assert all(hasattr(state, "vllm_vitals") for state in processor.request_states.values())


def request(name):
    return SimpleNamespace(request_id=name, trace_headers=None, sampling_params=None)


def test_a_streamed_input_is_one_sequence_and_ends_with_its_last_piece(old_vllm):
    live = Live()
    hooks.install(live)
    processor = old_vllm.OutputProcessor()
    processor.add_request(request("a"), "begin")
    state = processor.request_states["a"]
    state.__dict__.update(request_id="a", parent_req=None)
    processor.add_request(request("a"), "more")
    assert live.submitted == []
    processor.add_request(request("a"), "end")
    (timeline,) = live.submitted
    assert timeline is state.vllm_vitals
    assert (timeline.done, timeline.finish_reason, timeline.facts[1]) == (True, "stop", "a")


@pytest.mark.parametrize("by", ["position", "keyword", "default"])
def test_what_is_unwanted_goes_straight_to_vllm_however_it_is_called(old_vllm, by):
    live = Live()
    live.only_traces = True
    hooks.install(live)
    assert inspect.signature(old_vllm.OutputProcessor.add_request) == inspect.signature(
        old_vllm.OutputProcessor.add_request.__wrapped__
    )
    processor = old_vllm.OutputProcessor()
    token = SERVED.set(UNWANTED)
    try:
        if by == "position":
            processor.add_request(request("a"), None, None, 0, None)
        elif by == "keyword":
            processor.add_request(prompt=None, request=request("a"), queue=None)
        else:
            processor.add_request(request("a"), None)
        processor._update_stats_from_finished(processor.request_states["a"], "stop", iteration_stats=None)
    finally:
        SERVED.reset(token)
    assert old_vllm.added == ["a"]
    assert not hasattr(processor.request_states["a"], "vllm_vitals")
    processor.add_request(request("b"), prompt=None)  # nobody said that this one is unwanted
    assert hasattr(processor.request_states["b"], "vllm_vitals")
    with pytest.raises(TypeError):
        processor.add_request()


def test_a_short_cut_that_fails_takes_the_long_way(old_vllm):
    steps = []

    class IterationStats:
        def update_from_events(self, req_id, events, is_prefilling, req_stats, lora_stats):
            steps.append(events)

    sys.modules["vllm.v1.metrics.stats"].IterationStats = IterationStats
    failures = []
    live = Live()
    live.hook_failed = lambda hook, error: failures.append(hook)
    hooks.install(live)
    statistics = IterationStats()
    seen = SimpleNamespace(vllm_vitals=Timeline())
    queued = [SimpleNamespace(type=1), SimpleNamespace(type=2)]
    preempted = [SimpleNamespace(type=3)]
    for events in (queued, preempted, None):
        statistics.update_from_events("a", events, False, seen, None)
    assert steps == [queued, preempted, None]
    assert seen.vllm_vitals.events == [preempted, None]
    assert failures == []


@pytest.mark.parametrize("lacking", ["add_request", "_update_stats_from_finished"])
def test_where_begin_or_end_cannot_be_seen_neither_is_hooked(old_vllm, lacking):
    delattr(old_vllm.OutputProcessor, lacking)
    originals = {**vars(old_vllm.OutputProcessor)}
    unfit = hooks.install(Live())
    assert all(unfit.values())
    assert {**vars(old_vllm.OutputProcessor)} == originals


@pytest.mark.parametrize("tracer", [None, object()])
def test_an_old_vllm_says_by_its_tracer_whether_it_traces(old_vllm, monkeypatch, tracer):
    told = []
    monkeypatch.setattr(start, "in_api_server", lambda _, __, native: told.append(native))
    start.at_first_request()
    processor = old_vllm.OutputProcessor()
    processor.tracer = tracer
    for name in ("a", "b"):
        processor.add_request(request(name), None)
    assert told == [tracer is not None]


def test_a_start_that_fails_leaves_an_old_vllm_alone(old_vllm, caplog):
    def start(_processor):
        raise RuntimeError("broken")

    hooks.when_first_called("OutputProcessor.add_request", start)
    processor = old_vllm.OutputProcessor()
    processor.add_request(SimpleNamespace(request_id="a"), None)
    assert old_vllm.added == ["a"]
    assert "tracing stays off" in caplog.text
