"""The text of a simulated server's metrics page, line for line as vLLM 0.32.0 writes it."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from .clock import Clock
from .engine import BLOCK_SIZE, EngineConfig, SimulatedEngine
from .families import CACHE_CONFIG, ENGINE, HTTP, PROCESS, TOKENS, MetricFamily, created_name, token_bounds
from .histogram import Histogram
from .http_layer import HttpLayer

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"

# Labels of vllm:cache_config_info that the model does not decide, as on the captured page.
_CACHE_CONFIG: Final = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "enable_prefix_caching": "True",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "auto",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "False",
}
_PYTHON: Final = 'python_info{implementation="CPython",major="3",minor="11",patchlevel="7",version="3.11.7"}'


class Process(NamedTuple):
    """The API server's process: what its own collectors say. Units are in the families' names."""

    start_time_seconds: float
    cpu_seconds_total: float
    resident_memory_bytes: float
    open_fds: int
    gc_collections: tuple[int, int, int]


class _HistogramLines(NamedTuple):
    """Sample lines of one histogram, each up to its value."""

    buckets: tuple[str, ...]
    total: str
    observed: str


class _Block(NamedTuple):
    """One family on the page: its header, lines per engine up to the value, and its `_created` text."""

    name: str
    header: str
    lines: tuple[tuple[str, ...] | _HistogramLines, ...]
    created: str


def go_float(value: float) -> str:
    """Return a number as Go prints it, which is what vLLM's page has: 1234567.0 is 1.234567e+06."""
    text = repr(float(value))
    whole, _, fraction = text.partition(".")
    if len(whole) <= 6 or not whole.isdigit():
        return text
    digits = f"{whole[1:]}{fraction}".rstrip("0")
    return f"{whole[0]}{'.' if digits else ''}{digits}e+{len(whole) - 1:02}"


def _labels(**labels: str) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()) if value)


