"""Which spans are kept."""

import pytest
from vllm_vitals.settings.scalars import ConfigError, Ratio, Seconds
from vllm_vitals.settings.tracing import Keep, SamplingSettings
from vllm_vitals.tracing.request.records import SequenceRecord
from vllm_vitals.tracing.request.sampling import Sampler, in_ratio
from vllm_vitals.tracing.request.trace_context import Incoming, new_trace_id, parse_traceparent

CALLER = Incoming(0xABC, 0xDEF, sampled=True)
QUIET = CALLER._replace(sampled=False)
FAST = SequenceRecord("r", "r-1", 0, "m", arrival=10.0, finished=11.0, first_token=10.1, last_token=11.0)


def sampler(environ=None, clock=lambda: 0.0, **settings):
    return Sampler(SamplingSettings(**settings), environ or {}, clock)


def test_without_a_word_from_anybody_everything_is_kept():
    head = sampler().begin(None)
    assert head.sampled
    assert head.parent_span_id == 0
    assert head.trace_id


def test_a_callers_trace_goes_on_with_its_decision():
    assert sampler().begin(CALLER)[:3] == (0xABC, 0xDEF, True)
    assert sampler().begin(QUIET)[:3] == (0xABC, 0xDEF, False)


def test_restart_makes_a_new_trace_that_links_to_the_callers():
    head = sampler(incoming="restart").begin(CALLER)
    assert head.trace_id != 0xABC
    assert head.parent_span_id == 0
    assert head.link == (0xABC, 0xDEF)


def test_ignore_forgets_the_caller():
    head = sampler(incoming="ignore").begin(QUIET)
    assert head.trace_id != 0xABC
    assert head.sampled
    assert head.link is None


def test_always_off_still_honours_a_sampled_caller():
    quiet = sampler({"OTEL_TRACES_SAMPLER": "parentbased_always_off"})
    assert not quiet.begin(None).sampled
    assert quiet.begin(CALLER).sampled


def test_a_sampler_that_is_not_parent_based_does_not_listen_to_callers():
    assert not sampler({"OTEL_TRACES_SAMPLER": "always_off"}).begin(CALLER).sampled
    assert sampler({"OTEL_TRACES_SAMPLER": "always_on"}).begin(QUIET).sampled


def test_a_ratio_keeps_its_share_and_decides_by_the_trace_id():
    one_in_ten = sampler({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"})
    heads = [one_in_ten.begin(None) for _ in range(20_000)]
    assert 1_600 < sum(head.sampled for head in heads) < 2_400
    assert all(head.sampled == in_ratio(head.trace_id, 0.1) for head in heads)


def test_callers_cannot_force_more_than_the_cap():
    now = [0.0]
    capped = sampler({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, lambda: now[0], forced_per_second=5.0)
    assert sum(capped.begin(CALLER).sampled for _ in range(100)) == 5
    assert capped.refused == 95
    now[0] = 1.0
    assert sum(capped.begin(CALLER).sampled for _ in range(100)) == 5


@pytest.mark.parametrize("name", ["sometimes", "parentbased_sometimes", "jaeger_remote"])
def test_an_unknown_sampler_is_named(name):
    with pytest.raises(ConfigError, match=f"OTEL_TRACES_SAMPLER: expected always_on.*found '{name}'"):
        sampler({"OTEL_TRACES_SAMPLER": name})


@pytest.mark.parametrize("argument", ["2", "-1", "many", "nan"])
def test_a_wrong_ratio_is_named(argument):
    with pytest.raises(ConfigError, match="OTEL_TRACES_SAMPLER_ARG: expected a share from 0 to 1"):
        sampler({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument})


KEEP = (
    Keep("errors"),
    Keep("aborted"),
    Keep("preempted"),
    Keep("ttft", Seconds(2)),
    Keep("e2e", Seconds(30)),
)


@pytest.mark.parametrize(
    ("outcome", "e2e", "sequences", "reason"),
    [
        ("server_error", 1.0, (), "errors"),
        ("client_error", 1.0, (), "errors"),
        ("rejected", 1.0, (), "errors"),
        ("aborted", 1.0, (FAST,), "aborted"),
        ("disconnected", 1.0, (FAST,), "aborted"),
        ("ok", 31.0, (FAST,), "e2e"),
        ("ok", 1.0, (SequenceRecord("r", "r", 0, "m", 10.0, 15.0, first_token=12.1),), "ttft"),
        ("ok", 1.0, (SequenceRecord("r", "r", 0, "m", 10.0, 15.0, preemptions=((1.0, 2.0),)),), "preempted"),
        ("ok", 1.0, (FAST,), ""),
    ],
)
def test_what_is_worth_keeping_is_kept_when_it_is_over(outcome, e2e, sequences, reason):
    rule = sampler(keep=KEEP, rest=Ratio(0))
    for head in (rule.begin(None), rule.begin(QUIET)):
        assert rule.finish(head, outcome, e2e, sequences) == (bool(reason), reason)


def test_a_caller_who_asked_gets_its_trace_whatever_the_rule_says():
    rule = sampler(keep=KEEP, rest=Ratio(0))
    assert rule.finish(rule.begin(CALLER), "ok", 1.0, (FAST,)) == (True, "parent")


def test_of_the_rest_a_share_is_kept_but_not_where_the_caller_said_no():
    rule = sampler(keep=KEEP, rest=Ratio(0.5))
    kept = [rule.finish(rule.begin(None), "ok", 1.0, (FAST,))[0] for _ in range(2_000)]
    assert 800 < sum(kept) < 1_200
    assert not any(
        rule.finish(rule.begin(QUIET._replace(trace_id=new_trace_id())), "ok", 1.0, ())[0] for _ in range(99)
    )


@pytest.mark.parametrize("incoming", ["continue", "restart", "ignore"])
@pytest.mark.parametrize("name", ["always_on", "parentbased_always_on", "parentbased_traceidratio"])
def test_where_the_header_alone_says_no_so_does_the_decision(name, incoming):
    made = sampler({"OTEL_TRACES_SAMPLER": name}, incoming=incoming)
    said = 0
    for flags in range(256):
        header = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-%02x" % flags
        if made.says_no(header):
            said += 1
            assert not made.begin(parse_traceparent(header)).sampled
    assert said == (32 if name != "always_on" and incoming != "ignore" else 0)  # last digit 0 or 2
    assert not made.says_no(b"00-00")
