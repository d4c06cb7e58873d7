"""Unpacking a layer into a directory that overlayfs takes as it is.

A layer is a tar archive from anybody: every path in it is hostile. Names are resolved lexically,
then each parent is opened by the kernel as if the layer's directory were the root (`worker.files`),
and all work is done relative to that descriptor without following links. So nothing is ever read
or written outside: a name that climbs out is refused, and a link, absolute or not, leads where it
would lead a process inside.

Whiteouts become what overlayfs knows: `.wh.name` a character device 0:0, `.wh..wh..opq` the
attribute `trusted.overlay.opaque`. By the format a whiteout hides what *lower* layers have, never
what its own layer has, wherever in the archive it stands.

Source: OCI image specification, "Image Layer Filesystem Changeset"; Linux,
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from proto.errors import InvalidError
from proto.text import quoted
from worker.files import beneath, tree
from worker.images.compression import Hashing, decompressed
from worker.images.directorytimes import DirectoryTimes
from worker.images.tarstream import lexical_parts, members_of, runs_of
from worker.images.work import CHUNK_BYTES, Reader, Watched

_WHITEOUT_PREFIX = b".wh."
_OPAQUE_MARKER = b".wh..wh..opq"
_RESERVED_PREFIX = b".wh..wh."
_OPAQUE = b"trusted.overlay.opaque"
_XATTR_KEY = "SCHILY.xattr."
# Labels of the machine that made the layer mean nothing here.
_FOREIGN_XATTRS = frozenset({"security.selinux", "security.ima", "security.evm"})
_WHITEOUT_DEVICE = os.makedev(0, 0)
_NANOSECONDS = 1_000_000_000
_TIME_SECONDS_MAX = 1 << 34
# Errors that come of what an entry asks for; any other is the machine's or the stream's.
_ENTRY_ERRORS = frozenset(
    {
        errno.E2BIG,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.ERANGE,
        errno.EXDEV,
    }
)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Parts = tuple[bytes, ...]


class Unpacked(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of a layer's blob.

    Attributes:
        blob_digest: of the file as it is stored.
        diff_id: of the plain tar archive in it.
        tar_bytes: length of the plain tar archive.
        size_bytes: of the regular files.
    """

    blob_digest: str
    diff_id: str
    tar_bytes: int
    size_bytes: int


def unpack_blob(
    blob: Path,
    directory: Path,
    what: str,
    stop: threading.Event,
    report: Callable[[int], None] | None = None,
) -> Unpacked:
    """Unpack a layer's blob into an empty directory, computing its digests on the way.

    Raises:
        InvalidError: the archive is damaged, or an entry of it is refused; the directory then
            holds a part and is the caller's to remove.
        OSError: of the machine, as a full disk.
    """
    with blob.open("rb") as file:
        outer = Hashing(Watched(file, stop, report))
        with decompressed(outer, what) as plain:
            inner = Hashing(plain)
            with LayerUnpacker(directory, what) as unpacker:
                size_bytes = unpacker.unpack(inner)
            inner.drain()
        outer.drain()
    return Unpacked(
        blob_digest=outer.digest,
        diff_id=inner.digest,
        tar_bytes=inner.count,
        size_bytes=size_bytes,
    )


def check_blob(blob: Path, what: str, stop: threading.Event) -> Unpacked:
    """Compute a blob's digests without unpacking it; `size_bytes` is 0."""
    with blob.open("rb") as file:
        outer = Hashing(Watched(file, stop))
        with decompressed(outer, what) as plain:
            inner = Hashing(plain)
            inner.drain()
        outer.drain()
    return Unpacked(
        blob_digest=outer.digest, diff_id=inner.digest, tar_bytes=inner.count, size_bytes=0
    )


