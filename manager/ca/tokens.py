"""Join tokens: how they are made, read and compared. Pure; `rng` gives the secret.

A token is `SWMTKN-1-<digest>-<secret>`: the SHA-256 of the root certificate's PEM, by which a
joining node knows that it talks to the right cluster, and 16 random bytes, by which the cluster
knows that the node may join. Both are written in base 36. Source: swarmkit ca/config.go.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import re

import msgspec
from typing_extensions import override

from proto.errors import InvalidError
from proto.ids import base36

PREFIX = "SWMTKN-1"
DIGEST_LENGTH = 50
SECRET_LENGTH = 25
_SECRET_BYTES = 16
_SHA256_BITS = 256
_TOKEN = re.compile(
    rf"{PREFIX}-(?P<digest>[0-9a-z]{{{DIGEST_LENGTH}}})-(?P<secret>[0-9a-z]{{{SECRET_LENGTH}}})"
)


class JoinToken(msgspec.Struct, frozen=True):
    """A token, read: `digest` is hexadecimal SHA-256, `secret` stays base 36."""

    digest: str
    secret: str

    @override
    def __repr__(self) -> str:
        """Hide the secret."""
        return f"JoinToken(digest={self.digest!r})"

    def is_of(self, root_certificate_pem: str) -> bool:
        """Tell whether a root certificate is the one that the token names."""
        return hmac.compare_digest(self.digest, root_digest(root_certificate_pem))


def root_digest(root_certificate_pem: str) -> str:
    """Return the hexadecimal SHA-256 of a root certificate's PEM text."""
    return hashlib.sha256(root_certificate_pem.encode()).hexdigest()


def new_join_token(root_certificate_pem: str, rng: random.Random) -> str:
    """Draw a token for the cluster with this root; in production from a `SystemRandom`."""
    digest = base36(int(root_digest(root_certificate_pem), 16), DIGEST_LENGTH)
    secret = base36(int.from_bytes(rng.randbytes(_SECRET_BYTES), "big"), SECRET_LENGTH)
    return f"{PREFIX}-{digest}-{secret}"


def parse_join_token(text: str) -> JoinToken:
    """Read a token as a user gave it; spaces around it are ignored.

    Raises:
        InvalidError: it is none; the text, which may be a secret, is not repeated.
    """
    match = _TOKEN.fullmatch(text.strip())
    digest = int(match["digest"], 36) if match is not None else 1 << _SHA256_BITS
    if match is None or digest >> _SHA256_BITS:
        raise InvalidError(
            f"invalid join token: it is {PREFIX}-, {DIGEST_LENGTH} and {SECRET_LENGTH} characters; "
            "ask a manager for it with: swarm join-token worker"
        )
    return JoinToken(f"{digest:064x}", match["secret"])


def is_same_token(given: str, stored: str) -> bool:
    """Compare two tokens in a time that does not tell how much of them agrees.

    An empty one, which a cluster without tokens would have, is never the same.
    """
    return bool(stored) and hmac.compare_digest(given.strip().encode(), stored.encode())
