"""Parts of the page: one that fails loses its own samples only, is counted and said once; all are timed."""

import asyncio
import threading

import pytest
from support.exposition import labels_of, value, values
from support.waiting import wait_for
from vllm_vitals.exporter.pages.samples import Rendered, Sample, page
from vllm_vitals.exporter.parts import Counted, Parts

LOAD = Sample("vllm_vitals_host_load1", "", 0.5)


class Recorded:
    """A part that remembers what was done with it, and can fail."""

    def __init__(self, *, fails: bool = False):
        self.done = []
        self.fails = fails

    def _do(self, what):
        self.done.append(what)
        if self.fails:
            raise RuntimeError(what)

    def start(self):
        self._do("start")

    def stop(self):
        self._do("stop")

    def samples(self):
        self._do("samples")
        return [LOAD]


def text(parts):
    return page(parts.lines()).decode()


def test_part_that_fails_is_counted_and_said_once_and_the_others_stay(caplog):
    parts = Parts({"sick": Recorded(fails=True), "host": Recorded()})
    for count in (1, 2):
        found = text(parts)
        assert value(found, "vllm_vitals_host_load1") == 0.5
        assert value(found, "vllm_vitals_part_failures_total", part="sick") == count
        assert not values(found, "vllm_vitals_part_failures_total", part="host")
    assert [record.getMessage() for record in caplog.records] == ["the part sick failed; the rest of the page stays"]


def test_every_part_is_timed():
    part_sleeps = threading.Event()

    def slow():
        part_sleeps.wait(0.05)
        return [LOAD]

    found = text(Parts({"slow": Counted(slow), "quick": Counted(list)}))
    assert value(found, "vllm_vitals_part_duration_seconds", part="slow") >= 0.05
    assert 0 <= value(found, "vllm_vitals_part_duration_seconds", part="quick") < 0.05


def test_round_in_the_background_is_guarded_and_timed_alike():
    parts = Parts({})
    with parts.watched("observe"):
        raise ValueError
    found = text(parts)
    assert value(found, "vllm_vitals_part_failures_total", part="observe") == 1
    assert value(found, "vllm_vitals_part_duration_seconds", part="observe") >= 0


def test_cancellation_is_no_failure():
    parts = Parts({})
    with pytest.raises(asyncio.CancelledError), parts.watched("observe"):
        raise asyncio.CancelledError
    assert text(parts) == ""


def test_part_that_renders_itself_is_taken_as_it_is():
    ready = Rendered([{"vllm_vitals_host_load1": b"vllm_vitals_host_load1 7\n"}])
    assert value(text(Parts({"ready": Counted(lambda: ready)})), "vllm_vitals_host_load1") == 7


def test_all_are_started_and_stopped_whatever_one_of_them_does(caplog):
    sick, sound = Recorded(fails=True), Recorded()
    parts = Parts({"sick": sick, "sound": sound})
    parts.start()
    asyncio.run(parts.stop())
    assert sick.done == sound.done == ["start", "stop"]
    assert value(text(parts), "vllm_vitals_part_failures_total", part="sick") == 2


def test_parts_that_take_their_time_to_stop_do_so_side_by_side():
    meeting = threading.Barrier(2)

    class Slow(Recorded):
        def stop(self):
            meeting.wait(10)
            self.done.append("stop")

    slow = Slow(), Slow()
    asyncio.run(Parts({"a": slow[0], "b": slow[1]}).stop())
    wait_for(lambda: all(part.done == ["stop"] for part in slow), "both stops")


def test_part_that_is_replaced_is_stopped_and_its_successor_started():
    old, new = Recorded(), Recorded()
    parts = Parts({"alerts": old})
    parts.start()
    parts.replace("alerts", new)
    assert (old.done, new.done) == (["start", "stop"], ["start"])


def test_the_exporter_tells_what_each_of_its_parts_costs(run_exporter):
    exporter = run_exporter(gpus="on", host="on")
    wait_for(lambda: values(exporter.page(), "vllm_vitals_part_duration_seconds", part="observe"), "a round")
    found = {pairs["part"] for pairs in labels_of(exporter.page(), "vllm_vitals_part_duration_seconds")}
    assert found >= {"placement", "engine_processes", "host", "spot", "self", "gpus", "observe"}
