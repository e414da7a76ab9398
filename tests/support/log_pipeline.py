"""What Filebeat and Elasticsearch make of a container's log file: an emulation, no more than our files use of them.

Written after the documentation of 9.5: Filebeat's parsers and processors (docs/reference/filebeat in elastic/beats),
ingest processors (docs/reference/enrich-processor in elastic/elasticsearch), mapping. What is not known here raises, so
a file that begins to use more of them fails its tests instead of passing by.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

Document = dict[str, Any]
_MISSING = object()


class IngestError(Exception):
    """A processor failed, as Elasticsearch's would."""


class RejectedError(Exception):
    """The mapping refuses a document: it goes to the failure store."""


# ---- Filebeat --------------------------------------------------------------------------------------------------------
def filebeat(config: Mapping[str, Any], file: bytes, variables: Mapping[str, str]) -> Iterator[Document]:
    """Yield the events of a json-file log by the configuration's one input and its processors."""
    (settings,) = config["filebeat.inputs"]
    include, container = settings["parsers"]
    (key,) = include
    assert key == "include_message.patterns"
    assert container == {"container": {"stream": "all", "format": "docker"}}
    patterns = [
        re.compile(re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], pattern)) for pattern in include[key]
    ]
    lines = (line.decode() for line in file.split(b"\n") if line)
    for event in _container(line for line in lines if any(pattern.search(line) for pattern in patterns)):
        for processor in config["processors"]:
            (name,) = processor
            {"rename": _beat_rename, "drop_fields": _beat_drop}[name](event, processor[name])
        yield event


def _container(lines: Iterator[str]) -> Iterator[Document]:
    """The parser `container` with format docker: a record without a newline goes on in the next one."""
    text, first = "", None
    for line in lines:
        record = json.loads(line)
        text, first = text + record["log"], first or record  # of whichever stream the next record is
        if not record["log"].endswith("\n"):
            continue
        attributes = {"docker": {"attrs": first["attrs"]}} if "attrs" in first else {}
        yield {
            "@timestamp": first["time"],
            "message": text.removesuffix("\n"),
            "stream": first["stream"],
            "log": {"offset": 0, "file": {"path": "/var/lib/docker/containers/x/x-json.log"}},
            # What Filebeat adds of itself
            "agent": {"type": "filebeat"},
            "ecs": {"version": "8.0.0"},
            "host": {"name": "h"},
            "input": {"type": "filestream"},
            **attributes,
        }
        text, first = "", None


def _beat_rename(event: Document, options: Mapping[str, Any]) -> None:
    assert set(options) <= {"fields", "ignore_missing", "fail_on_error"}
    for pair in options["fields"]:
        value = _get(event, pair["from"])
        if value is not _MISSING and _get(event, pair["to"]) is _MISSING:
            _remove(event, pair["from"])
            _put(event, pair["to"], value)


def _beat_drop(event: Document, options: Mapping[str, Any]) -> None:
    assert set(options) <= {"fields", "ignore_missing"}
    for name in options["fields"]:
        assert name not in {"@timestamp", "type"}
        _remove(event, name)


