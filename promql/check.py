"""Checks of PromQL before Prometheus sees it: names and labels that exist, counters that are rated, joins that match.

A query with a misspelt name is no error to Prometheus: it is an empty panel, or an alert that never fires. Needs
promql-parser (extra `rules`). Label sets are inferred bottom-up; where a label could be there, it is taken as there.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple

from ..vocabulary.engines import ENGINES
from ..vocabulary.engines import VALUES as ENGINE_VALUES
from ..vocabulary.ours import OURS, PLUGIN, VALUES, Metric

_TARGET: Final = frozenset({"job", "instance"})
# Made by Prometheus itself.
BUILT_IN: Final = (
    Metric("up", "gauge", "1 when the last scrape of the target worked."),
    Metric("scrape_duration_seconds", "gauge", "Duration of the scrape."),
    Metric("scrape_samples_scraped", "gauge", "Samples that the target exposed."),
    Metric("ALERTS", "gauge", "1 per active alert; its labels are the alert's own.", ("alertname", "alertstate")),
)

_RATES: Final = frozenset({"rate", "increase", "irate"})
_OF_GAUGES: Final = frozenset({"delta", "idelta", "deriv", "predict_linear"})
_ANY_RANGE: Final = frozenset(
    {"present_over_time", "absent_over_time", "count_over_time", "last_over_time", "changes", "resets"}
)
_OVER_TIME: Final = frozenset(
    {f"{what}_over_time" for what in ("avg", "min", "max", "sum", "quantile", "stddev", "stdvar")}
)
_PRESENCE: Final = frozenset({"absent", "timestamp"})
_SAME_LABELS: Final = frozenset(
    {"abs", "ceil", "floor", "round", "exp", "ln", "log2", "log10", "sqrt", "sgn", "clamp", "clamp_min", "clamp_max",
     "sort", "sort_desc"}
)  # fmt: skip
_NO_LABELS: Final = frozenset({"vector", "scalar", "time", "hour", "day_of_week", "minute"})
_OTHERS: Final = frozenset({"histogram_quantile", "label_replace", "label_join"})
# Functions that Prometheus 2.42 has and that mean the same in 3.x.
FUNCTIONS: Final = (
    _RATES | _OF_GAUGES | _ANY_RANGE | _OVER_TIME | _PRESENCE | _SAME_LABELS | _NO_LABELS | _OTHERS
)  # fmt: skip
_SET_OPERATORS: Final = frozenset({"and", "or", "unless"})
_COMPARISONS: Final = frozenset({"==", "!=", ">", "<", ">=", "<="})
_ALTERNATIVES: Final = re.compile(r"[\w./:+-]+(\|[\w./:+-]+)*")
_MACRO_RANGE: Final = re.compile(r"\[\$__(?:rate_interval|range|interval)(:[^\]]*)?\]")


class Schema(NamedTuple):
    """What there is to query.

    Attributes:
        metrics: family name -> metric.
        recorded: recording rule -> its labels, None where they are not known.
        target_labels: labels that the scrape adds to every series.
        scrape_interval: seconds.
    """

    metrics: Mapping[str, Metric]
    recorded: Mapping[str, frozenset[str] | None]
    target_labels: frozenset[str]
    scrape_interval: float


def schema(
    *,
    recorded: Mapping[str, frozenset[str] | None] | None = None,
    more: Iterable[Metric] = (),
    target_labels: Iterable[str] = (),
    scrape_interval: float = 15.0,
) -> Schema:
    """Return what our pages and vLLM's hold, and what the caller adds."""
    known = {metric.name: metric for metric in (*OURS.values(), *PLUGIN.values(), *ENGINES.values(), *BUILT_IN, *more)}
    return Schema(known, recorded or {}, _TARGET | {"server", *target_labels}, scrape_interval)


def without_macros(expression: str, variables: Mapping[str, str] | None = None) -> str:
    """Return a panel's query as Prometheus would get it: macros as 5m windows, variables by their values."""
    text = _MACRO_RANGE.sub(r"[5m\1]", expression)
    for name, value in (variables or {}).items():
        text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
    return text


def problems(expression: str, known: Schema) -> list[str]:
    """Return what is wrong with an expression, in words; nothing when it is sound."""
    from promql_parser import parse  # noqa: PLC0415  an extra: only who checks rules needs it

    try:
        tree = parse(expression)
    except ValueError as error:
        return [f"not PromQL: {error}"]
    check = _Check(known)
    check.labels(tree, value_matters=True)
    return check.found


def inferred_labels(expression: str, known: Schema) -> frozenset[str]:
    """Return the labels that the result of an expression may have; raises ValueError for what is no PromQL."""
    from promql_parser import parse  # noqa: PLC0415  an extra: only who checks rules needs it

    return _Check(known).labels(parse(expression), value_matters=True) or frozenset()


