"""What a request's body says besides the prompt: read off the event loop, only from bodies of modest size."""

import json
from typing import Any, Final, NamedTuple

_TEXT: Final = 256  # characters of an id or a name that are kept


class Body(NamedTuple):
    """Fields of an OpenAI-style body; empty or None where it has none."""

    model: str = ""
    user: str = ""
    session_id: str = ""
    stream: bool | None = None
    messages: str | None = None


def read_body(pieces: list[bytes], *, with_content: bool) -> Body:
    """Return what the body says; nothing for what is no JSON object.

    Args:
        pieces: the body as it came.
        with_content: also return prompt or messages, as JSON.
    """
    try:
        fields = json.loads(b"".join(pieces))
    except (ValueError, RecursionError):
        return Body()
    if not isinstance(fields, dict):
        return Body()
    extra = fields.get("vllm_xargs")
    session = fields.get("session_id") or (extra.get("session_id") if isinstance(extra, dict) else None)
    stream = fields.get("stream")
    content = fields.get("messages", fields.get("prompt", fields.get("input"))) if with_content else None
    return Body(
        model=_text(fields.get("model")),
        user=_text(fields.get("user")),
        session_id=_text(session),
        stream=stream if isinstance(stream, bool) else None if stream is not None else False,
        messages=None if content is None else json.dumps(content, ensure_ascii=False),
    )


def _text(value: Any) -> str:
    return value[:_TEXT] if isinstance(value, str) else ""
