"""Alertmanager's configuration for an SLA: who hears of what, and which alerts are silent beside a louder one."""

from typing import Any, Final

from .rules import HEADER, dump
from .sla import BusinessHours, Receiver, Sla

_DAYS: Final = {"mon": "monday", "tue": "tuesday", "wed": "wednesday", "thu": "thursday", "fri": "friday",
                "sat": "saturday", "sun": "sunday"}  # fmt: skip
_ENGINE_SYMPTOMS: Final = (
    "VLLM.*BudgetBurn|VLLMThroughputLow|VLLMQueueLong|VLLMKVCacheFull|VLLMPreemptionsHigh|VLLMEngineStalled|"
    "VLLMMetricsDark|VLLMBucketMissing|VLLMEngineUnhealthy"
)
_LATE: Final = "VLLM(TTFT|TPOT|ITL|E2E|Queue|Goodput)BudgetBurn"


def alertmanager_yaml(sla: Sla) -> str:
    """Return alertmanager.yml."""
    return HEADER + dump(
        {
            "route": _route(sla),
            "inhibit_rules": [*_tiers(sla), *_causes()],
            "time_intervals": [_outside(sla.business_hours)],
            "receivers": [_receiver(name, receiver) for name, receiver in sla.receivers.items()],
        }
    )


def _route(sla: Sla) -> dict[str, Any]:
    in_hours_only = {
        "matchers": ['severity="page"', 'hours="business"'],
        "mute_time_intervals": ["outside-business-hours"],
    }
    own = [
        {"matchers": [f'receiver="{name}"'], "receiver": name, "routes": [in_hours_only]}
        for name in sla.receivers
        if name not in {"page", "ticket"}
    ]
    return {
        "receiver": "ticket",
        # One notification per promise; what happens to a service or a machine comes as one, too.
        "group_by": ["service", "slo"],
        "group_wait": "30s",
        "group_interval": "5m",
        "repeat_interval": "4h",
        "routes": [
            *own,
            {"matchers": ['severity="page"'], "receiver": "page", "repeat_interval": "1h", "routes": [in_hours_only]},
        ],
    }


def _tiers(sla: Sla) -> list[dict[str, Any]]:
    """Return the inhibition of slower tiers by faster ones of the same promise and what has a budget of its own."""
    own = {label for service in sla.services for _, objective in service.objectives for label in objective.by or ()}
    own |= {label for service in sla.services for label in service.by}
    same = ["service", "slo", *sorted(own)]
    order = ("fast", "medium", "slow", "trickle")
    return [
        {
            "source_matchers": [f'burn_tier="{tier}"'],
            "target_matchers": [f'burn_tier=~"{"|".join(order[place + 1 :])}"'],
            "equal": same,
        }
        for place, tier in enumerate(order[:-1])
    ]


def _causes() -> list[dict[str, Any]]:
    """Return the inhibition of symptoms by what explains them on the same server, service, GPU or machine."""
    return [
        {
            "source_matchers": ['alertname="VLLMNoServers"'],
            "target_matchers": [f'alertname=~"{_ENGINE_SYMPTOMS}|VLLMServerDown"'],
            "equal": ["service"],
        },
        # A lost model explains its late answers; what is counted over several models is watched on.
        {
            "source_matchers": ['alertname="VLLMModelDown"'],
            "target_matchers": [f'alertname=~"{_LATE}|VLLMThroughputLow"', 'model_name!=""'],
            "equal": ["service", "model_name"],
        },
        # Not by VLLMServerDown: what a server said is gone with its page. Whatever was delivered before ends then, and
        # Alertmanager tells nobody that an alert is over while it is inhibited: the incident would stay open.
        {
            "source_matchers": ['alertname="VLLMEngineUnhealthy"'],
            "target_matchers": [f'alertname=~"{_ENGINE_SYMPTOMS}"', 'alertname!~".*BudgetBurn|VLLMEngineUnhealthy"'],
            "equal": ["service", "server", "instance"],
        },
        # The same for a lost engine with a budget of its own.
        *(
            {
                "source_matchers": ['alertname=~"VLLMServerDown|VLLMEngineUnhealthy|VLLMEngineStalled"'],
                "target_matchers": [f'alertname=~"{_LATE}"', f'{label}!=""'],
                "equal": ["service", label],
            }
            for label in ("server", "instance")
        ),
        {
            "source_matchers": ['alertname="VitalsExporterDown"'],
            "target_matchers": ['alertname=~"GPU.*|NVMLDown|VLLMServerDown|VLLMNoServers|VLLMMetricsDark"'],
            "equal": ["instance"],
        },
        {
            "source_matchers": ['alertname="NVMLDown"'],
            "target_matchers": ['alertname=~"GPULost|GPUStaleSnapshot"'],
            "equal": ["instance"],
        },
        # Its XID tells why, and was delivered before the loss was certain: its incident would stay open, too.
        {
            "source_matchers": ['alertname="GPULost"'],
            "target_matchers": ['alertname=~"GPU.*"', 'alertname!~"GPULost|GPUXid.*"'],
            "equal": ["instance", "uuid"],
        },
    ]


def _outside(hours: BusinessHours) -> dict[str, Any]:
    """Return the times at which nobody works, as Alertmanager's intervals: whole other days, and the nights."""
    first, _, last = hours.days.partition("-")
    names = [*_DAYS]
    begin, end = names.index(first), names.index(last or first)
    works = [*_DAYS.values()][begin : end + 1]
    rest = [day for day in _DAYS.values() if day not in works]
    opens, closes = hours.times.split("-")
    nights = [
        {"start_time": start, "end_time": stop}
        for start, stop in (("00:00", opens), (closes, "24:00"))
        if start != stop
    ]
    intervals: list[dict[str, Any]] = []
    if nights:
        intervals.append({"weekdays": works, "times": nights, "location": hours.timezone})
    if rest:
        intervals.append({"weekdays": rest, "location": hours.timezone})
    return {"name": "outside-business-hours", "time_intervals": intervals}


def _receiver(name: str, receiver: Receiver) -> dict[str, Any]:
    if receiver.type == "webhook":
        where = {"url": receiver.url} if receiver.url else {"url_file": str(receiver.url_file)}
        return {"name": name, "webhook_configs": [{"send_resolved": True, **where}]}
    if receiver.type == "slack":
        slack = {
            "send_resolved": True,
            "api_url_file": str(receiver.url_file),
            "channel": receiver.channel,
            "title": "{{ .CommonLabels.severity }}: {{ .CommonAnnotations.summary }}",
            "text": "{{ range .Alerts }}{{ .Annotations.description }}\n{{ .Annotations.runbook_url }}\n{{ end }}",
        }
        return {"name": name, "slack_configs": [slack]}
    if receiver.type == "pagerduty":
        return {"name": name, "pagerduty_configs": [{"routing_key_file": str(receiver.key_file)}]}
    if receiver.type == "email":
        mail = {
            "send_resolved": True,
            "to": receiver.to,
            "from": receiver.sender,
            "smarthost": receiver.smarthost,
        }
        if receiver.username:
            mail["auth_username"] = receiver.username
        if receiver.password_file:
            mail["auth_password_file"] = str(receiver.password_file)
        return {"name": name, "email_configs": [mail]}
    return {"name": name}