@dataclass(slots=True)
class _Check:
    known: Schema
    found: list[str] = field(default_factory=list)

    def labels(self, node: Any, *, value_matters: bool) -> frozenset[str] | None:
        """Return the labels of a node's result, None for a scalar; note problems on the way.

        Args:
            node: of the parsed expression.
            value_matters: False where only presence counts, so that a raw counter is no mistake.
        """
        kind = type(node).__name__
        if kind in {"NumberLiteral", "StringLiteral"}:
            return None
        if kind in {"ParenExpr", "UnaryExpr"}:
            return self.labels(node.expr, value_matters=value_matters)
        if kind == "VectorSelector":
            return self._selector(node, "" if value_matters else "absent", None)
        if kind == "AggregateExpr":
            return self._aggregation(node, value_matters=value_matters)
        if kind == "BinaryExpr":
            return self._binary(node, value_matters=value_matters)
        if kind == "Call":
            return self._call(node)
        if kind == "SubqueryExpr":
            return self.labels(node.expr, value_matters=value_matters)
        self.found.append(f"{kind} outside a function")
        return frozenset()

    def _selector(self, node: Any, function: str, window: timedelta | None) -> frozenset[str]:
        name = node.name
        if not name:
            self.found.append("a selector without a metric name")
            return frozenset()
        if name in self.known.recorded:
            labels = self.known.recorded[name]
            self._matchers(node, name, labels, {})
            return labels if labels is not None else frozenset(pair.name for pair in node.matchers.matchers)
        metric, part = self._metric(name)
        if metric is None:
            near = difflib.get_close_matches(name, [*self.known.metrics, *self.known.recorded], n=1, cutoff=0.7)
            self.found.append(f"{name}: unknown metric" + (f", did you mean {near[0]}?" if near else ""))
            return frozenset()
        counts = metric.kind == "counter" or part in {"_bucket", "_count", "_sum"}
        if metric.kind in {"histogram", "summary"} and not part:
            self.found.append(f"{name}: a {metric.kind} has _bucket, _sum and _count")
        elif function in _RATES and not counts:
            self.found.append(f"{function}({name}): is a {metric.kind}, not a counter")
        elif function in (_OF_GAUGES | _OVER_TIME) and counts:
            self.found.append(f"{function}({name}): is a counter, expected rate or increase")
        elif not function and counts:
            self.found.append(f"{name}: the raw value of a counter says nothing, expected rate or increase")
        if window is not None and window.total_seconds() < 4 * self.known.scrape_interval:
            self.found.append(
                f"{name}[{window.total_seconds():g}s]: expected 4 scrape intervals or more "
                f"({4 * self.known.scrape_interval:g}s)"
            )
        labels = frozenset(metric.labels) | self.known.target_labels
        if part == "_bucket":
            labels |= {"le"}
        values = {
            label: allowed
            for table in (VALUES, ENGINE_VALUES)
            for (owner, label), allowed in table.items()
            if owner == metric.name
        }
        self._matchers(node, name, labels, values)
        fixed = {pair.name for pair in node.matchers.matchers if pair.name == "le" and str(pair.op).endswith("Equal")}
        return labels - fixed  # one bound of a histogram is a plain counter

    def _metric(self, name: str) -> tuple[Metric | None, str]:
        found = self.known.metrics.get(name)
        if found is not None and found.kind not in {"histogram", "summary"}:
            return found, ""
        for part in ("_bucket", "_count", "_sum"):
            family = self.known.metrics.get(name.removesuffix(part)) if name.endswith(part) else None
            if family is not None and (family.kind == "histogram" or (family.kind == "summary" and part != "_bucket")):
                return family, part
        return found, ""

    def _matchers(
        self, node: Any, name: str, labels: frozenset[str] | None, values: Mapping[str, tuple[str, ...]]
    ) -> None:
        for pair in node.matchers.matchers:
            if labels is not None and pair.name not in labels and name != "ALERTS":
                near = difflib.get_close_matches(pair.name, labels, n=1)
                self.found.append(
                    f"{name}: has no label {pair.name!r}" + (f", did you mean {near[0]!r}?" if near else "")
                )
                continue
            equal = str(pair.op).endswith("Equal")
            texts = [pair.value] if equal else pair.value.split("|") if _ALTERNATIVES.fullmatch(pair.value) else []
            allowed = values.get(pair.name)
            for text in texts:
                if allowed is not None and text not in allowed and text:
                    near = difflib.get_close_matches(text, allowed, n=1)
                    self.found.append(
                        f"{name}: {pair.name} is never {text!r}"
                        + (f", did you mean {near[0]!r}?" if near else f"; it is {', '.join(allowed)}")
                    )
            if pair.name == "le" and equal and pair.value != "+Inf" and not _is_bound(pair.value):
                self.found.append(f"{name}: le is written {_bound(pair.value)!r}, found {pair.value!r}")

    def _aggregation(self, node: Any, *, value_matters: bool) -> frozenset[str]:
        operator = str(node.op)
        counts_only = operator in {"count", "group"}
        inner = self.labels(node.expr, value_matters=value_matters and not counts_only) or frozenset()
        modifier = node.modifier
        named = frozenset(modifier.labels) if modifier is not None else frozenset()
        if operator in {"topk", "bottomk", "limitk"}:
            return inner
        if modifier is None:
            left: frozenset[str] = frozenset()
        elif str(modifier.type).endswith("By"):
            if missing := named - inner:
                self.found.append(f"{operator} by ({', '.join(sorted(missing))}): no such label")
            left = named
        else:
            left = inner - named
        if "le" in inner and "le" not in left and not counts_only:
            self.found.append(f"{operator} without le: adds up the buckets of a histogram")
        return left

    def _call(self, node: Any) -> frozenset[str] | None:
        name = node.func.name
        if name not in FUNCTIONS:
            self.found.append(f"{name}(): not in Prometheus 2.42, or it means something else in 3.x")
        result: frozenset[str] | None = None
        for argument in node.args:
            if type(argument).__name__ == "MatrixSelector":
                result = self._selector(argument.vector_selector, name, argument.range)
            else:
                if name in _RATES and type(argument).__name__ == "SubqueryExpr":
                    self.found.append(f"{name}() of a subquery: counter resets are lost, take the {name} inside")
                inner = self.labels(argument, value_matters=name not in _PRESENCE)
                result = inner if result is None else result
        if name == "histogram_quantile":
            if result is not None and "le" not in result:
                self.found.append("histogram_quantile without le: expected sum by (le, ...) (rate(..._bucket[...]))")
            return (result or frozenset()) - {"le"}
        if name == "label_replace":
            return (result or frozenset()) | {node.args[1].val}
        if name == "label_join":
            return (result or frozenset()) | {node.args[1].val}
        if name == "vector":
            return frozenset()
        return None if name in _NO_LABELS else result

    def _binary(self, node: Any, *, value_matters: bool) -> frozenset[str] | None:
        operator = str(node.op)
        presence = operator in _SET_OPERATORS and operator != "or"
        left = self.labels(node.lhs, value_matters=value_matters and not _is_birth(node, operator))
        right = self.labels(node.rhs, value_matters=value_matters and not presence)
        if operator in {"/", "%"} and right is not None and not _is_guarded(node.rhs):
            self.found.append("division that is not guarded: expected / (... > 0), which gives nothing instead of NaN")
        if left is None or right is None:
            return right if left is None else left
        modifier = node.modifier
        matching = modifier.matching if modifier is not None else None
        on = matching is not None and str(matching.type).endswith("Include")
        named = frozenset(matching.labels) if matching is not None else frozenset()
        if on:
            for side, labels in (("left", left), ("right", right)):
                if missing := named - labels:
                    self.found.append(f"{operator} on ({', '.join(sorted(missing))}): not on the {side} side")
        elif operator not in _SET_OPERATORS and (left - named) != (right - named):
            difference = ", ".join(sorted((left - named) ^ (right - named)))
            self.found.append(f"{operator}: the sides never match, only one has {difference}; expected on or ignoring")
        if operator in _SET_OPERATORS:
            return left | right if operator == "or" else left
        cardinality = str(modifier.card) if modifier is not None else ""
        if "ManyToOne" in cardinality or "OneToMany" in cardinality:
            many, one = (left, right) if "ManyToOne" in cardinality else (right, left)
            taken = frozenset(modifier.group_labels or ()) if hasattr(modifier, "group_labels") else frozenset()
            if missing := taken - one:
                self.found.append(f"group of {operator}: {', '.join(sorted(missing))} is not there to be taken")
            return many | taken
        return named if on else left - named


