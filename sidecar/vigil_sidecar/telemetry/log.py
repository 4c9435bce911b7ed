"""JSON log lines with the keys that the gateway uses too: time, level, msg, component, trace_id."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

__all__ = ["LEVELS", "configure", "get_logger"]

LEVELS = {"debug": False, "info": True, "warning": True, "error": True, "critical": True}
"""Which lines are written. May be changed at any time, by any thread."""


def _written(logger: Any, method: str, event: Any) -> Any:
    if not LEVELS[event["level"]]:
        raise structlog.DropEvent
    return event


def configure(level: str) -> None:
    """Set up logging of the process: one JSON object a line on stderr, of this severity (debug, info, warning, error) or more."""
    least = getattr(logging, level.upper())
    LEVELS.update({name: getattr(logging, name.upper()) >= least for name in LEVELS})
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _written,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("msg"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger(component: str) -> Any:
    """A logger bound to the component."""
    return structlog.get_logger(component=component)
