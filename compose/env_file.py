"""The bundle's .env: read, changed key by key, and brought to a newer version without losing what the user set."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_SETTING: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def settings(text: str) -> dict[str, str]:
    """Return the settings of a file's text."""
    found = (_SETTING.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1]: match[2].strip().strip("'\"") for match in found if match}


def read(folder: Path) -> dict[str, str]:
    """Return the settings of a bundle's .env; none when there is no such file."""
    path = folder / ".env"
    return settings(path.read_text(encoding="utf-8")) if path.is_file() else {}


def with_settings(text: str, values: Mapping[str, str]) -> str:
    """Return a text with other values of its keys; those that it lacks come last."""
    left = dict(values)
    lines = []
    for line in text.splitlines():
        match = _SETTING.fullmatch(line.strip())
        lines.append(f"{match[1]}={left.pop(match[1])}" if match and match[1] in left else line)
    if left:
        lines += ["", "# Not among the settings of this version", *(f"{key}={value}" for key, value in left.items())]
    return "\n".join(lines) + "\n"


def merged(example: str, old_example: str, current: str) -> str:
    """Return the new example with the user's settings: whatever differs from what the old example said."""
    old = settings(old_example)
    own = {key: value for key, value in settings(current).items() if old.get(key) != value}
    new = settings(example)
    return with_settings(example, {key: value for key, value in own.items() if new.get(key) != value})
