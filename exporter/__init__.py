"""The sidecar: GPUs and engines, joined on one page."""
