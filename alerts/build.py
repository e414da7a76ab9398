"""Everything that one SLA makes, as texts by file name; writing them, and telling where files differ."""

from pathlib import Path
from typing import Final

from .alertmanager import alertmanager_yaml
from .limit_rules import machine_group, service_groups
from .objective_rules import objective_groups
from .prometheus_rule import prometheus_rule
from .rules import Group, as_yaml
from .sla import Sla

GENERATED: Final = Path(__file__).with_name("rules")  # of the default SLA, committed


def rule_groups(sla: Sla) -> dict[str, list[Group]]:
    """Return the groups by the name of their rule file: one file per service, one for GPUs."""
    files = {}
    for service in sla.services:
        groups = [
            group
            for indicator, objective in service.objectives
            for group in objective_groups(sla, service, indicator, objective)
        ]
        files[f"{service.name}.rules.yml"] = [*groups, *service_groups(sla, service)]
    files["gpus.rules.yml"] = [machine_group(sla)]
    return files


def generate(sla: Sla) -> dict[str, str]:
    """Return every generated file of an SLA by its name."""
    groups = rule_groups(sla)
    return {
        **{name: as_yaml(some) for name, some in groups.items()},
        "alertmanager.yml": alertmanager_yaml(sla),
        "prometheusrule.yaml": prometheus_rule(group for some in groups.values() for group in some),
    }


def write(files: dict[str, str], folder: Path) -> None:
    """Write files; what lay there under another name is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def drift(files: dict[str, str], folder: Path) -> list[str]:
    """Return the names of files that are missing, differ, or should not be there."""
    there = {path.name: path for path in folder.glob("*") if path.is_file()}
    differing = [
        name for name, text in files.items() if name not in there or there[name].read_text(encoding="utf-8") != text
    ]
    return sorted({*differing, *(there.keys() - files.keys())})
