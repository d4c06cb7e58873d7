"""Speaks HTTP to the daemon: over its unix socket, or TCP with a client certificate.

A thin shell over `http.client`, the only module of the CLI that opens sockets. One connection is
kept for requests with small answers; a stream gets its own. Every failure becomes a `CommandError`
or a `DaemonError` with a sentence for the user.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, TypeAlias

from typing_extensions import override

from manager.cli.errors import CommandError, DaemonError

DEFAULT_HOST = "unix:///run/swarm/docker.sock"
API_VERSION = "1.50"
CHUNK_BYTES = 1 << 16
CONNECT_SECONDS_MAX = 20.0
ERROR_BYTES_MAX = 1 << 20
# Source: RFC 7234, 5.5.1.
STALE_CODE = "110 "
STALE_WARNING = (
    "warning: no quorum of managers answers this one: what follows may be stale, "
    "and changes have to wait"
)

Query: TypeAlias = Mapping[str, str | None]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        """Keep the path; the host name is what the daemon ignores."""
        super().__init__("docker")
        self._path = path

    @override
    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class Engine:
    """The Engine API of one daemon."""

    def __init__(self, host: str, warn: Callable[[str], None] | None = None) -> None:
        """Keep the address; nothing is opened before the first request.

        Args:
            host: where the daemon is.
            warn: told once when what the daemon answers may be stale.
        """
        self.host = host
        self._warn = warn
        self._connection: http.client.HTTPConnection | None = None
        version = os.environ.get("SWARM_API_VERSION") or os.environ.get("DOCKER_API_VERSION")
        self._prefix = f"/v{(version or API_VERSION).removeprefix('v')}"

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str, query: Query = {}) -> Any:  # noqa: B006 -- never changed
        """Get and decode JSON."""
        return self.call("GET", path, query)

    def post(
        self,
        path: str,
        body: object = None,
        *,
        query: Query = {},  # noqa: B006 -- never changed
        headers: Mapping[str, str] = {},
    ) -> Any:
        """Post JSON; decode the answer, None when it is empty."""
        return self.call("POST", path, query, body=body, headers=headers)

    def delete(self, path: str, query: Query = {}) -> Any:  # noqa: B006 -- never changed
        """Delete; decode the answer, None when it is empty."""
        return self.call("DELETE", path, query)

    def call(
        self,
        method: str,
        path: str,
        query: Query,
        *,
        body: object = None,
        headers: Mapping[str, str] = {},
    ) -> Any:
        """Make a request and decode the JSON of its answer.

        Raises:
            DaemonError: the daemon refused.
            CommandError: the daemon cannot be reached, or broke off.
        """
        data = None if body is None else json.dumps(body).encode()
        sent = dict(headers)
        if data is not None:
            sent["Content-Type"] = "application/json"
        try:
            response = self._send(method, path, query, data, sent)
            text = response.read()
            self._note_staleness(response)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        return decoded(response.status, text)

    def stream(
        self,
        method: str,
        path: str,
        query: Query,
        *,
        upload: IO[bytes] | None = None,
        headers: Mapping[str, str] = {},
        more_query: str = "",
    ) -> Iterator[bytes]:
        """Make a request on a connection of its own and yield the answer as it arrives.

        Args:
            method: of HTTP.
            path: without the version.
            query: of the address.
            upload: sent as the body, in chunks.
            headers: to send besides the usual ones.
            more_query: encoded, for keys that occur more than once: `&names=a&names=b`.

        Raises:
            DaemonError: the daemon refused.
            CommandError: the daemon cannot be reached, or broke off.
        """
        connection = self._connect()
        try:
            body = None if upload is None else chunks(upload)
            sent = dict(headers)
            if body is not None:
                sent["Content-Type"] = "application/x-tar"
            address = self._address(path, query)
            if more_query:
                address += more_query if "?" in address else "?" + more_query[1:]
            self._request(connection, method, address, body, sent)
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                decoded(response.status, response.read(ERROR_BYTES_MAX))
            self._note_staleness(response)
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _note_staleness(self, response: http.client.HTTPResponse) -> None:
        """Warn before the answer is shown; once, since a command may ask for several things."""
        warn = self._warn
        if warn is not None and response.getheader("Warning", "").startswith(STALE_CODE):
            self._warn = None
            warn(STALE_WARNING)

    def _send(
        self, method: str, path: str, query: Query, body: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        address = self._address(path, query)
        if self._connection is not None:
            try:
                self._connection.request(method, address, body, headers)
                return self._connection.getresponse()
            except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
                # The daemon may close an idle connection at any time; only then is the request
                # known not to have been taken, and repeating it is safe for reads alone.
                self._connection.close()
                self._connection = None
                if method != "GET":
                    raise
        self._connection = self._connect()
        self._request(self._connection, method, address, body, headers)
        return self._connection.getresponse()

    @staticmethod
    def _request(
        connection: http.client.HTTPConnection,
        method: str,
        address: str,
        body: bytes | Iterable[bytes] | None,
        headers: dict[str, str],
    ) -> None:
        try:
            connection.request(
                method, address, body, headers, encode_chunked=not isinstance(body, bytes)
            )
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may refuse an upload before it has read all of it: its answer is there.
            if body is None or isinstance(body, bytes):
                raise

    def _address(self, path: str, query: Query) -> str:
        from urllib.parse import urlencode  # noqa: PLC0415 -- http.client has loaded it

        given = {key: value for key, value in query.items() if value is not None}
        return self._prefix + path + ("?" + urlencode(given) if given else "")

    def _connect(self) -> http.client.HTTPConnection:
        scheme, _, address = self.host.partition("://")
        if not address:
            scheme, address = "unix" if self.host.startswith("/") else "tcp", self.host
        if scheme == "unix":
            return UnixConnection(address)
        if scheme not in {"tcp", "http", "https"}:
            raise CommandError(f"unable to parse docker host `{self.host}`")
        certificates = os.environ.get("SWARM_CERT_PATH") or os.environ.get("DOCKER_CERT_PATH")
        if scheme == "https" or certificates or os.environ.get("DOCKER_TLS_VERIFY"):
            return _tls_connection(address, certificates or _home(".docker"))
        return http.client.HTTPConnection(address, timeout=None)

    def _unreachable(self, error: Exception) -> CommandError:
        """Say what is wrong with the way to the daemon."""
        path = self.host.removeprefix("unix://")
        if isinstance(error, PermissionError):
            return CommandError(
                "permission denied while trying to connect to the swarm daemon socket at "
                f"{self.host}: {_group_advice(path)}"
            )
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError, socket.gaierror)):
            return CommandError(
                f"Cannot connect to the swarm daemon at {self.host}. Is swarmd running?"
            )
        is_broken = isinstance(error, (BrokenPipeError, ConnectionResetError))
        if isinstance(error, OSError) and not is_broken:
            return CommandError(f"Cannot connect to the swarm daemon at {self.host}: {error}")
        detail = str(error) or type(error).__name__
        return CommandError(f"the connection to the swarm daemon at {self.host} broke: {detail}")


def _group_advice(path: str) -> str:
    """Name the group that may use the socket."""
    from pathlib import Path  # noqa: PLC0415 -- only for this message

    try:
        group = Path(path).group()
    except (OSError, KeyError):
        group = "swarm"
    if group == "root":
        return "only root may use it; try again with sudo"
    return (
        f'add your user to the group "{group}" (usermod -aG {group} $USER) and log in again, '
        "or try again with sudo"
    )


def _home(name: str) -> str:
    from pathlib import Path  # noqa: PLC0415 -- a unix socket needs none

    return str(Path.home() / name)


def _tls_connection(address: str, folder: str) -> http.client.HTTPSConnection:
    import ssl  # noqa: PLC0415 -- a unix socket needs none

    try:
        context = ssl.create_default_context(cafile=f"{folder}/ca.pem")
        context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    except OSError as error:
        message = f"could not read the client certificate in {folder}: {error}"
        raise CommandError(message) from error
    return http.client.HTTPSConnection(address, context=context)


def decoded(status: int, text: bytes) -> Any:
    """Decode an answer.

    Raises:
        DaemonError: the status is an error's.
    """
    if status < http.client.BAD_REQUEST:
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise CommandError(f"the daemon's answer is not JSON: {text[:100]!r}") from error
    try:
        reason = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        reason = text.decode(errors="replace").strip() or f"HTTP status {status}"
    raise DaemonError(status, reason)


def chunks(source: IO[bytes]) -> Iterator[bytes]:
    """Read a file in pieces."""
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def quoted(reference: str) -> str:
    """Escape what a user typed for use in a path."""
    from urllib.parse import quote  # noqa: PLC0415 -- http.client has loaded it

    return quote(reference, safe="/:@")


def filters(values: Mapping[str, Iterable[str]]) -> str | None:
    """Encode filters as the Engine API wants them; None when there are none."""
    encoded = {key: dict.fromkeys(items, True) for key, items in values.items() if items}
    return json.dumps(encoded, separators=(",", ":")) if encoded else None
