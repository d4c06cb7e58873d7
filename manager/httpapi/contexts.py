"""TLS as both ends of the API port speak it: 1.2 or newer, ECDHE, AEAD ciphers only."""

from __future__ import annotations

import ssl
from functools import lru_cache

from manager.ca.tls import load_identity
from raft.transport.identity import Credentials, Identity, read_identity

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_PROTOCOLS = ["http/1.1"]


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """Make the server's end: a client's certificate is optional, and verified if it is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would skip the look at the client's certificate.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.load_verify_locations(cadata=credentials.roots_pem.decode("ascii"))
    load_identity(context, credentials)
    return context


def client_context(roots_pem: str, credentials: Credentials | None = None) -> ssl.SSLContext:
    """Make the end of a client that trusts these roots and checks the server's name.

    Args:
        roots_pem: whom to trust.
        credentials: what to show, if anything.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    context.load_verify_locations(cadata=roots_pem)
    if credentials is not None:
        load_identity(context, credentials)
    return context


def unverified_context() -> ssl.SSLContext:
    """Make the end of a client that has no root yet: what it is told proves nothing by itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_identity(ssl_object: ssl.SSLObject) -> Identity | None:
    """Read whose certificate the other end showed; its chain was verified in the handshake.

    Raises:
        DeniedError: it showed one that is no node's.
    """
    certificate = ssl_object.getpeercert(binary_form=True)
    return None if certificate is None else _identity_of(certificate)


@lru_cache(maxsize=1024)
def _identity_of(certificate: bytes) -> Identity:
    return read_identity(ssl.DER_cert_to_PEM_cert(certificate).encode("ascii"))


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(_PROTOCOLS)
