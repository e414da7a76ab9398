"""Rounds of work in a thread: started once, woken, guarded, stopped within bounds whatever hangs."""

import threading
import time

import pytest
from support.waiting import wait_for
from vllm_vitals.runtime.background import Background

HOUR = 3600.0


@pytest.fixture
def begin():
    started = []

    def begin(work, interval=HOUR, **options):
        background = Background("rounds", work, interval, **options)
        started.append(background)
        background.start()
        return background

    yield begin
    for background in started:
        background.stop()


def test_first_round_comes_at_once_and_the_next_when_woken(begin):
    rounds = []
    background = begin(lambda: rounds.append(1))
    wait_for(lambda: len(rounds) == 1, "the first round")
    background.wake()
    wait_for(lambda: len(rounds) == 2, "the second round")


def test_first_round_may_wait_for_being_woken(begin):
    rounds = []
    background = begin(lambda: rounds.append(1), at_once=False)
    assert not rounds
    background.wake()
    wait_for(lambda: rounds, "the round")


def test_round_may_say_when_the_next_one_comes(begin):
    rounds = []

    def work():
        rounds.append(1)
        return 0.0

    begin(work)
    wait_for(lambda: len(rounds) > 2, "three rounds")


def test_rounds_go_on_whatever_one_raises_and_the_same_trouble_is_said_once(begin, caplog):
    rounds = []

    def work():
        rounds.append(1)
        raise ValueError("x")

    begin(work, interval=0.0)
    wait_for(lambda: len(rounds) > 2, "three rounds")
    assert [record.getMessage() for record in caplog.records] == ["rounds failed, and goes on"]


def test_who_asks_for_errors_is_told_them(begin):
    told = []

    def work():
        raise ValueError("x")

    begin(work, on_error=told.append)
    wait_for(lambda: told, "the error")
    assert isinstance(told[0], ValueError)


def test_started_twice_is_one_thread(begin):
    background = begin(lambda: None)
    thread = background._thread
    background.start()
    assert background._thread is thread


def test_what_hangs_is_left_behind_at_the_end_of_patience(begin):
    inside, free = threading.Event(), threading.Event()

    def work():
        inside.set()
        free.wait(60)

    background = begin(work)
    assert inside.wait(10)
    began = time.monotonic()
    background.stop(patience=0.05)
    assert time.monotonic() - began < 5
    free.set()


def test_stopped_before_it_is_started_it_does_nothing(begin):
    rounds = []
    background = Background("rounds", lambda: rounds.append(1), HOUR)
    background.stop()
    background.start()
    background.stop()
    assert not rounds
