"""The key-encryption key: what seals a key ring, and what `swarm unlock` asks for.

Its text is Docker's: `SWMKEY-1-` and the raw standard base64 of 32 bytes. It never shows itself, is
compared in constant time, and is used only through keys derived from it.
"""

from __future__ import annotations

import base64
import hmac
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from typing_extensions import override

from proto.errors import CorruptError, InvalidError

RandomBytes = Callable[[int], bytes]

KEY_BYTES = 32

_UNLOCK_KEY_PREFIX = "SWMKEY-1-"
_VERSION = 1
_ID_BYTES = 8
_MAGIC = b"SWMK"
_FILE = struct.Struct(">4sB32s")
_CRC = struct.Struct(">I")

KEK_FILE_BYTES = _FILE.size + _CRC.size


class Kek:
    """A key-encryption key: the unlock key, when autolock is on. Never shows itself."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        """Take 32 bytes.

        Raises:
            InvalidError: another length.
        """
        if len(secret) != KEY_BYTES:
            raise InvalidError(f"invalid key: an unlock key has {KEY_BYTES} bytes")
        self._secret = bytes(secret)

    @classmethod
    def generate(cls, rng_bytes: RandomBytes) -> Kek:
        """Make a new one."""
        return cls(rng_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> Kek:
        """Read what `format` wrote.

        Raises:
            InvalidError: it is no unlock key; the text is not repeated in the message.
        """
        text = text.strip()
        encoded = text.removeprefix(_UNLOCK_KEY_PREFIX)
        try:
            if encoded == text:
                raise InvalidError(f"invalid key string: it starts with {_UNLOCK_KEY_PREFIX}")
            secret = base64.b64decode(encoded + "=", validate=True)
            key = cls(secret)
        except ValueError:
            raise InvalidError("invalid key string: it is not base64") from None
        # Base64 has spare bits in the last letter; two texts must not be the same key.
        if not hmac.compare_digest(key.format(), text):
            raise InvalidError("invalid key string: it is not base64")
        return key

    def format(self) -> str:
        """Return the text for the operator: this is the secret itself."""
        encoded = base64.b64encode(self._secret).decode("ascii").rstrip("=")
        return _UNLOCK_KEY_PREFIX + encoded

    @property
    def identifier(self) -> bytes:
        """A name of the key that says nothing about it."""
        return _derive(self._secret, b"swarm kek identifier 1", _ID_BYTES)

    def cipher(self) -> AESGCM:
        """Return the cipher that seals a ring."""
        return AESGCM(_derive(self._secret, b"swarm kek ring 1", KEY_BYTES))

    def encode_file(self) -> bytes:
        """Return the content of the file in which it is stored without autolock."""
        body = _FILE.pack(_MAGIC, _VERSION, self._secret)
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def decode_file(cls, path: Path, data: bytes) -> Kek:
        """Read such a file.

        Raises:
            CorruptError: it is damaged.
        """
        body, crc = data[: _FILE.size], data[_FILE.size :]
        if len(body) < _FILE.size or crc != _CRC.pack(zlib.crc32(body)):
            raise CorruptError(str(path), 0, "the key file's checksum does not match")
        magic, version, secret = _FILE.unpack(body)
        if (magic, version) != (_MAGIC, _VERSION):
            raise CorruptError(str(path), 0, "it is not a key file known to this program")
        return cls(secret)

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Kek):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    # A table of keys would compare them in a time that depends on them.
    __hash__ = None  # type: ignore[assignment]

    @override
    def __repr__(self) -> str:
        return "Kek(hidden)"

    @override
    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")


def _derive(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)
