"""The variables that switch the plugin off; apart because the doctor asks, too."""

from collections.abc import Mapping
from typing import Final

PLUGIN: Final = "vllm_vitals"  # the name of both entry points, as VLLM_PLUGINS has it
_OFF: Final = frozenset({"off", "0", "false", "no"})


def left_out(environ: Mapping[str, str]) -> bool:
    """Return whether VLLM_PLUGINS names what is wanted, and not us."""
    allowed = environ.get("VLLM_PLUGINS")
    return allowed is not None and PLUGIN not in allowed.split(",")


def switched_off(environ: Mapping[str, str]) -> bool:
    """Return whether VLLM_VITALS_TRACING or VLLM_PLUGINS says that we are not wanted."""
    return environ.get("VLLM_VITALS_TRACING", "").strip().lower() in _OFF or left_out(environ)
