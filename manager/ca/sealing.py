"""A private key as a text that only the unlock key opens. Pure, but for the nonce.

The form is our own, of PEM's shape: AES-256-GCM under a key derived from the key-encryption key
(KEK), with the KEK's identifier beside it. Encrypted PKCS #8 was not taken: it is not
authenticated, so that it cannot tell a wrong key from a damaged file, and its slow derivation
protects passwords, which a KEK of 256 random bits is not.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag

from proto.errors import CorruptError, InvalidError, LockedError
from raft.kek import Kek

_BEGIN = "-----BEGIN SWARM SEALED KEY-----"
_END = "-----END SWARM SEALED KEY-----"
_CONTEXT = b"swarm sealed node key 1"
_NONCE_BYTES = 12
_IDENTIFIER_BYTES = 8
_LINE = 64


def is_sealed(text: bytes) -> bool:
    """Tell whether a key's text is one of these."""
    return text.startswith(_BEGIN.encode())


def seal_key(key_pem: bytes, kek: Kek) -> bytes:
    """Seal a key."""
    nonce = os.urandom(_NONCE_BYTES)
    associated = _CONTEXT + kek.identifier
    data = kek.identifier + nonce + kek.cipher().encrypt(nonce, key_pem, associated)
    encoded = base64.b64encode(data).decode("ascii")
    lines = [encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)]
    return "\n".join([_BEGIN, *lines, _END, ""]).encode()


def unseal_key(text: bytes, keks: Iterable[Kek], path: str) -> tuple[bytes, Kek]:
    """Open a sealed key with the one of the given KEKs that sealed it.

    Returns:
        The key in clear and the KEK.

    Raises:
        LockedError: no KEK was given.
        InvalidError: none of them sealed it.
        CorruptError: the text is damaged; `path` names the file.
    """
    body = text.decode("ascii", "replace").strip().removeprefix(_BEGIN)
    encoded = body.removesuffix(_END)
    if encoded == body:
        raise CorruptError(path, len(text), "the sealed key has no end")
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except binascii.Error:
        raise CorruptError(path, 0, "the sealed key is not base64") from None
    identifier, sealed = data[:_IDENTIFIER_BYTES], data[_IDENTIFIER_BYTES + _NONCE_BYTES :]
    nonce = data[_IDENTIFIER_BYTES : _IDENTIFIER_BYTES + _NONCE_BYTES]
    given = list(keks)
    if not given:
        raise LockedError
    for kek in given:
        if hmac.compare_digest(kek.identifier, identifier):
            try:
                return kek.cipher().decrypt(nonce, sealed, _CONTEXT + identifier), kek
            except (InvalidTag, ValueError):
                raise CorruptError(path, 0, "the sealed key is not authentic") from None
    raise InvalidError("swarm could not be unlocked: invalid key provided")
