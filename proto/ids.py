"""Identifier types, and how new identifiers are drawn.

An identifier is 25 characters of base 36 made of 17 random bytes, as SwarmKit's
`identity/randomid.go` has it: short enough to type a prefix of, long enough never to collide.
Containers have Docker's 64 hex digits.
"""

from __future__ import annotations

import hashlib
import random
from typing import NewType

ClusterID = NewType("ClusterID", str)
NodeID = NewType("NodeID", str)
ServiceID = NewType("ServiceID", str)
TaskID = NewType("TaskID", str)
NetworkID = NewType("NetworkID", str)
SecretID = NewType("SecretID", str)
ConfigID = NewType("ConfigID", str)
ContainerID = NewType("ContainerID", str)
ImageID = NewType("ImageID", str)

ID_LENGTH = 25
_ID_BYTES = 17
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(value: int, width: int) -> str:
    """Write `value` (>= 0) in base 36, padded with zeros on the left to `width` characters."""
    assert value >= 0
    digits: list[str] = []
    while value:
        value, digit = divmod(value, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits)).rjust(width, "0")


def new_id(rng: random.Random) -> str:
    """Draw a fresh identifier; in production `rng` is a `random.SystemRandom`."""
    value = int.from_bytes(rng.randbytes(_ID_BYTES), "big")
    return base36(value, ID_LENGTH)[:ID_LENGTH]


def container_id_of(task_id: TaskID) -> ContainerID:
    """Derive the container's ID from its task's.

    A task has one container in its life, so the ID need not be drawn or stored to be found again
    after a crash between creating the container and reporting it.
    """
    return ContainerID(hashlib.sha256(f"task {task_id}".encode()).hexdigest())
