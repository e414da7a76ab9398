"""The command `vllm-vitals bundle`: parsing and printing only."""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..settings.invocation import as_called
from ..settings.scalars import ConfigError
from ..settings.subcommands import Commands, Run, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..settings.finding import Finding
    from .bundle import Result
    from .docker import Compose, Service

_EXAMPLES: Final = {
    "bundle": """examples:
  vllm-vitals bundle init bundle --profile metrics   write it, with fresh secrets
  vllm-vitals bundle up --dir bundle                 start it, wait until it is healthy, print the addresses
  vllm-vitals bundle COMMAND --help                  more of each command

Exit code: 0 done, 1 failed, 2 wrong input.""",
    "kubernetes": """examples:
  vllm-vitals bundle kubernetes manifests            then: kubectl apply --server-side -k manifests/overlays/example
  vllm-vitals bundle kubernetes manifests --sla sla.yaml""",
    "init": """examples:
  vllm-vitals bundle init bundle                     metrics: Prometheus, Alertmanager, Grafana, exporter
  vllm-vitals bundle init bundle --profile demo      simulated engines and GPUs: needs neither
  vllm-vitals bundle init bundle --profile all --sla sla.yaml --engine llama=http://host.docker.internal:8000

What is there already is kept where it is yours to edit (.env, sla.yaml, exporter/vitals.yaml, prometheus/targets,
secrets); any other file that differs is kept as FILE.bak-TIME.""",
    "up": """examples:
  vllm-vitals bundle up --dir bundle
  vllm-vitals bundle up --dir bundle --timeout 30m   images are fetched and built within it, too""",
    "down": """example:
  vllm-vitals bundle down --dir bundle               data stays; `docker compose down --volumes` there removes it""",
    "status": """example:
  vllm-vitals bundle status --dir bundle             exit code 1 when a service is not healthy""",
    "logs": """examples:
  vllm-vitals bundle logs --dir bundle prometheus
  vllm-vitals bundle logs --dir bundle --follow --tail 20 exporter grafana""",
    "upgrade": """examples:
  pip install --upgrade /path/to/vllm-vitals && vllm-vitals bundle upgrade --dir bundle
  vllm-vitals bundle upgrade --dir bundle --no-start

Data, secrets and what you set in .env stay. What you changed and we have to replace is kept as FILE.bak-TIME.""",
    "check": """example:
  vllm-vitals bundle check --dir bundle              nothing is started; promtool and amtool are used when on PATH""",
    "smoke": """examples:
  vllm-vitals bundle smoke --dir bundle              with the profiles all,vllm
  vllm-vitals bundle smoke --dir bundle --engine http://127.0.0.1:8001""",
}


def add_bundle(commands: Commands) -> None:
    """Add the command and its sub-commands to those of `vllm-vitals`."""
    summary = "write and run everything around vLLM with Docker Compose: metrics, alerts, dashboards, traces, logs"
    parts = commands.group("bundle", summary, _EXAMPLES)

    def command(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        sub = parts.add(name, run, summary)
        if name not in {"init", "kubernetes"}:
            sub.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="the bundle (default: here)")
        return sub

    init = command("init", _init, "write a bundle into a folder, with fresh secrets")
    init.add_argument("dir", type=Path, metavar="DIR", help="where to")
    init.add_argument(
        "--profile", action="append", default=[], metavar="NAME",
        help="what shall run: metrics (default), traces, logs, all, demo, vllm; again, or by commas, for more",
    )  # fmt: skip
    init.add_argument(
        "--engine", action="append", default=[], metavar="[NAME=]URL", help="a vLLM to watch; again for more"
    )
    init.add_argument("--sla", type=Path, metavar="FILE", help="promises to watch (default: ours)")

    manifests = command(
        "kubernetes", _kubernetes, "write the Kubernetes manifests, with rules and dashboards beside them"
    )
    manifests.add_argument("dir", type=Path, metavar="DIR", help="where to")
    manifests.add_argument("--sla", type=Path, metavar="FILE", help="promises to watch (default: ours)")

    for name, run, summary in (
        ("up", _up, "start the bundle and wait until it is healthy"),
        ("upgrade", _upgrade, "bring a bundle to this version and start it again; data stays"),
    ):
        sub = command(name, run, summary)
        sub.add_argument("--timeout", type=seconds, default=900.0, metavar="TIME", help="for all of it (default 15m)")
        if name == "upgrade":
            sub.add_argument("--no-start", action="store_true", help="write the files only")
    command("down", _down, "stop and remove the containers; data stays")
    command("status", _status, "say how each service is, what it uses, and where it is reached")
    logs = command("logs", _logs, "show what services wrote")
    logs.add_argument("--follow", "-f", action="store_true", help="go on as they write")
    logs.add_argument("--tail", default="100", metavar="LINES", help="so many of each (default 100)")
    logs.add_argument("service", nargs="*", metavar="SERVICE", help="default: all")
    command("check", _check, "look at a bundle without starting it: files, secrets, settings, configurations")
    smoke = command("smoke", _smoke, "send one traced request and find its exemplar, trace and log line")
    smoke.add_argument("--engine", metavar="URL", help="a vLLM with the plugin (default: that of the profile vllm)")
    smoke.add_argument("--timeout", type=seconds, default=90.0, metavar="TIME", help="for each step (default 90s)")
    smoke.add_argument("--ca-file", type=Path, metavar="FILE", help="the CA of Grafana behind compose.tls.yaml")


