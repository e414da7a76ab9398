"""One log line per change, not one per attempt."""

from vllm_vitals.runtime.log_once import LogOnce


def test_the_first_time_is_news_and_the_second_is_not():
    said = LogOnce()
    assert said.is_news("drain")
    assert not said.is_news("drain")
    assert said.is_news("another")


def test_another_state_of_the_same_subject_is_news():
    said = LogOnce()
    assert [said.is_news("server", state) for state in ("dns", "dns", "refused", "dns")] == [True, False, True, True]


def test_after_a_recovery_the_same_trouble_is_news_again():
    said = LogOnce()
    assert not said.forget("server")
    assert said.is_news("server", "dns")
    assert said.forget("server")
    assert said.is_news("server", "dns")


def test_subjects_without_end_are_not_kept():
    said = LogOnce()
    assert sum(said.is_news(f"line {number}") for number in range(1000)) == 100
    assert not said.is_news("line 0")
