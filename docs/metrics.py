"""Write docs/metrics.md from the vocabulary.

python docs/metrics.py [--check]      --check: exit code 1 when the file is not up to date
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_vitals.vocabulary.ours import HTTP_HANDLERS, NVIDIA_GPU, RENAMES, REQUESTS, TRACING, VITALS, Metric
from vllm_vitals.vocabulary.reasons import DRIVER, FETCH, GPU, HOST, REFUSAL, THROTTLE, Reason

REASONS: tuple[tuple[tuple[str, ...], Mapping[Any, Reason[Any]]], ...] = (
    (("vllm_vitals_server_up", "vllm_vitals_server_request_page_failures_total"), FETCH),
    (("vllm_vitals_nvml_up",), {code: row for code, row in DRIVER.items() if code != "off"}),
    (("nvidia_gpu_up", "nvidia_gpu_collect_failures_total"), GPU),
    (("nvidia_gpu_throttle_active", "nvidia_gpu_throttle_seconds_total"), THROTTLE),
    (("vllm_vitals_host_up",), HOST),
    (("vllm_vitals_http_rejected_total",), REFUSAL),
)
PAGE = Path(__file__).with_suffix(".md")


def rows(metrics: tuple[Metric, ...]) -> list[str]:
    """Return a Markdown table."""
    lines = ["| name | type | labels | meaning |", "| --- | --- | --- | --- |"]
    return lines + [f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help} |" for m in metrics]


def reasons(metrics: tuple[str, ...], codes: Mapping[Any, Reason[Any]]) -> list[str]:
    """Return a Markdown table with the metrics that it belongs to."""
    lines = [f"{', '.join(f'`{name}`' for name in metrics)}:", "", "| reason | what is the case | what to do |"]
    lines.append("| --- | --- | --- |")
    return lines + [
        f"| `{row.code}` | {row.meaning} | {row.advice.format(url='http://HOST:PORT/metrics', address='HOST:PORT')} |"
        for row in codes.values()
    ]


def text() -> str:
    """Return the page."""
    handlers = ", ".join(f"`{path}`" for path, _ in HTTP_HANDLERS)
    parts = [
        "# Metrics",
        "",
        "Written by `docs/metrics.py` from `vocabulary/`. What a GPU, driver or engine lacks is absent.",
        "",
        "## GPUs",
        "",
        *rows(NVIDIA_GPU),
        "",
        "## Engines on GPUs, host and the exporter itself",
        "",
        *rows(VITALS),
        "",
        "## Reasons",
        "",
        "What a label `reason` says and what to do about it. `/health`, `/api/vitals` and `doctor` use the same codes.",
        "",
        *(line for metrics, codes in REASONS for line in (*reasons(metrics, codes), "")),
        "## Requests, from the vLLM plugin",
        "",
        'On `/metrics/requests` of vLLM and, with `server="NAME"` added, of the exporter: OpenMetrics with exemplars',
        "(trace and span id of a request whose trace is kept) for those who take it, else text 0.0.4 without them. A",
        "request with several sequences (`n` > 1) counts once; each of its sequences is one observation of the phases.",
        "",
        *rows(REQUESTS),
        "",
        "## The vLLM plugin's own work",
        "",
        "On vLLM's `/metrics`, and so on the exporter's; with several API servers on `/metrics/requests` instead.",
        "",
        *rows(TRACING),
        "",
        "## The engines' own",
        "",
        'As the engine exposes them, with `server="NAME"` added, without its `python_*` and `process_*`.',
        "`http_requests_total` has its children for 2xx, 4xx and 5xx at 0 from the start for",
        f"{handlers}, and for every other handler once it appears.",
        "Older and SGLang's names are renamed:",
        "",
        "| on the engine's page | on ours |",
        "| --- | --- |",
        *(f"| `{old}` | `{new}` |" for old, new in RENAMES.items()),
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write or check; returns the exit code."""
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != text())
    PAGE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