def _init(options: argparse.Namespace) -> int:
    from ..settings.config import Settings, load  # noqa: PLC0415  each command loads what it needs
    from .bundle import init, profiles_of  # noqa: PLC0415
    from .engine_addresses import notes_on  # noqa: PLC0415

    load(None, {"--engine": options.engine}, {}) if options.engine else Settings()  # a wrong address is told now
    profiles = [name.strip() for text in options.profile for name in text.split(",")]
    result = init(options.dir, profiles=profiles, engines=options.engine, sla=options.sla)
    _print_result(options.dir, result)
    chosen = profiles_of(options.dir)
    print(f"profiles  {', '.join(chosen)}  (COMPOSE_PROFILES in {options.dir}/.env)")
    for finding in notes_on(options.dir, chosen):
        print(f"note      {finding.what}: {finding.found}; {finding.advice}")
    for note in _without_docker():
        print(f"note      {note}")
    print(f"read      {options.dir}/README.md")
    print(as_called(f"next      vllm-vitals bundle up --dir {options.dir}"))
    return 0


def _without_docker() -> list[str]:
    """Return what `bundle up` will lack, as a note: the files can be written where Docker is not."""
    from .docker import program  # noqa: PLC0415

    try:
        program(daemon=False)
    except ConfigError as error:
        return [str(error)]
    return []


def _kubernetes(options: argparse.Namespace) -> int:
    from ..alerts.sla_file import DEFAULT, load  # noqa: PLC0415
    from .manifests import write_kubernetes  # noqa: PLC0415

    number = write_kubernetes(options.dir, load(options.sla or DEFAULT))
    print(f"{options.dir}: {number} files\nnext      kubectl apply --server-side -k {options.dir}/overlays/example")
    return 0


def _print_result(folder: Path, result: "Result") -> None:
    counts = Counter[str](one.outcome for one in result.files)
    told = {
        "new": "new",
        "same": "as they were",
        "changed": "replaced",
        "yours": "yours, left alone",
        "gone": "removed",
    }
    print(f"files     {', '.join(f'{counts[key]} {words}' for key, words in told.items() if counts[key])}  ({folder})")
    for one in result.files:
        if one.backup is not None:
            print(f"          {one.path}: what was there is now {one.backup.name}")
    if result.secrets:
        print(f"secrets   {len(result.secrets)} new in {folder}/secrets, readable by you only")
    else:
        print("secrets   as they were")
    for note in result.notes:
        print(f"note      {note}")


def _compose(folder: Path) -> "Compose":
    from .check import require  # noqa: PLC0415
    from .docker import Compose, program  # noqa: PLC0415

    require(folder)
    return Compose(program(), folder.resolve())


def _up(options: argparse.Namespace, changed: "Iterable[str]" = ()) -> int:
    from .bundle import profiles_of  # noqa: PLC0415
    from .engine_addresses import notes_on  # noqa: PLC0415
    from .passwords import loose  # noqa: PLC0415
    from .watch import start  # noqa: PLC0415

    compose = _compose(options.dir)
    if problems := loose(options.dir):
        raise ConfigError("\n  ".join(problems))
    for finding in notes_on(options.dir, profiles_of(options.dir)):
        _say(f"note      {finding.what}: {finding.found}; {finding.advice}")
    before = {service.name: service.identity for service in compose.services()} if changed else {}
    if not start(compose, options.timeout, _say):
        return 1
    if stale := _stale(compose, before, changed):
        _say(f"          restarted, since files that they read have changed: {', '.join(stale)}")
        compose.run("restart", *stale, deadline=options.timeout)
        if not start(compose, options.timeout, _say):
            return 1
    services = compose.services()
    print(f"\n{len(services)} services are up")
    _print_pages(options.dir, services)
    return 0


