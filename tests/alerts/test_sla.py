"""The SLA file: what it takes, and how it says no."""

import re
import sys
from zoneinfo import ZoneInfo

import pytest
from vllm_vitals.alerts.sla_file import DEFAULT, load
from vllm_vitals.settings.scalars import ConfigError
from vllm_vitals.settings.tracing import GoodputSettings

A = "services: [{name: a, selector: {}}]\n"


def problem(path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_the_default_promises_every_indicator_and_limits_everything():
    sla = load()
    (service,) = sla.services
    assert [indicator for indicator, _ in service.objectives] == [
        "ttft", "tpot", "itl", "e2e", "queue", "availability", "engine_errors", "goodput",
    ]  # fmt: skip
    for limits in (service.limits, sla.gpus.limits):
        assert all(getattr(limits, name) is not None for name in limits.__slots__)


def test_the_plugin_calls_good_by_default_what_the_default_promises():
    """Else VLLMGoodputTargetDiffers would fire where nobody set anything."""
    (service,) = load().services
    goodput = GoodputSettings()
    assert service.objectives.ttft.promise.threshold == goodput.ttft
    assert service.objectives.tpot.promise.threshold == goodput.tpot


def test_the_default_shows_every_key_that_there_is():
    text = DEFAULT.read_text()
    sla = load()
    for part in (
        sla,
        sla.services[0],
        sla.services[0].objectives.itl,
        sla.events,
        sla.business_hours,
        sla.receivers["page"],
    ):
        for key in part.__slots__:
            assert re.search(rf"\b{key}:", text), key


def test_a_bare_promise_is_short_for_one_with_the_defaults(sla_of):
    short = sla_of("ttft: 99% under 500ms").services[0].objectives.ttft
    assert short == sla_of("ttft: {promise: 99% under 500ms}").services[0].objectives.ttft
    assert (short.severity, short.min_bad_events, short.hours) == ("page", 5, "always")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            "ttft: 99%",
            "sla.yaml:5: services[0].objectives.ttft: expected a promise such as '99% under 500ms', found 99%",
        ),
        ("availability: 99% under 1s", "availability: expected a promise such as '99.9%', without a time"),
        ("tttft: 99% under 1s", "services[0].objectives.tttft: unknown key, did you mean 'ttft'?"),
        ("goodput: 94%", "services[0].objectives.goodput: expected ttft and tpot beside it"),
        ("ttft: {promise: 99% under 1s, receiver: nobody}", "receiver: expected one of page, ticket, found 'nobody'"),
        ("ttft: {promise: 99% under 1s, min_bad_events: 0}", "min_bad_events: expected at least 1, found 0"),
        ("ttft: {promise: 99% under 1s, severity: loud}", "severity: expected page or ticket or off, found 'loud'"),
        ("ttft: 90% under 1s", "expected more than 93.06%, found 90%: the fast tier fires above 14.4 times the budget"),
        ("ttft: 99% under 1h", "expected a time from 1ms to 2560s, the outer buckets of vLLM's histogram, found 1h"),
    ],
)
def test_a_wrong_objective_is_refused(sla_of, tmp_path, objective, said):
    with pytest.raises(ConfigError) as caught:
        sla_of(objective)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/sla.yaml:")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("services: []\n", "expected one service or more, found none"),
        ("window: 3d\n" + A, ":1: window: expected 7d to 90d, found 3d"),
        ("retention: 15d\n" + A, ":1: retention: expected at least the window of 30d"),
        ("scrape_interval: 2m\n" + A, "scrape_interval: expected at most 75s"),
        ("services: [{name: A b, selector: {job: x}}]\n", "expected small letters, digits and dashes, found 'A b'"),
        ("services: [{name: gpus, selector: {job: x}}]\n", "expected another name"),
        ("services: [{name: a, selector: {job: '~(x'}}]\n", "expected a regular expression after ~"),
        ("services: [{name: a, selector: {job: '~(?=x)'}}]\n", "expected RE2, without lookaround"),
        ("services: [{name: a, selector: {__name__: x}}]\n", "expected a label name, found '__name__'"),
        ("services:\n- {name: a, selector: {}}\n- {name: a, selector: {}}\n", "different names, found 'a' twice"),
        ("services: [{name: a, selector: {}, traffic: lots}]\n", "traffic: expected a rate such as '0.5 rps'"),
        (A + "business_hours: {days: fri-mon}\n", "days: expected days such as mon-fri"),
        (A + "business_hours: {timezone: Mars}\n", "timezone: expected a time zone"),
        (A + "receivers: {x: {type: slack, channel: c}}\n", "expected the key 'url_file' for slack"),
        (A + "receivers: {x: {type: pagerduty, key_file: k, url: u}}\n", "url: not a key of pagerduty"),
        (A + "events: {gpu_losst: page}\n", "events.gpu_losst: unknown key, did you mean 'gpu_lost'?"),
        (A + "gpus: {limits: {temperature: at most 85 F}}\n", "temperature: expected a limit such as"),
        ("", "expected the key 'services', found an empty file"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_line_key_found_and_expected(write, lines, said):
    assert said in problem(write(lines))


def test_a_machine_without_time_zones_takes_utc_and_whatever_looks_like_one(write, monkeypatch):
    """A container without tzdata: there the default SLA was refused, and the demo of the bundle did not start."""
    monkeypatch.setattr("zoneinfo.TZPATH", ())
    monkeypatch.setitem(sys.modules, "tzdata", None)
    ZoneInfo.clear_cache()
    assert load(DEFAULT).business_hours.timezone == "UTC"
    assert load(write(A + "business_hours: {timezone: Europe/Berlin}\n")).business_hours.timezone == "Europe/Berlin"
    assert "timezone: expected a time zone" in problem(write(A + "business_hours: {timezone: Mars}\n"))


def test_a_promise_given_twice_is_refused(write):
    text = "services:\n- name: a\n  selector: {job: x}\n  objectives:\n    ttft: 99% under 1s\n    ttft: 95% under 2s\n"
    assert problem(write(text)).endswith("sla.yaml:6: services[0].objectives.ttft: given twice")


def test_a_guard_that_makes_a_promise_blind_is_refused(write):
    text = "services: [{name: a, selector: {job: x}, traffic: 3/h, objectives: {availability: 99.9%}}]\n"
    assert "expected min_bad_events of at most 3, the requests of 1h" in problem(write(text))
    assert load(write(text.replace("3/h", "60/h"))).services[0].traffic.rps == pytest.approx(1 / 60)


def test_a_time_outside_of_the_buckets_is_taken_where_the_engines_run_with_the_flag(write):
    text = "services: [{name: a, selector: {job: x}, custom_buckets: on, objectives: {e2e: 99% under 100ms}}]\n"
    assert load(write(text)).services[0].objectives.e2e.promise.threshold == 0.1
