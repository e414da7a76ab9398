"""The Grafana dashboards: one module per dashboard, the house style beside them, json/ what they make."""
