"""The filter's public name: what `logging-config` writes into users' files names it here."""

from .logs.context import IdFilter

__all__ = ["IdFilter"]
