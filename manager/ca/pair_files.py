"""A node's certificate, key and roots on disk, switched as one. Decides nothing about them.

Three files that have to fit each other cannot be renamed at once. So a change is first written
whole into one file with a checksum (`swarm-node.next`), durable before anything else is touched;
then the three files are replaced, each by a rename, and the fourth is removed. Whoever opens the
directory does the last two steps again if the fourth file is there: they may be repeated.

| stopped | what is opened |
|---|---|
| before the fourth file has its name | the old three |
| after | the new three |

Files have mode 0600, the directory 0700.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import msgspec
from typing_extensions import override

from proto.errors import CorruptError, NotFoundError
from raft.files import Files, disk_error, replace_file

CERTIFICATE_NAME = "swarm-node.crt"
KEY_NAME = "swarm-node.key"
ROOTS_NAME = "swarm-root-ca.crt"
NEXT_NAME = "swarm-node.next"
_TEMPORARY = ".tmp"

_MAGIC = b"SWMN\x01"
_CRC = struct.Struct(">I")
_FILE_BYTES_MAX = 256 * 1024


class PairFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The three contents; the key is sealed or clear, as it lies on disk."""

    certificate: bytes
    key: bytes
    roots: bytes

    @override
    def __repr__(self) -> str:
        """Hide the key."""
        return "PairFiles(hidden)"


def write_next(files: Files, directory: Path, content: PairFiles) -> None:
    """Write the change whole: from here on it is what will be opened.

    Raises:
        ResourceExhaustedError, UnavailableError: the disk failed; what is opened next is the old
            content, or the new one if only the last step failed.
    """
    data = _MAGIC + msgspec.msgpack.encode(content)
    try:
        files.make_directory(directory)
        replace_file(files, directory / NEXT_NAME, data + _CRC.pack(zlib.crc32(data)))
    except OSError as error:
        raise disk_error(directory, error) from error


def settle(files: Files, directory: Path, content: PairFiles) -> None:
    """Bring the three files in line with the change, then remove it; may be repeated.

    Raises:
        ResourceExhaustedError, UnavailableError: the disk failed; to be done again.
    """
    try:
        for name, data in (
            (KEY_NAME, content.key),
            (CERTIFICATE_NAME, content.certificate),
            (ROOTS_NAME, content.roots),
        ):
            replace_file(files, directory / name, data)
        files.remove(directory / NEXT_NAME)
        files.sync_directory(directory)
    except OSError as error:
        raise disk_error(directory, error) from error


def read_files(files: Files, directory: Path) -> PairFiles:
    """Read what is there and finish what a crash interrupted.

    Raises:
        NotFoundError: there is no certificate.
        CorruptError: files are missing or damaged.
        ResourceExhaustedError, UnavailableError: the disk failed.
    """
    try:
        return _read_files(files, directory)
    except OSError as error:
        raise disk_error(directory, error) from error


def _read_files(files: Files, directory: Path) -> PairFiles:
    names = files.names(directory)
    for name in names:
        if name.endswith(_TEMPORARY):  # it may hold a key, even one that was not sealed yet
            files.remove(directory / name)
    content = _next(files, directory) if NEXT_NAME in names else None
    if content is not None:
        # The process before may have died between its rename and the directory's sync.
        files.sync_directory(directory)
        settle(files, directory, content)
        return content
    present = [name for name in (CERTIFICATE_NAME, KEY_NAME, ROOTS_NAME) if name in names]
    if not present:
        raise NotFoundError("node certificate", str(directory))
    for name in (CERTIFICATE_NAME, KEY_NAME, ROOTS_NAME):
        if name not in present:
            raise CorruptError(str(directory / name), 0, "the file is missing")
    return PairFiles(
        certificate=_content(files, directory / CERTIFICATE_NAME),
        key=_content(files, directory / KEY_NAME),
        roots=_content(files, directory / ROOTS_NAME),
    )


def remove_files(files: Files, directory: Path) -> None:
    """Remove all of them, durably; what is missing is no error.

    Raises:
        ResourceExhaustedError, UnavailableError: the disk failed; some may be left.
    """
    names = files.names(directory)
    # The key goes last but one and the change first: no half of this looks like another state.
    order = (NEXT_NAME, CERTIFICATE_NAME, KEY_NAME, ROOTS_NAME)
    ours = [name for name in names if name.removesuffix(_TEMPORARY) in order]
    ours.sort(key=lambda name: order.index(name.removesuffix(_TEMPORARY)))
    try:
        for name in ours:
            files.remove(directory / name)
        if ours:
            files.sync_directory(directory)
    except OSError as error:
        raise disk_error(directory, error) from error


def _content(files: Files, path: Path) -> bytes:
    with files.read(path) as stream:
        data = stream.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise CorruptError(str(path), _FILE_BYTES_MAX, "the file is longer than any of its kind")
    return data


def _next(files: Files, directory: Path) -> PairFiles | None:
    """Read the change that is under way.

    Returns:
        None if it is damaged, which no crash can do, and the three files are all there: whoever
        uses them finds out whether they fit each other.
    """
    path = directory / NEXT_NAME
    try:
        return _decode(path, _content(files, path))
    except CorruptError:
        if all(files.exists(directory / name) for name in (CERTIFICATE_NAME, KEY_NAME, ROOTS_NAME)):
            return None
        raise


def _decode(path: Path, data: bytes) -> PairFiles:
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    if not body.startswith(_MAGIC) or crc != _CRC.pack(zlib.crc32(body)):
        raise CorruptError(str(path), 0, "its checksum does not match")
    try:
        return msgspec.msgpack.decode(body[len(_MAGIC) :], type=PairFiles)
    except msgspec.MsgspecError:
        raise CorruptError(str(path), len(_MAGIC), "it cannot be decoded") from None
