"""Who calls: what the certificate of a call's connection says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

from proto.errors import DeniedError
from raft.transport.identity import Identity, read_identity

# Parsing takes a tenth of a millisecond, and every call is looked at twice.
_CACHED_MAX = 1024


class Calls(Protocol):
    """The part of a servicer's context that tells who calls."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the handshake proved."""

    def peer(self) -> str:
        """Return the remote address, as grpc writes it."""


_read = lru_cache(_CACHED_MAX)(read_identity)


def identity_of(context: Calls) -> Identity:
    """Return what the caller's certificate says.

    Raises:
        DeniedError: it showed none, or one that cannot be read.
    """
    for certificate in context.auth_context().get("x509_pem_cert", ()):
        return _read(certificate)
    raise DeniedError("the caller has to show a certificate of this cluster")


def address_of(context: Calls) -> str:
    """Return the caller's IP address, without port and brackets; "" if it has none."""
    return host_of(context.peer())


def host_of(peer: str) -> str:
    """Take the address out of grpc's `ipv4:10.0.0.1:1234` or `ipv6:%5B::1%5D:1234`."""
    family, _, rest = unquote(peer).partition(":")
    if family not in {"ipv4", "ipv6"}:
        return ""
    host = rest.rpartition(":")[0].strip("[]")
    # A server on `::` sees IPv4 callers so.
    return host.removeprefix("::ffff:") if "." in host else host