def _is_birth(node: Any, operator: str) -> bool:
    """Return whether a node is `x unless x offset d`: the series born since then, whose raw value is their increase."""
    left, right = _bare(node.lhs), _bare(node.rhs)
    return (
        operator == "unless"
        and type(left).__name__ == type(right).__name__ == "VectorSelector"
        and left.name == right.name
        and right.offset is not None
    )


def _is_guarded(node: Any) -> bool:
    node = _bare(node)
    kind = type(node).__name__
    if kind == "BinaryExpr":
        operator = str(node.op)
        if operator in _COMPARISONS:
            return True
        if operator in {"*", "/", "and", "unless"}:  # zero only where its left side is
            return _is_guarded(node.lhs) and (operator in {"and", "unless"} or _is_guarded(node.rhs))
    if kind == "Call" and node.func.name == "clamp_min":
        return bool(node.args[1].val > 0)
    return kind == "NumberLiteral"


def _bare(node: Any) -> Any:
    while type(node).__name__ == "ParenExpr":
        node = node.expr
    return node


def _bound(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return "a number"
    return repr(number) if abs(number) < 1e6 else f"{number:.6g}"


def _is_bound(text: str) -> bool:
    try:
        return text == repr(float(text)) or "e" in text
    except ValueError:
        return False
