"""Observability for people who run vLLM on GPUs."""

__version__ = "0.1.0"
