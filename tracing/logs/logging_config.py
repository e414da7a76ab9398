"""The dictConfig for VLLM_LOGGING_CONFIG_PATH: vLLM's, uvicorn's and our own lines as JSON on stdout."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...settings.scalars import ConfigError
from .redaction import Redactor

if TYPE_CHECKING:
    from .formatter import Names  # needs python-json-logger, which vLLM's environment has and ours may lack

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LOGGERS: Final = ("vllm", "uvicorn", "uvicorn.error", "uvicorn.access", "vllm_vitals")
_PACKAGE: Final = __name__.rpartition(".")[0].rpartition(".")[0]  # users' files name these classes: they stay on top


def dict_config(
    names: "Names" = "ecs",
    service_name: str | None = None,
    level: str = "INFO",
    redact: Sequence[str] = (),
    redact_patterns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a configuration that logging.config.dictConfig and JSON can take.

    Args:
        names: `ecs` (dotted) or `flat` (snake_case).
        service_name: None leaves it to OTEL_SERVICE_NAME of the process that logs, else `vllm`.
        level: of vLLM's, uvicorn's and our loggers; others (root) log from WARNING on.
        redact: kinds to black out, see redaction.KINDS.
        redact_patterns: more kinds, name -> regular expression.

    Raises:
        ConfigError: an unknown level or kind, or an expression that does not compile.
    """
    if level.upper() not in LEVELS:
        raise ConfigError(f"level: expected {', '.join(LEVELS)}, found {level!r}")
    Redactor(redact, redact_patterns)  # what is wrong shall be said now, not when vLLM starts
    formatter: dict[str, Any] = {"()": f"{_PACKAGE}.json_logs.VitalsJsonFormatter", "names": names}
    if service_name:
        formatter["service_name"] = service_name
    if redact:
        formatter["redact"] = sorted(set(redact))
    if redact_patterns:
        formatter["redact_patterns"] = dict(redact_patterns)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter},
        "filters": {"ids": {"()": f"{_PACKAGE}.log_context.IdFilter"}},
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "json",
                "filters": ["ids"],
            }
        },
        "loggers": {name: {"handlers": ["stdout"], "level": level.upper(), "propagate": False} for name in _LOGGERS},
        "root": {"handlers": ["stdout"], "level": "WARNING"},
    }
