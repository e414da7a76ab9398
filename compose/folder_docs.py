"""What a bundle's folder says about itself: a README, and the pages that comments in its files point to."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGES: Final = (
    "bundle.md", "logs-and-traces.md", "sizing.md", "alerts.md", "tracing.md", "metrics.md", "vitals.yaml",
    "architecture.svg", "alerts-quality.png",
)  # fmt: skip
README_BEGINS: Final = "# A bundle of vllm-vitals\n"
_LEADS_OUT: Final = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")  # what only the repository has


def readme() -> str:
    """Return the folder's README.md."""
    return Path(__file__).with_name("bundle-readme.md").read_text(encoding="utf-8")


def pages() -> Iterator[tuple[str, bytes]]:
    """Yield the pages as (path below the bundle, content); links that lead out of the docs are words there."""
    for name in PAGES:
        content = (DOCS / name).read_bytes()
        if name.endswith(".md"):
            content = _LEADS_OUT.sub(r"\1", content.decode("utf-8")).encode()
        yield f"docs/{name}", content
