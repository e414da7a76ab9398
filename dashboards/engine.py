"""Engine: what an engine does with its time, its batch and its KV cache, in the order of diagnosis."""

from .dashboard import Page
from .fields import (
    BYTES,
    BYTES_PER_SECOND,
    CORES,
    COUNT,
    FLOPS,
    GREEN,
    NO_UNIT,
    ON_OFF,
    ORANGE,
    PER_SECOND,
    RATIO,
    RED,
    REQUESTS_PER_SECOND,
    SECONDS,
    TOKENS,
    TOKENS_PER_SECOND,
    UP_DOWN,
    YELLOW,
    above,
)
from .latency import percentiles, with_promise
from .layout import Row
from .limits import Limits
from .panels import NO_TRAFFIC, bars, heatmap, stat, timeline, timeseries
from .tables import Column, labels_table, table
from .targets import buckets, mean, now, quantile, query, rate, ratio, total
from .variables import MODEL, SERVER, job

_ENGINE = "server, engine"
_LEGEND = "{{server}} {{engine}}"
_SPEC = "vllm:spec_decode_num"


def page(limits: Limits) -> Page:
    """Return the dashboard."""
    return Page(
        "vitals-engine",
        "What does an engine do with its time, its batch and its KV cache, and why do requests wait?",
        (job("vllm:num_requests_running"), SERVER, MODEL),
        (
            _state(limits),
            _queue(limits),
            _phases(limits),
            _spread(),
            _tokens(),
            _cache(limits),
            _endings(),
            _process(),
            _speculation(),
            _lora(),
            _disaggregation(),
            _blocks(),
            _flops(),
            _nan(),
        ),
    )


def _state(limits: Limits) -> Row:
    return Row(
        "Is it alive?",
        (
            table(
                "Servers",
                "Does the page come, does /health answer 200, and does work go on?",
                {"server": "Server"},
                Column("Up", "min by (server) (vllm_vitals_server_up)", NO_UNIT, mappings=UP_DOWN),
                Column("Healthy", "min by (server) (vllm_vitals_server_healthy)", NO_UNIT, mappings=UP_DOWN),
                Column("Stalled", "max by (server) (vllm_vitals_server_stalled)", NO_UNIT, mappings=ON_OFF),
                Column(
                    "Restarts in this time",
                    "sum by (server) (increase(vllm_vitals_server_restarts_total[$__range]))",
                    COUNT,
                    above(3, warn=1),
                ),
                Column("Running", "sum by (server) (vllm:num_requests_running)", COUNT),
                Column("Waiting", "sum by (server) (vllm:num_requests_waiting)", COUNT, above(limits.queue_length)),
                width=12,
                height=7,
                see="vitals-fleet",
            ),
            timeline(
                "Sleep state",
                "Does an engine sleep, with its weights offloaded or thrown away?",
                query(
                    'max by (server, engine) (vllm:engine_sleep_state{sleep_state="weights_offloaded"}) '
                    '+ 2 * max by (server, engine) (vllm:engine_sleep_state{sleep_state="discard_all"})',
                    _LEGEND,
                ),
                states={"0": ("awake", GREEN), "1": ("weights offloaded", YELLOW), "2": ("discarded", ORANGE)},
                height=7,
                see="vitals-pipeline",
            ),
        ),
    )


