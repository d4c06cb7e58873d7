"""How the daemon logs: structured lines on standard error, JSON when nobody sits before it."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(*, is_debug: bool) -> None:
    """Set structlog up once, at the start."""
    is_terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if is_debug else logging.INFO
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