# ---- ingest pipelines ------------------------------------------------------------------------------------------------
@dataclass
class Ingest:
    """Pipelines by name."""

    pipelines: Mapping[str, Mapping[str, Any]]
    failed: list[str] = field(default_factory=list)

    def run(self, name: str, document: Document) -> Document:
        """Return what a pipeline makes of a document; raises IngestError where nothing handles a failure."""
        result = copy.deepcopy(document)
        self._pipeline(name, result)
        return result

    def _pipeline(self, name: str, document: Document) -> None:
        pipeline = self.pipelines[name]
        assert set(pipeline) <= {"description", "processors", "on_failure", "_meta"}
        self._guarded(pipeline["processors"], pipeline.get("on_failure"), document)

    def _guarded(self, processors: list, on_failure: list | None, document: Document) -> None:
        for processor in processors:
            ((kind, options),) = processor.items()
            try:
                self._one(kind, dict(options), document)
            except IngestError as error:
                self.failed.append(f"{kind}: {error}")
                if on_failure is None:
                    raise
                for handler in on_failure:
                    ((handler_kind, handler_options),) = handler.items()
                    self._one(handler_kind, dict(handler_options), document, (kind, str(error)))
                return

    def _one(self, kind: str, options: Document, document: Document, failure: tuple[str, str] | None = None) -> None:
        condition = options.pop("if", None)
        ignore, handlers = options.pop("ignore_failure", False), options.pop("on_failure", None)
        # The condition is outside of what ignore_failure guards: ConfigurationUtils.readProcessor wraps it last.
        if condition is not None and not holds(condition, document):
            return
        try:
            if kind == "pipeline":
                assert set(options) == {"name"}
                self._pipeline(options["name"], document)
            else:
                _PROCESSORS[kind](document, options, failure)
        except IngestError as error:
            self.failed.append(f"{kind}: {error}")
            if handlers is not None:
                for handler in handlers:
                    ((handler_kind, handler_options),) = handler.items()
                    self._one(handler_kind, dict(handler_options), document, (kind, str(error)))
            elif not ignore:
                raise


def holds(condition: str, document: Document) -> bool:
    """Evaluate a condition: terms that are joined by `&&`, of the few forms that our pipelines have."""
    for term in condition.split(" && "):
        if match := re.fullmatch(r"(!?)\(?(ctx[\w.'@\[\]]*) instanceof (Map|String)\)?", term):
            kind = dict if match[3] == "Map" else str
            if isinstance(_context(match[2], document), kind) == (match[1] == "!"):
                return False
        elif match := re.fullmatch(r"(ctx[\w.]*) ([!=])= null", term):
            if (_context(match[1], document) is None) == (match[2] == "!"):
                return False
        elif match := re.fullmatch(r"(ctx[\w.]*)\.startsWith\('(.)'\)", term):
            if not _context(match[1], document).startswith(match[2]):
                return False
        elif match := re.fullmatch(r"(ctx[\w.]*)\.isEmpty\(\)", term):
            if _context(match[1], document):
                return False
        else:
            raise AssertionError(f"a condition that is not emulated: {term}")
    return True


def _context(path: str, document: Document) -> Any:
    """Follow a path as Painless does: what is no map has no fields, and null has none either."""
    value: Any = document
    for name in re.findall(r"\.(\w+)|\['([^']+)'\]", path.removeprefix("ctx")):
        if not isinstance(value, dict):
            raise IngestError(f"cannot reach {path}: not an object")
        value = value.get(name[0] or name[1])
    return value


def _gsub(document: Document, options: Document, _: Any) -> None:
    assert set(options) == {"field", "pattern", "replacement"}
    text = _text_of(document, options["field"])
    # `$` of Java's, too, matches before a newline at the end
    _put(document, options["field"], re.sub(options["pattern"], options["replacement"], text))


def _grok(document: Document, options: Document, _: Any) -> None:
    assert set(options) == {"field", "patterns", "pattern_definitions"}
    text = _text_of(document, options["field"])
    found = []
    for order, pattern in enumerate(options["patterns"]):
        expression, names = _compiled(pattern, tuple(options["pattern_definitions"].items()))
        match = expression.search(text)
        if match is not None:
            found.append((match.start(), order, match, names))
    if not found:
        raise IngestError("Provided Grok expressions do not match field value")
    _, _, match, names = min(found, key=lambda one: one[:2])  # all patterns are one expression, joined by `|`
    for number, (name, kind) in enumerate(names):
        value = match[f"g{number}"]
        if value is not None:
            _put(document, name, int(value) if kind == "long" else value)


@cache
def _compiled(pattern: str, definitions: tuple[tuple[str, str], ...]) -> tuple[re.Pattern, list[tuple[str, str]]]:
    names: list[tuple[str, str]] = []
    return re.compile(_expanded(pattern, dict(definitions), names)), names


