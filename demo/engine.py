"""A discrete-event model of one vLLM engine core: queue, continuous batching, chunked prefill, KV cache, preemption.

What it keeps of vLLM's scheduler: first come first served; one token per step for every running sequence; prompts in
chunks from what the step's token budget leaves; the last-come sequence gives its blocks up when they run out, and its
prompt and answer are computed again; no admission in a step that preempted. What it leaves out: a prompt's blocks are
taken at once and not chunk by chunk, and every request asks for one sequence.

Cost: sequences that only decode are not touched in a step. The pool grows by how many of them stand at a block's end
(`_phase`), those that end are on a heap, and all gaps between tokens of a step are one observation.
"""

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from heapq import heappop, heappush
from typing import Final, NamedTuple

from .blocks import BlockPool, Chain
from .families import ENGINE, TOKENS, token_bounds
from .histogram import Histogram
from .workload import SimulatedRequest

BLOCK_SIZE: Final = 16  # tokens; vLLM's default on CUDA


class StepCost(NamedTuple):
    """Seconds that a step takes: base + prefill x tokens + sequence x decoding sequences + context x their tokens."""

    base: float
    prefill: float
    sequence: float
    context: float


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of an engine, named as vLLM names them.

    Attributes:
        weight_bytes: weights over all GPUs of the engine.
        kv_bytes_per_token: KV cache of one token over all GPUs of the engine.
        collective_bytes_per_token: what one GPU sends over NVLink for one token; 0 on a single GPU.
    """

    model_name: str
    max_model_len: int
    num_gpu_blocks: int
    cost: StepCost
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    tensor_parallel_size: int = 1
    weight_bytes: float = 0.0
    kv_bytes_per_token: float = 0.0
    collective_bytes_per_token: float = 0.0
    gpu_memory_utilization: float = 0.9

    def __post_init__(self) -> None:
        if self.num_gpu_blocks * BLOCK_SIZE <= self.max_model_len:
            raise ValueError(f"{self.num_gpu_blocks} blocks cannot hold one sequence of {self.max_model_len} tokens")


class Outcome(NamedTuple):
    """How a request left the engine; reason is stop, length, or abort for a client that went away.

    Times are the fleet's clock, -1 for what it did not get to; so is `cached_tokens`.
    """

    request: SimulatedRequest
    at: float
    generated: int
    reason: str
    queued_at: float
    scheduled_at: float
    first_token_at: float
    last_token_at: float
    cached_tokens: int
    preempted: tuple[tuple[float, float], ...]  # from, until


class Work(NamedTuple):
    """What an engine has done since it started.

    Attributes:
        prefill_seconds: busy time that went into prompts.
        decode_seconds: the rest of the busy time.
        tokens: tokens that went through the model, recomputed ones included.
    """

    prefill_seconds: float
    decode_seconds: float
    tokens: float


class _State(Enum):
    WAITING = auto()  # or not yet seen by the core
    PREFILL = auto()
    DECODE = auto()
    GONE = auto()


class _Sequence:
    """A request inside the engine. Times are the fleet's clock, -1 for not yet."""

    __slots__ = (
        "cached_tokens",
        "chain",
        "computed",
        "finish_step",
        "first_token_at",
        "generated",
        "joined_step",
        "last_token_at",
        "preempted",
        "preempted_at",
        "preemptions",
        "queued_at",
        "request",
        "scheduled_at",
        "state",
        "to_compute",
    )

    def __init__(self, request: SimulatedRequest) -> None:
        self.request = request
        self.chain = Chain(request.prefix, request.prefix_tokens // BLOCK_SIZE, request.session)
        self.state = _State.WAITING
        self.queued_at = self.scheduled_at = self.first_token_at = self.last_token_at = -1.0
        self.cached_tokens = -1  # at the first admission, as vLLM reports it
        self.generated = 0  # up to joined_step while decoding
        self.computed = 0  # tokens in the KV cache, up to joined_step while decoding
        self.to_compute = 0
        self.joined_step = 0
        self.finish_step = 0
        self.preemptions = 0
        self.preempted_at = -1.0
        self.preempted: tuple[tuple[float, float], ...] = ()

    def outcome(self, at: float, reason: str) -> Outcome:
        """Return how it left the engine."""
        return Outcome(
            self.request,
            at,
            self.generated,
            reason,
            self.queued_at,
            self.scheduled_at,
            self.first_token_at,
            self.last_token_at,
            self.cached_tokens,
            self.preempted,
        )


class EngineStats:
    """What the engine's page says, and the sums behind it that no family shows.

    Attributes:
        ingress_seconds: arrival to queued, summed over finished sequences: e2e - queue - prefill - decode.
        finished_tokens: tokens of finished sequences.
        aborted_tokens: tokens of aborted ones, which only generation_tokens_total contains.
        aborted: aborted sequences, which no family counts.
    """

    def __init__(self, max_model_len: int) -> None:
        tokens = token_bounds(max_model_len)
        self.histograms = {
            family.name: Histogram(tokens if family.bounds == TOKENS else tuple(map(float, family.bounds)))
            for family in ENGINE
            if family.kind == "histogram"
        }
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions = 0
        self.prompt_tokens = 0
        self.computed_prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = {"stop": 0, "length": 0}
        self.ingress_seconds = 0.0
        self.finished_tokens = 0
        self.aborted_tokens = 0
        self.aborted = 0


class SimulatedEngine:
    """One engine core. Not thread-safe: advance and read from one thread.

    Attributes:
        slowdown: clocks of the slowest GPU over normal; 1 is full speed.
        stalled: whether `stall` was called.
    """

    def __init__(self, config: EngineConfig, now: float = 0.0) -> None:
        self.config = config
        self.stats = EngineStats(config.max_model_len)
        self.pool = BlockPool(config.num_gpu_blocks)
        self.slowdown = 1.0
        self.stalled = False
        self.now = now
        self._ingress: list[tuple[float, int, _Sequence]] = []
        self._departures: list[tuple[float, int, _Sequence]] = []  # clients that will give up
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # by admission, so that the last one is the victim
        self._prefilling: list[_Sequence] = []
        self._phase = [0] * BLOCK_SIZE  # decoding sequences by (tokens in cache - step) modulo the block size
        self._decoding = 0
        self._context = 0  # tokens in cache of the decoding sequences
        self._finishing: list[tuple[int, int, _Sequence]] = []
        self._steps = 0
        self._busy = False
        self._step_start = self._step_end = now
        self._step_prefill_share = 0.0
        self._step_tokens = 0
        self._chunks: list[tuple[_Sequence, int]] = []
        self._done = Work(0.0, 0.0, 0.0)
        self._outcomes: list[Outcome] = []
        observed = self.stats.histograms
        self._token_gap = observed["vllm:inter_token_latency_seconds"]
        self._iteration_tokens = observed["vllm:iteration_tokens_total"]

    @property
    def running(self) -> int:
        """Return the sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Return the sequences that wait for the scheduler."""
        return len(self._waiting)

    @property
    def load(self) -> int:
        """Return the weight by which the front end picks the least loaded engine: one that waits counts four times."""
        return len(self._running) + 4 * (len(self._waiting) + len(self._ingress))

    @property
    def tokens_in_flight(self) -> int:
        """Return the tokens generated so far by sequences that have not finished."""
        return sum(self._generated(seq) for seq in (*self._running, *self._waiting))

    @property
    def work(self) -> Work:
        """Return what was done up to now, the running step in proportion."""
        if not self._busy or self.stalled:
            return self._done
        return self._with_step(self.now)

    def submit(self, request: SimulatedRequest) -> None:
        """Hand a request over; it arrives at `request.arrival`."""
        seq = _Sequence(request)
        heappush(self._ingress, (request.arrival + request.ingress, request.number, seq))
        if request.gives_up < math.inf:
            heappush(self._departures, (request.gives_up, request.number, seq))

    def stall(self) -> None:
        """Never end the running step: a collective waits for a GPU that is gone."""
        self._done = self.work
        self.stalled = True

    def advance(self, to: float) -> list[Outcome]:
        """Let everything happen up to a moment; return what left the engine."""
        self._outcomes = []
        while not self.stalled:
            if self._busy:
                if self._step_end > to:
                    break
                self._finish_step()
                self._begin_step(self._step_end)
            elif self._ingress and self._ingress[0][0] <= to:
                self._begin_step(max(self._ingress[0][0], self.now))
            else:
                break
        self.now = to
        return self._outcomes

    def values(self) -> dict[str, tuple[float, ...]]:
        """Return counters and gauges by family, one value per child; families that are missing are 0."""
        stats = self.stats
        hits = stats.prefix_hits
        cached = stats.prompt_tokens - stats.computed_prompt_tokens
        return {
            "vllm:num_requests_running": (len(self._running),),
            "vllm:num_requests_waiting": (len(self._waiting),),
            "vllm:num_requests_waiting_by_reason": (len(self._waiting), 0),
            "vllm:engine_sleep_state": (1, 0, 0),
            "vllm:kv_cache_usage_perc": (self.pool.used / self.pool.capacity,),
            "vllm:prefix_cache_queries_total": (stats.prefix_queries,),
            "vllm:prefix_cache_hits_total": (hits,),
            "vllm:num_preemptions_total": (stats.preemptions,),
            "vllm:prompt_tokens_total": (stats.prompt_tokens,),
            "vllm:prompt_tokens_by_source_total": (stats.computed_prompt_tokens, cached, 0),
            "vllm:prompt_tokens_cached_total": (cached,),
            "vllm:prompt_tokens_cached_by_source_total": (hits, 0, 0, 0, 0),
            "vllm:generation_tokens_total": (stats.generation_tokens,),
            "vllm:request_success_total": (stats.finished["stop"], stats.finished["length"], 0, 0, 0),
        }

    def _with_step(self, until: float) -> Work:
        elapsed = until - self._step_start
        prefill = elapsed * self._step_prefill_share
        share = elapsed / (self._step_end - self._step_start)
        return Work(
            self._done.prefill_seconds + prefill,
            self._done.decode_seconds + elapsed - prefill,
            self._done.tokens + share * self._step_tokens,
        )

    def _generated(self, seq: _Sequence) -> int:
        return seq.generated + (self._steps - seq.joined_step if seq.state is _State.DECODE else 0)

    def _begin_step(self, now: float) -> None:
        """Schedule one step: departures, room for decoding, chunks of started prompts, then admissions."""
        while self._ingress and self._ingress[0][0] <= now:
            seq = heappop(self._ingress)[2]
            if seq.state is _State.WAITING:  # else its client is gone already
                seq.queued_at = now
                self._waiting.append(seq)
        while self._departures and self._departures[0][0] <= now:
            at, _, seq = heappop(self._departures)
            if seq.state is not _State.GONE:
                self._abort(seq, at)

        preempted = False
        while (needed := self._phase[-self._steps % BLOCK_SIZE]) > self.pool.available:
            self._preempt(now)
            preempted = True
        self.pool.grow(needed)

        budget = self.config.max_num_batched_tokens - self._decoding
        chunks = self._chunks = []
        for seq in self._prefilling:
            budget -= self._chunk(seq, budget)
        while self._waiting and budget > 0 and not preempted and len(self._running) < self.config.max_num_seqs:
            if not self._admit(self._waiting[0], now):
                break
            budget -= self._chunk(self._waiting.popleft(), budget)

        self._busy = bool(chunks or self._decoding)
        if not self._busy:
            return
        cost = self.config.cost
        prompt_tokens = sum(tokens for _, tokens in chunks)
        prefill = prompt_tokens * cost.prefill
        seconds = cost.base + prefill + self._decoding * cost.sequence + self._context * cost.context
        self._step_start = now
        self._step_end = now + seconds / self.slowdown
        self._step_prefill_share = prefill / seconds
        self._step_tokens = prompt_tokens + self._decoding

    def _chunk(self, seq: _Sequence, budget: int) -> int:
        tokens = min(seq.to_compute - seq.computed, budget)
        if tokens > 0:
            self._chunks.append((seq, tokens))
        return max(tokens, 0)

    def _admit(self, seq: _Sequence, now: float) -> bool:
        stats, prompt_tokens = self.stats, seq.request.prompt_tokens
        to_compute = prompt_tokens + seq.generated
        most_hits = (to_compute - 1) // BLOCK_SIZE
        hits = self.pool.acquire(seq.chain, -(-to_compute // BLOCK_SIZE), most_hits)
        if hits is None:
            return False
        seq.computed = hits * BLOCK_SIZE
        seq.to_compute = to_compute
        if seq.scheduled_at < 0:
            seq.scheduled_at = now
            seq.cached_tokens = seq.computed
            stats.prefix_queries += prompt_tokens
            stats.prefix_hits += seq.cached_tokens
        if seq.preempted_at >= 0:
            seq.preempted += ((seq.preempted_at, now),)
            seq.preempted_at = -1.0
        seq.state = _State.PREFILL
        self._prefilling.append(seq)
        self._running.append(seq)
        return True

    def _finish_step(self) -> None:
        now, stats = self._step_end, self.stats
        self._done = self._with_step(now)
        self._steps += 1
        tokens = self._decoding
        outputs = self._decoding
        if tokens:
            # all of them also took part in the step before, or got their last token at its end
            self._token_gap.observe(now - self._step_start, tokens)
            self._context += tokens
        while self._finishing and self._finishing[0][0] <= self._steps:
            step, _, seq = heappop(self._finishing)
            if seq.state is _State.DECODE and seq.finish_step == step:  # else preempted or gone in between
                self._leave_decode(seq, now)
                self._finish(seq, now)
        for seq, chunk in self._chunks:
            seq.computed += chunk
            if seq.computed < seq.to_compute:
                continue
            tokens += 1 + self._first_output(seq, now)
            outputs += 1
        stats.generation_tokens += outputs
        if outputs:  # vLLM makes no statistics for a step without an output
            self._iteration_tokens.observe(tokens)

    def _first_output(self, seq: _Sequence, now: float) -> int:
        """Take the token at the end of a prompt; return the prompt tokens to count in this step."""
        stats, request = self.stats, seq.request
        computed_prompt = 0
        if seq.first_token_at < 0:
            seq.first_token_at = now
            computed_prompt = request.prompt_tokens - seq.cached_tokens
            stats.prompt_tokens += request.prompt_tokens
            stats.computed_prompt_tokens += computed_prompt
            stats.histograms["vllm:time_to_first_token_seconds"].observe(now - request.arrival)
        else:
            self._token_gap.observe(now - seq.last_token_at)  # resumed after a preemption
        seq.last_token_at = now
        seq.generated += 1
        self._prefilling.remove(seq)
        if seq.generated >= request.output_tokens:
            self._finish(seq, now)
            return computed_prompt
        seq.state = _State.DECODE
        seq.joined_step = self._steps
        seq.finish_step = self._steps + request.output_tokens - seq.generated
        heappush(self._finishing, (seq.finish_step, request.number, seq))
        self._phase[(seq.computed - self._steps) % BLOCK_SIZE] += 1
        self._decoding += 1
        self._context += seq.computed
        return computed_prompt

    def _leave_decode(self, seq: _Sequence, now: float) -> None:
        """Write down where a decoding sequence stands; call at a step's end only."""
        self._phase[(seq.computed - seq.joined_step) % BLOCK_SIZE] -= 1
        made = self._steps - seq.joined_step
        seq.generated += made
        seq.computed += made
        if made:
            seq.last_token_at = now
        self._decoding -= 1
        self._context -= seq.computed

    def _leave_running(self, seq: _Sequence) -> None:
        """Take a sequence out of the batch; its blocks go back."""
        total = -(-seq.to_compute // BLOCK_SIZE) if seq.state is _State.PREFILL else -(-seq.computed // BLOCK_SIZE)
        self.pool.release(seq.chain, total, seq.computed // BLOCK_SIZE)
        self._running.remove(seq)

    def _preempt(self, now: float) -> None:
        seq = self._running[-1]
        if seq.state is _State.DECODE:
            self._leave_decode(seq, now)
        else:
            self._prefilling.remove(seq)
        self._leave_running(seq)
        seq.state = _State.WAITING
        seq.preemptions += 1
        seq.preempted_at = now
        self.stats.preemptions += 1
        self._waiting.appendleft(seq)

    def _abort(self, seq: _Sequence, at: float) -> None:
        """Forget a request whose client went away: vLLM counts its tokens and nothing else."""
        if seq.state is _State.DECODE:
            self._leave_decode(seq, at)
            self._leave_running(seq)
        elif seq.state is _State.PREFILL:
            self._prefilling.remove(seq)
            self._leave_running(seq)
        elif seq.queued_at >= 0:
            self._waiting.remove(seq)
        seq.state = _State.GONE
        self.stats.aborted += 1
        self.stats.aborted_tokens += seq.generated
        self._outcomes.append(seq.outcome(at, "abort"))

    def _finish(self, seq: _Sequence, now: float) -> None:
        stats, request = self.stats, seq.request
        self._leave_running(seq)
        seq.state = _State.GONE
        reason = "length" if seq.generated >= request.max_tokens else "stop"
        stats.finished[reason] += 1
        stats.finished_tokens += seq.generated
        stats.ingress_seconds += seq.queued_at - request.arrival
        decode = now - seq.first_token_at
        observed = {
            "vllm:request_prompt_tokens": request.prompt_tokens,
            "vllm:request_generation_tokens": seq.generated,
            "vllm:request_max_num_generation_tokens": seq.generated,
            "vllm:request_params_n": 1,
            "vllm:request_params_max_tokens": request.max_tokens,
            "vllm:request_time_per_output_token_seconds": decode / max(seq.generated - 1, 1),
            "vllm:e2e_request_latency_seconds": now - request.arrival,
            "vllm:request_queue_time_seconds": seq.scheduled_at - seq.queued_at,
            "vllm:request_inference_time_seconds": now - seq.scheduled_at,
            "vllm:request_prefill_time_seconds": seq.first_token_at - seq.scheduled_at,
            "vllm:request_decode_time_seconds": decode,
            "vllm:request_num_preemptions": seq.preemptions,
            "vllm:request_prefill_kv_computed_tokens": request.prompt_tokens - seq.cached_tokens,
        }
        for family, value in observed.items():
            stats.histograms[family].observe(value)
        self._outcomes.append(seq.outcome(now, reason))
