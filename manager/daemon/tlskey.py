"""The key that seals a manager's TLS key: a secret in the ring of keys, and how it is changed.

The TLS key is not sealed by the unlock key itself, so that changing that one stays a single
rename. While this one changes the ring has two, of which one opens the file on disk:

    ring: next = new   ->   file: sealed by new   ->   ring: key = new   ->   ring: next forgotten

A change that was cut short is brought to its end before the next one draws a key, else the only
one that fits could be overwritten. All of this blocks.

When autolock is turned on this key, and with it the TLS key, could be read before: the first is
changed and the second renewed. The ring remembers that until both are done: that its secret is
exposed, and then which certificate may not stay.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from manager.ca.credentials import NodeCredentials
from proto.errors import CorruptError, NotFoundError
from raft.files import Files
from raft.keys import Kek, KeyRing

TLS_KEY = "tls"
NEXT_TLS_KEY = "tls.next"
EXPOSED_CERTIFICATE = "tls.exposed"


def tls_key(keys: KeyRing) -> Kek:
    """Return the key; there must be one."""
    return Kek(keys.unseal(TLS_KEY))


def open_credentials(keys: KeyRing, directory: Path, files: Files | None = None) -> NodeCredentials:
    """Open a manager's certificate, sealed again if it was not.

    Raises:
        CorruptError: the ring does not have the key, or the files are damaged.
        InvalidError: neither key fits.
    """
    present = _secret(keys, TLS_KEY)
    if present is None:
        raise CorruptError(str(directory), 0, "the key that seals the TLS key is not in the ring")
    following = _secret(keys, NEXT_TLS_KEY)
    credentials = NodeCredentials.open(
        directory,
        Kek(present),
        other_kek=Kek(following) if following is not None else None,
        files=files,
    )
    if not credentials.is_sealed:
        credentials.seal(Kek(present))  # the node became a manager just before it ended
    return credentials


def change_tls_key(keys: KeyRing, credentials: NodeCredentials, new: bytes) -> None:
    """Seal the TLS key by a new key; every step may be the last before a crash."""
    unfinished = _secret(keys, NEXT_TLS_KEY)
    if unfinished is not None and credentials.is_sealed_by(Kek(unfinished)):
        keys.seal(TLS_KEY, unfinished)
    keys.seal(NEXT_TLS_KEY, new)
    credentials.seal(Kek(new))
    keys.seal(TLS_KEY, new)
    keys.forget(NEXT_TLS_KEY)


def replace_exposed(keys: KeyRing, credentials: NodeCredentials, new: bytes) -> bool:
    """Change the key if it was exposed; tell whether the certificate has to be renewed as well.

    Called again after any interruption it goes on; once all is done it does nothing.
    """
    certificate = hashlib.sha256(credentials.source().certificate_pem).digest()
    if keys.is_exposed(TLS_KEY):
        keys.seal(EXPOSED_CERTIFICATE, certificate)
        change_tls_key(keys, credentials, new)
    exposed = _secret(keys, EXPOSED_CERTIFICATE)
    if exposed is not None and exposed != certificate:
        keys.forget(EXPOSED_CERTIFICATE)
        exposed = None
    return exposed is not None


def _secret(keys: KeyRing, name: str) -> bytes | None:
    try:
        return keys.unseal(name)
    except NotFoundError:
        return None
