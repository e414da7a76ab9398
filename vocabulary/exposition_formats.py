"""The two exposition formats as HTTP names them, and which of them a client takes."""

from typing import Final

OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# How a page of request metrics begins. prometheus_client, which answers every path below vLLM's /metrics, begins a
# family with HELP: so this tells our page from vLLM's whole one.
REQUEST_PAGE_BEGIN: Final = b"# TYPE vllm_vitals_"


def accepts_openmetrics(accept: str) -> bool:
    """Tell whether a client with this Accept header takes OpenMetrics 1.0; only that carries exemplars."""
    for media_range in accept.lower().split(","):
        media, *parameters = (part.strip() for part in media_range.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        if media == "application/openmetrics-text" and given.get("version", "1.0.0") == "1.0.0":
            return not _is_zero(given.get("q", "1"))
    return False


def _is_zero(quality: str) -> bool:
    try:
        return float(quality) <= 0
    except ValueError:
        return True
