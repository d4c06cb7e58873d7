"""A member's disk in the simulator as files: the real log and snapshots, and bytes that rot.

To its host the same as `Disk`, but what is stored goes through `raft.storage` to files in memory
that lose at a crash what was not synced, in the worst way (`raft.simdisk`). On top of that, stored
bytes may change behind everybody's back. The fields of `Disk` stay beside it as the truth: what
was synced and reported. At the next start the files are either refused as damaged, or they say
exactly that, with or without what was being written when the power went.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import msgspec
from msgspec import structs
from typing_extensions import override

from raft import format as layout
from raft.core import Entries, HardState, RaftID, Ready, Snapshot
from raft.keys import KeyRing
from raft.segments import SYNCED_NAME, segment_path
from raft.sim.checks import Failure
from raft.sim.disk import Content, Disk
from raft.simdisk import HOME, SECTOR_BYTES, SimFiles, expected_trouble
from raft.snapshot import SnapshotWriter
from raft.storage import WAL_NAME, Storage, Write

# Small, so that there are several.
SEGMENT_BYTES = 2000
# A torn write stops before one of so many operations of the disk, or is whole.
_OPERATIONS_MAX = 6
_ROTTEN_SUFFIXES = (".wal", ".snap")
_WHOLE_SECTOR = 0.2
# How often rot is the loss of whole writes that the disk had confirmed as synced.
_LOST_SYNCS = 0.4

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[int, tuple[int, ...]])


class FileDisk(Disk):
    """See the module."""

    def __init__(
        self, member_id: RaftID, rng: random.Random, content: Callable[[Snapshot], Content]
    ) -> None:
        """Start empty; `content` tells what a snapshot contains."""
        super().__init__()
        self._id = member_id
        self._rng = rng
        self._content = content
        self._files = SimFiles(rng)
        self._keys = KeyRing.create(HOME, rng.randbytes, files=self._files)
        self._torn: Ready | None = None
        # Where each segment ended after its syncs.
        self._ends: dict[str, list[int]] = {}
        self._storage: Storage | None = None

    # Starts and crashes.

    @override
    def boot(self, hard_state: HardState, entries: Entries) -> None:
        super().boot(hard_state, entries)
        self._storage = self._open()
        self._write(Write(hard_state, entries))
        self.lose_power()

    @override
    def open(self) -> Content | None:
        self._storage = storage = self._open()
        stored = storage.stored
        found = Disk()
        found.hard_state = stored.hard_state
        found.snapshot = stored.snapshot
        found.first = stored.entries.first if stored.entries else stored.snapshot.index + 1
        if stored.entries is not None:
            found.append(stored.entries, len(stored.entries.data))
        if not any(_is_same(found, allowed) for allowed in self._allowed()):
            raise Failure(
                "damage applied",
                f"member {self._id} reads {_story(found)}, stored was {_story(self)}"
                + (f", then {self._torn}" if self._torn else ""),
            )
        self._torn = None
        self.take(found)
        storage.release()
        return dict(_DECODER.decode(chunk) for chunk in storage.read_snapshot())

    def _open(self) -> Storage:
        with expected_trouble(), self._reading():
            storage = Storage.open(
                HOME,
                self._keys,
                files=self._files,
                rng_bytes=self._rng.randbytes,
                segment_bytes=SEGMENT_BYTES,
            )
        storage.member_id = self._id
        return storage

    def _reading(self) -> AbstractContextManager[object]:
        """Surround what reads and checks the files."""
        return nullcontext()

    def _allowed(self) -> Iterator[Disk]:
        """Yield what may be found: what was synced, without or with what was being written."""
        yield self
        torn = self._torn
        if torn is None:
            return
        after = Disk()
        after.take(self)
        if torn.snapshot is not None:
            Disk.store(after, structs.replace(torn, entries=None, hard_state=None))
            yield after
        Disk.store(after, torn)
        yield after

    @override
    def lose_power(self) -> None:
        self._storage = None
        self._files.lose_power()

    # Writing.

    @override
    def store(self, ready: Ready) -> None:
        super().store(ready)
        self._write(self._prepared(ready))
        segments = [path for path in self._files.paths() if path.suffix == ".wal"]
        ends = self._ends.setdefault(segments[-1].name, [])
        ends.append(len(self._files.content(segments[-1])))

    @override
    def tear(self, ready: Ready, rng: random.Random) -> None:
        self._torn = ready
        write = self._prepared(ready)
        stop = self._files.stopping_at(int(rng.random() * _OPERATIONS_MAX))
        with expected_trouble(), stop:
            self._write(write)

    def _prepared(self, ready: Ready) -> Write:
        """Return a step, behind the snapshot's content if it has one."""
        writer = None
        if ready.snapshot is not None:
            writer = self._writer(ready.snapshot, is_installed=True)
        return Write(ready.hard_state, ready.entries, writer)

    def _write(self, write: Write) -> None:
        assert self._storage is not None
        self._storage.write([write])

    def _writer(self, snapshot: Snapshot, *, is_installed: bool) -> SnapshotWriter:
        assert self._storage is not None
        writer = self._storage.snapshot_writer(snapshot, is_installed=is_installed)
        writer.start()
        writer.write([_ENCODER.encode(each) for each in sorted(self._content(snapshot).items())])
        writer.complete()
        return writer

    @override
    def keep_snapshot(self, snapshot: Snapshot, start: int) -> None:
        super().keep_snapshot(snapshot, start)
        storage = self._storage
        assert storage is not None
        storage.roll()
        writer = self._writer(snapshot, is_installed=False)
        writer.publish()
        storage.snapshot = writer.snapshot
        storage.remove_older(storage.take_droppable(snapshot.index - start))

    # Rot.

    # Never so that a sector is nothing but zeros: at the end of the log that cannot be told from a
    # write that was interrupted (`raft/DESIGN.md`, "Torn or damaged?").
    @override
    def rot(self) -> str:
        files = self._files
        if self._rng.random() < _LOST_SYNCS and (where := self._lose_syncs()):
            return where
        paths = [path for path in files.paths() if path.suffix in _ROTTEN_SUFFIXES]
        paths = [path for path in paths if files.content(path)]
        if not paths:
            return ""
        random = self._rng.random
        path = paths[int(random() * len(paths))]
        content = bytearray(files.content(path))
        place = int(random() * len(content))
        start = place - place % SECTOR_BYTES
        sector = slice(start, start + SECTOR_BYTES)
        former = content[sector]
        while content[sector] == former or not any(content[sector]):
            content[sector] = former
            if random() < _WHOLE_SECTOR:
                content[sector] = self._rng.randbytes(len(former))
            else:
                content[place] ^= 1 << int(random() * 8)
        files.put(path, bytes(content))
        return f"{path.name} at {place} of {len(content)}"

    def _lose_syncs(self) -> str:
        """Cut the log where it ended some syncs ago, as a disk does that confirms too early.

        Only where the mark beside the log survives: an older state of everything cannot be told
        from what it says it is (`raft/DESIGN.md`, "Decisions").
        """
        files = self._files
        mark_path = segment_path(HOME / WAL_NAME, 1).with_name(SYNCED_NAME)
        if not files.exists(mark_path):
            return ""
        mark = layout.decode_synced(files.content(mark_path))
        path = segment_path(HOME / WAL_NAME, mark.number) if mark is not None else mark_path
        content = files.content(path) if mark is not None and files.exists(path) else b""
        ends = [end for end in self._ends.get(path.name, []) if mark and end < mark.offset]
        if not ends or not content:
            return ""
        end = ends[int(self._rng.random() * len(ends))]
        files.put(path, content[:end])
        return f"{path.name} at {end} of {len(content)}, what follows was lost"


def _is_same(found: Disk, allowed: Disk) -> bool:
    """Whether all that was allowed to be read was read; older entries may lie before it."""
    snapshot = allowed.snapshot
    last_term = allowed.log[-1][0] if allowed.log else 0
    term = max(allowed.hard_state.term, snapshot.term, last_term)
    skipped = allowed.first - found.first
    return (
        found.snapshot == snapshot
        and found.last == allowed.last
        and skipped >= 0
        and found.log[skipped:] == allowed.log
        and found.hard_state.term == term
        and found.hard_state.commit == max(allowed.hard_state.commit, snapshot.index)
        and (term > allowed.hard_state.term or found.hard_state.vote == allowed.hard_state.vote)
    )


def _story(disk: Disk) -> str:
    return f"{disk.hard_state}, snapshot {disk.snapshot.index}, {disk.entries()}"