def _header(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _created(family: MetricFamily, children: Iterable[tuple[str, float]]) -> str:
    """Return the gauge of creation times; children are label texts without braces, and Unix times."""
    name = created_name(family)
    lines = [
        f"{name}{{{labels}}} {go_float(at)}\n" if labels else f"{name} {go_float(at)}\n" for labels, at in children
    ]
    return _header(name, "gauge", family.help) + "".join(lines) if lines else ""


def _histogram_lines(name: str, bounds: Sequence[float], **labels: str) -> _HistogramLines:
    edges = [*(repr(float(bound)) for bound in bounds), "+Inf"]
    plain = _labels(**labels)
    braces = f"{{{plain}}}" if plain else ""
    return _HistogramLines(
        tuple(f"{name}_bucket{{{_labels(le=edge, **labels)}}} " for edge in edges),
        f"{name}_count{braces} ",
        f"{name}_sum{braces} ",
    )


def _histogram_text(lines: _HistogramLines, histogram: Histogram) -> str:
    cumulative = histogram.cumulative()
    # counts below a million need no exponent; go_float for all would double the page's cost
    texts = [f"{line}{number}.0\n" if number < 1_000_000 else f"{line}{go_float(number)}\n"
             for line, number in zip(lines.buckets, cumulative, strict=True)]  # fmt: skip
    return f"{''.join(texts)}{lines.total}{go_float(cumulative[-1])}\n{lines.observed}{go_float(histogram.sum)}\n"


class Page:
    """The page of one API server process; everything that does not change while it lives is prepared once."""

    def __init__(self, config: EngineConfig, engines: int, created: float) -> None:
        self._blocks = tuple(_engine_block(family, config, engines, created) for family in ENGINE)
        self._cache_config = _cache_config(config, engines)
        self._created = created

    def text(self, process: Process, engines: Sequence[SimulatedEngine], http: HttpLayer, clock: Clock) -> bytes:
        """Return the page; `clock` is the fleet's."""
        parts = [_process_text(process)]
        counted = [engine.values() for engine in engines]
        for name, header, engine_lines, created in self._blocks:
            parts.append(header)
            for lines, engine, values in zip(engine_lines, engines, counted, strict=False):
                if isinstance(lines, _HistogramLines):
                    parts.append(_histogram_text(lines, engine.stats.histograms[name]))
                elif name in values:
                    parts += [f"{line}{go_float(value)}\n" for line, value in zip(lines, values[name], strict=True)]
                else:
                    parts += [f"{line}0.0\n" for line in lines]
            parts.append(created)
        parts += [self._cache_config, _http_text(http, clock, self._created)]
        return "".join(parts).encode()


def _engine_block(family: MetricFamily, config: EngineConfig, engines: int, created: float) -> _Block:
    lines: list[tuple[str, ...] | _HistogramLines] = []
    children: list[tuple[str, float]] = []
    for engine in range(engines if family.per_engine else 1):
        common = {"model_name": config.model_name} | ({"engine": str(engine)} if family.per_engine else {})
        if family.kind == "histogram":
            bounds = token_bounds(config.max_model_len) if family.bounds == TOKENS else family.bounds
            lines.append(_histogram_lines(family.name, bounds, **common))
            children.append((_labels(**common), created))
            continue
        labels = [_labels(**common, **({family.label: child} if child else {})) for child in family.children]
        lines.append(tuple(f"{family.name}{{{text}}} " for text in labels))
        children += [(text, created) for text in labels]
    stamp = "" if family.kind == "gauge" else _created(family, children)
    return _Block(family.name, _header(family.name, family.kind, family.help), tuple(lines), stamp)


def _cache_config(config: EngineConfig, engines: int) -> str:
    tokens = config.num_gpu_blocks * BLOCK_SIZE
    labels = _CACHE_CONFIG | {
        "block_size": str(BLOCK_SIZE),
        "effective_attention_block_size": str(BLOCK_SIZE),
        "gpu_memory_utilization": str(config.gpu_memory_utilization),
        "kv_cache_max_concurrency": str(tokens / config.max_model_len),
        "kv_cache_memory_bytes": str(round(tokens * config.kv_bytes_per_token / config.tensor_parallel_size)),
        "kv_cache_size_tokens": str(tokens),
        "num_gpu_blocks": str(config.num_gpu_blocks),
    }
    name = CACHE_CONFIG.name
    lines = [f"{name}{{{_labels(engine=str(engine), **labels)}}} 1.0\n" for engine in range(engines)]
    return _header(name, CACHE_CONFIG.kind, CACHE_CONFIG.help) + "".join(lines)


def _process_text(process: Process) -> str:
    plain = {
        "process_virtual_memory_bytes": process.resident_memory_bytes * 3.1,
        "process_resident_memory_bytes": process.resident_memory_bytes,
        "process_start_time_seconds": process.start_time_seconds,
        "process_cpu_seconds_total": process.cpu_seconds_total,
        "process_open_fds": process.open_fds,
        "process_max_fds": 65536,
    }
    generations = {
        "python_gc_objects_collected_total": tuple(9 * number for number in process.gc_collections),
        "python_gc_objects_uncollectable_total": (0, 0, 0),
        "python_gc_collections_total": process.gc_collections,
    }
    parts: list[str] = []
    for family in PROCESS:
        name = family.name
        parts.append(_header(name, family.kind, family.help))
        if name in plain:
            parts.append(f"{name} {go_float(plain[name])}\n")
        elif name in generations:
            parts += [f'{name}{{generation="{n}"}} {go_float(value)}\n' for n, value in enumerate(generations[name])]
        else:
            parts.append(f"{_PYTHON} 1.0\n")
    return "".join(parts)


def _http_text(http: HttpLayer, clock: Clock, created: float) -> str:
    requests, request_size, response_size, fine, coarse = HTTP
    by_status = {
        _labels(handler=handler, method="POST", status=status): (number, clock.unix(first))
        for (handler, status), (number, first) in http.requests.items()
    }
    by_handler = [(_labels(handler=path), clock.unix(handler.created)) for path, handler in http.handlers.items()]
    parts = [_header(requests.name, requests.kind, requests.help)]
    parts += [f"{requests.name}{{{labels}}} {go_float(number)}\n" for labels, (number, _) in by_status.items()]
    parts.append(_created(requests, ((labels, at) for labels, (_, at) in by_status.items())))
    for family, attribute in ((request_size, "request_bytes"), (response_size, "response_bytes")):
        parts.append(_header(family.name, family.kind, family.help))
        for path, handler in http.handlers.items():
            labels = _labels(handler=path)
            parts.append(f"{family.name}_count{{{labels}}} {go_float(handler.durations.count)}\n")
            parts.append(f"{family.name}_sum{{{labels}}} {go_float(getattr(handler, attribute))}\n")
        parts.append(_created(family, by_handler))
    parts.append(_header(fine.name, fine.kind, fine.help))
    parts.append(_histogram_text(_histogram_lines(fine.name, fine.bounds), http.durations))
    parts.append(_created(fine, [("", created)]))
    parts.append(_header(coarse.name, coarse.kind, coarse.help))
    for path, handler in http.handlers.items():
        lines = _histogram_lines(coarse.name, coarse.bounds, handler=path, method="POST")
        parts.append(_histogram_text(lines, handler.durations))
    times = [
        (_labels(handler=path, method="POST"), clock.unix(handler.created)) for path, handler in http.handlers.items()
    ]
    parts.append(_created(coarse, times))
    return "".join(parts)
