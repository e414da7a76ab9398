"""The Kubernetes manifests with an SLA's rules and dashboards beside them: a folder that kustomize renders as it is."""

from pathlib import Path
from typing import Final

from ..alerts.build import rule_groups
from ..alerts.prometheus_rule import prometheus_rule
from ..alerts.sla import Sla

SOURCE: Final = Path(__file__).with_name("kubernetes")


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
    return files | {f"base/dashboards/{name}": text for name, text in dashboards.items()}
