"""The command `vllm-vitals`: parsing and printing only."""

import argparse
import asyncio
import importlib.util
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from .. import __version__
from ..alerts.command import add_rules
from ..compose.command import add_bundle
from ..dashboards.command import add_dashboards
from ..demo.scenes import SCENES, Play, Scene
from ..settings.config import OPTIONS, Settings, load, unknown_variables
from ..settings.invocation import as_called
from ..settings.scalars import ConfigError
from ..settings.subcommands import Commands
from .standard_output import say, with_standard_output

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_SETTINGS_FILES: Final = ("vitals.yaml", "vitals.yml")

_EXAMPLES: Final = {
    "up": """examples:
  vllm-vitals up                                     find the engines of this machine and watch them
  vllm-vitals up --engine http://127.0.0.1:8000      watch this one
  vllm-vitals up --demo --scene kv-pressure          no GPU and no vLLM needed""",
    "exporter": """examples:
  vllm-vitals exporter --engine http://127.0.0.1:8000
  vllm-vitals exporter --engine llama=http://10.0.0.5:8000 --engine qwen=http://10.0.0.6:8000 --listen 0.0.0.0:9836 \\
      --web.config.file web.yml
  VLLM_VITALS_ENGINE=http://127.0.0.1:8000 vllm-vitals exporter --config vitals.yaml""",
    "doctor": """examples:
  vllm-vitals doctor
  vllm-vitals doctor --engine http://127.0.0.1:8000
  vllm-vitals doctor --engine-env /opt/vllm/bin/python    the tracing plugin in that environment
  vllm-vitals doctor --json                               for scripts and bug reports""",
    "demo": """examples:
  vllm-vitals demo                                   two simulated engines on eight simulated GPUs
  vllm-vitals demo --scene engine-crash --listen 127.0.0.1:9999
  vllm-vitals demo --scene burst --times 1 --speed 4         one burst, then even load, four times as fast
  vllm-vitals demo --engines 64 --pages-only         only the engines' pages, for load tests""",
    "logging-config": """examples:
  vllm-vitals logging-config > logging.json
  VLLM_LOGGING_CONFIG_PATH=logging.json vllm serve MODEL
  vllm-vitals logging-config --names flat --redact email,card --redact-pattern 'ticket=TCK-[0-9]+'""",
    "version": """example:
  vllm-vitals version""",
}
_AUDIT_EXAMPLES: Final = {
    "audit": """example:
  vllm-vitals audit verify --help""",
    "verify": """examples:
  vllm-vitals audit verify --key-file audit.key /var/log/vllm/audit.jsonl*
  vllm-vitals audit verify --key-file audit.key --expect 1204:9f86d0... /var/log/vllm/audit.jsonl

The last line of the output is `head SEQ:HASH`. Noted in another place, it is what finds a truncated end (--expect).""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong input, 141 nobody reads the output."""
    return with_standard_output(partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as ended:  # --help, or wrong input: told already
        return int(ended.code or 0)
    if options.command is None:
        parser.print_help()
        return 2
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ConfigError as error:
        print(f"vllm-vitals: {as_called(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose help can be pasted as it stands, and is not lost silently: argparse swallows a failed write."""

    def format_help(self) -> str:
        return as_called(super().format_help())

    def format_usage(self) -> str:
        return as_called(super().format_usage())

    def error(self, message: str) -> NoReturn:
        """One line, as for every other wrong input."""
        program = as_called(self.prog)
        self.exit(2, f"{program}: {message} (see {program} --help)\n")

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        (file or sys.stderr).write(message)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="vllm-vitals",
        description="Watch vLLM engines and the GPUs they run on: one page of metrics, health, a live view.",
        epilog="vllm-vitals COMMAND --help shows options and examples of a command. Exit codes: 0 done, 1 failed, 2 "
        "wrong input, 130 Ctrl-C, 141 nobody reads the output any more (as after `| head`; what watches goes on).",
    )
    commands = Commands(parser.add_subparsers(dest="command", metavar="COMMAND"), _EXAMPLES)
    command = commands.add

    up = command("up", _up, "run exporter and live page, with Prometheus and Alertmanager where they are installed")
    _add_settings(up)
    up.add_argument("--demo", action="store_true", help="simulated engines and GPUs: needs neither")
    _add_scene(up, SCENES)
    up.epilog = f"{_EXAMPLES['up']}\n\nscenes of --demo:\n" + _scene_lines(SCENES)
    up.add_argument(
        "--state",
        type=_folder,
        metavar="DIR",
        help="where Prometheus and Alertmanager keep data, configuration and logs: in DIR/vllm-vitals-up, with --demo "
        "in DIR/vllm-vitals-demo; nothing else in DIR is touched (default: $XDG_STATE_HOME/vllm-vitals, else "
        "~/.local/state/vllm-vitals)",
    )
    up.add_argument("--no-prometheus", action="store_true", help="do not start Prometheus and Alertmanager")

    exporter = command("exporter", _exporter, "run the exporter: /metrics, health and the live page")
    _add_settings(exporter)

    doctor = command("doctor", _doctor, "look at this machine and say what is there, what is missing and what to do")
    _add_settings(doctor)
    doctor.add_argument(
        "--engine-env",
        metavar="PYTHON",
        help="also look into vLLM's environment: is the plugin active, does it fit, which flags to add",
    )
    doctor.add_argument("--json", action="store_true", help="print findings and versions as one JSON object")

    demo = command("demo", _demo, "run exporter and live page over simulated engines and GPUs")
    _add_settings(demo)
    _add_scene(demo, SCENES)
    demo.epilog = f"{_EXAMPLES['demo']}\n\nscenes:\n" + _scene_lines(SCENES)
    demo.add_argument("--engines", type=_positive, default=2, metavar="N", help="simulated engines (default 2)")
    demo.add_argument("--simulated-gpus", type=_positive, default=8, metavar="N", help="simulated GPUs (default 8)")
    demo.add_argument(
        "--base-port",
        type=_port,
        default=18100,
        metavar="PORT",
        help="first engine's port (default 18100; 0: any free ones)",
    )
    demo.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    demo.add_argument("--pages-only", action="store_true", help="serve the engines' pages, no exporter")

    logs = command("logging-config", _logging_config, "print the logging configuration that makes vLLM's lines JSON")
    logs.add_argument("--names", choices=["ecs", "flat"], default="ecs", help="log.level or log_level (default ecs)")
    logs.add_argument(
        "--service-name", metavar="NAME", help="service.name (default: OTEL_SERVICE_NAME of vLLM's process, else vllm)"
    )
    logs.add_argument("--level", default="INFO", help="of vLLM's, uvicorn's and our lines (default INFO)")
    logs.add_argument(
        "--redact", action="append", default=[], metavar="KIND,...", help="black out email, phone, card, ssn, bearer"
    )
    logs.add_argument(
        "--redact-pattern", action="append", default=[], metavar="NAME=REGEX", help="black out as [NAME] what matches"
    )

    audits = commands.group("audit", "examine audit logs", _AUDIT_EXAMPLES)
    check = audits.add(
        "verify",
        _audit,
        "find edited, removed, re-ordered and truncated records",
        description="Find edited, removed, re-ordered and truncated records. Exit code: 0 intact, 1 not (an "
        "empty file proves nothing: 1), 2 bad input.",
    )
    check.add_argument("--key-file", type=Path, required=True, metavar="KEY", help="the key of tracing.audit.key_file")
    check.add_argument("--expect", metavar="SEQ:HASH", help="a head noted earlier, which must still be there")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help="rotated ones, too, in any order")

    add_rules(commands)
    add_dashboards(commands)
    add_bundle(commands)
    command("version", _version, "print the versions of this package, Python and NVML's binding")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: ./vitals.yaml when it is there)"
    )
    for option in OPTIONS:
        note = f"{option.help} [{option.variable}]"
        if option.metavar:
            parser.add_argument(
                option.flag, action="append", default=[], metavar=option.metavar, dest=option.flag, help=note
            )
        else:
            parser.add_argument(option.flag, action="append_const", const="on", default=[], dest=option.flag, help=note)


