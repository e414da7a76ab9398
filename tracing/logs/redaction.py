"""What is blacked out of log lines when asked: e-mail addresses, phone and card numbers, US SSNs, keys, own patterns.

Every expression of the table takes time linear in the text: it begins only at a word's edge, what it repeats is bounded
or possessive, and no two ways lead to the same match.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...settings.scalars import ConfigError, nearest


def _luhn(match: re.Match[str]) -> bool:
    """Whether digits pass the check of ISO/IEC 7812 annex B and begin like a payment card's."""
    digits = [int(character) for character in match[0] if character.isdigit()]
    if digits[0] not in {2, 3, 4, 5, 6}:  # no scheme issues others; epoch milliseconds begin with 1
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


@dataclass(frozen=True, slots=True)
class Rule:
    """What a kind looks like; `hint` is text without which it cannot occur, `holds` decides on a match."""

    name: str
    pattern: re.Pattern[str]
    hint: str = ""
    holds: Callable[[re.Match[str]], bool] | None = None


RULES: Final = (
    Rule(
        "bearer",  # first: what follows must not cut a key into pieces
        re.compile(
            r"""(?xi)
            \b bearer [\ :=]{1,4}+ [\w.~+/=-]++                                      # RFC 6750
            | \b authorization ['"]? \s{0,3}+ [:=] \s{0,3}+ ['"]? (?:(?:basic|bearer|token|digest)\ )? [^\s"',;&]++
            | \b (?:x-)? api[_-]?key ['"]? \s{0,3}+ [:=] \s{0,3}+ \[? ['"]? [^\s"',;&\]}]++  # vLLM prints its arguments
            | (?<![\w-]) (?: sk-|pk-|nvapi-|hf_|gh[oprsu]_|github_pat_|glpat-|xox[abprs]- ) [\w-]{8,}+
            | (?<!\w) AKIA [0-9A-Z]{16} (?!\w)
            """
        ),
    ),
    Rule("email", re.compile(r"(?<![\w.%+-])[\w.%+-]{1,256}+@[\w-]{1,63}+(?:\.[\w-]{1,63}+){1,8}+"), hint="@"),
    Rule(
        "card",
        re.compile(
            r"""(?x) (?<![\w.]) (?:
                \d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?  # 4-4-4-4, also with up to 3 more
                | \d{4}([ -])\d{6}\2\d{4,5}                   # 4-6-5, 4-6-4
                | \d{13,19}
            ) (?!\w|\.\d)"""
        ),
        holds=_luhn,
    ),
    Rule("ssn", re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"), hint="-"),
    Rule(
        "phone",  # +CC ... or 3-3-4: without a plus or that shape a number is a count, a time or an id
        re.compile(
            r"""(?x)
            (?<![\w+]) \+ [1-9] (?: [ .()/-]{0,2}+ \d ){6,14}+ (?!\w)
            | (?<![\w.-]) (?: \(\d{3}\)\ ? | \d{3}[.-] ) \d{3} [.-] \d{4} (?![\w-]|\.\d)
            """
        ),
    ),
)
KINDS: Final = tuple(rule.name for rule in RULES)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_DEPTH: Final = 8


class Redactor:
    """Replaces what its rules find by `[NAME]`; never raises once it is made."""

    def __init__(self, kinds: Iterable[str], patterns: Mapping[str, str] | None = None) -> None:
        """Choose rules by kind and compile own patterns, which come first; raises ConfigError.

        The time that an own pattern takes is its author's business.
        """
        chosen = set(kinds)
        for kind in chosen:
            if kind not in KINDS:
                raise ConfigError(f"redact: expected {', '.join(KINDS)}, found {kind!r}{nearest(kind, KINDS)}")
        own = [_own(name, expression) for name, expression in (patterns or {}).items()]
        self.rules = (*own, *(rule for rule in RULES if rule.name in chosen))

    def text(self, text: str) -> str:
        """Return a text without what the rules find."""
        for rule in self.rules:
            if rule.hint in text:
                text = _replaced(rule, text)
        return text

    def everywhere(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return a JSON value with all its texts redacted, also names inside; deeper than 8 levels only a mark."""
        if isinstance(value, str):
            return self.text(value)
        if not isinstance(value, list | dict):
            return value
        if not depth:
            return "[too deep]"
        if isinstance(value, list):
            return [self.everywhere(item, depth - 1) for item in value]
        return {self.text(name): self.everywhere(item, depth - 1) for name, item in value.items()}


def _replaced(rule: Rule, text: str) -> str:
    mark = f"[{rule.name}]"
    if rule.holds is None:
        return rule.pattern.sub(mark, text)
    parts: list[str] = []
    begin = position = 0
    while (match := rule.pattern.search(text, position)) is not None:
        if rule.holds(match):
            parts += (text[begin : match.start()], mark)
            begin = position = match.end()
        else:
            position = match.start() + 1  # `1234 4111 1111 1111 1111`: the card begins later
    return "".join((*parts, text[begin:])) if parts else text


def _own(name: str, expression: str) -> Rule:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"redact pattern: expected a name of letters, digits, - and _, found {name!r}")
    try:
        pattern = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"redact pattern {name}: expected a regular expression, found {expression!r}: {error}"
        ) from None
    if pattern.match("") is not None:
        raise ConfigError(
            f"redact pattern {name}: expected an expression that needs text, {expression!r} matches nothing"
        )
    return Rule(name, pattern)
