"""The few calls of the Engine API that a lab makes by itself."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from typing_extensions import override

from proto.errors import SwarmError, UnavailableError

API = "/v1.47"
_OK_BELOW = 300


class EngineRefusedError(SwarmError):
    """The daemon answered with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        """Keep the daemon's sentence."""
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("swarm", timeout=seconds)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Engine:
    """One daemon, by its socket; one connection for each call, so that no restart is in the way."""

    def __init__(self, path: Path, *, seconds: float = 30.0) -> None:
        """Choose the socket and how long an answer may take."""
        self._path = path
        self._seconds = seconds

    def __call__(self, method: str, url: str, body: object = None) -> Any:
        """Make a request and return what came as JSON, None if nothing did.

        Raises:
            EngineRefusedError: the daemon said no.
            UnavailableError: there was no answer.
        """
        connection = _Connection(self._path, self._seconds)
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, API + url, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(
                f"no answer from the daemon at {self._path}: {reason}"
            ) from error
        finally:
            connection.close()
        found = json.loads(answer) if answer.strip() else None
        if response.status >= _OK_BELOW:
            said = found.get("message", "") if isinstance(found, dict) else str(found)
            raise EngineRefusedError(response.status, said)
        return found
