"""The runbooks as web pages: each alert's link leads to the exporter, which works where no other site is reached.

The Markdown that `rules build --runbooks` writes is all that is understood; whatever else a page holds stays text.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from ...settings.scalars import ConfigError

SHIPPED: Final = Path(__file__).parents[2] / "docs/runbooks"  # of the default SLA
INDEX: Final = "README"
_MOST_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_ITEM: Final = re.compile(r"([0-9]+)\. +(.*)|(-) +(.*)")
_INLINE: Final = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\[([^\]]+)\]\(([^)\s]+)\)")
_LINK: Final = re.compile(r"https?://|#|[A-Za-z0-9_./-]+(#|$)")  # nothing that runs
_DEFAULTS: Final = (
    '<p class="note">The numbers on this page are those of the default promises. For your own: '
    "<code>vllm-vitals rules build sla.yaml --runbooks DIR</code>, then <code>--runbooks DIR</code> here.</p>\n"
)
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title} · vllm-vitals</title>
<link rel="icon" href="../../favicon.svg">
<link rel="stylesheet" href="../../docs.css">
<header><a href="../../">vllm-vitals</a> / <a href="./">runbooks</a></header>
<main>
{note}{body}</main>
"""


class RunbookPages:
    """Where the pages come from.

    Args:
        folder: what `rules build --runbooks` wrote; None takes what comes along, those of the default SLA.
        texts: pages by file name instead of a folder.

    Raises:
        ConfigError: the folder holds no runbooks.
    """

    def __init__(self, folder: Path | None = None, texts: Mapping[str, str] | None = None) -> None:
        self._folder = folder or SHIPPED
        self._texts = None if folder is not None else texts
        self._note = _DEFAULTS if folder is None and texts is None else ""
        if folder is not None and not (folder / f"{INDEX}.md").is_file():
            raise ConfigError(f"runbooks: expected a folder that `rules build --runbooks` wrote, found {folder}")

    def page(self, name: str) -> bytes | None:
        """Return a page as HTML; None for a name that is none of ours. Blocking, a small file.

        Args:
            name: of an alert, with or without `.md`; empty for the index.
        """
        stem = name.removesuffix(".md") or INDEX
        if _NAME.fullmatch(stem) is None:
            return None
        text = self._read(f"{stem}.md")
        if text is None:
            return None
        title = "Runbooks" if stem == INDEX else stem
        return _PAGE.format(title=title, note=self._note, body=render(text)).encode()

    def _read(self, file: str) -> str | None:
        if self._texts is not None:
            return self._texts.get(file)
        try:
            with (self._folder / file).open("rb") as stream:
                return stream.read(_MOST_BYTES).decode("utf-8", "replace")
        except OSError:
            return None


def render(text: str) -> str:
    """Return Markdown as HTML: headings with anchors, paragraphs, lists, tables, code blocks; all else is escaped."""
    return "".join(_blocks(text.splitlines()))


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        rest = lines[at:]
        line = lines[at]
        if not line.strip() or (line.startswith("<!--") and line.endswith("-->")):
            at += 1
        elif line.startswith("```"):
            code = [*takewhile(lambda one: not one.startswith("```"), rest[1:])]
            yield f"<pre>{html.escape(chr(10).join(code))}</pre>\n"
            at += len(code) + 2
        elif heading := re.fullmatch(r"(#{1,4}) +(.+)", line):
            level = len(heading[1])
            yield f'<h{level} id="{_anchor(heading[2])}">{_inline(heading[2])}</h{level}>\n'
            at += 1
        elif line.startswith("|"):
            rows = [*takewhile(lambda one: one.startswith("|"), rest)]
            yield _table(rows)
            at += len(rows)
        elif item := _ITEM.fullmatch(line):
            of = [*takewhile(lambda one: not one.strip() or one.startswith("  "), rest[1:])]
            first = item[2] if item[1] else item[4]
            inner = "".join(_blocks([first, *(one[3:] if one.startswith("   ") else one.lstrip() for one in of)]))
            # a list per item: the numbers are those of the text, and what stands between items stays there
            yield f'<ol start="{item[1]}"><li>{inner}</li></ol>\n' if item[1] else f"<ul><li>{inner}</li></ul>\n"
            at += len(of) + 1
        else:
            words = [line, *takewhile(_goes_on, rest[1:])]
            yield f"<p>{_inline(' '.join(word.strip() for word in words))}</p>\n"
            at += len(words)


def _goes_on(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("#", "```", "|", "<!--")) and _ITEM.fullmatch(line) is None


def _table(rows: Sequence[str]) -> str:
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    head, body = cells[0], [row for row in cells[1:] if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return (
        f"<table><thead>{_row(head, 'th')}</thead>\n<tbody>\n"
        + "".join(f"{_row(row, 'td')}\n" for row in body)
        + "</tbody></table>\n"
    )


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{_inline(cell)}</{kind}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    made, at = [], 0
    for match in _INLINE.finditer(text):
        made.append(html.escape(text[at : match.start()]))
        at = match.end()
        code, bold, words, target = match.groups()
        if code is not None:
            made.append(f"<code>{html.escape(code)}</code>")
        elif bold is not None:
            made.append(f"<strong>{_inline(bold)}</strong>")
        elif _LINK.match(target):
            made.append(f'<a href="{html.escape(target)}">{_inline(words)}</a>')
        else:
            made.append(html.escape(match[0]))
    return "".join([*made, html.escape(text[at:])])


def _anchor(title: str) -> str:
    return html.escape(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
