"""Panels over Prometheus' own ALERTS series."""

from typing import Any, Final

from .fields import NO_UNIT, data_link, override, to_dashboard
from .limits import Limits
from .panels import ModernPanel, timeline
from .tables import labels_table
from .targets import query

_SHOWN: Final = {
    "severity": "Severity",
    "alertname": "Alert",
    "service": "Service",
    "slo": "Promise",
    "burn_tier": "Tier",
    "model_name": "Model",
    "server": "Server",
    "gpu": "GPU",
    "instance": "Node",
}
_NOTHING: Final = "Nothing fires"


def firing_alerts(limits: Limits, **more: Any) -> ModernPanel:
    """Return the table of what fires now."""
    panel = labels_table(
        "Alerts that fire",
        "Who was told of what, and how loud?",
        'ALERTS{alertstate="firing"}',
        _SHOWN,
        **{"no_value": _NOTHING, "height": 6, "unit": NO_UNIT, **more},
    )
    link = data_link("What happened to this promise", to_dashboard("vitals-slo", service="${__data.fields.Service}"))
    runbook = data_link("What to do", f"{limits.runbooks}/${{__data.fields.Alert}}.md")
    panel.overrides = [override("Alert", {"links": [runbook, link]})]
    return panel


def alert_timeline(**more: Any) -> ModernPanel:
    """Return when each alert fired."""
    return timeline(
        "When alerts fired",
        "Which alert came first, and which followed?",
        query('max by (alertname, service) (ALERTS{alertstate="firing"})', "{{service}} {{alertname}}"),
        states={"1": ("firing", "red")},
        **{"no_value": _NOTHING, "width": 24, **more},
    )
