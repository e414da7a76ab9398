"""What an `llm_request` span says of a sequence, whoever makes the span: ours, or vLLM's own that we enrich."""

from typing import Any


def common_attributes(
    *,
    request_model: str,
    response_model: str,
    response_id: str,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    preemptions: int,
    finish_reason: str,
    session_id: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    choices: int | None,
    index: int | None,
) -> list[tuple[str, Any]]:
    """Return the attributes that both kinds of span have; what is None, empty or the default is left out.

    Args:
        request_model: what was asked for.
        response_model: what answered.
        response_id: as the caller got it.
        input_tokens: of the prompt.
        output_tokens: of the answer.
        cached_tokens: those of the prompt that were found in a KV cache.
        preemptions: how often.
        finish_reason: why it ended; empty where nobody told.
        session_id: of the caller's conversation.
        max_tokens: as asked for, None when not given; so are the next two.
        temperature: likewise.
        top_p: likewise.
        choices: the request's `n`.
        index: which of several sequences of one request; None for the only one.
    """
    rows = (
        ("gen_ai.provider.name", "vllm"),
        ("gen_ai.request.model", request_model),
        ("gen_ai.response.model", response_model),
        ("gen_ai.response.id", response_id),
        ("gen_ai.usage.input_tokens", input_tokens),
        ("gen_ai.usage.output_tokens", output_tokens),
        ("gen_ai.usage.cache_read.input_tokens", cached_tokens),
        ("vllm.num_preemptions", preemptions),
        ("gen_ai.response.finish_reasons", (finish_reason,) if finish_reason else None),
        ("gen_ai.conversation.id", session_id or None),
        ("gen_ai.request.max_tokens", max_tokens),
        ("gen_ai.request.temperature", None if temperature is None else float(temperature)),
        ("gen_ai.request.top_p", None if top_p is None else float(top_p)),
        ("gen_ai.request.choice.count", None if choices == 1 else choices),
        ("vllm.sequence.index", index),
    )
    return [row for row in rows if row[1] is not None]
