"""Headers of an archive take bounded memory and time, and mean what they mean to Docker."""

from __future__ import annotations

import contextlib
import io
import resource
import tarfile
from collections.abc import Iterator

import pytest

from proto.errors import InvalidError
from worker.images.tarstream import HEADERS_MAX, members_of

MEBIBYTE = 1 << 20


def header(name: str, size: int, kind: bytes, magic: bytes = b"ustar\x0000") -> bytes:
    """One header block; a negative size as GNU writes it."""
    field = b"%011o\0" % size if 0 <= size < 8**11 else size.to_bytes(12, "big", signed=True)
    block = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field
    block += b"00000000000\0" + b" " * 8 + kind + b"\0" * 100 + magic
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with these records."""
    return header("p", len(records), kind) + records + bytes(-len(records) % 512)


def record(key: str, value: bytes) -> bytes:
    """One record with its length before it."""
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, key.encode(), value)


FILE = header("f", 1, b"0") + b"x".ljust(512, b"\0")
END = bytes(1024)


def read(data: bytes) -> list[tuple[str, int, bytes]]:
    """Names, sizes and contents of an archive's members."""
    found = []
    with members_of(io.BytesIO(data), "the layer") as (archive, members):
        for member in members:
            file = archive.extractfile(member) if member.isreg() else None
            found.append((member.name, member.size, file.read() if file is not None else b""))
    return found


class Endless:
    """A header that says it has `size` bytes, and has them."""

    def __init__(self, first: bytes, size: int) -> None:
        self._parts = self._made(first, size)

    @staticmethod
    def _made(first: bytes, size: int) -> Iterator[bytes]:
        yield first
        chunk = b"a" * MEBIBYTE
        for _ in range(size // MEBIBYTE):
            yield chunk

    def read(self, _: int) -> bytes:
        """Return the next part; larger than was asked for does no harm here."""
        return next(self._parts, b"")


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])
@pytest.mark.parametrize("size", [5 * MEBIBYTE, 2 << 30])
def test_a_header_has_a_limit(kind: bytes, size: int) -> None:
    """Extended attributes, a long name or target: refused before it is read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = Endless(header("h", size, kind), size)
    with (
        pytest.raises(InvalidError, match="headers of one entry have more than"),
        members_of(source, "the layer"),
    ):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_many_headers_of_one_entry_have_a_limit() -> None:
    """However small each is: `tarfile` reads each in a call of its own."""
    one = extended(record("comment", b"x"))
    assert read(one * (HEADERS_MAX - 1) + FILE + END) == [("f", 1, b"x")]
    for many in (one * 3000, extended(b"", b"g") * 3000, (header("n", 0, b"L")) * 3000):
        with pytest.raises(InvalidError, match="more than 32 headers"):
            read(many + FILE + END)


@pytest.mark.parametrize(
    "records",
    [
        record("comment", b"1" * MEBIBYTE),
        b"3 " * (MEBIBYTE // 2) + b"=\n",
        record("GNU.sparse.size", b"5") + record("comment", b"1" * MEBIBYTE),
        b"".join(record(f"k{n}", b"") for n in range(50_000)),
    ],
    ids=["digits", "records in records", "sparse and digits", "many"],
)
def test_time_grows_with_the_header(records: bytes) -> None:
    """Not with its square, which for a mebibyte would be hours: this test would not end."""
    with contextlib.suppress(InvalidError):
        read(extended(records) + FILE + END)


@pytest.mark.parametrize(
    "records",
    [
        b"nonsense",
        b"5 a=b\n",
        b"7 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"6 a=bc",
        b"6 =bb\n",
        b"6 abb\n",
        record("size", b"-512"),
        record("size", b"9" * 30),
        record("size", "٣".encode()),
        record("uid", b"1e3"),
        record("mtime", b"yesterday"),
        record("GNU.sparse.map", b"0,1,5"),
        record("GNU.sparse.map", b"100,1,0,50") + record("GNU.sparse.realsize", b"1000"),
        record("GNU.sparse.map", b"0,5000") + record("GNU.sparse.realsize", b"1000"),
        record("GNU.sparse.map", b"0,-5") + record("GNU.sparse.realsize", b"1000"),
        record("GNU.sparse.realsize", b"9" * 20) + record("GNU.sparse.map", b"0,1"),
        record("GNU.sparse.major", b"1") + record("GNU.sparse.minor", b"0"),
    ],
)
def test_damaged_extended_headers(records: bytes) -> None:
    """Each is an error in a sentence, as it is for Go."""
    with pytest.raises(InvalidError, match="is not a whole tar archive"):
        read(extended(records) + FILE + END)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"5"])
@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
def test_negative_sizes(kind: bytes, size: int) -> None:
    """None leads back into what was read."""
    with pytest.raises(InvalidError, match="is not a whole tar archive"):
        read(header("a", size, kind) + FILE + END)


def test_an_extended_header_before_nothing() -> None:
    """It is damage, and no quiet end."""
    with pytest.raises(InvalidError, match="stands before nothing"):
        read(FILE + extended(record("path", b"x")) + END)


def test_global_headers_are_ignored() -> None:
    """As Docker does: what stands for all entries changes none."""
    data = extended(record("path", b"other") + record("size", b"9"), b"g") + FILE + END
    assert read(data) == [("f", 1, b"x")]


def test_what_extended_headers_say() -> None:
    """A long name, target, owner, a size and a time, the last record of a key being valid."""
    said = (
        record("path", b"first") + record("path", "näme".encode() + b"\xff") + record("uid", b"7")
    )
    said += (
        record("size", b"3") + record("mtime", b"1.5") + record("SCHILY.xattr.user.a", b"b\nc=d")
    )
    data = extended(said) + header("f", 0, b"0") + b"abc".ljust(512, b"\0") + FILE + END
    with members_of(io.BytesIO(data), "the layer") as (archive, members):
        member = next(members)
        assert (member.name, member.uid, member.size) == ("näme\udcff", 7, 3)
        assert member.mtime == 1.5
        assert member.pax_headers["SCHILY.xattr.user.a"] == "b\nc=d"
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == b"abc"
        assert next(members).name == "f"


def test_a_map_before_the_data() -> None:
    """GNU's third format of files with holes; a map without an end is refused."""
    said = b"".join(
        record(f"GNU.sparse.{key}", value)
        for key, value in (("major", b"1"), ("minor", b"0"), ("realsize", b"1030"), ("name", b"s"))
    )
    body = b"2\n0\n2\n1024\n6\n".ljust(512, b"\0") + b"abcdefgh".ljust(512, b"\0")
    data = extended(said) + header("x", len(body) - 504, b"0") + body + FILE + END
    assert read(data) == [("s", 1030, b"ab" + bytes(1022) + b"cdefgh"), ("f", 1, b"x")]
    for bad in (b"1" * 512 * 5000, b"99999\n" + b"1\n" * 512 * 5000):
        with pytest.raises(InvalidError, match="is not a whole tar archive"):
            read(extended(said) + header("x", len(bad), b"0") + bad + END)


def test_archives_of_each_format() -> None:
    """What Python itself writes is read, in each of its formats."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=form) as archive:
            for name in ("a", "d" * 90 + "/" + "n" * 90):
                info = tarfile.TarInfo(name)
                info.size = 5
                archive.addfile(info, io.BytesIO(b"12345"))
        assert [name for name, _, _ in read(made.getvalue())] == ["a", "d" * 90 + "/" + "n" * 90]
