"""Alerts of others: what is asked, what comes back, and what is said when nothing does."""

import json

import pytest
from support.faulty_server import FaultyServer, page, status
from support.http import free_port
from support.waiting import wait_for
from vllm_vitals.exporter.live.rows import plain
from vllm_vitals.exporter.live.wording import alert_rows
from vllm_vitals.exporter.promises.alerts import Alert, AlertWatch, joined


def prometheus(*alerts):
    return json.dumps({"status": "success", "data": {"alerts": alerts}}).encode()


def told(name, state="firing", at="2026-12-01T05:44:03.123456789Z", **labels):
    return {
        "labels": {"alertname": name, "severity": "page", **labels}, "annotations": {"summary": f"{name} is bad"},
        "state": state, "activeAt": at, "value": "1e+00",
    }  # fmt: skip


def held(name, suppressed=(), **labels):
    by = {"silencedBy": [], "inhibitedBy": [], **{key: ["x"] for key in suppressed}}
    return {
        "labels": {"alertname": name, "severity": "page", **labels}, "annotations": {},
        "startsAt": "2026-12-01T05:45:00Z",
        "status": {"state": "suppressed" if suppressed else "active", **by},
    }  # fmt: skip


def asked(**urls):
    watch = AlertWatch(**urls, interval=0.2)
    watch.start()
    try:
        return wait_for(
            lambda: all(one.error != "not asked yet" for one in watch.latest.sources) and watch.latest, "an answer"
        )
    finally:
        watch.stop()


def test_pending_and_firing_alerts_come_with_what_alertmanager_does_about_them():
    behaviours = {
        "p": page(prometheus(told("A"), told("B", "pending"), told("C", gpu="1"))),
        "a": page(json.dumps([held("A", ("silencedBy",)), held("C", gpu="1", cluster="x"), held("D")]).encode()),
    }
    with FaultyServer(**behaviours) as server:
        found = asked(prometheus=f"{server.url}/p", alertmanager=f"{server.url}/a")
    assert [(one.name, one.state) for one in found.rows] == [
        ("C", "firing"),
        ("D", "firing"),
        ("B", "pending"),
        ("A", "silenced"),
    ]
    assert found.rows[0].labels["cluster"] == "x"
    (first, *_) = alert_rows(found).rows
    assert first.since == pytest.approx(1796103900.0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(500), "answers with 500"),
        (page(b"<html>"), "its answer is no JSON"),
        (page(b"[" * 100_000), "its answer is no JSON"),
        (page(b'{"data": []}'), "does not answer as Alertmanager does"),
        (page(b"[" + b" " * (5 << 20) + b"]"), "its answer has more than 4 MiB"),
    ],
)
def test_alerts_that_cannot_be_read_are_said_and_are_no_empty_list(answer, words):
    with FaultyServer(a=answer) as server:
        (source,) = asked(alertmanager=f"{server.url}/a").sources
    assert source.error == words


def test_nobody_at_the_address_is_said():
    (source,) = asked(alertmanager=f"http://127.0.0.1:{free_port()}").sources
    assert source.error == "nobody listens there"


@pytest.mark.parametrize("rows", [[None], [3], [{}], [{"labels": [], "annotations": 3, "startsAt": {}, "status": []}]])
def test_rows_of_another_form_are_no_failure(rows):
    with FaultyServer(a=page(json.dumps(rows).encode())) as server:
        found = asked(alertmanager=f"{server.url}/a")
    assert not found.sources[0].error
    assert json.dumps(alert_rows(found), default=plain)


def test_two_alerts_of_one_name_keep_their_own_state():
    one, other = ({"alertname": "A", "gpu": gpu} for gpu in "01")
    evaluated = [Alert("firing", labels, {}, 1.0) for labels in (one, other)]
    rows = joined(evaluated, [Alert("inhibited", other, {}, 2.0)])
    assert [(row.labels["gpu"], row.state) for row in rows] == [("0", "firing"), ("1", "inhibited")]


def test_only_so_many_are_held_and_their_number_is_told():
    with FaultyServer(p=page(prometheus(*(told("A", gpu=str(n)) for n in range(300))))) as server:
        found = asked(prometheus=f"{server.url}/p")
    assert (len(found.rows), found.total) == (100, 300)