def _stale(compose: "Compose", before: "Mapping[str, str]", changed: "Iterable[str]") -> list[str]:
    """Return the services that run as before and read what changed: Compose looks at its own file only."""
    if not before:
        return []
    readers = compose.readers(changed)
    return [
        one.name
        for one in compose.services()
        if one.name in readers and one.state == "running" and before.get(one.name) == one.identity
    ]


def _say(line: str) -> None:
    print(line, flush=True)


def _print_pages(folder: Path, services: "Iterable[Service]") -> None:
    from .env_file import read  # noqa: PLC0415
    from .watch import pages  # noqa: PLC0415

    for line in pages(read(folder), services):
        print(line)
    print(f"{'passwords':<17} {folder.resolve() / 'secrets'}")


def _down(options: argparse.Namespace) -> int:
    code = _compose(options.dir).attached("down", "--remove-orphans")
    if code == 0:
        print(as_called("data stays: vllm-vitals bundle up starts with it again"))
    return 1 if code else 0


def _status(options: argparse.Namespace) -> int:
    from .usage import lines, read_stats  # noqa: PLC0415

    compose = _compose(options.dir)
    services = compose.services()
    if not services:
        print(as_called(f"nothing runs; vllm-vitals bundle up --dir {options.dir}"))
        return 1
    running = [service.container for service in services if service.state == "running"]
    used = read_stats(compose.stats(running)) if running else {}
    for line in lines(services, used):
        print(line)
    print()
    _print_pages(options.dir, services)
    return 0 if all(service.settled for service in services) else 1


def _logs(options: argparse.Namespace) -> int:
    follow = ["--follow"] if options.follow else []
    return 1 if _compose(options.dir).attached("logs", "--tail", options.tail, *follow, *options.service) else 0


def _upgrade(options: argparse.Namespace) -> int:
    from .. import __version__  # noqa: PLC0415
    from .bundle import init, version_of  # noqa: PLC0415
    from .check import require  # noqa: PLC0415

    require(options.dir)
    before = version_of(options.dir)
    result = init(options.dir)
    _print_result(options.dir, result)
    print(f"version   {before or 'unknown'} -> {__version__}")
    changed = [one.path for one in result.files if one.outcome in {"new", "changed", "gone"}]
    if any(path.startswith("prometheus/rules/") for path in changed):
        changed.append("sla.yaml")  # the user's, so nothing wrote it: its rules tell that it is another one
    return 0 if options.no_start else _up(options, changed)


def _check(options: argparse.Namespace) -> int:
    from .check import check  # noqa: PLC0415

    findings = check(options.dir)
    for finding in findings:
        _print_finding(finding)
    return 0 if all(finding.ok for finding in findings) else 1


def _print_finding(finding: "Finding") -> None:
    print(f"{finding.mark}  {finding.what:<32} {finding.found}", flush=True)
    if finding.advice:
        print(f"      {'':<32} -> {as_called(finding.advice)}", flush=True)


def _smoke(options: argparse.Namespace) -> int:
    from .check import require  # noqa: PLC0415
    from .env_file import read  # noqa: PLC0415
    from .smoke import Places, follow  # noqa: PLC0415

    require(options.dir)
    env = read(options.dir)
    address = env.get("BIND_ADDRESS") or "127.0.0.1"

    def at(variable: str, default: str, scheme: str = "http") -> str:
        return f"{scheme}://{address}:{env.get(variable) or default}"

    secure = "https" if "compose.tls.yaml" in env.get("COMPOSE_FILE", "").split(os.pathsep) else "http"
    places = Places(
        engine=(options.engine or at("VLLM_PORT", "8000")).rstrip("/"),
        prometheus=at("PROMETHEUS_PORT", "9090", secure),
        grafana=at("GRAFANA_PORT", "3000", secure),
        password_file=options.dir / "secrets/grafana_admin_password",
        ca_file=options.ca_file,
    )
    return 0 if follow(places, options.timeout, _print_finding) else 1
