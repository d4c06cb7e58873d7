"""Snapshots: the state at one index, sealed in chunks, in a file that appears only when whole.

A shell around `raft.format`. Written to a temporary name, synced, renamed, the directory synced;
only then older ones go. Each chunk is bound to its place and the last frame counts them, so that
a changed, missing, moved or added byte is found. A snapshot is read through before any of it is
handed out. The methods block; `SnapshotWriter` is meant to be driven from a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from proto.errors import CorruptError, InvalidError
from raft import format as layout
from raft.files import File, Files, write_all
from raft.keys import KeyRing, RandomBytes
from raft.segments import data_key

SNAPSHOT_SUFFIX = ".snap"
CHUNK_BYTES_MAX = layout.FRAME_BYTES_MAX - layout.TAG_BYTES


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot that was checked when it was found.

    Attributes:
        path: where it is.
        index: the last entry that it contains.
        key_id: the data key that it needs.
        about: what its writer said of it; empty only if another version wrote it.
    """

    path: Path
    index: int
    key_id: int
    about: bytes


def snapshot_path(directory: Path, index: int) -> Path:
    """Return where the snapshot at an index is."""
    return directory / f"{index:016x}{SNAPSHOT_SUFFIX}"


def snapshot_names(files: Files, directory: Path) -> list[str]:
    """Return the names of the snapshots, oldest first."""
    return [name for name in files.names(directory) if name.endswith(SNAPSHOT_SUFFIX)]


def read_snapshot(files: Files, path: Path, keys: KeyRing) -> Iterator[bytes]:
    """Yield the chunks as they were given.

    Raises:
        CorruptError: something does not check; what was yielded must then be thrown away.
    """
    return (plain for plain, is_about in read_frames(files, path, keys) if not is_about)


def read_frames(files: Files, path: Path, keys: KeyRing) -> Iterator[tuple[bytes, bool]]:
    """Yield the chunks, and before them, marked by True, what describes the snapshot.

    Raises:
        CorruptError: something does not check; what was yielded must then be thrown away.
    """
    try:
        with files.read(path) as stream:
            data = stream.read(layout.FILE_HEADER_BYTES)
            header = layout.decode_file_header(data, layout.MAGIC_SNAPSHOT)
            cipher = layout.file_cipher(data_key(keys, path, header.key_id), header)
            yield from layout.read_all_frames(stream, cipher)
    except layout.DamagedError as error:
        raise CorruptError(str(path), error.offset, error.reason) from error


def find_newest(files: Files, directory: Path, keys: KeyRing) -> Snapshot | None:
    """Remove what an interrupted save left, and read the newest snapshot through.

    Raises:
        CorruptError: it is damaged. Older ones are not tried: entries after them may be gone.
    """
    files.make_directory(directory)
    for name in files.names(directory):
        if name.endswith(".tmp"):
            files.remove(directory / name)
    names = snapshot_names(files, directory)
    if not names:
        return None
    # The process before may have died between rename and sync; older segments depend on this.
    files.sync_directory(directory)
    path = directory / names[-1]
    about = b""
    for plain, is_about in read_frames(files, path, keys):
        if is_about:
            about = plain
    with files.read(path) as stream:
        data = stream.read(layout.FILE_HEADER_BYTES)
    header = layout.decode_file_header(data, layout.MAGIC_SNAPSHOT)
    if snapshot_path(directory, header.index) != path:
        raise CorruptError(str(path), 0, f"it is the snapshot at {header.index} under a wrong name")
    return Snapshot(path=path, index=header.index, key_id=header.key_id, about=about)


def remove_older(files: Files, directory: Path, newest: Snapshot) -> None:
    """Remove all snapshots but the newest, durably."""
    older = [name for name in snapshot_names(files, directory) if name != newest.path.name]
    for name in older:
        files.remove(directory / name)
    if older:
        files.sync_directory(directory)


class SnapshotWriter:
    """A snapshot in the making: `start`, `write` as often as needed, `finish`, then `abandon`.

    Attributes:
        snapshot: the durable snapshot, once `finish` has made it.
    """

    def __init__(
        self,
        directory: Path,
        index: int,
        keys: KeyRing,
        *,
        files: Files,
        rng_bytes: RandomBytes,
        about: bytes,
        temporary_name: str = "",
    ) -> None:
        """Prepare; touches no file.

        Args:
            directory: where snapshots are.
            index: the last entry that it contains.
            keys: the open ring.
            files: the disk.
            rng_bytes: for the salt.
            about: kept with it; comes back as `Snapshot.about`.
            temporary_name: its name until it is finished, if several may be in the making.
        """
        self._files = files
        self._about = about
        self._header = layout.FileHeader(
            magic=layout.MAGIC_SNAPSHOT,
            key_id=keys.current_id,
            number=0,
            index=index,
            salt=rng_bytes(layout.SALT_BYTES),
        )
        self._path = snapshot_path(directory, index)
        self._temporary = self._path.with_name(temporary_name or self._path.name + ".tmp")
        key = data_key(keys, self._path, self._header.key_id)
        self._cipher = layout.file_cipher(key, self._header)
        self._frames = 0
        self._content_bytes = 0
        self._file: File | None = None
        self.snapshot: Snapshot | None = None

    def start(self) -> None:
        """Open the temporary file.

        Raises:
            OSError: the disk is full or fails; abandon it.
        """
        if self._files.exists(self._temporary):
            self._files.remove(self._temporary)
        self._file = self._files.create(self._temporary)
        about = layout.encode_about_frame(self._cipher, self._about)
        self._frames = 1
        write_all(self._file, [layout.encode_file_header(self._header), about])

    def write(self, chunks: Sequence[bytes]) -> None:
        """Add chunks.

        Raises:
            InvalidError: one is larger than 64 MiB.
            OSError: the disk is full or fails; abandon it.
        """
        assert self._file is not None
        for chunk in chunks:
            if len(chunk) > CHUNK_BYTES_MAX:
                raise InvalidError(f"a chunk of a snapshot is larger than {CHUNK_BYTES_MAX} bytes")
            write_all(self._file, [layout.encode_frame(self._cipher, self._frames, chunk)])
            self._frames += 1
            self._content_bytes += len(chunk)

    def finish(self) -> None:
        """Make it durable under its name and set `snapshot`.

        Raises:
            OSError: the disk is full or fails; abandon it.
        """
        self.complete()
        self.publish()

    def complete(self) -> None:
        """Make the content durable; the name is still the temporary one.

        Raises:
            OSError: the disk is full or fails; abandon it.
        """
        assert self._file is not None
        final = layout.encode_final_frame(self._cipher, self._frames, self._content_bytes)
        write_all(self._file, [final])
        self._file.sync()
        self._close()

    def publish(self) -> None:
        """Give what is complete its name, durably, and set `snapshot`.

        Raises:
            OSError: the disk fails; whether it has the name is not known.
        """
        assert self._file is None
        self._files.rename(self._temporary, self._path)
        self._files.sync_directory(self._path.parent)
        self.snapshot = Snapshot(
            path=self._path,
            index=self._header.index,
            key_id=self._header.key_id,
            about=self._about,
        )

    def abandon(self) -> None:
        """Remove the temporary file, if there still is one."""
        self._close()
        if self._files.exists(self._temporary):
            self._files.remove(self._temporary)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