def _expanded(pattern: str, definitions: Mapping[str, str], names: list[tuple[str, str]]) -> str:
    def replaced(found: re.Match) -> str:
        syntax, _, rest = found[1].partition(":")
        name, _, kind = rest.partition(":")
        if not name:
            return f"(?:{_expanded(definitions[syntax], definitions, names)})"
        assert kind in {"", "long"}
        number = len(names)
        names.append((name, kind))
        return f"(?P<g{number}>{_expanded(definitions[syntax], definitions, names)})"

    return re.sub(r"%\{([^}]+)\}", replaced, pattern)


def _json(document: Document, options: Document, _: Any) -> None:
    assert set(options) == {"field", "target_field"}

    def no_duplicates(pairs: list[tuple[str, Any]]) -> Document:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("Duplicate field")
        return dict(pairs)

    try:
        parsed = json.loads(_text_of(document, options["field"]), object_pairs_hook=no_duplicates,
                            parse_constant=lambda name: _raise(ValueError(name)))  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise IngestError(f"not JSON: {error}") from None
    _put(document, options["target_field"], parsed)


def _raise(error: Exception) -> None:
    raise error


def _dot_expander(document: Document, options: Document, _: Any) -> None:
    assert set(options) == {"path", "field"}
    assert options["field"] == "*"
    inner = _get(document, options["path"])
    if not isinstance(inner, dict):
        raise IngestError(f"field [{options['path']}] not present as part of path")
    for key in [key for key in inner if "." in key]:
        parts = key.split(".")
        if not all(parts):
            raise IngestError(f"field name [{key}] cannot be expanded")
        target = inner
        for part in parts[:-1]:
            if part in target and not isinstance(target[part], dict):
                raise IngestError(f"cannot expand [{key}], because [{part}] is not an object field, but a value field")
            target = target.setdefault(part, {})
        value = inner.pop(key)
        if parts[-1] in target:
            before = target[parts[-1]]
            value = [*(before if isinstance(before, list) else [before]), value]
        target[parts[-1]] = value


def _rename(document: Document, options: Document, _: Any) -> None:
    assert set(options) <= {"field", "target_field", "ignore_missing", "override"}
    value = _get(document, options["field"])
    if value is _MISSING:
        if options.get("ignore_missing"):
            return
        raise IngestError(f"field [{options['field']}] doesn't exist")
    there = _get(document, options["target_field"])
    if there is not _MISSING and not options.get("override"):
        raise IngestError(f"field [{options['target_field']}] already exists")
    _remove(document, options["field"])
    try:
        _put(document, options["target_field"], value)
    except IngestError:
        _put(document, options["field"], value)  # RenameProcessor puts it back
        raise


def _date(document: Document, options: Document, _: Any) -> None:
    assert set(options) == {"field", "formats"}
    assert options["formats"] == ["ISO8601"]
    text = _text_of(document, options["field"])
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise IngestError(f"unable to parse date [{text}]") from None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    document["@timestamp"] = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _set(document: Document, options: Document, failure: tuple[str, str] | None) -> None:
    assert set(options) <= {"field", "value", "copy_from", "override", "ignore_empty_value"}
    there = _get(document, options["field"])
    if options.get("override") is False and there is not _MISSING and there is not None:
        return
    if "copy_from" in options:
        value = _get(document, options["copy_from"])
        if value is _MISSING or value is None or value == "":
            assert options["ignore_empty_value"]
            return
    else:
        value = options["value"]
        if failure is not None:
            value = value.replace("{{{_ingest.on_failure_processor_type}}}", failure[0])
            value = value.replace("{{{_ingest.on_failure_message}}}", failure[1])
        assert "{{" not in value
    _put(document, options["field"], value)


def _lowercase(document: Document, options: Document, _: Any) -> None:
    assert set(options) <= {"field", "ignore_missing"}
    if _get(document, options["field"]) is _MISSING and options.get("ignore_missing"):
        return
    _put(document, options["field"], _text_of(document, options["field"]).lower())


