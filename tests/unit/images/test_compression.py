"""Compressed streams are recognised, joined members and padding included; damage is an error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import subprocess
from collections.abc import Callable

import pytest

from proto.errors import InvalidError
from tests import needs
from worker.images.compression import Hashing, decompressed, gzip_to

PLAIN = random.Random(7).randbytes(300_000) + bytes(3_000_000)


def zstd(data: bytes) -> bytes:
    """Compress with the program."""
    program = needs.program("zstd")
    return subprocess.run([program, "-cq"], input=data, capture_output=True, check=True).stdout


PACKERS = [
    pytest.param(gzip.compress, id="gzip"),
    pytest.param(bz2.compress, id="bzip2"),
    pytest.param(lzma.compress, id="xz"),
    pytest.param(zstd, id="zstd"),
]


class Dribble:
    """A reader that gives at most a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        """Return 1 to `step` bytes, or none at the end."""
        return self._file.read(min(size, self._step))


def unpacked(data: bytes, step: int = 65536) -> bytes:
    """Decompress all."""
    with decompressed(Dribble(data, step), "the thing") as reader:
        return b"".join(iter(lambda: reader.read(10_000), b""))


@pytest.mark.parametrize("pack", [pytest.param(bytes, id="plain"), *PACKERS])
def test_round_trip(pack: Callable[[bytes], bytes]) -> None:
    """What was compressed comes out again, also in one piece after another."""
    assert unpacked(pack(PLAIN)) == PLAIN
    assert unpacked(pack(PLAIN[:5000]) + pack(PLAIN[5000:9000]), step=100) == PLAIN[:9000]


@pytest.mark.parametrize("pack", PACKERS)
def test_damage(pack: Callable[[bytes], bytes]) -> None:
    """A cut or changed stream is refused in a sentence that names it."""
    data = pack(PLAIN[:400_000])
    for broken in (data[:-8], data[: len(data) // 2], data[:1000] + b"?!?!" * 20 + data[1080:]):
        with pytest.raises(
            InvalidError, match=r"^the thing is (damaged|truncated|damaged or trun)"
        ):
            unpacked(broken)


def test_padding_after_gzip() -> None:
    """Zeros after the end, as tapes have them, are no damage."""
    assert unpacked(gzip.compress(b"x") + bytes(1000)) == b"x"


def test_short_and_empty_streams() -> None:
    """A stream shorter than any mark of compression is passed on."""
    assert unpacked(b"") == b""
    assert unpacked(b"abc") == b"abc"


@pytest.mark.parametrize("pack", PACKERS)
def test_errors_of_the_source_are_its_own(pack: Callable[[bytes], bytes]) -> None:
    """An error of the stream underneath is not taken for damage of the data."""
    data = pack(PLAIN)[:200_000]

    class Failing(Dribble):
        def read(self, size: int, /) -> bytes:
            chunk = super().read(size)
            if not chunk:
                raise ConnectionResetError("gone")
            return chunk

    with (
        decompressed(Failing(data, 5000), "the thing") as reader,
        pytest.raises(ConnectionResetError),
    ):
        Hashing(reader).drain()


def test_gzip_is_reproducible() -> None:
    """The same bytes give the same file, which is what gives an image one digest."""
    files = []
    for step in (100, 70_000):
        out = io.BytesIO()
        gzip_to(Dribble(PLAIN[:400_000], step), out.write)
        files.append(out.getvalue())
    assert gzip.decompress(files[0]) == PLAIN[:400_000]
    assert files[0] == files[1]


def test_hashing() -> None:
    """The digest and length are of what passed."""
    reader = Hashing(io.BytesIO(b"abc"))
    reader.drain()
    assert reader.count == 3
    assert reader.digest == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
