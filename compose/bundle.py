"""The files of a bundle: what they hold, and how they get into a folder that may hold older ones."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .. import __version__
from ..alerts.build import generate
from ..alerts.runbooks import runbooks
from ..alerts.sla import DEFAULT_RUNBOOKS, Sla
from ..alerts.sla_file import DEFAULT, load
from ..settings.installation import install_command
from ..settings.scalars import ConfigError
from . import env_file, folder_docs
from .passwords import make_missing
from .source_archive import archive

SHIPPED: Final = Path(__file__).parent
PROFILES: Final = ("metrics", "traces", "logs", "all", "demo", "vllm")
_DASHBOARDS: Final = SHIPPED.with_name("dashboards") / "json"
_NOT_SHIPPED: Final = {".gitignore", "README.md"}
_FOLDERS: Final = ("collector", "elasticsearch", "exporter", "filebeat", "grafana/provisioning", "jaeger", "kibana",
                   "prometheus", "proxy")  # fmt: skip
_GENERATED: Final = ("exporter/source.tar.gz", "prometheus/rules", "prometheus/targets")
_YOURS: Final = {"exporter/vitals.yaml"}
# Which profiles bring what Prometheus scrapes: file below targets/ -> (targets, profiles).
_TARGETS: Final = {
    "vllm-vitals.exporter.yml": ("exporter:9836", {"metrics", "all"}),
    "vllm-vitals.demo.yml": ("demo:9837", {"demo"}),
    "node.exporter.yml": ("node_exporter:9100", {"metrics", "all"}),
    "collector.own.yml": ("collector:8888", {"traces", "all"}),
    "span-metrics.collector.yml": ("collector:8889", {"traces", "all"}),
}

Outcome = Literal["new", "same", "changed", "yours", "gone"]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the bundle.

    Attributes:
        path: below the bundle's folder.
        yours: the user's to edit, so it is written only where there is none.
    """

    path: str
    content: bytes
    yours: bool = False
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a file; `backup` is where its content from before is."""

    path: str
    outcome: Outcome
    backup: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What `init` did: the files, the secrets that it made, and sentences that a person should read."""

    files: tuple[Written, ...]
    secrets: tuple[str, ...]
    notes: tuple[str, ...]


