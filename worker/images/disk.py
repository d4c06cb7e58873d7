"""The store's directory: where things are, and how they get there so that a crash does no harm.

    lock              held by the one process that has the store open
    state.json        all metadata (`state.State`); replaced at once, always last
    oci-layout        marks the directory as an OCI layout
    blobs/sha256/…    configurations, manifests and layers, named by their digests
    l/<12 digits>/    unpacked layers, as overlayfs takes them
    tmp/…             work in progress; emptied when the store is opened

Whatever `state.json` does not name is left over from a crash and removed at the next opening. All
functions block; the store calls them in threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import structlog

from disk.replace import replace_file
from proto.errors import ConflictError, CorruptError, InvalidError, reason_of
from worker.diskspace import FULL_ERRNOS
from worker.files import kernel, tree
from worker.images import state as states
from worker.images.state import State

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

_PRIVATE = 0o700
_OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Disk:
    """The directory of one store, locked for this process."""

    def __init__(self, root: Path) -> None:
        """Make what is missing of the directory, lock it and empty `tmp`.

        Raises:
            ConflictError: another process has it.
        """
        self.root = root
        self.layers = root / "l"
        self.blobs = root / "blobs" / "sha256"
        self.scratch = root / "tmp"
        # Layers of pulls that were interrupted, complete and checked, by digest.
        self.kept = root / "kept"
        root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        self._lock = _locked(root)
        try:
            for directory in (self.layers, self.blobs, self.scratch, self.kept):
                directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self._swept(self.scratch.iterdir())
            layout = root / "oci-layout"
            if not layout.exists():
                self._replace(layout, _OCI_LAYOUT)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._lock)

    def sync(self) -> None:
        """Write everything of the filesystem that holds the store to the disk."""
        directory = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kernel.sync_filesystem(directory)
        finally:
            os.close(directory)

    def blob(self, digest: str) -> Path:
        """Where a blob is or would be."""
        return self.blobs / digest.removeprefix("sha256:")

    def layer(self, directory: str) -> Path:
        """Where an unpacked layer is or would be."""
        return self.layers / directory

    def new_scratch(self) -> Path:
        """Make a private directory for work in progress."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def load(self) -> State:
        """Read the metadata.

        Raises:
            CorruptError: the file cannot be read; it is never thrown away by itself.
        """
        path = self.root / "state.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return State()
        try:
            return states.decode(data)
        except InvalidError as error:
            raise CorruptError(
                str(path), 0, f"{error.message}; restore it, or move {self.root} away to start anew"
            ) from error

    def store(self, state: State) -> None:
        """Replace the metadata; the blobs and layers of new images are on the disk by then."""
        state.check()
        self._replace(self.root / "state.json", states.encode(state))

    def write_blob(self, digest: str, data: bytes) -> None:
        """Write a small blob, unless it is there."""
        path = self.blob(digest)
        if not path.exists():
            self._replace(path, data)

    def take_blob(self, digest: str, source: Path) -> None:
        """Move a finished file of `tmp` among the blobs."""
        source.chmod(0o600)
        source.replace(self.blob(digest))

    def keep(self, digest: str, source: Path) -> None:
        """Let a complete layer outlive the pull that fetched it; it takes no room of its own."""
        with contextlib.suppress(FileExistsError):
            os.link(source, self.kept / source.name)
        log.debug("layer_kept", digest=digest)

    def kept_blob(self, digest: str) -> Path:
        """Where a layer of an interrupted pull is or would be."""
        return self.kept / digest.removeprefix("sha256:")

    def drop_kept(self, digests: Iterable[str]) -> None:
        """Remove layers of interrupted pulls: they are in use now, or are of none."""
        self.clear(self.kept_blob(digest) for digest in digests)

    def drop_all_kept(self, *, older_than: float = float("inf")) -> int:
        """Remove all such layers that nobody asked for since then; return their bytes."""
        freed = 0
        for path in list(self.kept.iterdir()):
            found = path.stat()
            if found.st_ctime < older_than:
                # A layer that became an image's has another name, and frees nothing.
                freed += found.st_size if found.st_nlink == 1 else 0
                path.unlink()
        return freed

    def take_layer(self, directory: str, source: Path) -> None:
        """Move an unpacked layer out of `tmp`."""
        target = self.layer(directory)
        if target.exists():
            # Left over: the caller knows that no record names it.
            self.clear(self.set_aside([target]))
        source.replace(target)

    def set_aside(self, paths: Iterable[Path]) -> list[Path]:
        """Move files and trees away, which is quick; return where to, for `clear`.

        So a half-removed layer is never found under its name. Nothing is made for it, since a full
        disk has no room for a directory either; what cannot be moved stays where it is.
        """
        moved = []
        for path in paths:
            target = self.scratch / f"gone-{secrets.token_hex(8)}"
            try:
                path.rename(target)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in FULL_ERRNOS:
                    raise
                target = path
            moved.append(target)
        return moved

    def clear(self, paths: Iterable[Path]) -> None:
        """Remove files and whole trees."""
        for path in paths:
            tree.remove(path)

    def sweep(self, state: State) -> list[str]:
        """Remove blobs and layers that the metadata does not name; return their names."""
        directories = {layer.directory for layer in state.layers.values()}
        blobs = {digest.removeprefix("sha256:") for digest in states.needed_blobs(state)}
        return [*self._sweep(self.layers, directories), *self._sweep(self.blobs, blobs)]

    def _sweep(self, directory: Path, needed: Collection[str]) -> list[str]:
        left_over = sorted(path for path in directory.iterdir() if path.name not in needed)
        if not left_over:
            return []
        try:
            aside = self.set_aside(left_over)
        except OSError as error:
            log.warning("image_rest_not_removed", path=str(directory), error=reason_of(error))
            return []
        self._swept(aside)
        return [path.name for path in left_over]

    def _swept(self, paths: Iterable[Path]) -> None:
        """Remove what is of no use. What stays is logged, for the next start: no reason to fail."""
        for path in paths:
            try:
                self.clear([path])
            except OSError as error:
                log.warning("image_rest_not_removed", path=str(path), error=reason_of(error))

    def _replace(self, path: Path, data: bytes) -> None:
        # In the scratch directory: whatever else is among the blobs is one.
        handle, name = tempfile.mkstemp(dir=self.scratch)
        os.close(handle)
        replace_file(path, data, temporary=Path(name))


def _locked(root: Path) -> int:
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConflictError(
            f"the image store {root} is in use by another process; stop that one first"
        ) from error
    return lock