def _add_scene(parser: argparse.ArgumentParser, scenes: Iterable[str]) -> None:
    parser.add_argument("--scene", choices=list(scenes), help="what happens in the demo (default steady)")
    parser.add_argument(
        "--times", type=_positive, metavar="N", help="play the scene N times, then even load (default: again and again)"
    )
    parser.add_argument("--speed", type=_speed, metavar="N", help="play it N times as fast (default 1)")


def _play(options: argparse.Namespace) -> Play:
    return Play(options.scene or "steady", options.times, options.speed or 1.0)


def _no_play(options: argparse.Namespace) -> None:
    """Refuse what only a demo can do: the real machine plays no scenes."""
    for flag, value in (("--scene", options.scene), ("--times", options.times), ("--speed", options.speed)):
        if value is not None:
            raise ConfigError(f"{flag}: expected --demo beside it, found {flag} {value} without")


def _scene_lines(scenes: Mapping[str, Scene]) -> str:
    return "\n".join(f"  {name:<13} {scene.description}" for name, scene in scenes.items())


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, found {text!r}")
    return int(text)


def _folder(text: str) -> Path:
    if not text:  # an unset variable of a script must not mean the folder where it runs
        raise argparse.ArgumentTypeError("expected a folder, found ''")
    return Path(text)


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.0 < speed <= 100.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 100, found {text!r}")
    return speed


