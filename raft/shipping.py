"""Snapshots of a member: saved for its own restart, sent to peers that lag, taken from a leader.

Saving and reading run in threads of their own, so appends go on. A snapshot that is sent is read
a little ahead of the connection; one that comes in is written to a temporary file and gets its
place together with the step of the core that wants it.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import AsyncIterator, Iterator

import msgspec
import structlog
from typing_extensions import override

from proto.errors import DeniedError, SwarmError, UnavailableError, reason_of
from raft import lane as lanes
from raft.core import RaftID, Snapshot, decode, encode
from raft.core.messages import Install
from raft.files import disk_error
from raft.settings import NodeName, Transport
from raft.shell import Shell
from raft.snapshot import CHUNK_BYTES_MAX, SnapshotWriter
from raft.storage import Storage

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# Chunks are handed to the thread in portions of this size.
PORTION_BYTES = 256 << 10
_END = b""
_BEGAN_ANEW = "this member read its directory anew after a fault of the disk; try again"
_LENGTH = struct.Struct(">I")


class Shipping(Shell):
    """The layer of snapshots; see the module."""

    @property
    def snapshot_index(self) -> int:
        """The last entry that the newest durable snapshot contains; 0 without one."""
        return self._storage.snapshot_index

    @property
    def is_rotating(self) -> bool:
        """Whether files under an older data key are left: a snapshot of now would end that."""
        return self._storage.is_rotating

    async def save_snapshot(self, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Store a snapshot of the state at `index`, durable on return; then drop older segments.

        Appends go on meanwhile. Chunks come back from `restore` as they were cut here.

        Args:
            index: an entry that was applied, not below the newest snapshot's.
            chunks: at most 64 MiB each.

        Raises:
            InvalidError: a chunk is too large.
            ResourceExhaustedError, UnavailableError: the disk failed; the older snapshot stays.
        """
        async with self._save_mutex:
            if self._is_closed or self._failure is not None or self._recovery is not None:
                raise self._refusal()
            assert 1 <= index <= self._applied
            storage = self._storage
            if storage.snapshot_index > index:
                # The leader sent a newer one, which the listener is taking: nothing to save.
                return
            if index > self._core.log.commit:
                # The core began anew from the disk, and does not know yet what it knew.
                raise UnavailableError(_BEGAN_ANEW)
            snapshot = self._core.describe_snapshot(index)
            try:
                # Entries from now on go to a new segment, so that the present one can be dropped.
                await self._wal_lane.run(storage.roll)
                writer = storage.snapshot_writer(snapshot, is_installed=False)
                await self._write_chunks(writer, chunks)
                async with self._publish_mutex:
                    await self._publish(storage, writer, index)
            except OSError as error:
                raise disk_error(storage.directory, error) from error
        log.info("snapshot_saved", directory=str(storage.directory), index=index)

    async def _publish(self, storage: Storage, writer: SnapshotWriter, index: int) -> None:
        """Give a complete snapshot its place, and drop what it makes needless.

        Raises:
            UnavailableError: the directory was read anew meanwhile; nothing of it stays.
            OSError: the disk fails.
        """
        lane = self._open_snapshot_lane()
        if storage is not self._storage:
            await lane.run(writer.abandon)
            raise UnavailableError(_BEGAN_ANEW)
        await lane.run(writer.publish)
        if storage.snapshot_index > index:
            # The leader sent a newer one meanwhile.
            await lane.run(functools.partial(storage.remove_older, ()))
            return
        storage.snapshot = writer.snapshot
        kept = 0 if storage.is_rotating else self._kept(index)
        paths = await self._wal_lane.run(lambda: storage.take_droppable(kept))
        await lane.run(lambda: storage.remove_older(paths))
        await self._wal_lane.run(storage.drop_keys)
        self._guarded(lambda: self._core.compact(index, self._kept(index)))

    def _kept(self, index: int) -> int:
        """Return how many entries up to a snapshot's index are kept for slow followers.

        Some always, and what a peer is about to need that just gets a snapshot, or got one, or is
        slow: dropping that would make the next snapshot needed before this one is taken.
        """
        raft_log = self._core.log
        settings = self._settings
        kept = min(settings.entries_kept, index - raft_log.start)
        while kept > 0 and raft_log.size(index - kept + 1, index) > settings.kept_bytes_max:
            kept //= 2
        needed = self._core.needed_from(index)
        if needed <= index and raft_log.size(needed, index) <= settings.awaited_bytes_max:
            kept = max(kept, index - needed + 1)
        return max(0, kept)

    async def rotate_data_key(self) -> int:
        """Write from now on under a new data key; several steps, each may crash.

        A snapshot at or after the returned index ends the rotation: it drops the files under older
        keys and then those keys. Until then `is_rotating` holds, also after a restart.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed; repeat.
        """
        if self._is_closed or self._recovery is not None:
            raise self._refusal()
        try:
            index = await self._wal_lane.run(self._storage.rotate_data_key)
        except OSError as error:
            raise disk_error(self._storage.directory, error) from error
        log.info("data_key_rotated", directory=str(self._storage.directory))
        return index

    def _open_snapshot_lane(self) -> lanes.Lane:
        if self._snapshot_lane is None:
            self._snapshot_lane = self._new_lane("swarm-snapshot")
        return self._snapshot_lane

    async def _write_chunks(self, writer: SnapshotWriter, chunks: AsyncIterator[bytes]) -> None:
        """Write a snapshot as far as its name, durably; nothing of it stays if that fails."""
        lane = self._open_snapshot_lane()
        portion: list[bytes] = []
        portion_bytes = 0
        try:
            await lane.run(writer.start)
            async for chunk in chunks:
                portion.append(chunk)
                portion_bytes += len(chunk)
                if portion_bytes >= PORTION_BYTES:
                    full, portion, portion_bytes = portion, [], 0
                    await lane.run(functools.partial(writer.write, full))
            await lane.run(functools.partial(writer.write, portion))
            await lane.run(writer.complete)
        except BaseException:
            # After a cancellation this waits for the job under way: one lane, one order.
            await lane.run(writer.abandon)
            raise

    # Sending.

    @override
    def _offer(self, install: Install) -> None:
        self._spawn_soon(self._ship(install))

    async def _ship(self, install: Install) -> None:
        """Send a snapshot, and tell the core how that went."""
        is_sent = False
        member = self._known.get(install.to)
        storage = self._storage
        transport = self._transport
        if member is not None and transport is not None and storage.snapshot is not None:
            began = self._clock.monotonic()
            try:
                if storage.snapshot_index == install.snapshot.index:
                    await self._stream(transport, member.node_id, install)
                    is_sent = True
            except (SwarmError, OSError) as error:
                log.warning("snapshot_not_sent", peer_id=member.node_id, error=reason_of(error))
            except Exception as error:  # whatever it is, the peer is offered another
                log.error(  # noqa: TRY400 -- the exception is given
                    "snapshot_not_sent", peer_id=member.node_id, error=repr(error), exc_info=error
                )
            if is_sent:
                seconds = round(self._clock.monotonic() - began, 3)
                index = install.snapshot.index
                log.info("snapshot_sent", peer_id=member.node_id, index=index, seconds=seconds)
        await self._pause_shipping(install.to, is_sent=is_sent)

        def work() -> None:
            self._core.snapshot_sent(install.to, is_sent=is_sent)
            self._pump()

        self._guarded(work)

    async def _pause_shipping(self, to: RaftID, *, is_sent: bool) -> None:
        """Let a peer that cannot take snapshots wait for the next one, longer each time."""
        if is_sent:
            self._ship_failures.pop(to, None)
            return
        settings = self._settings
        failures = self._ship_failures.get(to, 0)
        self._ship_failures[to] = failures + 1
        longest = min(
            settings.ship_seconds_max, settings.ship_seconds_first * 2.0 ** min(failures, 30)
        )
        await asyncio.sleep(longest * self._rng.uniform(0.5, 1.0))

    async def _stream(self, transport: Transport, node_id: NodeName, install: Install) -> None:
        lane = self._new_lane("swarm-snapshot-out")
        try:
            chunks = self._read(lane, self._storage.read_snapshot())
            await transport.send_snapshot(node_id, encode([install]), chunks)
        finally:
            await lane.close()

    @staticmethod
    async def _read(lane: lanes.Lane, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield chunks that a thread reads, each behind its length: they are cut on the way."""

        def read() -> bytes:
            chunk = next(chunks, None)
            return _END if chunk is None else _LENGTH.pack(len(chunk)) + chunk

        while piece := await lane.run(read):
            yield piece

    # Receiving.

    async def on_snapshot(
        self, node_id: NodeName, header: bytes, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take a snapshot from a peer whose node ID is proven; the header is its `Install`.

        Raises:
            DeniedError: the header cannot be read, or is somebody else's.
            UnavailableError: it cannot be taken now; the leader offers it again.
            ResourceExhaustedError: the disk is full.
        """
        try:
            install, *rest = decode(header)
        except (msgspec.DecodeError, ValueError) as error:
            raise DeniedError(f"a snapshot of node {node_id} has no header") from error
        if rest or not isinstance(install, Install) or install.to != self._me.id:
            raise DeniedError(f"a snapshot of node {node_id} is not for member {self._me.id}")
        self._check_sender(node_id, install)
        storage = self._storage
        if self._recovery is not None or self._is_closed or self._installing is not None:
            raise UnavailableError("this member is busy with another snapshot or its disk")
        writer = storage.snapshot_writer(install.snapshot, is_installed=True)
        try:
            await self._write_chunks(writer, self._while_due(install.snapshot, chunks))
            await self._take(storage, install, writer)
        except _NotNeededError:
            # The core's answer says how far we are; without it the leader offers it for ever.
            if self._is_closed:
                raise
            self._offer_to_core(install)
        except OSError as error:
            raise disk_error(storage.directory, error) from error

    async def _while_due(
        self, snapshot: Snapshot, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """Yield the chunks as they were before they were cut, while the core may want them."""
        buffer = bytearray()
        async for piece in chunks:
            if self._is_closed or self._core.log.commit > snapshot.index:
                raise _NotNeededError("the snapshot is not needed any more")
            buffer += piece
            while len(buffer) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
                if end > _LENGTH.size + CHUNK_BYTES_MAX:
                    raise DeniedError("a chunk of the snapshot is too large")
                if len(buffer) < end:
                    break
                yield bytes(buffer[_LENGTH.size : end])
                del buffer[:end]
        if buffer:
            raise UnavailableError("the snapshot was cut short")

    async def _take(self, storage: Storage, install: Install, writer: SnapshotWriter) -> None:
        """Offer a complete snapshot to the core, which may have no use for it.

        Raises:
            UnavailableError: the directory was read anew meanwhile, which removed the file.
            OSError: the disk fails.
        """
        if storage is not self._storage or self._recovery is not None:
            await self._open_snapshot_lane().run(writer.abandon)
            raise UnavailableError(_BEGAN_ANEW)
        key = (install.snapshot.index, install.snapshot.term)
        self._received[key] = writer
        self._offer_to_core(install)
        if self._received.pop(key, None) is not None:
            await self._open_snapshot_lane().run(writer.abandon)

    def _offer_to_core(self, install: Install) -> None:
        self._heard[install.sender] = self._clock.monotonic()

        def work() -> None:
            self._catch_up()
            self._core.step(install)
            self._pump()

        self._guarded(work)


class _NotNeededError(UnavailableError):
    """The log went on past the snapshot meanwhile."""
