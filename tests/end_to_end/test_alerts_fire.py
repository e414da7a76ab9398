"""Alerts fire for real: every scene of the demo, through real exporters, Prometheus and Alertmanager, to a webhook.

Everything is played once, by one fixture; the tests then read what was recorded. Which alerts a scene raises follows
from its description and from the SLA in support/demo_stage.py.
"""

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from support.demo_stage import Playing, stage
from support.shortened_rules import shortened_expression
from support.waiting import wait_for
from support.webhook import Delivery

pytestmark = pytest.mark.waits

TIERS = ("fast", "medium", "slow", "trickle")


class Expected(NamedTuple):
    """What a scene raises.

    Attributes:
        playing: how often and how fast.
        delivered: alerts that reach the webhook.
        inhibited: alerts that fire in Prometheus and reach nobody, with the alert that explains them.
        lasting: delivered alerts that outlive the test, with the reason.
    """

    playing: Playing
    delivered: frozenset[str] = frozenset()
    inhibited: Mapping[str, str] = {}
    lasting: Mapping[str, str] = {}


EXPECTED = {
    "steady": Expected(Playing(1, 1)),
    "slow-prefill": Expected(
        Playing(3, 4), frozenset({"VLLMTTFTBudgetBurn", "VLLMQueueBudgetBurn", "VLLMGoodputBudgetBurn"})
    ),
    "kv-pressure": Expected(
        Playing(1, 6),
        frozenset(
            {
                "VLLMTTFTBudgetBurn",
                "VLLMQueueBudgetBurn",
                "VLLMGoodputBudgetBurn",
                "VLLMKVCacheFull",
                "VLLMPreemptionsHigh",
                "VLLMQueueLong",
            }
        ),
    ),
    "gpu-throttle": Expected(
        Playing(1, 2.5),
        frozenset({"VLLMTPOTBudgetBurn", "VLLMGoodputBudgetBurn", "GPUThrottled", "GPUTemperatureHigh"}),
    ),
    "xid": Expected(
        Playing(1, 1),
        frozenset(
            {
                "GPUXidFatal",  # 79, the lost GPU
                "GPULost",
                "VLLMEngineStalled",  # the engine waits for it in a collective
                "VLLMServerDown",  # then it crashes
                "VLLMModelDown",  # both times nobody serves the model
                "GPUXidApplication",  # 94, the other GPU
                "GPUEccUncorrected",
                "GPURowsRemapped",
                "GPURecoveryAction",
            }
        ),
        inhibited={"VLLMThroughputLow": "VLLMModelDown", "GPUStaleSnapshot": "GPULost"},
        lasting={"GPURowsRemapped": "rows remapped within a day: 48 minutes here"},
    ),
    "engine-crash": Expected(Playing(1, 1), frozenset({"VLLMServerDown", "VLLMModelDown"})),
    "burst": Expected(
        Playing(1, 1.25),
        frozenset(
            {
                "VLLMTTFTBudgetBurn",
                "VLLMTPOTBudgetBurn",
                "VLLMQueueBudgetBurn",
                "VLLMGoodputBudgetBurn",
                "VLLMQueueLong",
            }
        ),
    ),
}


class Recorded(NamedTuple):
    """What happened.

    Attributes:
        deliveries: what reached the webhook, oldest first.
        fired: alerts that fired in Prometheus: their labels, and the Unix times of the evaluations that found so.
        starved: how far the machine fell behind, empty when it kept up.
    """

    deliveries: list[Delivery]
    fired: list[tuple[Mapping[str, str], list[float]]]
    starved: str

    def told(self, scene: str, status: str = "firing") -> set[str]:
        """Return the alerts of a scene that reached the webhook."""
        return {
            delivery.name
            for delivery in self.deliveries
            if delivery.status == status and scene_of(delivery.labels) == scene
        }

    def untold(self, scene: str) -> set[str]:
        """Return the alerts of a scene that fired and are not among those that should reach anybody."""
        names = {labels["alertname"] for labels, _ in self.fired if scene_of(labels) == scene}
        return names - EXPECTED[scene].delivered

    def as_expected(self) -> bool:
        """Tell whether each scene raised what it should, and nothing is left of it."""
        return not unresolved(self.deliveries) and all(
            self.told(scene) == expected.delivered and self.untold(scene) == expected.inhibited.keys()
            for scene, expected in EXPECTED.items()
        )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recorded:
    """Play all scenes side by side; says nothing when something else came of a machine that had no time for them."""
    result = played(tmp_path_factory.mktemp("stage"))
    if result.as_expected() or not result.starved:
        return result
    pytest.skip(f"too busy a machine for divided times: {result.starved}")


def played(folder: Path) -> Recorded:
    """Play all scenes once, wait until nothing fires any more."""
    lasting = "|".join(itertools.chain.from_iterable(one.lasting for one in EXPECTED.values()))
    left = f'ALERTS{{alertname!~"{lasting}"}}'
    with stage(folder, {scene: one.playing for scene, one in EXPECTED.items()}) as playing:
        prometheus, webhook = playing.prometheus, playing.webhook
        wait_for(lambda: all(map(playing.is_over, EXPECTED)), "the end of all scenes", seconds=400, pause=0.5)
        with contextlib.suppress(AssertionError):  # what does not end is for the tests to find
            wait_for(lambda: not prometheus.query(left), "the end of all alerts", seconds=240, pause=0.5)
            wait_for(lambda: not unresolved(webhook.deliveries), "the last resolutions", seconds=60, pause=0.5)
        found = prometheus.query('ALERTS{alertstate="firing"}[1h]')
        fired = [(row["metric"], [at for at, _ in row["values"]]) for row in found]
        return Recorded(list(webhook.deliveries), fired, playing.starved())


