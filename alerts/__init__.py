"""One SLA file, and what is generated from it: rules, alerts, their tests, routes, runbooks."""
