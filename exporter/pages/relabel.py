r"""The byte path: an engine's exposition page gets our label, today's names and its missing zeros without being parsed.

A page is taken apart once. A family's sample lines all begin with the family's name, so one `bytes.replace` of its
braces labels the whole family, after one regular expression has proved that every line is one Prometheus would accept.
What does not fit that common form goes line by line, and a line that Prometheus would refuse is dropped and counted,
since Prometheus throws away the whole page for one bad line. Later pages of the same server mostly differ in their
values alone: they are filled into the skeleton of the first.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from ...vocabulary.ours import ENGINE_PROCESS_PREFIXES, HTTP_HANDLERS, HTTP_REQUESTS, HTTP_STATUSES, OURS, RENAMES
from .families import FamilyLines
from .samples import label_pairs
from .skeleton import VALUE, Skeleton, skeleton

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL_NAME = rb"[a-zA-Z_][a-zA-Z0-9_]*+"
_QUOTED = rb'"[^"\\\n]*+(?:\\[\\"n][^"\\\n]*+)*+"'

# The common form of a family, from behind "# TYPE " to the next family's HELP line: every line is named after the
# family, label values hold no escapes and no opening brace. Group 3 takes part when a line has no labels.
_COMMON_LABEL = _LABEL_NAME + rb'="[^"\\\n{]*+"'
_COMMON_FORM: Final = {
    kind: re.compile(
        rb"(%b) %b((?:\n\1%b(?:\{%b(?:,%b)*+\}|()) %b)*+)(?:\n# HELP ([^\n]*+))?+"
        % (_NAME, kind, suffixes, _COMMON_LABEL, _COMMON_LABEL, VALUE)
    )
    for kind, suffixes in (
        (b"counter", b""),
        (b"gauge", b""),
        (b"untyped", b""),
        (b"histogram", b"_(?:bucket|count|sum)"),
        (b"summary", b"(?:_count|_sum)?+"),
    )
}

# The format's full grammar: blanks between tokens, a trailing comma, empty braces, a timestamp in milliseconds.
_SPACED_LABEL = rb"[ \t]*+%b[ \t]*+=[ \t]*+%b[ \t]*+" % (_LABEL_NAME, _QUOTED)
_SPACED_LABELS = rb"(?:%b(?:,%b)*+(?:,[ \t]*+)?+|[ \t]*+)" % (_SPACED_LABEL, _SPACED_LABEL)
_ANY_FORM: Final = re.compile(
    rb"(%b)[ \t]*+(?:\{(%b)\})?+[ \t]*+([^ \t{}#]++)([ \t]++-?[0-9]++)?+" % (_NAME, _SPACED_LABELS)
)
_EACH_LABEL: Final = re.compile(rb"(%b)[ \t]*+=[ \t]*+(%b)" % (_LABEL_NAME, _QUOTED))
_FAMILY_NAME: Final = re.compile(_NAME)

_SUFFIXES: Final = {b"histogram": (b"_bucket", b"_count", b"_sum"), b"summary": (b"", b"_count", b"_sum")}
_PLAIN: Final = (b"",)
_RENAMES: Final = {old.encode(): new.encode() for old, new in RENAMES.items()}
_ENGINE_PROCESS: Final = tuple(prefix.encode() for prefix in ENGINE_PROCESS_PREFIXES)
_OURS: Final = frozenset(name.encode() for name in OURS)  # a chained exporter's: on our page they have one owner
_HTTP_REQUESTS: Final = HTTP_REQUESTS.encode()
_HTTP_HANDLERS: Final = tuple((b'"%b"' % path.encode(), b'"%b"' % method.encode()) for path, method in HTTP_HANDLERS)
_HTTP_STATUSES: Final = tuple(b'"%b"' % status.encode() for status in HTTP_STATUSES)


class ServerPage(NamedTuple):
    """A server's page, ready to be merged.

    Attributes:
        families: by name, today's names, in the page's order.
        samples: samples in `families`.
        dropped_lines: lines that Prometheus would have refused.
        duplicates: samples left out because the page had their series already.
        type_conflicts: families stated twice with different types.
    """

    families: dict[bytes, FamilyLines]
    samples: int
    dropped_lines: int
    duplicates: int
    type_conflicts: int


class _Plan(NamedTuple):
    """What to do with the family of one TYPE line.

    Attributes:
        name: the family's name on the page, empty when the TYPE line makes no sense.
        kind: its type.
        targets: names under which it leaves, each with its header; none when it is left out.
    """

    name: bytes
    kind: bytes
    targets: tuple[tuple[bytes, bytes], ...]


_NO_HTTP_REQUESTS: Final = FamilyLines(
    b"counter",
    b"# HELP %b HTTP requests by handler, method and status.\n# TYPE %b counter\n" % (_HTTP_REQUESTS, _HTTP_REQUESTS),
    b"",
)


_NO_FAMILY: Final = _Plan(b"", b"untyped", ())


class _Assembly:
    """A page's families while they come together."""

    def __init__(self) -> None:
        self.families: dict[bytes, FamilyLines] = {}
        self.strangers: list[bytes] = []
        self.dropped = 0
        self.duplicates = 0
        self.conflicts = 0

    def take(self, name: bytes, family: FamilyLines) -> None:
        """Add a family; one that is there already keeps its header and its series."""
        earlier = self.families.get(name)
        if earlier is None:
            self.families[name] = family
        elif earlier.kind == family.kind:
            self._append(name, family.lines)
        else:  # of another kind: its samples may have names that are not the earlier one's
            self.conflicts += 1
            self.strangers += [line + b"\n" for line in family.lines.split(b"\n") if line]

    def settle(self) -> None:
        """Bring samples that stood under another family's header, or under none, to their own family."""
        for line in self.strangers:
            name = line[: line.index(b"{")]
            owner = next((base for base in _bases(name) if self._owns(base, name)), name)
            self.families.setdefault(owner, FamilyLines(b"untyped", b"", b""))
            self._append(owner, line)

    def _owns(self, base: bytes, name: bytes) -> bool:
        family = self.families.get(base)
        return family is not None and name.removeprefix(base) in _SUFFIXES.get(family.kind, _PLAIN)

    def _append(self, name: bytes, lines: bytes) -> None:
        family = self.families[name]
        present = {*map(_series, family.lines.split(b"\n"))}
        fresh = [line + b"\n" for line in lines.split(b"\n") if line and _series(line) not in present]
        self.families[name] = family._replace(lines=family.lines + b"".join(fresh))
        self.duplicates += lines.count(b"\n") - len(fresh)


