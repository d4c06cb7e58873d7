"""The logger that aiohttp's server gets: what is no request of HTTP is the client's own affair.

aiohttp logs each one that it cannot parse with a traceback and the bytes that came. Anybody who
reaches the port could fill the disk with that, and write what he likes into the log. The client is
answered with 400 all the same.
"""

from __future__ import annotations

import logging

from aiohttp.http import HttpProcessingError
from typing_extensions import override


class _NoStrangers(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not isinstance(error, HttpProcessingError)


SERVER_LOGGER = logging.getLogger("swarm.httpapi")
SERVER_LOGGER.addFilter(_NoStrangers())
