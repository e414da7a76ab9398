"""The folder in which `up` lets Prometheus and Alertmanager keep their data: ours alone, held by one `up` at a time.

The folder that a person names may hold anything, and is only made when it is missing. Ours lies in it, under a name of
its own for real machines and for the demo, so that their data never mix. A marker file says that it is ours: without
one, nothing in it is written, removed or given another mode.
"""

import contextlib
import errno
import fcntl
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..settings.scalars import ConfigError

REAL: Final = "vllm-vitals-up"
DEMO: Final = "vllm-vitals-demo"
_MARKER: Final = "made-by-vllm-vitals"
_LOCK: Final = "up.lock"
_MARKER_TEXT: Final = """\
`vllm-vitals up` keeps the data of its Prometheus and Alertmanager in this folder, and writes it as it needs.
Without this file it takes the folder for somebody else's, and leaves it alone.
"""


class StateError(ConfigError):
    """The folder cannot be used; the text says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """A folder that is ours while we hold it.

    Attributes:
        path: absolute, without links.
        new: it was made just now.
    """

    path: Path
    new: bool

    def write(self, name: str, text: str) -> Path:
        """Put a file there whole or not at all, readable for this user only, and return its path.

        Where the name is a link, the link is replaced and what it leads to is left alone. Raises StateError.
        """
        target = self.path / name
        fresh = target.with_name(f"{target.name}.new")
        try:
            target.parent.mkdir(exist_ok=True)
            if not target.parent.resolve().is_relative_to(self.path):
                raise StateError(f"expected a folder, found that {target.parent} is a link to another place. Remove it")
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600, exist_ok=False)
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise _cannot(target, error) from None
        return target


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return $XDG_STATE_HOME/vllm-vitals, else ~/.local/state/vllm-vitals; raises StateError where no home is known."""
    named = environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # the specification of XDG: a relative one is ignored
        return Path(named) / "vllm-vitals"
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise StateError("expected HOME to name your home folder, found none. Name a folder: --state DIR") from None
    if not Path(home).is_absolute():
        raise StateError(f"expected HOME to be an absolute path, found {home!r}. Name a folder: --state DIR")
    return Path(home) / ".local/state/vllm-vitals"


def expanded(folder: Path) -> Path:
    """Return a folder that a person named, `~` replaced: shells leave it in --state=~/data. Raises StateError."""
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise StateError(f"expected a folder, found {folder}: {error}") from None


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[StateFolder]:
    """Hold our folder of this name in the given one, until the end of the context or of the process.

    Raises:
        StateError: it cannot be made or written, is not ours, or another process holds it.
    """
    try:
        folder = folder.absolute()
        _refuse_our_own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ours = folder / name
        with contextlib.suppress(FileExistsError):
            ours.mkdir(mode=0o700)
        ours = ours.resolve(strict=True)
        new = _take(ours)
        lock = os.open(ours / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # closed where we start a program
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise _cannot(folder, error) from None
    try:
        _lock(lock, ours)
        yield StateFolder(ours, new)
    finally:
        os.close(lock)


def _refuse_our_own(folder: Path) -> None:
    if (folder / _MARKER).exists():
        raise StateError(
            f"expected the folder above, found {folder}, which vllm-vitals made itself. Name {folder.parent}"
        )


def _take(ours: Path) -> bool:
    """Mark the folder where it is empty and return whether it was; raises StateError where it is somebody else's."""
    stat = ours.stat()
    if stat.st_uid != os.geteuid():
        raise StateError(
            f"expected a folder of user {_user(os.geteuid())}, found that {ours} belongs to {_user(stat.st_uid)}. "
            "Run as that user, or name another folder: --state DIR"
        )
    marker = ours / _MARKER
    new = not os.path.lexists(marker)
    if new:
        strangers = sorted(each.name for each in ours.iterdir() if each.name != "lost+found")
        if strangers and not os.path.lexists(marker):  # another `up` may have been quicker
            raise StateError(
                f"expected an empty folder or one that vllm-vitals made, found {', '.join(strangers[:3])}"
                f"{' ...' if len(strangers) > 3 else ''} in {ours}. Move them, or name another folder: --state DIR"
            )
        marker.write_text(_MARKER_TEXT, encoding="utf-8")
    if stat.st_mode & 0o777 != 0o700:
        ours.chmod(0o700)
    return new


def _lock(lock: int, ours: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        raise StateError(
            f"expected a folder that nobody uses, found {ours} in use by another `up`"
            f"{f' (pid {holder})' if holder else ''}. Stop that one, or name another folder: --state DIR"
        ) from None
    except OSError as error:
        raise _cannot(ours, error) from None


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _cannot(path: Path, error: Exception) -> StateError:
    found, why = path, str(error)
    if isinstance(error, OSError) and error.errno == errno.EISDIR:
        return StateError(f"expected a file that can be written, found that {path} is a folder. Move it away")
    if isinstance(error, OSError):
        found, why = Path(error.filename or path), error.strerror or why
        if error.errno == errno.EEXIST:
            why = "it is not a folder"
    return StateError(f"expected a folder that can be written, found {found}: {why}. Name another one: --state DIR")