def init(folder: Path, *, profiles: Sequence[str] = (), engines: Sequence[str] = (), sla: Path | None = None) -> Result:
    """Write a bundle, or bring one to this version; what is there is kept or backed up, and no secret changes.

    Args:
        folder: where to.
        profiles: what shall run; nothing keeps what .env says, or `metrics`.
        engines: addresses for the exporter.
        sla: a file of promises that becomes the bundle's; None keeps its own, or takes the default ones.

    Raises:
        ConfigError: a wrong profile or SLA, or a folder that cannot be written.
    """
    _refuse_unknown(profiles)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"DIR: expected a new folder or one with a bundle, found the file {folder}; name another one")
    promised = sla or (folder / "sla.yaml" if (folder / "sla.yaml").is_file() else DEFAULT)
    promises = load(promised)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        env = _env(folder, profiles)
        chosen = tuple(env_file.settings(env)["COMPOSE_PROFILES"].split(","))
        promises = promises.with_exporter(exporter_url(env_file.settings(env)))
        dashboards, notes = _dashboards(promises, default=promised == DEFAULT or _same(promised, DEFAULT))
        files = [
            *shipped(),
            File(".env", env.encode()),
            File("sla.yaml", promised.read_bytes(), yours=sla is None),
            *_exporter_settings(engines, chosen),
            *_rules(promises),
            *(File(f"docs/runbooks/{name}", text.encode()) for name, text in runbooks(promises).items()),
            *(File(name, content) for name, content in folder_docs.pages()),
            File("README.md", folder_docs.readme().encode(), yours=_is_another(folder / "README.md")),
            *_targets(chosen),
            *dashboards,
            File("exporter/source.tar.gz", archive()),
            File(".bundle-version", f"{__version__}\n".encode()),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        written = [_write(folder, file, stamp) for file in _last_wins(files)]
        written += _put_away(folder, "prometheus/rules/*.rules.yml", files, stamp)
        written += _put_away(folder, "grafana/dashboards/*.json", files, stamp)
        for one in ("tls", "grafana/dashboards", "prometheus/rules", "prometheus/targets", "docs/runbooks"):
            _open_folder(folder, folder / one)
        made = make_missing(folder)
    except OSError as error:
        raise ConfigError(f"DIR: expected a writable folder, found {error.filename}: {error.strerror}") from None
    return Result(tuple(written), tuple(made), tuple(notes))


def shipped() -> Iterator[File]:
    """Yield the files that are the same in every bundle."""
    paths = [*SHIPPED.glob("compose*.yaml"), *SHIPPED.glob("*.sh"), SHIPPED / ".env.example"]
    paths += [path for folder in _FOLDERS for path in (SHIPPED / folder).rglob("*") if path.is_file()]
    for path in sorted(paths):
        name = path.relative_to(SHIPPED).as_posix()
        # The last: what `init` adds where it is run on a checkout's own folder.
        if path.name in _NOT_SHIPPED or "__pycache__" in name or ".bak-" in name or name.startswith(_GENERATED):
            continue
        yield File(name, path.read_bytes(), yours=name in _YOURS, executable=path.suffix == ".sh")


def exporter_url(env: Mapping[str, str]) -> str:
    """Return where a browser reaches the live page and the runbooks: EXPORTER_URL, else what .env publishes.

    A bundle with the profile `demo` alone has the demo's page instead of an exporter.
    """
    if url := env.get("EXPORTER_URL", ""):
        return url.rstrip("/")
    profiles = {*env.get("COMPOSE_PROFILES", "").split(",")}
    only_demo = "demo" in profiles and not profiles & {"metrics", "all"}
    port = env.get("DEMO_PORT") or "9837" if only_demo else env.get("EXPORTER_PORT") or "9836"
    overlays = {*env.get("COMPOSE_FILE", "").split(os.pathsep)}
    exposed = "compose.tls.yaml" in overlays and not only_demo
    address = env.get("BIND_ADDRESS") or "127.0.0.1"
    host = env.get("SITE_NAME") or "localhost" if exposed else "127.0.0.1" if address == "0.0.0.0" else address
    return f"{'https' if exposed else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def version_of(folder: Path) -> str:
    """Return which version wrote a bundle; empty when none did."""
    path = folder / ".bundle-version"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def profiles_of(folder: Path) -> tuple[str, ...]:
    """Return which profiles a bundle runs."""
    return tuple(name for name in env_file.read(folder).get("COMPOSE_PROFILES", "").split(",") if name)


def _refuse_unknown(profiles: Iterable[str]) -> None:
    for name in profiles:
        if name not in PROFILES:
            raise ConfigError(f"--profile: expected one of {', '.join(PROFILES)}, found {name!r}")


def _env(folder: Path, profiles: Sequence[str]) -> str:
    example = (SHIPPED / ".env.example").read_text(encoding="utf-8")
    current = folder / ".env"
    text = example
    if current.is_file():
        old = folder / ".env.example"
        old_example = old.read_text(encoding="utf-8") if old.is_file() else ""
        text = env_file.merged(example, old_example, current.read_text(encoding="utf-8"))
    return env_file.with_settings(text, {"COMPOSE_PROFILES": ",".join(profiles)}) if profiles else text


def _exporter_settings(engines: Sequence[str], profiles: Sequence[str]) -> Iterator[File]:
    addresses = [*engines, *(["http://vllm:8000"] if "vllm" in profiles else [])]
    if not addresses:
        return
    text = (SHIPPED / "exporter/vitals.yaml").read_text(encoding="utf-8")
    listed = "engines:\n" + "".join(f"- {json.dumps(one)}\n" for one in dict.fromkeys(addresses))
    # An address on the command line is an order; the one of a profile is a default.
    yield File("exporter/vitals.yaml", text.replace("engines: []\n", listed).encode(), yours=not engines)


def _rules(sla: Sla) -> Iterator[File]:
    for name, text in generate(sla).items():
        if name.endswith(".rules.yml"):
            yield File(f"prometheus/rules/{name}", text.encode())
        elif name == "alertmanager.yml":
            yield File(f"alertmanager/{name}", text.encode())


def _targets(profiles: Sequence[str]) -> Iterator[File]:
    for name, (target, wanted) in _TARGETS.items():
        if wanted.intersection(profiles):
            yield File(f"prometheus/targets/{name}", f'- targets: ["{target}"]\n'.encode(), yours=True)


def _dashboards(sla: Sla, *, default: bool) -> tuple[list[File], list[str]]:
    notes = []
    texts = {
        path.name: path.read_text(encoding="utf-8").replace(DEFAULT_RUNBOOKS, sla.runbooks)
        for path in sorted(_DASHBOARDS.glob("*.json"))
    }
    if not default:
        try:
            from ..dashboards.build import dashboards, files  # noqa: PLC0415  needs grafanalib

            texts = files(dashboards(sla))
        except ImportError:
            notes.append(
                f"the dashboards draw the default promises, not yours: {install_command('dashboards')}, "
                "then bundle init again"
            )
    return [File(f"grafana/dashboards/{name}", text.encode()) for name, text in texts.items()], notes


def _is_another(readme: Path) -> bool:
    """Whether a README is somebody else's: init may be run in a folder that has one."""
    begins = folder_docs.README_BEGINS.encode()
    return readme.is_file() and not readme.read_bytes().startswith(begins)


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _last_wins(files: Iterable[File]) -> list[File]:
    """Return one file per path: made for this bundle wins over shipped."""
    by_path: dict[str, File] = {}
    for file in files:
        by_path[file.path] = file  # what is made comes after what is shipped
    return [*by_path.values()]


def _write(folder: Path, file: File, stamp: str) -> Written:
    path = folder / file.path
    _open_folder(folder, path.parent)
    backup = None
    outcome: Outcome = "new"
    if path.exists():
        if path.read_bytes() == file.content:
            return Written(file.path, "same")
        if file.yours:
            return Written(file.path, "yours")
        backup = _backup(path, stamp)
        outcome = "changed"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(file.content)
    temporary.chmod(0o755 if file.executable else 0o644)  # users of containers read it
    temporary.replace(path)
    return Written(file.path, outcome, backup)


def _open_folder(bundle: Path, folder: Path) -> None:
    """Make a folder that users of containers can enter, whatever the umask; the bundle's own is not mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    while folder != bundle:
        folder.chmod(0o755)
        folder = folder.parent


def _backup(path: Path, stamp: str) -> Path:
    backup = path.with_name(f"{path.name}.bak-{stamp}")
    number = 1
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak-{stamp}-{number}")
    shutil.copy2(path, backup)
    return backup


def _put_away(folder: Path, pattern: str, files: Iterable[File], stamp: str) -> Iterator[Written]:
    """Take away what an earlier SLA made and this one does not, with a backup: the programs would go on reading it."""
    made = {file.path for file in files}
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        if name not in made:
            backup = _backup(path, stamp)
            path.unlink()
            yield Written(name, "gone", backup)
