"""PromQL: checks before Prometheus sees it, and questions to a running one."""