class LayerUnpacker:
    """Writes the entries of one layer below one directory."""

    def __init__(self, directory: Path, what: str) -> None:
        """Write below `directory`, which exists and is empty; `what` names the layer."""
        self._what = what
        self._root = os.open(directory, _DIRECTORY_FLAGS)
        os.fchmod(self._root, 0o755)
        # The directory of the entry before: most entries share it with the next. One is enough,
        # and safe: an entry can only remove what is inside its own parent, never the parent.
        self._parent: tuple[Parts, int] | None = None
        self._directory_times = DirectoryTimes(directory.parent)
        self._size_bytes = 0

    def __enter__(self) -> Self:
        """Nothing to do: the directory is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the directories."""
        self._forget_parent()
        self._directory_times.close()
        os.close(self._root)

    def unpack(self, source: Reader, *, is_end_optional: bool = True) -> int:
        """Write every entry of a plain tar stream; return the size of the regular files.

        A missing end marker is no harm where the layer's digest proves that it is whole.
        """
        with members_of(source, self._what, is_end_optional=is_end_optional) as (archive, members):
            for member in members:
                try:
                    self._entry(archive, member)
                except OSError as error:
                    if error.errno not in _ENTRY_ERRORS:
                        raise
                    raise self._refused(member.name, error.strerror or str(error)) from error
                except (OverflowError, ValueError) as error:
                    raise self._refused(member.name, str(error)) from error
        self._set_directory_times()
        return self._size_bytes

    def _refused(self, name: str, reason: str) -> InvalidError:
        return InvalidError(
            f"{self._what} has the entry {quoted(name)}, which is refused: {reason}"
        )

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = lexical_parts(member.name)
        if parts is None:
            raise self._refused(member.name, "its path leads out of the layer")
        if not parts:
            if not member.isdir():
                raise self._refused(member.name, "only a directory can be the layer's root")
            self._finish_directory(self._root, member, parts)
            return
        parent = self._open_parent(parts[:-1])
        name = parts[-1]
        if name == _OPAQUE_MARKER:
            os.setxattr(parent, _OPAQUE, b"y")
        elif name.startswith(_RESERVED_PREFIX):
            # Bookkeeping of aufs, of no meaning here.
            return
        elif name.startswith(_WHITEOUT_PREFIX):
            self._whiteout(parent, name.removeprefix(_WHITEOUT_PREFIX), member.name)
        elif member.isdir():
            self._directory(parent, parts, member)
        elif member.islnk():
            self._hard_link(parent, name, member)
        else:
            self._non_directory(archive, parent, name, member)

    # Parents.

    def _open_parent(self, parts: Parts) -> int:
        if self._parent is not None and self._parent[0] == parts:
            return self._parent[1]
        self._forget_parent()
        fd = self._open_directory(parts, create=True)
        self._parent = (parts, fd)
        return fd

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _open_directory(self, parts: Parts, *, create: bool) -> int:
        """Open a directory of the layer, through links as a process inside would see them."""
        path = b"/".join(parts) or b"."
        try:
            return beneath.open_in_root(self._root, path, _DIRECTORY_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            if not create:
                raise
        return beneath.make_directories(
            self._root, parts, beneath.make_directory, _replace_whiteout, _DIRECTORY_FLAGS
        )

    # Entries.

    def _whiteout(self, parent: int, name: bytes, entry: str) -> None:
        if name in {b"", b".", b".."}:
            raise self._refused(entry, "it hides nothing that can have a name")
        status = _lstat(name, parent)
        if status is None:
            os.mknod(name, stat.S_IFCHR, _WHITEOUT_DEVICE, dir_fd=parent)
        elif stat.S_ISDIR(status.st_mode):
            # The layer has its own directory of this name: only the lower one goes.
            _make_opaque(name, parent)

    def _directory(self, parent: int, parts: Parts, member: tarfile.TarInfo) -> None:
        name = parts[-1]
        status = _lstat(name, parent)
        is_opaque = False
        if status is not None and not stat.S_ISDIR(status.st_mode):
            is_opaque = _is_whiteout(status)
            os.unlink(name, dir_fd=parent)
            status = None
        if status is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if is_opaque:
                os.setxattr(fd, _OPAQUE, b"y")
            self._finish_directory(fd, member, parts)
        finally:
            os.close(fd)

    def _finish_directory(self, fd: int, member: tarfile.TarInfo, parts: Parts) -> None:
        os.fchown(fd, member.uid, member.gid)
        _set_xattrs(f"/proc/self/fd/{fd}", member, follow=True)
        os.fchmod(fd, member.mode & 0o7777)
        # Entries to come would change the time: it is set at the end.
        self._directory_times.add(b"/".join(parts) or b".", _time_ns(member))

    def _hard_link(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        target = lexical_parts(member.linkname)
        if not target:
            raise self._refused(
                member.name, f"its target {quoted(member.linkname)} leads out of the layer"
            )
        above = self._open_directory(target[:-1], create=False)
        try:
            source = _lstat(target[-1], above)
            if source is None or stat.S_ISDIR(source.st_mode) or _is_whiteout(source):
                raise self._refused(
                    member.name,
                    f"its target {quoted(member.linkname)} is not a file that stands before it",
                )
            present = _lstat(name, parent)
            if present is not None:
                if (present.st_dev, present.st_ino) == (source.st_dev, source.st_ino):
                    return
                self._remove(name, parent, present)
            os.link(target[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(above)

    def _non_directory(
        self, archive: tarfile.TarFile, parent: int, name: bytes, member: tarfile.TarInfo
    ) -> None:
        status = _lstat(name, parent)
        if status is not None:
            self._remove(name, parent, status)
        if member.isreg():
            self._regular(archive, parent, name, member)
            return
        if member.issym():
            os.symlink(member.linkname.encode("utf-8", "surrogateescape"), name, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        else:
            raise self._refused(member.name, f"its type {member.type!r} is not known")
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        path = f"/proc/self/fd/{parent}/".encode() + name
        _set_xattrs(path, member, follow=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=parent)
        time_ns = _time_ns(member)
        os.utime(name, ns=(time_ns, time_ns), dir_fd=parent, follow_symlinks=False)

    def _regular(
        self, archive: tarfile.TarFile, parent: int, name: bytes, member: tarfile.TarInfo
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            if member.size:
                _write_contents(archive, member, fd)
            # Changing the owner clears setuid and capabilities, so they come after it.
            os.fchown(fd, member.uid, member.gid)
            _set_xattrs(f"/proc/self/fd/{fd}", member, follow=True)
            os.fchmod(fd, member.mode & 0o7777)
            time_ns = _time_ns(member)
            os.utime(fd, ns=(time_ns, time_ns))
        finally:
            os.close(fd)
        # A hole takes nothing.
        self._size_bytes += sum(length for _, length in runs_of(member))

    def _remove(self, name: bytes, parent: int, status: os.stat_result) -> None:
        """Remove what stands where another entry of the same name goes; the last one wins."""
        if stat.S_ISDIR(status.st_mode):
            tree.remove(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)

    def _set_directory_times(self) -> None:
        self._forget_parent()
        for path, time_ns in self._directory_times:
            try:
                fd = beneath.open_in_root(self._root, path, _DIRECTORY_FLAGS)
            except OSError as error:
                # A later entry replaced the directory.
                if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    continue
                raise
            try:
                os.utime(fd, ns=(time_ns, time_ns))
            finally:
                os.close(fd)


def _make_opaque(name: bytes, parent: int) -> None:
    fd = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.setxattr(fd, _OPAQUE, b"y")
    finally:
        os.close(fd)


def _replace_whiteout(parent: int, name: bytes, status: os.stat_result) -> None:
    """Make way where a directory is needed at or above a whiteout of this layer."""
    if not _is_whiteout(status):
        beneath.stop_at(parent, name, status)
    os.unlink(name, dir_fd=parent)
    beneath.make_directory(parent, name)
    _make_opaque(name, parent)


def _lstat(name: bytes, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _WHITEOUT_DEVICE


def _write_contents(archive: tarfile.TarFile, member: tarfile.TarInfo, fd: int) -> None:
    """Write a file's data; where the archive says that there is a hole, leave one."""
    extracted = archive.extractfile(member)
    assert isinstance(extracted, io.BufferedReader)
    # Unbuffered: the buffer wants to seek in the stream, where the map of a sparse file need not.
    data = extracted.raw
    for offset, length in runs_of(member):
        data.seek(offset)
        os.lseek(fd, offset, os.SEEK_SET)
        left = length
        while left:
            chunk = data.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise tarfile.ReadError("unexpected end of data")
            _write_all(fd, chunk)
            left -= len(chunk)
    os.ftruncate(fd, member.size)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _set_xattrs(path: str | bytes, member: tarfile.TarInfo, *, follow: bool) -> None:
    """Set the attributes of the kinds `user` and `security`.

    Others are left out: `trusted.overlay.*` above all would let a layer redirect names in others.
    """
    for key, value in member.pax_headers.items():
        if not key.startswith(_XATTR_KEY):
            continue
        name = key.removeprefix(_XATTR_KEY)
        if not name.startswith(("user.", "security.")) or name in _FOREIGN_XATTRS:
            continue
        data = value.encode("utf-8", "surrogateescape")
        try:
            os.setxattr(path, name, data, follow_symlinks=follow)
        except OSError as error:
            # Not every file system has both kinds, and no special file has user attributes.
            if error.errno == errno.ENOTSUP:
                continue
            if error.errno == errno.EPERM and name.startswith("user."):
                continue
            raise


def _time_ns(member: tarfile.TarInfo) -> int:
    """Return the modification time; from PAX in nanoseconds, which a float cannot hold."""
    text = member.pax_headers.get("mtime", "")
    whole, _, fraction = text.partition(".")
    if whole.isdigit() and (not fraction or fraction.isdigit()):
        seconds, part = int(whole), int(fraction[:9].ljust(9, "0") or 0)
    else:
        seconds, part = int(member.mtime), 0
    # Times before the epoch or absurdly late are of no use and not every file system has them.
    return min(max(seconds, 0), _TIME_SECONDS_MAX) * _NANOSECONDS + part