def scene_of(labels: Mapping[str, str]) -> str:
    """Return the scene that an alert belongs to: its service, for machines its job."""
    return labels["job"] if labels["service"] == "gpus" else labels["service"]


def unresolved(deliveries: list[Delivery]) -> list[Delivery]:
    """Return the alerts whose last word was that they fire, save those that outlive the test."""
    last = {delivery.fingerprint: delivery for delivery in deliveries}
    return [
        delivery
        for delivery in last.values()
        if delivery.status == "firing" and delivery.name not in EXPECTED[scene_of(delivery.labels)].lasting
    ]


@pytest.mark.parametrize("scene", EXPECTED)
def test_the_expected_alerts_and_only_those_reach_the_webhook(recorded, scene):
    assert recorded.told(scene) == EXPECTED[scene].delivered


@pytest.mark.parametrize("scene", EXPECTED)
def test_what_fires_without_reaching_anybody_is_inhibited_by_what_explains_it(recorded, scene):
    assert recorded.untold(scene) == EXPECTED[scene].inhibited.keys()
    begun = {
        name: min(
            times[0] for labels, times in recorded.fired if labels["alertname"] == name and scene_of(labels) == scene
        )
        for name in {labels["alertname"] for labels, _ in recorded.fired if scene_of(labels) == scene}
    }
    for name, cause in EXPECTED[scene].inhibited.items():
        assert begun[cause] <= begun[name], f"{name} before {cause}"


@pytest.mark.parametrize("scene", EXPECTED)
def test_every_alert_that_was_delivered_is_over_once_its_scene_is_and_its_receiver_is_told(recorded, scene):
    assert not [delivery for delivery in unresolved(recorded.deliveries) if scene_of(delivery.labels) == scene]
    assert recorded.told(scene, "resolved") >= EXPECTED[scene].delivered - EXPECTED[scene].lasting.keys()


def test_pages_and_tickets_go_to_their_receivers(recorded):
    assert {(delivery.labels["severity"], delivery.receiver) for delivery in recorded.deliveries} == {
        ("page", "page"),
        ("ticket", "ticket"),
    }


def test_a_fast_tier_silences_the_slower_ones_of_the_same_promise_and_model(recorded):
    """Within one notification: what is inhibited when it is sent is not in it."""
    told: dict[tuple[object, ...], set[str]] = {}
    for delivery in recorded.deliveries:
        if delivery.status == "firing" and (tier := delivery.labels.get("burn_tier")):
            labels = delivery.labels
            key = (delivery.notification, labels["service"], labels["slo"], labels.get("model_name"))
            told.setdefault(key, set()).add(tier)
    louder = [tiers for tiers in told.values() if len(tiers) > 1]
    assert told
    assert not louder
    # and there was something to silence: promises whose tiers fired at once
    at_once = 0
    burning = [(labels, times) for labels, times in recorded.fired if "burn_tier" in labels]
    for (one, its), (other, others) in itertools.combinations(burning, 2):
        same = all(one.get(label) == other.get(label) for label in ("service", "slo", "model_name"))
        at_once += same and max(its[0], others[0]) <= min(its[-1], others[-1])
    assert at_once > 10


@pytest.mark.parametrize(
    ("scene", "alert"), [("slow-prefill", "VLLMTTFTBudgetBurn"), ("kv-pressure", "VLLMTTFTBudgetBurn")]
)
def test_trouble_that_breaks_a_promise_at_once_pages_by_the_fast_tier(recorded, scene, alert):
    tiers = {
        delivery.labels["burn_tier"]
        for delivery in recorded.deliveries
        if delivery.name == alert and scene_of(delivery.labels) == scene and delivery.receiver == "page"
    }
    assert "fast" in tiers


def test_no_alert_of_one_service_silences_another(recorded):
    """Two scenes lose the same model at the same time; each of them pages."""
    down = {scene_of(delivery.labels) for delivery in recorded.deliveries if delivery.name == "VLLMModelDown"}
    assert down == {"xid", "engine-crash"}


def test_what_is_delivered_can_be_read_and_leads_to_a_runbook(recorded):
    for delivery in recorded.deliveries:
        texts = (delivery.annotations["summary"], delivery.annotations["description"])
        assert not [text for text in texts if "{{" in text or "<no value>" in text or "error" in text.split()[:1]], (
            texts
        )
        assert f"/{delivery.name}.md" in delivery.annotations["runbook_url"]


def test_an_alert_of_a_gpu_names_the_engine_that_it_serves(recorded):
    lost = next(delivery for delivery in recorded.deliveries if delivery.name == "GPULost")
    assert "It serves meta-llama/Llama-3.1-70B-Instruct on llama-3.1-70b." in lost.annotations["description"]


def test_only_times_are_divided():
    expression = 'rate(a_5m{path="/[5m] offset 1h"}[5m]) > 300 and b offset 10m and sum_over_time(c:count5m[1h30m:5m])'
    assert shortened_expression(expression, 30) == (
        'rate(a_5m{path="/[5m] offset 1h"}[10000ms]) > 300 and b offset 20000ms and '
        "sum_over_time(c:count5m[180000ms:10000ms])"
    )
