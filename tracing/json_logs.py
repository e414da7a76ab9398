"""The formatter's public name: what `logging-config` writes into users' files names it here."""

from .logs.formatter import VitalsJsonFormatter

__all__ = ["VitalsJsonFormatter"]