def _queue(limits: Limits) -> Row:
    return Row(
        "How full is the batch, and who waits?",
        (
            timeseries(
                "Running sequences",
                "How large is the batch that the GPU works on?",
                query(f"sum by ({_ENGINE}) (vllm:num_requests_running)", _LEGEND),
                unit=COUNT,
            ),
            timeseries(
                "Waiting sequences",
                "Do requests come faster than they are done?",
                query(f"sum by ({_ENGINE}) (vllm:num_requests_waiting)", _LEGEND),
                unit=COUNT,
                steps=above(limits.queue_length),
            ),
            timeseries(
                "Why they wait",
                "Is there no room, or are requests held back for LoRA slots or a KV transfer?",
                query("sum by (reason) (vllm:num_requests_waiting_by_reason)", "{{reason}}"),
                unit=COUNT,
                stacked=True,
            ),
            timeseries(
                "Engine steps",
                "How often does the scheduler run? Few steps with many running sequences are slow ones.",
                query(total(_ENGINE, "vllm:iteration_tokens_total_count"), _LEGEND),
                unit=PER_SECOND,
            ),
            timeseries(
                "Tokens per step, mean",
                "How well is each step filled? Prefill makes large steps, decode one token per sequence.",
                query(mean("vllm:iteration_tokens_total", _ENGINE), _LEGEND),
                unit=TOKENS,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Refused at the door",
                "Do the queue limits of the server turn requests away? They are answered 503.",
                query(total("server, reason", "vllm:admission_rejections_total"), "{{server}} {{reason}}"),
                unit=REQUESTS_PER_SECOND,
            ),
            heatmap(
                "Tokens per step",
                "Do large prefill steps come between small decode steps? Those are what stalls answers.",
                buckets("vllm:iteration_tokens_total"),
                unit=TOKENS,
                width=24,
            ),
        ),
        see="vitals-gpu",
    )


