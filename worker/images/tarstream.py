"""Tar archives read as a stream, where damage is an error and never a quiet end.

`tarfile` takes a bad header in the middle of an archive for its end. `Member` tells them apart.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from tarfile import (  # type: ignore[attr-defined]  # typeshed leaves these two out
    EmptyHeaderError,
    EOFHeaderError,
)
from typing import IO, cast

from typing_extensions import override

from proto.errors import InvalidError
from worker.images.work import Reader

_RECORD_BYTES = 64 * 1024


class _DamagedError(Exception):
    """A header is missing or wrong; not a `tarfile.HeaderError`, which would be swallowed."""


class _Strict(tarfile.TarInfo):
    """A member of an archive that has to have its end marker."""

    is_end_optional = False

    @override
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Strict:
        return cls._checked(tarfile)

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
        except (ValueError, IndexError) as error:
            raise _DamagedError(f"a header cannot be read ({error})") from error


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
        with tarfile.open(
            fileobj=cast("IO[bytes]", source),
            mode="r|",
            bufsize=_RECORD_BYTES,
            tarinfo=kind,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive:
            yield archive, _iterate(archive)
    except (tarfile.TarError, _DamagedError, EOFError) as error:
        raise InvalidError(f"{what} is not a whole tar archive: {error}") from error


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