class Relabeler:
    """Turns pages of one server into families that carry `server="NAME"`.

    Args:
        server: value of the label.
        raw_names: keep families under their old names beside today's.
    """

    def __init__(self, server: str, *, raw_names: bool = False) -> None:
        self._label = label_pairs(server=server).encode()
        self._brace = b"{%b," % self._label
        self._braces = b"{%b} " % self._label
        self._raw_names = raw_names
        self._skeleton: Skeleton | None = None

    def relabel(self, page: bytes) -> ServerPage:
        """Return the page's families; never raises, whatever the bytes are."""
        known = self._skeleton  # large pages come from threads, and one given up on may still be running
        if known is not None:
            families = known.fill(page)
            if families is not None:
                return ServerPage(families, known.samples, 0, 0, 0)
        return self._take_apart(page)

    def _take_apart(self, page: bytes) -> ServerPage:
        """Return the page's families, and remember the skeleton of a page without peculiarities."""
        self._skeleton = None
        common = _is_utf8(page) and b'server="' not in page
        whole, _, torn = page.rpartition(b"\n")  # without its newline the last line may have lost digits
        result = _Assembly()
        result.dropped = int(bool(torn.strip()))
        leading, *parts = (b"\n" + whole).split(b"\n# TYPE ")
        lines, help_line = _cut_help(leading)
        regular = common and not lines and not torn
        if lines:
            self._line_by_line(_NO_FAMILY, b"", lines, result)
        slices: dict[bytes, tuple[int, int]] = {}
        seen = 0
        for part in parts:
            head, newline, rest = part.partition(b"\n")
            plan = self._plan(head, help_line)
            match = _COMMON_FORM[plan.kind].fullmatch(part) if common else None
            if match is None:
                lines, help_line = _cut_help(newline + rest)
            else:
                lines, help_line = match[2], match[4] or b""
            regular = regular and match is not None
            if match is None and not plan.targets:
                self._line_by_line(plan, plan.name, lines, result)  # not for the family itself: for strangers below it
            first, seen = seen, seen + lines.count(b"\n")
            for target, header in plan.targets:
                if target != plan.name and b"\n# TYPE %b " % target in page:
                    continue  # the page has the same thing under today's name
                if match is not None and _is_regular(lines):
                    labelled = self._labelled(lines, plan.name, target, bare=match[3] is not None)
                else:
                    regular = False
                    labelled = self._line_by_line(plan, target, lines, result)
                slices[target] = (first, seen)
                result.take(target, FamilyLines(plan.kind, header, labelled))
        result.settle()
        if b"\n# TYPE vllm:" in page or _HTTP_REQUESTS in result.families:
            self._add_http_zeros(result.families)
        samples = sum(family.lines.count(b"\n") for family in result.families.values())
        if regular and not result.duplicates and not result.conflicts:
            self._skeleton = skeleton(page, result.families, slices)
        return ServerPage(result.families, samples, result.dropped, result.duplicates, result.conflicts)

    def _plan(self, head: bytes, help_line: bytes) -> _Plan:
        """Return what to do with the family of this TYPE line; the engine's own process is left out."""
        words = head.split()
        name = words[0] if len(words) == 2 and _FAMILY_NAME.fullmatch(words[0]) and _is_utf8(head) else b""
        kind = words[1] if name and words[1] in _COMMON_FORM else b"untyped"
        today = _RENAMES.get(name)
        names = [name] if today is None else [today, name] if self._raw_names else [today]
        if not name or name in _OURS or name.startswith(_ENGINE_PROCESS):
            names = []
        help_name, _, text = help_line.partition(b" ")
        text = text if help_name == name and _is_utf8(text) else b""
        return _Plan(name, kind, tuple((target, _header(target, kind, text)) for target in names))

    def _labelled(self, lines: bytes, name: bytes, target: bytes, *, bare: bool) -> bytes:
        """Return lines in the common form with our label and the family's new name."""
        labelled = lines.replace(b"{", self._brace)
        if bare:
            parts = labelled.split(b"\n")
            labelled = b"\n".join([part if b"{" in part else part.replace(b" ", self._braces) for part in parts])
        if name != target:
            labelled = labelled.replace(b"\n" + name, b"\n" + target)
        return labelled[1:] + b"\n" if labelled else b""

    def _line_by_line(self, plan: _Plan, target: bytes, lines: bytes, result: _Assembly) -> bytes:
        """Return the family's good lines; what is bad or of other families goes to `result`."""
        own = {plan.name + suffix: target + suffix for suffix in _SUFFIXES.get(plan.kind, _PLAIN)}
        good: dict[object, bytes] = {}
        for line in lines.split(b"\n"):
            text = line.strip(b" \t\r")
            if not text or text.startswith(b"#"):
                continue
            match = _ANY_FORM.fullmatch(text)
            labels = _relabelled(match[2] or b"") if match else None
            if match is None or labels is None or not _is_number(match[3]) or not _is_utf8(text):
                result.dropped += 1
                continue
            name, _, value, time = match.groups()
            labelled = b"%b{%b%b} %b" % (own.get(name, name), self._label, labels, value)
            labelled += b" %b\n" % time.strip() if time else b"\n"
            if name in own:
                result.duplicates += _series(labelled) in good
                good.setdefault(_series(labelled), labelled)
            elif name not in _OURS and not name.startswith(_ENGINE_PROCESS):
                result.strangers.append(labelled)
        return b"".join(good.values())

    def _add_http_zeros(self, families: dict[bytes, FamilyLines]) -> None:
        """Give every handler its children for all outcomes."""
        family = families.get(_HTTP_REQUESTS, _NO_HTTP_REQUESTS)
        labels = [dict(_EACH_LABEL.findall(line)) for line in family.lines.split(b"\n") if line]
        present = {tuple(label.get(name, b'""') for name in (b"handler", b"method", b"status")) for label in labels}
        handlers = dict.fromkeys((*_HTTP_HANDLERS, *((handler, method) for handler, method, _ in sorted(present))))
        zeros = b"".join(
            b"%b{%b,handler=%b,method=%b,status=%b} 0.0\n" % (_HTTP_REQUESTS, self._label, handler, method, status)
            for handler, method in handlers
            for status in _HTTP_STATUSES
            if (handler, method, status) not in present
        )
        families[_HTTP_REQUESTS] = family._replace(lines=family.lines + zeros)