def _settings(options: argparse.Namespace) -> Settings:
    path = options.config or next((Path(name) for name in _SETTINGS_FILES if Path(name).is_file()), None)
    settings = load(path, {option.flag: getattr(options, option.flag) for option in OPTIONS})
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    for sentence in unknown_variables():
        logging.getLogger("vllm_vitals").warning(sentence)
    return settings


def _exporter(options: argparse.Namespace) -> int:
    from ..exporter.serve import serve  # noqa: PLC0415  each command loads what it needs

    settings = _settings(options)
    promises = None
    if settings.sla is not None:
        from ..alerts.sla_file import load as load_sla  # noqa: PLC0415
        from .in_force import in_force  # noqa: PLC0415

        promises = in_force(load_sla(settings.sla), settings.sla, {})
    return asyncio.run(serve(settings, _announce, promises))


def _announce(url: str) -> None:
    say(f"live page  {url}/\nmetrics    {url}/metrics")


def _up(options: argparse.Namespace) -> int:
    from .up import up  # noqa: PLC0415

    if not options.demo:
        _no_play(options)
    settings = _demo_settings(options) if options.demo else _settings(options)
    play = _play(options) if options.demo else None
    with_prometheus = not options.no_prometheus
    return asyncio.run(up(settings, play=play, state=options.state, with_prometheus=with_prometheus))


def _demo_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of a demo, which watches its own engines; raises ConfigError where a flag names others."""
    if named := getattr(options, "--engine"):
        raise ConfigError(f"--engine: expected none, found {named[0]}: the demo watches simulated engines only")
    settings = _settings(options)
    if settings.engines or settings.discovery.files or settings.discovery.dns:
        say("note          the demo watches simulated engines only: those of your settings are left out")
    return settings


def _demo(options: argparse.Namespace) -> int:
    from .up import demo  # noqa: PLC0415

    return asyncio.run(
        demo(
            _demo_settings(options),
            play=_play(options),
            engines=options.engines,
            gpus=options.simulated_gpus,
            base_port=options.base_port,
            seed=options.seed,
            pages_only=options.pages_only,
        )
    )


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import as_json, as_lines, examine, examine_engine_environment  # noqa: PLC0415

    findings = asyncio.run(examine(_settings(options)))
    if options.engine_env:
        print(f"looking into {options.engine_env} (vLLM's import takes some seconds)", file=sys.stderr, flush=True)
        findings += asyncio.run(examine_engine_environment(options.engine_env))
    elif importlib.util.find_spec("vllm") is not None:
        print("vLLM is installed here, looking at the plugin (some seconds)", file=sys.stderr, flush=True)
        findings += asyncio.run(examine_engine_environment(sys.executable))
    print(as_json(findings) if options.json else as_lines(findings))
    return 0 if all(finding.ok for finding in findings) else 1


def _logging_config(options: argparse.Namespace) -> int:
    from ..tracing.logs.logging_config import dict_config  # noqa: PLC0415

    patterns = {}
    for pair in options.redact_pattern:
        name, equals, expression = pair.partition("=")
        if not equals:
            raise ConfigError(f"--redact-pattern: expected NAME=REGEX, found {pair!r}")
        patterns[name] = expression
    kinds = [kind.strip() for text in options.redact for kind in text.split(",")]
    print(json.dumps(dict_config(options.names, options.service_name, options.level, kinds, patterns), indent=2))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from ..tracing.audit.hashing import read_key  # noqa: PLC0415
    from ..tracing.audit.verify import Head, chains, verify  # noqa: PLC0415

    key = read_key(options.key_file, "--key-file")
    expect = Head.read(options.expect, "--expect") if options.expect is not None else None
    found = chains(options.files)
    if expect is not None and len(found) > 1:
        raise ConfigError(f"--expect: expected the files of one chain, found {len(found)}")
    intact = True
    for files in found:
        try:
            report = verify(files, key, expect)
        except OSError as error:
            raise ConfigError(f"expected a readable file, found {error.filename}: {error.strerror}") from None
        for line in (*report.notes, *report.problems):
            print(line)
        print(f"{files[-1]}: {report.verdict}, {report.records} good records in {len(files)} files")
        if report.first is not None and report.head is not None:
            print(f"first seq {report.first.seq}\nhead {report.head}")
        intact = intact and report.intact
    return 0 if intact else 1


def _version(_: argparse.Namespace) -> int:
    print(
        f"vllm-vitals {__version__}, Python {platform.python_version()}, "
        f"nvidia-ml-py {metadata.version('nvidia-ml-py')}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
