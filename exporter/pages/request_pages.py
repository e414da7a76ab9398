"""Pages of request metrics: each engine's gets our label, and all of them become one page with one end.

Apart from exposition.py because these pages are OpenMetrics where the scraper takes it, whose exemplars and `# EOF`
text 0.0.4 does not know, and because they are the plugin's own: small, and of one form.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from ...vocabulary.exposition_formats import REQUEST_PAGE_BEGIN
from .families import FamilyLines, merge
from .samples import label_pairs

_EXEMPLAR_CHARACTERS: Final = 128  # OpenMetrics 1.0: names and values of an exemplar's labels together

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL_NAME = rb"[a-zA-Z_][a-zA-Z0-9_]*+"
_LABEL = rb'%b="(?:[^"\\\n]|\\[\\"n])*+"' % _LABEL_NAME
_LABELS = rb"(?:%b(?:,%b)*+)?+" % (_LABEL, _LABEL)
# Digits are bounded: Go refuses a number that overflows, and Prometheus then refuses the page.
_NUMBER = rb"-?[0-9]{1,30}+(?:\.[0-9]{1,30}+)?+(?:e[+-][0-9]{1,2})?+"
_SAMPLE: Final = re.compile(
    rb"(%b)(?:\{(%b)\})?+ (%b|[+-]Inf|NaN)(?: # \{(%b)\} %b(?: %b)?+)?+"
    % (_NAME, _LABELS, _NUMBER, _LABELS, _NUMBER, _NUMBER)
)
_EACH_LABEL: Final = re.compile(rb'(%b)=("(?:[^"\\]|\\.)*+")' % _LABEL_NAME)
_META: Final = re.compile(rb"# (TYPE|UNIT|HELP) (%b) (.*)" % _NAME)
_OURS: Final = b"vllm_vitals_"

# Suffixes of a family's samples, and of those that may carry an exemplar.
_SUFFIXES: Final = {
    b"counter": ((b"_total",), (b"_total",)),
    b"gauge": ((b"",), ()),
    b"histogram": ((b"_bucket", b"_count", b"_sum"), (b"_bucket",)),
}


class RequestPage(NamedTuple):
    """An engine's page.

    Attributes:
        families: by the name of the TYPE line.
        dropped_lines: lines that are none of a known form.
        duplicates: samples whose series stood there already.
    """

    families: dict[bytes, FamilyLines]
    dropped_lines: int
    duplicates: int


def is_request_page(page: bytes) -> bool:
    """Tell whether the plugin wrote this; without it vLLM answers this path, too, with its whole /metrics."""
    return page.startswith(REQUEST_PAGE_BEGIN)


def relabelled(page: bytes, server: str, *, openmetrics: bool) -> RequestPage:
    """Return the page's families with `server="NAME"` in each sample, not in exemplars; never raises."""
    label = label_pairs(server=server).encode()
    headers: dict[bytes, list[bytes]] = {}
    kinds: dict[bytes, bytes] = {}
    samples: dict[bytes, dict[object, bytes]] = {}
    dropped = duplicates = 0
    family = b""
    *lines, torn = page.split(b"\n")  # without its newline the last line may have lost digits
    dropped += bool(torn.strip())
    for line in lines:
        meta = _META.fullmatch(line)
        if meta is not None and _is_text(line):
            word, name, rest = meta.groups()
            if word == b"TYPE":
                family = name if name.startswith(_OURS) and rest in _SUFFIXES and name not in kinds else b""
                dropped += not family
                if family:
                    kinds[family], headers[family], samples[family] = rest, [line], {}
            elif family and name == family:
                headers[family].append(line)
            continue
        if line in {b"", b"# EOF"}:
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None or not family or not _belongs(match, family, kinds[family], openmetrics=openmetrics):
            dropped += 1
            continue
        name, labels, _, _ = match.groups()
        pairs = _EACH_LABEL.findall(labels or b"")
        if len({key for key, _ in pairs}) < len(pairs) or not _is_text(line):
            dropped += 1
            continue
        series = (name, frozenset(pairs))
        if series in samples[family]:
            duplicates += 1
            continue
        behind = line[match.end(2) + 1 :] if labels is not None else line[len(name) :]
        labels = b"".join(b",%b=%b" % (_exported(key, pairs), value) for key, value in pairs)
        samples[family][series] = b"%b{%b%b}%b\n" % (name, label, labels, behind)
    families = {
        name: FamilyLines(kinds[name], b"\n".join((*headers[name], b"")), b"".join(samples[name].values()))
        for name in kinds
        if samples[name]
    }
    return RequestPage(families, dropped, duplicates)


def merged(pages: Iterable[RequestPage], *, openmetrics: bool) -> tuple[bytes, list[int]]:
    """Return all pages as one, and for each page the families whose type another page had stated otherwise.

    Those are left out: OpenMetrics gives samples other names for each type, so Prometheus would refuse the page.
    """
    page, conflicts = merge(pages, keep_conflicts=False)
    return page + (b"# EOF\n" if openmetrics else b""), conflicts


def _belongs(match: re.Match[bytes], family: bytes, kind: bytes, *, openmetrics: bool) -> bool:
    """Tell whether a sample may stand in this family: its name, and its exemplar where it has one."""
    allowed, with_exemplar = _SUFFIXES[kind]
    stem = family if openmetrics or kind != b"counter" else family.removesuffix(b"_total")
    suffix = match[1].removeprefix(stem)
    if suffix == match[1] or suffix not in allowed:
        return False
    if match[4] is None:
        return True
    pairs = _EACH_LABEL.findall(match[4])
    return (
        openmetrics and suffix in with_exemplar and sum(len(k) + len(v) - 2 for k, v in pairs) <= _EXEMPLAR_CHARACTERS
    )


def _exported(key: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return the label's name; a `server` of theirs becomes `exported_server`, as Prometheus does it."""
    if key != b"server":
        return key
    exported = b"exported_server"
    while any(name == exported for name, _ in pairs):
        exported = b"exported_" + exported
    return exported


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in line
