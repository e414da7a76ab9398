"""The numbers of an SLA that panels draw: where all services agree; where they differ, a panel does not judge."""

from collections.abc import Iterable
from typing import NamedTuple

from ..alerts.indicators import labels_of
from ..alerts.promises import Limit, Memory, Power
from ..alerts.sla import LATENCIES, Indicator, Sla
from ..alerts.tiers import Tier, tiers, window_name


class Limits(NamedTuple):
    """Numbers in base units; None where there is none or services differ.

    Attributes:
        promises: seconds by latency; several where services differ.
        tiers: of burn rates, fastest first.
        window: over which promises are kept, as PromQL writes it.
        kept: labels that some promise keeps a budget for.
        runbooks: where the pages on alerts are served.
    """

    promises: dict[Indicator, frozenset[float]]
    tiers: tuple[Tier, ...]
    window: str
    kept: tuple[str, ...]
    runbooks: str
    queue_length: float | None
    kv_cache: float | None
    preemptions: float | None
    temperature: float | None
    memory_temperature: float | None
    memory_share: float | None
    power_share: float | None
    throttle: float | None
    corrected_ecc: float | None

    @property
    def burn_windows(self) -> list[str]:
        """Windows of the recorded error ratios, shortest first."""
        return [
            window_name(one) for one in sorted({window for tier in self.tiers for window in (tier.short, tier.long)})
        ]

    @property
    def long_windows(self) -> list[str]:
        """Long windows of the tiers, fastest tier first."""
        return [window_name(tier.long) for tier in self.tiers]


def limits_of(sla: Sla) -> Limits:
    """Return the numbers of an SLA."""
    services, gpus = sla.services, sla.gpus.limits

    def promised(indicator: Indicator) -> frozenset[float]:
        objectives = [getattr(service.objectives, indicator) for service in services]
        return frozenset(float(one.promise.threshold) for one in objectives if one is not None)

    def limit(name: str) -> float | None:
        bounds = [getattr(service.limits, name) for service in services]
        return _agreed(one.value for one in bounds if one is not None)

    return Limits(
        promises={indicator: promised(indicator) for indicator in LATENCIES},
        tiers=tiers(sla.window),
        window=window_name(int(sla.window)),
        kept=tuple(
            dict.fromkeys(
                label for service in services for _, one in service.objectives for label in labels_of(service, one)
            )
        ),
        runbooks=sla.runbooks,
        queue_length=limit("queue_length"),
        kv_cache=limit("kv_cache"),
        preemptions=limit("preemptions"),
        temperature=_value(gpus.temperature),
        memory_temperature=_value(gpus.memory_temperature),
        memory_share=_value(gpus.memory),
        power_share=_value(gpus.power),
        throttle=_value(gpus.throttle),
        corrected_ecc=_value(gpus.corrected_ecc),
    )


def _agreed(values: Iterable[float]) -> float | None:
    different = {*values}
    return float(different.pop()) if len(different) == 1 else None


def _value(limit: Limit | None) -> float | None:
    if limit is None or (isinstance(limit, Memory | Power) and limit.unit != "%"):
        return None  # bytes or watts: another panel's unit
    return limit.value
