"""How the user called this program, so that what we tell them to type works when they type it."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

COMMAND_VARIABLE: Final = (
    "VLLM_VITALS_COMMAND"  # set by the script `vitals`, which runs us from an environment of its own
)
_NAME: Final = "vllm-vitals"
COMMANDS: Final = "up exporter doctor demo rules dashboards bundle logging-config audit version".split()  # noqa: SIM905
# Only a command: "a folder that vllm-vitals made" is a sentence.
_MENTION: Final = re.compile(rf"(?<![\w/.@'\"-])vllm-vitals(?= (?:{'|'.join(COMMANDS)}|COMMAND|--?[a-z])(?![\w-]))")


def command(environ: Mapping[str, str] = os.environ) -> str:
    """Return what the user types for `vllm-vitals`: ./vitals, a path where PATH leads elsewhere, else the name."""
    return environ.get(COMMAND_VARIABLE) or called(sys.argv[0], shutil.which)


def called(program: str, which: Callable[[str], str | None]) -> str:
    """Return what to type for a program that was started by a path.

    Args:
        program: sys.argv[0].
        which: where a name leads on PATH, None for nowhere.
    """
    path = Path(program)
    if path.name != _NAME or not path.is_file():
        return _NAME  # python -m, a test, another program
    found = which(_NAME)
    if found is not None and os.path.realpath(found) == os.path.realpath(path):
        return _NAME
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return program


def as_called(text: str) -> str:
    """Return a text whose commands `vllm-vitals ...` are those that the user can type."""
    ours = command()
    return text if ours == _NAME else _MENTION.sub(lambda _: ours, text)
