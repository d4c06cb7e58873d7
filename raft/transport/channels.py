"""How connections are made: grpc's options and credentials, for both ends.

What was tried and not taken, with figures, is in DESIGN.md. `secure_server` is for the whole
node port: whoever serves something else on it (dispatcher, authority, logs) adds it to the same
server.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raft.transport.identity import Credentials
from raft.transport.limits import Limits

# Before the library is loaded. It would print to stderr about every stranger that knocks, which
# fills a disk; what we want to know comes back as errors with a reason, and is logged by us.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc import aio

Options = list[tuple[str, int | str]]
if TYPE_CHECKING:
    Interceptor = aio.ServerInterceptor[Any, Any]  # generic for the type checker only
else:
    Interceptor = aio.ServerInterceptor


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _common_options(limits: Limits, silence_seconds: float, answer_seconds: float) -> Options:
    return [
        ("grpc.max_receive_message_length", limits.received_bytes_max),
        ("grpc.max_send_message_length", limits.received_bytes_max),
        # Left to itself the window grows with the delay: to tens of MiB on a busy machine.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", limits.window_bytes),
        # A cut link sends no reset; this finds it. It also sets TCP_USER_TIMEOUT.
        ("grpc.keepalive_time_ms", _milliseconds(silence_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(answer_seconds)),
        # Else a ping that is under way already may stay unanswered for a minute.
        ("grpc.http2.ping_timeout_ms", _milliseconds(answer_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def client_options(limits: Limits, server_name: str) -> Options:
    """Return the options of a channel to the node with this full name."""
    return [
        *_common_options(limits, limits.keepalive_seconds, limits.keepalive_answer_seconds),
        ("grpc.ssl_target_name_override", server_name),
        # Each lane a connection of its own; the default would share one among all channels.
        ("grpc.use_local_subchannel_pool", 1),
        # Retries are ours, and a proxy in the environment is not meant for this.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
    ]


def server_options(limits: Limits) -> Options:
    """Return the options of the node port's server."""
    return [
        *_common_options(
            limits, limits.server_keepalive_seconds, limits.server_keepalive_answer_seconds
        ),
        # Two daemons on one port would otherwise both succeed and share the connections.
        ("grpc.so_reuseport", 0),
        # Members ping often, on purpose.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_seconds_max)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_seconds_max)),
        ("grpc.max_concurrent_streams", 256),
    ]


def secure_channel(
    address: str, server_name: str, credentials: Credentials, limits: Limits
) -> aio.Channel:
    """Make a channel; it connects with its first call."""
    return aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(
            root_certificates=credentials.roots_pem,
            private_key=credentials.key_pem,
            certificate_chain=credentials.certificate_pem,
        ),
        options=client_options(limits, server_name),
    )


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """Make credentials for a server that demands a certificate."""
    return grpc.ssl_server_credentials(
        [(credentials.key_pem, credentials.certificate_pem)],
        credentials.roots_pem,
        require_client_auth=True,
    )


class Guard(Interceptor):
    """An interceptor that must know every RPC of its server before the server starts."""

    @abstractmethod
    def check_methods(self, methods: Collection[str]) -> None:
        """Raise if one of these RPCs, by full name, is unknown."""


class Services:
    """Stands for a server while services are added to it, and notes the names of their RPCs.

    Attributes:
        methods: full names, `/package.Service/Method`.
    """

    def __init__(self, server: aio.Server) -> None:
        """Note nothing yet."""
        self._server = server
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Pass them on."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Note the RPCs and pass them on; generated code tells them here as well."""
        self.methods |= {f"/{service}/{method}" for method in handlers}
        # The library's stubs do not know this one.
        self._server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


def secure_server(limits: Limits, interceptors: Sequence[Interceptor] = ()) -> aio.Server:
    """Make a server without services and ports."""
    return aio.server(interceptors=tuple(interceptors), options=server_options(limits))
