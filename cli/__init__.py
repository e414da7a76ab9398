"""The command `vllm-vitals`: parsing, and what it starts on this machine."""

from .main import main

__all__ = ["main"]
