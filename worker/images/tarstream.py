"""Tar archives read as a stream, where damage is an error and never a quiet end.

`tarfile` takes a bad header in the middle of an archive for its end, believes whatever length a
header gives for itself (a name of two gigabytes is two gigabytes of memory), and searches extended
headers with expressions whose time grows with the square of the header. So members are made by
`_Strict`, which tells the first apart and reads extended headers itself, in one pass; and they are
read from a `_Forward`, which counts what the headers of one member take.

Source: POSIX pax, "pax Header Block"; the GNU tar manual, "Sparse Formats"; Go's archive/tar,
which Docker reads with (1 MiB for a header, global headers ignored, order in a sparse map).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tarfile import (  # type: ignore[attr-defined]  # typeshed leaves these two out
    EmptyHeaderError,
    EOFHeaderError,
)
from typing import IO, cast

from typing_extensions import override

from proto.errors import InvalidError
from worker.images.work import Reader

_BUFFER_BYTES = 64 * 1024
_LINE_FEED = 0x0A
# As many as a number of 64 bits may have, and one.
_DIGITS_MAX = 20
# What Linux calls a file's size, and what clients of the API have room for.
SIZE_BYTES_MAX = (1 << 63) - 1
# All headers of one member together: extended attributes, a long name, a long target, the map of
# a sparse file.
HEADER_BYTES_MAX = 4 * 1024 * 1024
# Headers before the one that is meant. `tarfile` reads each of them in a call of its own.
HEADERS_MAX = 32


class _DamagedError(Exception):
    """A header is missing or wrong; not a `tarfile.HeaderError`, which would be swallowed."""


class _Forward:
    """A stream with a position that only grows, as `tarfile` wants a file."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._buffer = memoryview(b"")
        self._position = 0
        # What may still be read of the headers of one member; None outside of them.
        self.header_bytes_left: int | None = None
        self.headers = 0

    def tell(self) -> int:
        """Return how much was read."""
        return self._position

    def seek(self, position: int) -> int:
        """Read up to a position and forget it.

        Raises:
            _DamagedError: it was passed, as only a negative size can ask for.
        """
        if position < self._position:
            raise _DamagedError("a size in it is negative or wrong")
        while self._position < position:
            if not self._take(position - self._position):
                break
        return self._position

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the stream.

        Raises:
            _DamagedError: they are of headers that are too large.
        """
        if self.header_bytes_left is not None:
            self.header_bytes_left -= size
            if size < 0 or self.header_bytes_left < 0:
                raise _DamagedError(
                    f"the headers of one entry have more than {HEADER_BYTES_MAX} bytes"
                )
        chunks = []
        while size > 0 and (chunk := self._take(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def _take(self, size: int) -> memoryview:
        if not self._buffer:
            self._buffer = memoryview(self._source.read(_BUFFER_BYTES))
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._position += len(taken)
        return taken


class _Strict(tarfile.TarInfo):
    """A member of an archive that has to have its end marker."""

    is_end_optional = False

    @override
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Strict:
        """Read a member's header, and those before it that belong to it: each calls this again."""
        forward = cast("_Forward", tarfile.fileobj)
        is_first = forward.header_bytes_left is None
        if is_first:
            forward.header_bytes_left, forward.headers = HEADER_BYTES_MAX, 0
        forward.headers += 1
        if forward.headers > HEADERS_MAX:
            raise _DamagedError(f"one entry has more than {HEADERS_MAX} headers")
        try:
            member = cls._checked(tarfile)
        finally:
            if is_first:
                forward.header_bytes_left = None
        _check_sizes(member)
        return member

    @classmethod
    def _checked(cls, archive: tarfile.TarFile) -> _Strict:
        try:
            return super().fromtarfile(archive)
        except EOFHeaderError:
            raise
        except EmptyHeaderError as error:
            if cls.is_end_optional:
                raise
            raise _DamagedError("it ends without the end marker") from error
        except tarfile.HeaderError as error:
            raise _DamagedError(str(error)) from error
        except (ValueError, IndexError, OverflowError) as error:
            raise _DamagedError(f"a header cannot be read ({error})") from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read what belongs to this header; `tarfile` names this method for subclasses."""
        if self.size < 0:
            raise _DamagedError("a size in it is negative")
        if self.type == tarfile.XGLTYPE:
            _read_block(archive, self.size)
            return self.fromtarfile(archive)
        if self.type in {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}:
            return self._extended(archive)
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed
        return member

    def _extended(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Read an extended header, and lay it over the member that follows."""
        records = _records(_read_block(archive, self.size))
        try:
            member = self.fromtarfile(archive)
        except tarfile.HeaderError as error:
            raise _DamagedError("an extended header stands before nothing") from error
        values = {key: value for key, value in records if value}
        member.pax_headers = values
        member.offset = self.offset
        _apply(member, values)
        if "size" in values and (member.isreg() or member.type not in tarfile.SUPPORTED_TYPES):
            member.size = _number(values["size"])
            # The next header is where the true size says.
            blocks = -(-member.size // tarfile.BLOCKSIZE)
            archive.offset = member.offset_data + blocks * tarfile.BLOCKSIZE
        if member.isreg():
            _apply_sparse(archive, member, records, values)
        return member


class _Lenient(_Strict):
    """A member of an archive that may just end; something else proves that it is whole."""

    is_end_optional = True


@contextmanager
def members_of(
    source: Reader, what: str, *, is_end_optional: bool = False
) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    """Open a plain tar stream; give the archive, for its `extractfile`, and its members in order.

    Raises:
        InvalidError: naming `what`, also out of the body of the `with`.
    """
    kind = _Lenient if is_end_optional else _Strict
    try:
        with tarfile.TarFile(
            fileobj=cast("IO[bytes]", _Forward(source)),
            tarinfo=kind,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive:
            yield archive, _iterate(archive)
    except (tarfile.TarError, _DamagedError, EOFError) as error:
        raise InvalidError(f"{what} is not a whole tar archive: {error}") from error


def _read_block(archive: tarfile.TarFile, size: int) -> bytes:
    """Read what follows a header; the budget for headers bounds it."""
    padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    data = cast("_Forward", archive.fileobj).read(padded)
    if len(data) < size:
        raise _DamagedError("it ends in a header")
    return data[:size]


def _records(data: bytes) -> list[tuple[str, str]]:
    """Split an extended header: each record is `<its length> <key>=<value>` and a line feed."""
    records, start = [], 0
    while start < len(data):
        space = data.find(b" ", start, start + _DIGITS_MAX)
        digits = data[start:space] if space > 0 else b""
        end = start + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(data) or not key or not equals or data[end - 1] != _LINE_FEED:
            raise _DamagedError("an extended header has a record that cannot be read")
        records.append((_text(key), _text(value)))
        start = end
    return records


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS_MAX:
        raise _DamagedError("an extended header has a number that is none")
    return int(text)


def _apply(member: tarfile.TarInfo, values: Mapping[str, str]) -> None:
    member.name = values.get("GNU.sparse.name", values.get("path", member.name))
    if member.isdir():
        member.name = member.name.rstrip("/")
    member.linkname = values.get("linkpath", member.linkname)
    member.uname = values.get("uname", member.uname)
    member.gname = values.get("gname", member.gname)
    if "uid" in values:
        member.uid = _number(values["uid"])
    if "gid" in values:
        member.gid = _number(values["gid"])
    if "mtime" in values:
        member.mtime = float(values["mtime"])


def _apply_sparse(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    records: Sequence[tuple[str, str]],
    values: Mapping[str, str],
) -> None:
    """Find out where the data of a file with holes belongs, in each of GNU's three formats."""
    if "GNU.sparse.map" in values:
        numbers = [_number(part) for part in values["GNU.sparse.map"].split(",")]
    elif "GNU.sparse.size" in values:
        wanted = {"GNU.sparse.offset", "GNU.sparse.numbytes"}
        numbers = [_number(value) for key, value in records if key in wanted]
    elif (values.get("GNU.sparse.major"), values.get("GNU.sparse.minor")) == ("1", "0"):
        forward = cast("_Forward", archive.fileobj)
        numbers = _numbers_before_data(forward)
        member.offset_data = forward.tell()
    else:
        return
    runs = list(zip(numbers[::2], numbers[1::2], strict=True))
    member.sparse = runs  # type: ignore[assignment]  # typeshed has no type for it
    for key in ("GNU.sparse.size", "GNU.sparse.realsize"):
        if key in values:
            member.size = _number(values[key])


def _numbers_before_data(forward: _Forward) -> list[int]:
    """Read the map that stands before the data, a number a line, the first of them the count."""
    numbers: list[int] = []
    rest = b""
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        block = forward.read(tarfile.BLOCKSIZE)
        *lines, rest = (rest + block).split(b"\n")
        if not block or len(rest) > max(_DIGITS_MAX, tarfile.BLOCKSIZE):
            raise _DamagedError("the map of a file with holes cannot be read")
        wanted = None if not numbers else 1 + 2 * numbers[0] - len(numbers)
        numbers += [_number(_text(line)) for line in lines[:wanted]]
        # What fills the last block is no number.
        if len(numbers) >= 1 + 2 * numbers[0]:
            break
    return numbers[1 : 1 + 2 * numbers[0]]


def runs_of(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return where a file's data belongs: offset and length of each run, in order."""
    if member.sparse is None:
        return [(0, member.size)]
    # typeshed has no type for it.
    return cast("list[tuple[int, int]]", member.sparse)


def _check_sizes(member: tarfile.TarInfo) -> None:
    """See that sizes are ones that a file can have, and that data comes in its order."""
    end = 0
    for offset, length in runs_of(member):
        if not length:
            # The oldest format fills its header with these.
            continue
        if offset < end or length < 0:
            raise _DamagedError("the map of a file with holes is not in order")
        end = offset + length
    if not end <= member.size <= SIZE_BYTES_MAX:
        raise _DamagedError("a size in it is negative or wrong")


def _iterate(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        # tarfile remembers every member; for a layer of 100,000 files that is too much.
        archive.members.clear()  # type: ignore[attr-defined]  # public, but not in typeshed
        yield member


def lexical_parts(name: str) -> tuple[bytes, ...] | None:
    """Split a member's name into components, `.` and inner `..` resolved; None if it climbs out.

    A leading slash means the archive's root. The empty tuple is the root itself.
    """
    parts: list[bytes] = []
    for part in name.encode("utf-8", "surrogateescape").split(b"/"):
        if part in {b"", b"."}:
            continue
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        else:
            parts.append(part)
    return tuple(parts)
