"""The engine model: scheduling, blocks, preemption, aborts."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_vitals.demo.blocks import BlockPool, Chain
from vllm_vitals.demo.engine import BLOCK_SIZE, EngineConfig, SimulatedEngine, StepCost, _State
from vllm_vitals.demo.workload import CHAT, SimulatedRequest

COST = StepCost(base=0.010, prefill=1e-4, sequence=1e-4, context=0.0)


def config(**changes) -> EngineConfig:
    settings = {"max_model_len": 512, "num_gpu_blocks": 1000, "max_num_seqs": 8, "max_num_batched_tokens": 128}
    return EngineConfig("tiny", cost=COST, **(settings | changes))


def request(number: int, arrival: float = 0.0, prompt: int = 32, output: int = 10, **changes) -> SimulatedRequest:
    fields = {
        "ingress": 0.001,
        "max_tokens": 400,
        "prefix": "",
        "prefix_tokens": 0,
        "session": number,
        "gives_up": math.inf,
        "handler": CHAT,
        "streaming": True,
        "bad": False,
    }
    return SimulatedRequest(
        number=number, arrival=arrival, prompt_tokens=prompt, output_tokens=output, **(fields | changes)
    )


def run(engine: SimulatedEngine, *requests: SimulatedRequest, to: float = 100.0):
    for one in requests:
        engine.submit(one)
    return engine.advance(to)


def test_one_request_takes_a_step_for_its_prompt_and_one_for_each_further_token():
    engine = SimulatedEngine(config())
    (outcome,) = run(engine, request(1, arrival=1.0, prompt=100, output=5))
    prompt_step = COST.base + 100 * COST.prefill
    decode_step = COST.base + COST.sequence
    assert outcome.at == pytest.approx(1.001 + prompt_step + 4 * decode_step)
    assert (outcome.generated, outcome.reason) == (5, "stop")


def test_a_request_that_reaches_max_tokens_ends_with_length():
    (outcome,) = run(SimulatedEngine(config()), request(1, output=7, max_tokens=7))
    assert outcome.reason == "length"


def test_long_prompts_go_through_in_chunks_of_the_token_budget():
    engine = SimulatedEngine(config(max_num_batched_tokens=64))
    run(engine, request(1, prompt=300, output=1))
    assert engine._steps == math.ceil(300 / 64)


def test_sequences_start_in_the_order_of_arrival():
    engine = SimulatedEngine(config(max_num_seqs=1))
    outcomes = run(engine, *(request(n, arrival=n / 1000, output=3) for n in range(1, 6)))
    assert [outcome.request.number for outcome in outcomes] == [1, 2, 3, 4, 5]


def test_waiting_for_the_running_step_is_ingress_and_not_queue_time():
    engine = SimulatedEngine(config())
    run(engine, request(1, prompt=128, output=1), request(2, arrival=0.005, prompt=16, output=1))
    queue = engine.stats.histograms["vllm:request_queue_time_seconds"]
    assert queue.sum == pytest.approx(0.0)
    assert engine.stats.ingress_seconds == pytest.approx(0.001 + (0.001 + COST.base + 128 * COST.prefill) - 0.005)


def test_a_repeated_prefix_is_served_from_the_cache_in_whole_blocks():
    engine = SimulatedEngine(config())
    run(engine, request(1, prompt=100, prefix="system", prefix_tokens=72))
    run(engine, request(2, arrival=101.0, prompt=100, prefix="system", prefix_tokens=72), to=200.0)
    assert engine.stats.prefix_queries == 200
    assert engine.stats.prefix_hits == 72 // BLOCK_SIZE * BLOCK_SIZE


def test_the_next_turn_finds_prompt_and_answer_of_the_turn_before():
    engine = SimulatedEngine(config())
    run(engine, request(1, prompt=64, output=33))  # 64 + 32 tokens are in the cache: the last one is never fed back
    run(engine, request(2, arrival=101.0, prompt=120, session=1), to=200.0)
    assert engine.stats.prefix_hits == 96


def test_a_prompt_that_is_wholly_cached_still_computes_its_last_block():
    engine = SimulatedEngine(config())
    run(engine, request(1, prompt=64, output=1))
    run(engine, request(2, arrival=101.0, prompt=64, output=1, session=1), to=200.0)
    assert engine.stats.prefix_hits == 48


def test_the_last_come_sequence_is_preempted_and_computed_again():
    engine = SimulatedEngine(config(max_model_len=256, num_gpu_blocks=20))
    outcomes = run(engine, request(1, prompt=128, output=100), request(2, prompt=128, output=100))
    assert engine.stats.preemptions == 1
    assert [outcome.request.number for outcome in outcomes] == [1, 2]
    assert [outcome.generated for outcome in outcomes] == [100, 100]
    preempted = engine.stats.histograms["vllm:request_num_preemptions"]
    assert (preempted.count, preempted.sum) == (2, 1)
    assert engine.stats.prompt_tokens == 256  # recomputed tokens are not counted twice


def test_an_abort_leaves_its_tokens_and_nothing_else():
    engine = SimulatedEngine(config())
    (outcome,) = run(engine, request(1, output=300, gives_up=0.5))
    assert (outcome.reason, outcome.at) == ("abort", 0.5)
    assert engine.stats.generation_tokens == outcome.generated > 10
    assert engine.stats.histograms["vllm:e2e_request_latency_seconds"].count == 0
    assert (engine.running, engine.pool.used) == (0, 0)


def test_a_stalled_engine_keeps_its_sequences_and_makes_no_token():
    engine = SimulatedEngine(config())
    run(engine, request(1, output=300), to=1.0)
    before = engine.stats.generation_tokens
    work = engine.work
    engine.stall()
    engine.advance(50.0)
    assert (engine.running, engine.stats.generation_tokens, engine.work) == (1, before, work)


def test_slower_clocks_stretch_the_steps():
    fast, slow = SimulatedEngine(config()), SimulatedEngine(config())
    slow.slowdown = 0.5
    (at_full,), (at_half,) = run(fast, request(1)), run(slow, request(1))
    assert at_half.at - 0.001 == pytest.approx(2 * (at_full.at - 0.001))


def test_a_cache_too_small_for_one_sequence_is_refused():
    with pytest.raises(ValueError, match="cannot hold one sequence"):
        config(num_gpu_blocks=10)


def test_idle_blocks_go_oldest_first_when_room_is_needed():
    pool = BlockPool(10)
    for session in (1, 2):
        pool.acquire(Chain("", 0, session), 4, 4)
        pool.release(Chain("", 0, session), 4, 4)
    assert pool.acquire(Chain("", 0, 3), 5, 5) == 0  # drops 3 of the 4 blocks of session 1
    assert pool.acquire(Chain("", 0, 2), 4, 4) == 4
    pool.release(Chain("", 0, 3), 5, 0)
    assert pool.acquire(Chain("", 0, 1), 4, 4) == 1


def blocks_by_recount(engine: SimulatedEngine) -> int:
    """Blocks in use, counted sequence by sequence in the middle of a step."""
    shared = {seq.chain.prefix: seq.chain.prefix_blocks for seq in engine._running}
    own = 0
    for seq in engine._running:
        tokens = seq.to_compute
        if seq.state is _State.DECODE:  # the running step adds one
            tokens = seq.computed + engine._steps - seq.joined_step + 1
        own += math.ceil(tokens / BLOCK_SIZE) - seq.chain.prefix_blocks
    return own + sum(shared.values())


requests_strategy = st.lists(
    st.tuples(
        st.floats(0, 2),  # arrival
        st.integers(1, 200),  # prompt
        st.integers(1, 56),  # output
        st.sampled_from(["", "a", "b"]),
        st.integers(0, 100),  # prefix tokens
        st.one_of(st.just(math.inf), st.floats(0, 3)),  # patience
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(rows=requests_strategy, blocks=st.integers(17, 60), budget=st.integers(9, 300), batch=st.integers(1, 8))
def test_every_request_leaves_and_every_block_comes_back(rows, blocks, budget, batch):
    engine = SimulatedEngine(
        config(max_model_len=256, num_gpu_blocks=blocks, max_num_batched_tokens=budget, max_num_seqs=batch)
    )
    lengths: dict[str, int] = {}  # a prefix has one length
    for number, (arrival, prompt, output, prefix, wanted, patience) in enumerate(rows):
        length = lengths.setdefault(prefix, wanted) if prefix else 0
        engine.submit(
            request(
                number,
                arrival,
                length + max(1, prompt - length),
                output,
                prefix=prefix if length >= BLOCK_SIZE else "",
                prefix_tokens=length if length >= BLOCK_SIZE else 0,
                gives_up=arrival + patience,
            )
        )
    outcomes, now = [], 0.0
    while len(outcomes) < len(rows) and now < 1000.0:
        now += 0.013
        outcomes += engine.advance(now)
        pool = engine.pool
        assert pool.used == blocks_by_recount(engine)
        assert 0 <= pool.idle <= pool.capacity - pool.used
        assert pool.idle == sum(pool._runs.values())
        assert engine.running <= batch
        assert sum(tokens for _, tokens in engine._chunks) + engine._decoding <= budget
        assert sum(engine._phase) == engine._decoding
        stats = engine.stats
        assert stats.generation_tokens == stats.finished_tokens + stats.aborted_tokens + engine.tokens_in_flight
        assert stats.prefix_hits <= stats.prefix_queries
    assert sorted(outcome.request.number for outcome in outcomes) == list(range(len(rows)))
    engine.advance(now + 1.0)
    assert (engine.running, engine.waiting, engine.pool.used, engine._context) == (0, 0, 0, 0)
    for outcome in outcomes:
        if outcome.reason != "abort":
            assert outcome.generated == outcome.request.output_tokens
