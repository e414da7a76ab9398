"""Panels over Jaeger and Elasticsearch: one trace, a search for traces, log lines."""

from typing import Any

from .fields import override
from .panels import ModernPanel
from .targets import ELASTICSEARCH, JAEGER, LogTarget, TraceTarget


def logs(title: str, question: str, lucene: str, **more: Any) -> ModernPanel:
    """Return log lines that Elasticsearch finds."""
    options = {
        "dedupStrategy": "none",
        "enableLogDetails": True,
        "prettifyLogMessage": False,
        "showCommonLabels": False,
        "showLabels": False,
        "showTime": True,
        "sortOrder": "Descending",
        "wrapLogMessage": True,
    }
    return ModernPanel(
        title=title, description=question, kind="logs", dataSource=ELASTICSEARCH, targets=[LogTarget(expr=lucene)],
        options=options, **{"width": 24, "height": 10, **more},
    )  # fmt: skip


def trace(title: str, question: str, trace_id: str, **more: Any) -> ModernPanel:
    """Return the spans of one trace."""
    return ModernPanel(
        title=title, description=question, kind="traces", dataSource=JAEGER, targets=[TraceTarget(expr=trace_id)],
        options={}, **{"width": 24, "height": 14, **more},
    )  # fmt: skip


def trace_search(title: str, question: str, service: str, tags: str, link: str, **more: Any) -> ModernPanel:
    """Return a table of traces; `link` is where a trace id leads."""
    linked = override("Trace ID", {"links": [{"title": "Show this trace", "url": link}]})
    target = TraceTarget(service=service, tags=tags)
    return ModernPanel(
        title=title, description=question, kind="table", dataSource=JAEGER, targets=[target], overrides=[linked],
        options={"cellHeight": "sm", "showHeader": True}, **{"width": 12, "height": 10, **more},
    )  # fmt: skip