def _phases(limits: Limits) -> Row:
    names = ("queue", "prefill", "decode")
    return Row(
        "Which phase is slow?",
        (
            timeseries(
                "Mean time by phase",
                "Where does a request spend its time? Known when it ends, so a long one reports late.",
                *(query(mean(f"vllm:request_{name}_time_seconds"), name) for name in names),
                unit=SECONDS,
                stacked=True,
                no_value=NO_TRAFFIC,
                see="vitals-requests",
            ),
            timeseries(
                "Work by phase",
                "How many sequences are in each phase on average, as seconds spent per second?",
                *(query(total("", f"vllm:request_{name}_time_seconds_sum"), name) for name in names),
                unit=COUNT,
                stacked=True,
                see="vitals-requests",
            ),
            with_promise(
                "Queue time",
                "How long do requests wait inside the engine, and is that within what is promised?",
                "queue",
                limits,
                *(
                    query(quantile(share, "vllm:request_queue_time_seconds"), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                see="vitals-requests",
            ),
            timeseries(
                "Prefill time",
                "How long from the first pick to the first token? It grows with prompts and batch.",
                *(
                    query(quantile(share, "vllm:request_prefill_time_seconds"), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                unit=SECONDS,
                no_value=NO_TRAFFIC,
                see="vitals-requests",
            ),
            timeseries(
                "Decode time",
                "How long from first to last token? Preempted time is in it.",
                *(
                    query(quantile(share, "vllm:request_decode_time_seconds"), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                unit=SECONDS,
                no_value=NO_TRAFFIC,
                see="vitals-requests",
            ),
            percentiles(
                "Gap between tokens",
                "Do answers stall? One gap carries several tokens with speculative decoding.",
                "itl",
                limits,
                see="vitals-requests",
            ),
        ),
    )


def _spread() -> Row:
    return Row(
        "How are times spread?",
        (
            heatmap(
                "Time to first token, spread",
                "Are all requests a bit slow, or a few very slow?",
                buckets("vllm:time_to_first_token_seconds"),
                unit=SECONDS,
            ),
            heatmap(
                "Gap between tokens, spread",
                "Is there a second band above the usual gap? That is what interrupts.",
                buckets("vllm:inter_token_latency_seconds"),
                unit=SECONDS,
            ),
            timeseries(
                "Time to first token p99 by engine",
                "Is one engine slower than its peers?",
                query(quantile(0.99, "vllm:time_to_first_token_seconds", _ENGINE), _LEGEND),
                unit=SECONDS,
                width=12,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Time per output token p95 by engine",
                "Does one engine write more slowly than its peers?",
                query(quantile(0.95, "vllm:request_time_per_output_token_seconds", _ENGINE), _LEGEND),
                unit=SECONDS,
                width=12,
                no_value=NO_TRAFFIC,
            ),
        ),
        see="vitals-requests",
    )


def _tokens() -> Row:
    return Row(
        "What is asked for?",
        (
            timeseries(
                "Prompt tokens by source",
                "How many prompt tokens are computed, and how many come from a cache?",
                query(total("source", "vllm:prompt_tokens_by_source_total"), "{{source}}"),
                unit=TOKENS_PER_SECOND,
                stacked=True,
            ),
            timeseries(
                "Generated tokens",
                "How much does each engine write?",
                query(total(_ENGINE, "vllm:generation_tokens_total"), _LEGEND),
                unit=TOKENS_PER_SECOND,
                stacked=True,
            ),
            timeseries(
                "Cached tokens by tier",
                "Which cache saved the work: device, host, disk or another engine?",
                query(total("source", "vllm:prompt_tokens_cached_by_source_total"), "{{source}}"),
                unit=TOKENS_PER_SECOND,
                stacked=True,
            ),
            timeseries(
                "Prompt length",
                "How long are prompts? Longer ones make prefill and first tokens slow.",
                *(
                    query(quantile(share, "vllm:request_prompt_tokens"), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                unit=TOKENS,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Answer length",
                "How long are answers, and how long might they have become?",
                *(
                    query(quantile(share, "vllm:request_generation_tokens"), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                query(quantile(0.5, "vllm:request_params_max_tokens"), "max_tokens p50"),
                unit=TOKENS,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Prompt tokens computed per sequence",
                "What is left to compute after the caches?",
                query(mean("vllm:request_prompt_tokens"), "prompt"),
                query(mean("vllm:request_prefill_kv_computed_tokens"), "computed"),
                query(mean("vllm:request_params_n"), "sequences per request (n)"),
                unit=TOKENS,
                no_value=NO_TRAFFIC,
            ),
        ),
        see="vitals-requests",
    )


def _cache(limits: Limits) -> Row:
    return Row(
        "Is the KV cache full, and does it save work?",
        (
            timeseries(
                "KV cache in use",
                "Is there room for more sequences?",
                query(f"max by ({_ENGINE}) (vllm:kv_cache_usage_perc)", _LEGEND),
                unit=RATIO,
                highest=1,
                steps=above(limits.kv_cache),
            ),
            timeseries(
                "Preemptions",
                "How often are sequences thrown out because KV blocks ran out? Their work is done again.",
                query(total(_ENGINE, "vllm:num_preemptions_total"), _LEGEND),
                unit=PER_SECOND,
                steps=above(limits.preemptions),
            ),
            timeseries(
                "Preemptions per sequence, mean",
                "How often is a sequence preempted before it is done?",
                query(mean("vllm:request_num_preemptions", _ENGINE), _LEGEND),
                unit=COUNT,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Hit rate by cache",
                "Which share of what is looked up is found: prefixes here, prefixes elsewhere, images?",
                query(ratio(rate("vllm:prefix_cache_hits_total"), rate("vllm:prefix_cache_queries_total")), "prefixes"),
                query(ratio(rate("vllm:mm_cache_hits_total"), rate("vllm:mm_cache_queries_total")), "images and audio"),
                unit=RATIO,
                highest=1,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Prefix cache hit rate by engine",
                "Does a router send callers back to the engine that knows their prompt?",
                query(
                    ratio(rate("vllm:prefix_cache_hits_total"), rate("vllm:prefix_cache_queries_total"), _ENGINE),
                    _LEGEND,
                ),
                unit=RATIO,
                highest=1,
                no_value=NO_TRAFFIC,
            ),
            labels_table(
                "KV cache configuration",
                "How large is the cache, in which type, and is prefix caching on?",
                "vllm:cache_config_info",
                {
                    "server": "Server",
                    "engine": "Engine",
                    "num_gpu_blocks": "Blocks",
                    "block_size": "Block size",
                    "cache_dtype": "Type",
                    "gpu_memory_utilization": "GPU memory",
                    "enable_prefix_caching": "Prefix caching",
                    "kv_cache_size_tokens": "Tokens",
                },
                width=8,
            ),
        ),
        see="vitals-gpu",
    )


def _endings() -> Row:
    return Row(
        "How do requests end?",
        (
            timeseries(
                "Finished sequences by reason",
                "Do answers stop by themselves, at their length, or with an error? "
                "vLLM does not count callers that hang up; the dashboard Requests does.",
                query(total("finished_reason", "vllm:request_success_total"), "{{finished_reason}}"),
                unit=REQUESTS_PER_SECOND,
                stacked=True,
            ),
            timeseries(
                "HTTP by status",
                "Do callers get answers, mistakes of their own, or failures of ours?",
                query(total("status", "http_requests_total"), "{{status}}"),
                unit=REQUESTS_PER_SECOND,
                stacked=True,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Failures by handler",
                "Which path fails, with which class?",
                query(total("handler, status", "http_requests_total", 'status=~"4xx|5xx"'), "{{handler}} {{status}}"),
                unit=REQUESTS_PER_SECOND,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Share of 5xx",
                "Which share of inference requests fails for our fault?",
                query(
                    ratio(
                        rate("http_requests_total", 'method="POST",status="5xx"'),
                        rate("http_requests_total", 'method="POST"'),
                        "server",
                    ),
                    "{{server}}",
                ),
                unit=RATIO,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "HTTP time, mean by handler",
                "Which path is slow? A stream counts until its first byte.",
                query(mean("http_request_duration_seconds", "handler"), "{{handler}}"),
                unit=SECONDS,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "HTTP time over all paths",
                "How long do HTTP requests take, whatever they ask for?",
                *(
                    query(quantile(share, "http_request_duration_highr_seconds"), f"p{share * 100:g}")
                    for share in (0.5, 0.95, 0.99)
                ),
                unit=SECONDS,
                no_value=NO_TRAFFIC,
            ),
        ),
        see="vitals-requests",
    )


def _process() -> Row:
    by = "server, role"
    legend = "{{server}} {{role}}"
    return Row(
        "Do the processes keep up?",
        (
            timeseries(
                "Busiest process by role",
                "Is the API server or the engine core at its one core? Then the GPU waits for it.",
                query(f"max by ({by}) (vllm_vitals_engine_process_max_cpu_ratio)", legend),
                unit=CORES,
                steps=((None, GREEN), (0.9, YELLOW), (1.0, RED)),
                width=6,
            ),
            timeseries(
                "CPU by role",
                "How many cores does each part use?",
                query(total(by, "vllm_vitals_engine_process_cpu_seconds_total"), legend),
                unit=CORES,
                width=6,
            ),
            timeseries(
                "Memory by role",
                "Does a process grow?",
                query(f"sum by ({by}) (vllm_vitals_engine_process_resident_memory_bytes)", legend),
                unit=BYTES,
                width=6,
            ),
            timeseries(
                "Processes by role",
                "Are all of them there?",
                query(f"sum by ({by}) (vllm_vitals_engine_processes)", legend),
                unit=COUNT,
                width=6,
            ),
        ),
        see="vitals-fleet",
    )


def _speculation() -> Row:
    accepted, drafted = rate(f"{_SPEC}_accepted_tokens_total"), rate(f"{_SPEC}_draft_tokens_total")
    drafts = rate(f"{_SPEC}_drafts_total")
    return Row(
        "Does speculative decoding pay?",
        (
            timeseries(
                "Acceptance rate",
                "Which share of the drafted tokens does the model agree with?",
                query(ratio(accepted, drafted, _ENGINE), _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Accepted tokens per draft",
                "How many tokens does a step win beyond its own?",
                query(ratio(accepted, drafts, _ENGINE), _LEGEND),
                unit=TOKENS,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Accepted by position",
                "Up to which position is drafting worth its work?",
                query(ratio_by_position(drafts), "position {{position}}"),
                unit=RATIO,
                highest=1,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Drafted and accepted",
                "How much drafting is thrown away?",
                query(f"sum({drafted})", "drafted"),
                query(f"sum({accepted})", "accepted"),
                unit=TOKENS_PER_SECOND,
            ),
        ),
        needs="--speculative-config",
        width=6,
        see="vitals-requests",
    )


def ratio_by_position(drafts: str) -> str:
    """Return the share of drafts whose token at each position was accepted."""
    return f"{total('position', f'{_SPEC}_accepted_tokens_per_pos_total')} / on () group_left () (sum({drafts}) > 0)"


def _lora() -> Row:
    return Row(
        "Which adapters run?",
        (
            labels_table(
                "Adapters",
                "Which LoRA adapters run, which wait, and how many fit?",
                "vllm:lora_requests_info",
                {
                    "server": "Server",
                    "running_lora_adapters": "Running",
                    "waiting_lora_adapters": "Waiting",
                    "max_lora": "Slots",
                },
                width=16,
            ),
            timeseries(
                "Held back for a slot",
                "Do requests wait because all LoRA slots are taken?",
                query('sum by (server) (vllm:num_requests_waiting_by_reason{reason="deferred"})', "{{server}}"),
                unit=COUNT,
            ),
        ),
        needs="--enable-lora",
        see="vitals-requests",
    )


def _disaggregation() -> Row:
    hits, asked = (rate(f"vllm:external_prefix_cache_{what}_total") for what in ("hits", "queries"))
    return Row(
        "Does KV come from elsewhere in time?",
        (
            timeseries(
                "Hit rate of the shared cache",
                "Which share of looked-up prompt tokens did another engine or store have?",
                query(ratio(hits, asked, _ENGINE), _LEGEND),
                unit=RATIO,
                highest=1,
                no_value=NO_TRAFFIC,
            ),
            timeseries(
                "Tokens transferred",
                "How much KV arrives instead of being computed?",
                query(
                    total("server", "vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"'), "{{server}}"
                ),
                unit=TOKENS_PER_SECOND,
            ),
            timeseries(
                "Waiting for KV",
                "Do requests wait for a transfer? That time counts as queue time.",
                query('sum by (server) (vllm:num_requests_waiting_by_reason{reason="deferred"})', "{{server}}"),
                unit=COUNT,
            ),
        ),
        needs="--kv-transfer-config",
        see="vitals-requests",
    )


def _blocks() -> Row:
    names = (
        ("lifetime", "Life of a block", "How long does a KV block live?"),
        ("idle_before_evict", "Idle before eviction", "How long was a block of no use before it was evicted?"),
        ("reuse_gap", "Time between uses", "How soon is a block used again? Shorter than its life: caching pays."),
    )
    return Row(
        "How long do KV blocks live?",
        tuple(
            timeseries(
                title,
                question,
                *(
                    query(quantile(share, f"vllm:kv_block_{name}_seconds"), f"p{share * 100:g}")
                    for share in (0.5, 0.95)
                ),
                unit=SECONDS,
                no_value=NO_TRAFFIC,
            )
            for name, title, question in names
        ),
        needs="--kv-cache-metrics",
        see="vitals-gpu",
    )


def _flops() -> Row:
    return Row(
        "How much of the hardware is used?",
        (
            timeseries(
                "Estimated arithmetic per GPU",
                "How many operations per second does the model need, by vLLM's estimate?",
                query(total(_ENGINE, "vllm:estimated_flops_per_gpu_total"), _LEGEND),
                unit=FLOPS,
                width=12,
            ),
            timeseries(
                "Estimated memory traffic per GPU",
                "How many bytes per second does the model move, by vLLM's estimate?",
                query(total(_ENGINE, "vllm:estimated_read_bytes_per_gpu_total"), f"{_LEGEND} read"),
                query(total(_ENGINE, "vllm:estimated_write_bytes_per_gpu_total"), f"{_LEGEND} written"),
                unit=BYTES_PER_SECOND,
                width=12,
            ),
        ),
        needs="--enable-mfu-metrics",
        see="vitals-gpu",
    )


def _nan() -> Row:
    return Row(
        "Are answers sound?",
        (
            stat(
                "Sequences with NaN",
                "Did logits become NaN? Then weights, kernels or memory are broken.",
                now("sum(increase(vllm:corrupted_requests_total[$__range]))", "sequences"),
                unit=COUNT,
                steps=above(1),
            ),
            bars(
                "Sequences with NaN by engine",
                "Which engine is it?",
                now(f"sum by ({_ENGINE}) (increase(vllm:corrupted_requests_total[$__range]))", _LEGEND),
                unit=COUNT,
                steps=above(1),
                width=20,
                height=5,
            ),
        ),
        needs="VLLM_COMPUTE_NANS_IN_LOGITS=1",
        see="vitals-gpu",
    )
