"""A member's directory before there is a member: opened, begun, or forced to a group of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from proto.errors import (
    ConflictError,
    NotFoundError,
)
from raft.core import (
    Entries,
    HardState,
    Member,
    RaftID,
    force_new_cluster,
)
from raft.files import Files, disk_error
from raft.keys import KeyRing, RandomBytes
from raft.members import new_id
from raft.settings import NodeName
from raft.storage import Storage, Stored, Write, newest_membership

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


def check_new(storage: Storage) -> None:
    """Make sure that nothing is there.

    Raises:
        ConflictError: there is a log already.
    """
    if not storage.stored.is_empty:
        raise ConflictError(f"{storage.directory} holds a log already")


def existing(storage: Storage) -> Stored:
    """Return what was found.

    Raises:
        NotFoundError: there is no log.
    """
    if storage.stored.is_empty:
        raise NotFoundError("replicated log", str(storage.directory))
    return storage.stored


@contextlib.asynccontextmanager
async def closed_on_error(storage: Storage) -> AsyncIterator[None]:
    """Close it if what is done with it fails."""
    try:
        yield
    except BaseException:
        await asyncio.to_thread(storage.close)
        raise


async def open_storage(
    directory: Path,
    keys: KeyRing,
    files: Files | None,
    rng: random.Random,
    segment_bytes: int,
) -> Storage:
    """Open a directory in a thread; see `Storage.open`."""
    return await asyncio.to_thread(
        Storage.open,
        directory,
        keys,
        files=files,
        rng_bytes=rng.randbytes,
        segment_bytes=segment_bytes,
    )


async def write_first(
    storage: Storage, member_id: RaftID, first: tuple[HardState, Entries | None]
) -> None:
    """Store what a member begins with, and read it back as any start would."""
    await asyncio.to_thread(_write_and_read, storage, member_id, first)


def _write_and_read(
    storage: Storage, member_id: RaftID, first: tuple[HardState, Entries | None]
) -> None:
    storage.member_id = member_id
    try:
        storage.write([Write(*first)])
    except OSError as error:
        raise disk_error(storage.directory, error) from error
    storage.add_to_stored(*first)


def force_cluster_of_one(
    directory: Path,
    keys: KeyRing,
    *,
    node_id: NodeName,
    address: str,
    rng: random.Random,
    files: Files | None = None,
    rng_bytes: RandomBytes = os.urandom,
) -> RaftID:
    """Make a cluster of one from what a survivor has stored; blocks. Then `open` it.

    Everything in its log counts as committed. What others acknowledged and it never received is
    lost: nobody else is left to say otherwise, which is what the operator asked for. The survivor
    gets a new number, and the old ones are never listened to again.

    Raises:
        InUseError: its daemon runs.
        NotFoundError: there is no log.
        CorruptError: something stored is damaged or missing.
        ResourceExhaustedError, UnavailableError: the disk failed; nothing is changed, repeat.
    """
    storage = Storage.open(directory, keys, files=files, rng_bytes=rng_bytes)
    try:
        stored = existing(storage)
        me = Member(new_id(rng), True, node_id, address)
        hard_state, entries = force_new_cluster(
            stored.hard_state, stored.last_index, newest_membership(stored), me
        )
        storage.member_id = me.id
        try:
            storage.write([Write(hard_state, entries)])
        except OSError as error:
            raise disk_error(directory, error) from error
        log.warning(
            "cluster_of_one_forced",
            directory=str(directory),
            last_index=entries.last,
            member_id=me.id,
        )
        return me.id
    finally:
        storage.close()