def _cut_help(lines: bytes) -> tuple[bytes, bytes]:
    """Return the lines without the HELP line of the next family at their end, and that HELP line's content."""
    before, mark, help_line = lines.rpartition(b"\n# HELP ")
    return (before, help_line) if mark and b"\n" not in help_line else (lines, b"")


def _header(name: bytes, kind: bytes, text: bytes) -> bytes:
    """Return HELP (where the page has one) and TYPE."""
    type_line = b"# TYPE %b %b\n" % (name, kind)
    return b"# HELP %b %b\n%b" % (name, text, type_line) if text else type_line


def _is_regular(lines: bytes) -> bool:
    """Tell whether no series and no label name repeats."""
    rows = lines[1:].split(b"\n")
    labels = [_EACH_LABEL.findall(line) for line in rows]
    return all(len(pairs) == len(dict(pairs)) for pairs in labels) and len({*map(_series, rows)}) == len(rows)


def _bases(name: bytes) -> Iterator[bytes]:
    """Yield the families that a sample's name may belong to."""
    yield from (name.removesuffix(suffix) for suffix in (b"_bucket", b"_count", b"_sum") if name.endswith(suffix))


def _series(line: bytes) -> tuple[bytes, frozenset[tuple[bytes, bytes]]]:
    """Return what makes a sample line's series: the order of labels does not, nor does a space or brace in a value."""
    return re.split(rb"[{ ]", line, maxsplit=1)[0], frozenset(_EACH_LABEL.findall(line))


def _relabelled(labels: bytes) -> bytes | None:
    """Return label pairs in the common form, each after a comma; a `server` of theirs as `exported_server`.

    None when a name repeats.
    """
    pairs = _EACH_LABEL.findall(labels)
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        return None
    exported = b"exported_server"
    while exported in names:  # Prometheus prefixes again and again, too
        exported = b"exported_" + exported
    return b"".join(b",%b=%b" % (exported if name == b"server" else name, value) for name, value in pairs)


def _is_number(token: bytes) -> bool:
    """Tell whether Prometheus reads this value: Go knows no overflow and no underscores in decimals."""
    try:
        value = float(token)
    except ValueError:
        return False
    return b"_" not in token and (abs(value) != float("inf") or b"inf" in token.lower())


def _is_utf8(text: bytes) -> bool:
    """Tell whether the text is UTF-8 without NUL, which ends the text for Prometheus."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in text
