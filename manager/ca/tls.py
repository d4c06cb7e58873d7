"""Contexts of the standard library's `ssl` from credentials in memory.

`ssl` reads a key only from a file by name. One in memory that has no name anywhere is what it is
given, so that a sealed key never lies on a disk in clear.
"""

from __future__ import annotations

import os
import ssl

from raft.transport.identity import Credentials


def load_identity(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Let a context show a node's certificate."""
    descriptor = os.memfd_create("node-certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(credentials.key_pem)
            file.write(credentials.certificate_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def client_context(roots_pem: str, credentials: Credentials | None) -> ssl.SSLContext:
    """Make a context that trusts only these roots, checks names, and shows the node, if given."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=roots_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if credentials is not None:
        load_identity(context, credentials)
    return context