def _remove_field(document: Document, options: Document, _: Any) -> None:
    assert set(options) <= {"field", "ignore_missing"}
    if _get(document, options["field"]) is _MISSING:
        if options.get("ignore_missing"):
            return
        raise IngestError(f"field [{options['field']}] not present")
    _remove(document, options["field"])


_PROCESSORS = {
    "date": _date,
    "dot_expander": _dot_expander,
    "grok": _grok,
    "gsub": _gsub,
    "json": _json,
    "lowercase": _lowercase,
    "remove": _remove_field,
    "rename": _rename,
    "set": _set,
}


def _text_of(document: Document, name: str) -> str:
    value = _get(document, name)
    if not isinstance(value, str):
        raise IngestError(f"field [{name}] is not a text")
    return value


def _get(document: Document, name: str) -> Any:
    value: Any = document
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _put(document: Document, name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for part in parents:
        inner = document.setdefault(part, {})
        if not isinstance(inner, dict):
            raise IngestError(f"cannot set [{name}]: [{part}] is not an object")
        document = inner
    document[last] = value


def _remove(document: Document, name: str) -> None:
    *parents, last = name.split(".")
    for part in parents:
        inner = document.get(part)
        if not isinstance(inner, dict):
            return
        document = inner
    document.pop(last, None)


# ---- the mapping -----------------------------------------------------------------------------------------------------
@dataclass
class Indexed:
    """What of a document can be searched; `ignored` are values that do not fit, kept in the source only."""

    fields: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)


def index(mapping: Mapping[str, Any], document: Document) -> Indexed:
    """Return how a document is indexed with `dynamic: false` and ignore_malformed; raises RejectedError."""
    assert mapping["dynamic"] is False
    if not isinstance(document.get("@timestamp"), str):
        raise RejectedError("a data stream's documents need a @timestamp")
    result = Indexed()
    _index(mapping["properties"], document, "", result)
    return result


def _index(properties: Mapping[str, Any], document: Document, prefix: str, result: Indexed) -> None:
    for name, value in document.items():
        path = f"{prefix}{name}"
        known = properties.get(name)
        if known is None:
            result.unmapped.append(path)
        elif value is None:
            continue
        elif "properties" in known:
            for one in value if isinstance(value, list) else [value]:
                if not isinstance(one, dict):
                    raise RejectedError(f"object mapping for [{path}] found a concrete value")
                _index(known["properties"], one, f"{path}.", result)
        else:
            _index_value(path, known, value, result)


def _index_value(path: str, known: Mapping[str, Any], value: Any, result: Indexed) -> None:
    kind = known["type"]
    if kind == "flattened":
        if not isinstance(value, dict):
            raise RejectedError(f"[{path}] expects an object")
        for name, leaf in _leaves(value):
            result.fields[f"{path}.{name}"] = leaf
        return
    for one in value if isinstance(value, list) else [value]:
        if one is None:
            continue
        if isinstance(one, dict | list):
            raise RejectedError(f"[{path}] of type {kind} cannot be an object")
        if not _FITS[kind](one):
            result.ignored.append(path)
        elif kind != "keyword" or len(str(one)) <= known["ignore_above"]:
            result.fields[path] = value
        else:
            result.ignored.append(path)


def _leaves(value: Document, depth: int = 20) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            if depth <= 1:
                raise RejectedError("the provided flattened field exceeded the maximum depth limit")
            for rest, leaf in _leaves(inner, depth - 1):
                yield f"{name}.{rest}", leaf
        else:
            yield name, inner


def _number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


_FITS = {
    "boolean": lambda value: isinstance(value, bool) or value in {"true", "false", ""},
    "date": lambda value: isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT", value) is not None,
    "float": _number,
    "keyword": lambda value: True,
    "long": lambda value: _number(value) and abs(float(value)) < 2**63,
    "match_only_text": lambda value: True,
}
