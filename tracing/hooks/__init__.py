"""Wraps around vLLM's own methods."""
