"""Mode `alongside`: vLLM makes its own `llm_request` span; we enrich it and hang the phases below it."""

from typing import Any, Final, Protocol

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from ..request.durations import from_span
from ..request.in_flight import Facts, Timeline
from ..request.records import NativeSpan
from .llm_request import common_attributes

SPAN_NAME: Final = "llm_request"
SCOPES: Final = frozenset({"vllm.tracing.otel", "vllm.llm_engine"})  # since 0.16, and before


class Hooked(Protocol):
    """What is needed of the plugin: what its hooks saw, and where to bring what they did not."""

    @property
    def tracing(self) -> Timeline | None:
        """The sequence whose span vLLM makes right now; None where the hooks do not fit."""

    def hook_failed(self, name: str, error: Exception) -> None:
        """Count a failure of ours, and say it once."""

    def submit_unhooked(self, timeline: Timeline) -> None:
        """Take a finished sequence that no hook saw."""


class NativeSpans(SpanProcessor):  # type: ignore[misc]  # no type information upstream
    """Sees vLLM's spans begin and end; added to vLLM's own tracer provider.

    Args:
        live: the running plugin, as far as its hooks are concerned.
        model: the served model's name.
    """

    def __init__(self, live: Hooked, model: str) -> None:
        self._live = live
        self._model = model

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002
        """Enrich: the span can still be written, and vLLM's own attributes win on the same key."""
        try:
            timeline = self._live.tracing
            if timeline is not None and span.name == SPAN_NAME and timeline.facts:
                span.set_attributes(_enrichment(timeline, self._model))
        except Exception as error:
            self._live.hook_failed("llm_request.on_start", error)

    def on_end(self, span: ReadableSpan) -> None:
        """Note where the span is; without the hooks, make the timeline from its attributes."""
        try:
            scope = span.instrumentation_scope
            if span.name == SPAN_NAME and scope is not None and scope.name in SCOPES:
                self._ended(span)
        except Exception as error:
            self._live.hook_failed("llm_request.on_end", error)

    def _ended(self, span: ReadableSpan) -> None:
        context = span.context
        assert context is not None
        assert span.start_time is not None
        assert span.end_time is not None
        native = NativeSpan(context.trace_id, context.span_id, span.start_time, span.end_time, sampled=True)
        timeline = self._live.tracing
        if timeline is not None:
            timeline.native = native
            return
        attributes = span.attributes or {}
        timeline = Timeline()
        timeline.durations = from_span(attributes, span.start_time / 1e9)
        timeline.native = native
        timeline.finished = span.end_time / 1e9
        response_id = str(attributes.get("gen_ai.request.id", ""))
        prompt = attributes.get("gen_ai.usage.prompt_tokens", 0)
        asked = (attributes.get(f"gen_ai.request.{name}") for name in ("max_tokens", "temperature", "top_p", "n"))
        timeline.facts = Facts(response_id, response_id, 0, None, prompt, 0, *asked)
        timeline.finish_reason = ""
        timeline.done = True
        self._live.submit_unhooked(timeline)

    def shutdown(self) -> None:
        """Nothing is held here."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002
        """Nothing is held here."""
        return True


def _enrichment(timeline: Timeline, model: str) -> dict[str, Any]:
    facts = Facts._make(timeline.facts)
    stats = timeline.stats
    served = facts.lora or model
    return dict(
        common_attributes(
            request_model=served,
            response_model=served,
            response_id=facts.response_id or facts.engine_id,
            input_tokens=facts.input_tokens,
            output_tokens=stats.num_generation_tokens if stats is not None else 0,
            cached_tokens=facts.cached_tokens,
            preemptions=timeline.preemptions,
            finish_reason=str(timeline.finish_reason),
            session_id=timeline.session_id,
            max_tokens=facts.max_tokens,
            temperature=facts.temperature,
            top_p=facts.top_p,
            choices=facts.n,
            index=facts.position,
        )
    )
