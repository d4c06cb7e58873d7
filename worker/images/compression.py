"""Decompression and digests of streams, in constant memory.

`decompressed` tells gzip, bzip2, xz and zstd by their first bytes and passes anything else through.
Damage is an `InvalidError`. Python 3.11 has no zstd, so that one goes through the program `zstd`.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from proto.errors import InvalidError
from worker.images.work import CHUNK_BYTES, Reader

_MAGIC_BYTES = 6
_FEEDER_SECONDS_MAX = 0.5
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XZ = b"\xfd7zXZ\x00"
_BZIP2 = b"BZh"
# zlib's window size for "gzip header and trailer expected".
_GZIP_WBITS = 31


class Hashing:
    """A reader that computes the SHA-256 and the length of what passes."""

    def __init__(self, source: Reader) -> None:
        """Read from `source`."""
        self._source = source
        self._hash = hashlib.sha256()
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or none at the end."""
        data = self._source.read(size)
        self._hash.update(data)
        self.count += len(data)
        return data

    @property
    def digest(self) -> str:
        """`sha256:…` of all that was read so far."""
        return "sha256:" + self._hash.hexdigest()

    def drain(self) -> None:
        """Read to the end."""
        while self.read(CHUNK_BYTES):
            pass


class _Decompressor(Protocol):
    """What bz2 and lzma have, and what zlib is adapted to."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Inflating:
    """Reads a file of one or more compressed members."""

    def __init__(self, source: Reader, make: Callable[[], _Decompressor], what: str) -> None:
        self._source = source
        self._make = make
        self._inner = make()
        self._what = what

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            is_last = False
            if self._inner.eof:
                data = self._next_member()
                if not data:
                    return b""
                self._inner = self._make()
            elif self._inner.needs_input:
                data = self._source.read(CHUNK_BYTES)
                is_last = not data
            out = self._decompress(data, size)
            if out:
                return out
            if is_last and not self._inner.eof:
                raise InvalidError(f"{self._what} is truncated: its compressed data end too early")

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            return self._inner.decompress(data, size)
        except (zlib.error, lzma.LZMAError, ValueError, OSError) as error:
            # bz2 reports damaged data as an OSError.
            raise InvalidError(f"{self._what} is damaged: {error}") from error

    def _next_member(self) -> bytes:
        """Return the start of another member; zeros between members are padding."""
        rest = self._inner.unused_data.lstrip(b"\0")
        while not rest:
            data = self._source.read(CHUNK_BYTES)
            if not data:
                break
            rest = data.lstrip(b"\0")
        return rest


class _Zstd:
    """Reads through the program `zstd`, fed by a thread."""

    def __init__(self, source: Reader, what: str) -> None:
        self._source = source
        self._what = what
        self._failure: BaseException | None = None
        program = shutil.which("zstd")
        if program is None:
            raise InvalidError(
                f"{what} is compressed with zstd; install the package zstd to read it"
            )
        self._process = subprocess.Popen(
            [program, "-dcq"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._feeder = threading.Thread(target=self._feed, name="zstd-feeder", daemon=True)
        self._feeder.start()

    def read(self, size: int, /) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if not data:
            self._feeder.join()
            if self._failure is not None:
                raise self._failure
            if self._process.wait() != 0:
                raise InvalidError(f"{self._what} is damaged or truncated: zstd refuses it")
        return data

    def close(self) -> None:
        """End the program and its feeder, wherever they are."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        # It may wait for a stream that says nothing, until the work that we are part of has ended.
        self._feeder.join(_FEEDER_SECONDS_MAX)
        self._process.stdout.close()

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                while data := self._source.read(CHUNK_BYTES):
                    pipe.write(data)
        except BrokenPipeError:
            # The program has ended; its exit code tells why.
            return
        except BaseException as error:  # noqa: BLE001 -- raised again by the reading thread
            self._failure = error
            self._process.kill()


class _Peeked:
    """A reader whose first bytes were looked at."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.head = b""
        while len(self.head) < _MAGIC_BYTES and (data := source.read(CHUNK_BYTES)):
            self.head += data

    def read(self, size: int, /) -> bytes:
        if self.head:
            data, self.head = self.head[:size], self.head[size:]
            return data
        return self._source.read(size)


@contextmanager
def decompressed(source: Reader, what: str) -> Iterator[Reader]:
    """Give the plain bytes of `source`, whatever of the known ways it is compressed in.

    Args:
        source: read in full only if the caller reads to the end.
        what: names the thing in sentences ("layer sha256:…").
    """
    peeked = _Peeked(source)
    if peeked.head.startswith(_GZIP):
        yield _Inflating(peeked, _Gzip, what)
    elif peeked.head.startswith(_BZIP2):
        yield _Inflating(peeked, bz2.BZ2Decompressor, what)
    elif peeked.head.startswith(_XZ):
        yield _Inflating(peeked, lzma.LZMADecompressor, what)
    elif peeked.head.startswith(_ZSTD):
        reader = _Zstd(peeked, what)
        try:
            yield reader
        finally:
            reader.close()
    else:
        yield peeked


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed with gzip."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def gzip_to(source: Reader, write: Callable[[bytes], object]) -> None:
    """Compress `source`; the same bytes always give the same file (no name, no time)."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WBITS)
    while data := source.read(CHUNK_BYTES):
        write(packer.compress(data))
    write(packer.flush())
