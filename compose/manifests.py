"""The Kubernetes manifests with an SLA's rules and dashboards beside them: a folder that kustomize renders as it is."""

from pathlib import Path
from typing import Final

from ..alerts.build import rule_groups
from ..alerts.prometheus_rule import prometheus_rule
from ..alerts.sla import Sla
from ..settings.scalars import ConfigError
from .folder_docs import DOCS

SOURCE: Final = Path(__file__).with_name("kubernetes")
DASHBOARDS: Final = SOURCE.parent.with_name("dashboards") / "json"


def write_kubernetes(folder: Path, sla: Sla) -> int:
    """Write every file into a folder; returns how many. Raises ConfigError where it cannot be written."""
    dashboards = {path.name: path.read_text(encoding="utf-8") for path in sorted(DASHBOARDS.glob("*.json"))}
    files = kubernetes_files(sla, dashboards)
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"DIR: expected a writable folder, found {error.filename}: {error.strerror}") from None
    return len(files)


def kubernetes_files(sla: Sla, dashboards: dict[str, str]) -> dict[str, str]:
    """Return every file by its path.

    Args:
        sla: whose alerts go into base/rules.
        dashboards: file name -> JSON, for base/dashboards.
    """
    files = {
        str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*"))
        if path.is_file()
    }
    groups = (group for some in rule_groups(sla).values() for group in some)
    files["base/rules/prometheusrule.yaml"] = prometheus_rule(groups)
    files["docs/vitals.yaml"] = (DOCS / "vitals.yaml").read_text(encoding="utf-8")  # base/node/vitals.yaml points to it
    return files | {f"base/dashboards/{name}": text for name, text in dashboards.items()}
