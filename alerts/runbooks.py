"""One page per alert: meaning, impact, how to tell the cause, what to change."""

from typing import Final

from .alert_names import ALERTS, BY_NAME
from .causes import CAUSES, query_of
from .explain import explain
from .runbook_texts import RUNBOOKS
from .sla import Sla
from .tiers import tiers

_HEADER: Final = "<!-- Generated from the SLA by `vllm-vitals rules build --runbooks`. -->\n"
_TIERS: Final = {
    "fast": "Something broke just now. Find out what changed in the last hour.",
    "medium": "It has been bad for hours, or a short outage took much. The same questions, over six hours.",
    "slow": "No emergency: at this rate the promise is broken before the window ends. Plan the change this week.",
    "trickle": "The budget goes at least as fast as it may. Look at it with the next planning.",
}


def runbooks(sla: Sla) -> dict[str, str]:
    """Return the pages by file name: one per alert, and an index."""
    pages = {f"{alert.name}.md": _page(alert.name, sla) for alert in ALERTS}
    rows = "\n".join(f"| [{alert.name}]({alert.name}.md) | {alert.meaning} |" for alert in ALERTS)
    index = f"{_HEADER}# Runbooks\n\nEach alert links to its page here.\n\n| alert | meaning |\n| --- | --- |\n{rows}\n"
    return {"README.md": index, **pages}


def _page(name: str, sla: Sla) -> str:
    known, text = BY_NAME[name], RUNBOOKS[name]
    parts = [
        f"{_HEADER}# {name}\n",
        "## Meaning\n",
        *(_paragraph(paragraph) for paragraph in explain(name, sla)),
        "## Impact\n",
        f"{text.impact}\n",
        "## First\n",
        f"{text.now}\n",
    ]
    if known.kind == "burn":
        for tier in tiers(sla.window):
            parts += [f"### {tier.name}\n", f"{_TIERS[tier.name]}\n"]
    parts += ["## Cause, and what to change\n"]
    for number, key in enumerate(text.causes, 1):
        cause = CAUSES[key]
        parts += [
            f"{number}. **{cause.question}** (dashboard: vLLM {cause.dashboard})\n",
            f"   ```promql\n{_indented(query_of(cause, sla))}\n   ```\n",
            f"   {cause.reading}\n",
        ]
    return "\n".join(parts)


def _paragraph(text: str) -> str:
    """Return a paragraph; lines that `explain` indents become a code block."""
    head, *rest = text.splitlines()
    if head.startswith("  "):
        head, rest = "", [head, *rest]
    code = "```\n" + "\n".join(line[2:] for line in rest) + "\n```\n" if rest else ""
    return (f"{head}\n" + ("\n" if code else "") if head else "") + code


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
