"""Queries over what the SLA's rules record: how fast a budget burns."""


def burn_rate(window: str, by: str) -> str:
    """Return how many times too fast a budget is spent, over a recorded window; at 1 it just lasts."""
    budget = "(1 - max by (service, slo) (slo:objective:ratio))"
    return f"max by ({by}) (slo:sli_error:ratio{window}) / on (service, slo) group_left () ({budget} > 0)"
