"""How this package gets into a Python's environment: what to type, from the one place that knows.

It is not on PyPI yet, so it comes from a checkout or a wheel. Where pip has noted which one (PEP 610), that is named.
"""

import functools
import importlib.metadata
import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from .scalars import ConfigError

PUBLISHED: Final = False  # True once `pip install vllm-vitals` finds it: every advice follows, a test lists the docs
NAME: Final = "vllm-vitals"
ANYWHERE: Final = "/path/to/vllm-vitals"  # as the docs write a checkout or a wheel
_ROOT: Final = Path(__file__).parents[1]  # the package: in a checkout the repo's root


class Source(NamedTuple):
    """Where pip can get this package from: a path, an address, or a name on PyPI."""

    what: str
    editable: bool = False


def install_command(extra: str = "", *, python: str = sys.executable, options: str = "") -> str:
    """Return the command that brings this package, with an extra, into the environment of a Python.

    Args:
        extra: of pyproject.toml, such as `tracing`.
        python: path of the interpreter; ours unless named.
        options: more for pip.
    """
    source = _source()
    editable = "-e " if source.editable and python == sys.executable else ""
    more = f"{options} " if options else ""
    return f"{shlex.quote(python)} -m pip install {more}{editable}{shlex.quote(_with(extra, source.what))}"


def documented(extra: str = "", options: str = "") -> str:
    """Return the command as the docs write it, where nothing is known of the reader's machine."""
    what = _with(extra, NAME if PUBLISHED else ANYWHERE)
    return f"pip install {f'{options} ' if options else ''}{shlex.quote(what)}"


def require(who: str, extra: str, modules: Mapping[str, str]) -> None:
    """Raise ConfigError with the command to type, where an extra is not installed; called before anything is written.

    Args:
        who: needs it, such as `rules check`.
        extra: of pyproject.toml.
        modules: what is imported -> the project that brings it.
    """
    lacking = [project for module, project in modules.items() if not _importable(module)]
    if lacking:
        found = ", ".join(dict.fromkeys(lacking))
        raise ConfigError(f"{who}: expected {found}, found none; {install_command(extra)}")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # switched off: sys.modules[module] is None
        return False


def checkout() -> Path | None:
    """Return the checkout that this code runs from; None for an installed package, whose folder is left alone."""
    return _ROOT if (_ROOT / "vitals").is_file() and (_ROOT / "pyproject.toml").is_file() else None


def source_of(noted: Mapping[str, Any], root: Path | None, *, published: bool) -> Source:
    """Return where to install from.

    Args:
        noted: direct_url.json of the installed distribution; empty where pip noted none.
        root: the checkout that runs, if one does.
        published: whether PyPI has it.
    """
    url = urlsplit(str(noted.get("url", "")))
    path = Path(unquote(url.path))
    if "vcs_info" in noted:
        vcs = noted["vcs_info"]
        return Source(f"{NAME} @ {vcs['vcs']}+{noted['url']}@{vcs['commit_id']}")
    if url.scheme == "file" and path.exists():
        return Source(str(path), bool(noted.get("dir_info", {}).get("editable")))
    if url.scheme in {"http", "https"}:
        return Source(f"{NAME} @ {noted['url']}")
    if root is not None:
        return Source(str(root))
    return Source(NAME if published else ANYWHERE)


def _with(extra: str, what: str) -> str:
    if not extra:
        return what
    name, at, url = what.partition(" @ ")
    return f"{name}[{extra}]{at}{url}"


@functools.cache
def _source() -> Source:
    try:
        # Several: a checkout in the current folder brings an egg-info, which says nothing.
        notes = (one.read_text("direct_url.json") for one in importlib.metadata.distributions(name=NAME))
        noted = json.loads(next(filter(None, notes), "{}"))
        return source_of(noted, checkout(), published=PUBLISHED)
    except (OSError, ValueError, KeyError, AttributeError):
        return source_of({}, checkout(), published=PUBLISHED)
