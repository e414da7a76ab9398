"""Messages between a process and its child: whole, in order, without waiting."""

import random
import socket

import pytest
from vllm_vitals.tracing.report.frames import Frames


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        yield Frames(one), Frames(other)


def test_messages_of_any_size_arrive_whole_and_in_order(ends):
    one, other = ends
    chance = random.Random(20261126)
    sent = [chance.randbytes(chance.choice((0, 1, 3, 4, 100, 9000, 300_000, 3_000_000))) for _ in range(60)]
    one.backlog += sent
    found = []
    while len(found) < len(sent):
        one.flush()
        found += other.read(most=chance.choice((1, 5000, 1 << 20)))
    assert found == sent
    assert one.is_clear


def test_a_full_socket_holds_nobody_up_and_what_left_is_told(ends):
    one, other = ends
    left = []
    one.backlog += [b"x" * 50_000] * 100
    one.flush(left.append)
    assert 0 < len(left) < 100
    assert len(left) + len(one.backlog) == 100
    assert not one.is_clear
    found = other.read()
    while not one.is_clear:
        one.flush(left.append)
        found += other.read()
    assert len(left) == len(found) == 100


def test_the_end_comes_after_everything_that_was_sent(ends):
    one, other = ends
    one.backlog += [b"a", b"b"]
    one.flush()
    one.channel.shutdown(socket.SHUT_WR)
    assert other.read() == [b"a", b"b"]
    assert other.read() == []
    assert other.ended


def test_what_was_cut_off_in_the_middle_is_not_delivered(ends):
    one, other = ends
    one.backlog.append(b"x" * 500_000)
    one.flush()
    one.channel.close()
    assert other.read() == []
    assert other.read() == []
    assert other.ended


def test_sending_to_nobody_raises(ends):
    one, other = ends
    other.channel.close()
    one.backlog.append(b"x")
    with pytest.raises(OSError, match="pipe"):
        one.flush()
