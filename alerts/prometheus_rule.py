"""The same rules for Kubernetes: one PrometheusRule of the Prometheus Operator."""

from collections.abc import Iterable

from .rules import HEADER, Group, as_data, dump


def prometheus_rule(groups: Iterable[Group]) -> str:
    """Return the manifest; its labels are what a Prometheus with a `ruleSelector` looks for by default."""
    return HEADER + dump(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {
                "name": "vllm-vitals",
                "labels": {"app.kubernetes.io/name": "vllm-vitals", "release": "prometheus", "role": "alert-rules"},
            },
            "spec": as_data(groups),
        }
    )
