"""Layers are unpacked faithfully, and never outside their directory."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from proto.errors import InvalidError
from worker.files import tree
from worker.images.unpack import LayerUnpacker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")

TarMaker = Callable[..., bytes]
DIR = {"type": tarfile.DIRTYPE, "mode": 0o755}


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """The directory to unpack into, in one that tells what got out."""
    path = tmp_path / "around" / "layer"
    path.mkdir(parents=True)
    return path


def unpack(data: bytes, directory: Path) -> int:
    """Unpack a plain archive."""
    with LayerUnpacker(directory, "the layer") as unpacker:
        return unpacker.unpack(io.BytesIO(data))


def link(target: str) -> dict[str, object]:
    """Fields of a symbolic link."""
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard(target: str) -> dict[str, object]:
    """Fields of a hard link."""
    return {"type": tarfile.LNKTYPE, "linkname": target}


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", {}, b"x")],
        [("a/../../evil", {}, b"x")],
        [("/../evil", {}, b"x")],
        [("evil", hard("../secret"))],
        [("evil", hard("/../secret"))],
        [("way", link("..")), ("evil", hard("way/secret"))],
        [("way", link("/etc")), ("evil", hard("way/passwd"))],
        [("evil", hard("."))],
        [("loop", link("loop")), ("loop/evil", {}, b"x")],
        [("file", {}, b"x"), ("file/evil", {}, b"x")],
        [("evil", hard("later")), ("later", {}, b"x")],
        [("d", DIR), ("evil", hard("d"))],
        [(".wh.", {})],
        [(".wh..", {})],
        [(".wh...", {})],
        [("d/.wh...", {})],
        [("n" * 256, {}, b"x")],
        [(".", {}, b"x")],
        [("evil", {"type": b"V"})],
        [("evil", {"uid": 2**33}, b"x")],
    ],
)
def test_hostile_entries_are_refused(
    tar: TarMaker, layer: Path, entries: list[tuple[str, dict[str, object]]]
) -> None:
    """Whatever leads out of the layer, or makes no sense, is refused by name; nothing gets out."""
    secret = layer.parent / "secret"
    secret.write_text("secret")
    with pytest.raises(InvalidError, match=r"^the layer has the entry .* which is refused: "):
        unpack(tar(*entries), layer)
    assert sorted(path.name for path in layer.parent.iterdir()) == ["layer", "secret"]
    assert secret.read_text() == "secret"
    assert secret.stat().st_nlink == 1
    assert "trusted.overlay.opaque" not in os.listxattr(layer.parent)


@pytest.mark.parametrize(
    ("entries", "where"),
    [
        ([("way", link("..")), ("way/it", {}, b"x")], "it"),
        ([("way", link("/tmp")), ("way/it", {}, b"x")], "tmp/it"),
        ([("a", DIR), ("a/way", link("../..")), ("a/way/it", {}, b"x")], "it"),
        ([("one", link("two")), ("two", link("../")), ("one/it", {}, b"x")], "it"),
        ([("way", link("/proc/self/root")), ("way/it", {}, b"x")], "proc/self/root/it"),
        ([("way", link("..")), ("way/deep/er/it", {}, b"x")], "deep/er/it"),
        ([("way", link("..")), ("way/it", DIR)], "it"),
        ([("way", link("..")), ("way/.wh.it", {})], "it"),
        ([("way", link("/d")), ("way/.wh..wh..opq", {})], "d"),
        ([("d", DIR), ("d/a", {}, b"1"), ("d", link("..")), ("d/it", {}, b"x")], "it"),
        ([("nowhere", link("nothing")), ("nowhere/it", {}, b"x")], "nothing/it"),
        # What programs leave in /run, where /var/run is a link to it.
        ([("run", DIR), ("var/run", link("/run")), ("var/run/app.pid", {}, b"1")], "run/app.pid"),
        ([("var/run", link("/run")), ("var/run/app/pid", {}, b"1")], "run/app/pid"),
        ([("l", link("/b")), ("b/f", {}, b"1"), ("h", hard("l/f"))], "h"),
        ([("l", link("/b")), ("b/f", {}, b"1"), ("l/h", hard("/l/../b/f"))], "b/h"),
    ],
)
def test_links_lead_where_they_would_inside(
    tar: TarMaker, layer: Path, entries: list[tuple[str, dict[str, object]]], where: str
) -> None:
    """The layer is the root for links in its paths, absolute or not; nothing gets out."""
    unpack(tar(*entries), layer)
    assert os.path.lexists(layer / where)
    assert [path.name for path in layer.parent.iterdir()] == ["layer"]
    assert os.listxattr(layer.parent) == []


def test_deep_directories(tar: TarMaker, layer: Path) -> None:
    """Deeper than Python's stack: with an entry for each directory, or with none."""
    deep = "d/" * 1100
    unpack(tar(*(("d/" * n, DIR) for n in range(1, 1100)), (deep + "f", {}, b"x")), layer)
    unpack(tar((f"e/{deep}f", {}, b"x"), ("d", {}, b"a file")), layer)
    assert Path(f"{layer}/e/{deep}f").read_bytes() == b"x"
    assert (layer / "d").read_bytes() == b"a file"
    tree.remove(layer)


def test_deeper_than_a_path_can_be(tar: TarMaker, layer: Path) -> None:
    """It is refused before anything is made of it."""
    with pytest.raises(InvalidError, match="name too long"):
        unpack(tar(("n/" * 200_000, {}, b"x")), layer)
    assert list(layer.iterdir()) == []


def test_a_link_is_replaced_not_followed(tar: TarMaker, layer: Path) -> None:
    """An entry with the name of a link takes its place; what the link led to is not touched."""
    secret = layer.parent / "secret"
    secret.write_text("secret")
    unpack(tar(("a", link("../secret")), ("a", {"mode": 0o600}, b"new")), layer)
    assert (layer / "a").read_bytes() == b"new"
    assert not (layer / "a").is_symlink()
    assert secret.read_text() == "secret"


def test_links_inside_are_followed(tar: TarMaker, layer: Path) -> None:
    """A parent that is a relative link inside the layer leads where it says."""
    unpack(
        tar(
            ("usr/lib", DIR),
            ("lib", link("usr/lib")),
            ("lib/x", {}, b"1"),
            ("y", hard("lib/x")),
            ("out", link("../../../etc/passwd")),
        ),
        layer,
    )
    assert (layer / "usr/lib/x").read_bytes() == b"1"
    assert (layer / "y").stat().st_ino == (layer / "usr/lib/x").stat().st_ino
    # Any target may stand in a link: only what is done through it matters.
    assert (layer / "out").readlink() == Path("../../../etc/passwd")


def test_everything_is_kept(tar: TarMaker, layer: Path) -> None:
    """Owners, modes, times, devices, links and attributes come out as they went in."""
    capability = "\x01\x00\x00\x02\udc80\x00\n\x00" + "\x00" * 12
    size = unpack(
        tar(
            ("d", {**DIR, "mode": 0o2711, "uid": 5, "gid": 6, "mtime": 1000}),
            (
                "d/su",
                {
                    "mode": 0o4755,
                    "uid": 7,
                    "gid": 8,
                    "pax_headers": {
                        "mtime": "1700000000.123456789",
                        "SCHILY.xattr.security.capability": capability,
                        "SCHILY.xattr.user.note": "a=b\nc",
                        "SCHILY.xattr.trusted.overlay.redirect": "/elsewhere",
                        "SCHILY.xattr.security.selinux": "foreign",
                    },
                },
                b"data",
            ),
            ("d/hard", hard("d/su")),
            ("soft", {**link("d/su"), "uid": 9, "mtime": 2000}),
            ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
            ("disk", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 1, "mode": 0o660}),
            ("pipe", {"type": tarfile.FIFOTYPE, "mode": 0o622}),
            ("caf\udce9", {}, b"bytes"),
            ("deep/er/file", {}, b""),
        ),
        layer,
    )
    assert size == len(b"data") + len(b"bytes")
    directory, program = (layer / "d").stat(), (layer / "d/su").stat()
    assert (directory.st_mode & 0o7777, directory.st_uid, directory.st_gid) == (0o2711, 5, 6)
    assert directory.st_mtime == 1000
    assert (program.st_mode & 0o7777, program.st_uid, program.st_gid) == (0o4755, 7, 8)
    assert program.st_mtime_ns == 1700000000123456789
    assert program.st_nlink == 2
    attributes = {name: os.getxattr(layer / "d/su", name) for name in os.listxattr(layer / "d/su")}
    assert attributes == {
        "security.capability": capability.encode("utf-8", "surrogateescape"),
        "user.note": b"a=b\nc",
    }
    soft = (layer / "soft").lstat()
    assert (soft.st_uid, soft.st_mtime) == (9, 2000)
    null, disk = (layer / "null").stat(), (layer / "disk").stat()
    assert (stat.S_ISCHR(null.st_mode), null.st_rdev) == (True, os.makedev(1, 3))
    assert (null.st_mode & 0o7777, disk.st_rdev) == (0o666, os.makedev(8, 1))
    assert stat.S_ISFIFO((layer / "pipe").stat().st_mode)
    assert (Path(os.fsdecode(os.fsencode(layer) + b"/caf\xe9"))).read_bytes() == b"bytes"
    assert stat.S_IMODE((layer / "deep").stat().st_mode) == 0o755


def test_whiteouts(tar: TarMaker, layer: Path) -> None:
    """Whiteouts become what overlayfs reads, and hide nothing of their own layer."""
    unpack(
        tar(
            (".wh.gone", {}),
            ("o", DIR),
            ("o/.wh..wh..opq", {}),
            ("o/own", {}, b"1"),
            # A name hidden below and made anew here, in each order.
            (".wh.f", {}),
            ("f", {}, b"2"),
            (".wh.d", {}),
            ("d", DIR),
            ("e", DIR),
            (".wh.e", {}),
            (".wh.i", {}),
            ("i/n/file", {}, b"3"),
            ("g", {}, b"4"),
            (".wh.g", {}),
            (".wh..wh.plnk", DIR),
            (".wh..wh.aufs", {}),
        ),
        layer,
    )
    gone = (layer / "gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    for name in ("o", "d", "e", "i"):
        assert os.getxattr(layer / name, "trusted.overlay.opaque") == b"y", name
    assert [(layer / name).read_bytes() for name in ("o/own", "f", "i/n/file", "g")] == [
        b"1", b"2", b"3", b"4",
    ]  # fmt: skip
    assert sorted(p.name for p in layer.iterdir()) == ["d", "e", "f", "g", "gone", "i", "o"]


def test_later_entries_win(tar: TarMaker, layer: Path) -> None:
    """Of two entries with a name the last one counts; a directory keeps what is in it."""
    unpack(
        tar(
            ("d", DIR), ("d/x", {}, b"1"), ("d", {**DIR, "mode": 0o700}),
            ("t", DIR), ("t/x", {}, b"1"), ("t", {}, b"file"),
            ("f", {}, b"file"), ("f", DIR),
            ("a", {}, b"1"), ("a", hard("a")),
        ),
        layer,
    )  # fmt: skip
    assert (layer / "d/x").read_bytes() == b"1"
    assert stat.S_IMODE((layer / "d").stat().st_mode) == 0o700
    assert (layer / "t").read_bytes() == b"file"
    assert (layer / "f").is_dir()
    assert (layer / "a").read_bytes() == b"1"


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_stay_sparse(layer: Path, tmp_path: Path, form: str) -> None:
    """A hole in a file, as GNU tar stores it, is a hole again."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(20_000_000)
        file.write(b"end")
    archive = tmp_path / "sparse.tar"
    subprocess.run(
        ["tar", "-S", f"--format={form}", "-C", str(source), "-cf", str(archive), "sparse"],
        check=True,
    )
    unpack(archive.read_bytes(), layer)
    assert (layer / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (layer / "sparse").stat().st_blocks * 512 < 1_000_000


def test_the_umask_changes_nothing(tar: TarMaker, layer: Path) -> None:
    """Modes do not depend on the process's umask."""
    before = os.umask(0o077)
    try:
        unpack(tar(("d", DIR), ("d/f", {"mode": 0o644}, b""), ("i/f", {}, b"")), layer)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((layer / name).stat().st_mode) for name in ("", "d", "d/f", "i")]
    assert modes == [0o755, 0o755, 0o644, 0o755]


def test_truncation_and_rubbish(tar: TarMaker, layer: Path) -> None:
    """An archive cut in a file or a header is refused; with the end marker asked for, anywhere."""
    data = tar(("a", {}, b"x" * 2000), ("b", {}, b"y"))
    for cut in (300, 1500, 3000):
        with pytest.raises(InvalidError, match="not a whole tar archive"):
            unpack(data[:cut], layer)
    with pytest.raises(InvalidError, match="not a whole tar archive"):
        unpack(b"rubbish" * 1000, layer)
    boundary = 512 + 2048
    unpack(data[:boundary], layer)
    with (
        LayerUnpacker(layer, "the layer") as unpacker,
        pytest.raises(InvalidError, match="ends without the end marker"),
    ):
        unpacker.unpack(io.BytesIO(data[:boundary]), is_end_optional=False)


def test_names_in_refusals_are_short_and_printable(tar: TarMaker, layer: Path) -> None:
    """Neither a name of a megabyte nor an escape sequence reaches the message."""
    for name in ("../" + "n" * (1 << 19), "../\x1b[31mred\x07\n", "n/" * 200_000):
        with pytest.raises(InvalidError, match="which is refused") as caught:
            unpack(tar((name, {}, b"x")), layer)
        assert len(caught.value.message) < 400
        assert caught.value.message.isprintable()


def test_holes_are_not_counted(layer: Path) -> None:
    """A file of an exabyte that has no data is as large as nothing, and disks refuse it anyway."""
    records = b"".join(
        b"%d %s\n" % (len(text) + 4, text)
        for text in (b"GNU.sparse.realsize=1099511627", b"GNU.sparse.map=1000,1")
    )
    head = tarfile.TarInfo("p")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    file = tarfile.TarInfo("holes")
    file.size = 1
    data = head.tobuf() + records.ljust(512, b"\0") + file.tobuf() + b"x".ljust(512, b"\0")
    assert unpack(data + bytes(1024), layer) == 1
    assert (layer / "holes").stat().st_size == 1099511627
    assert (layer / "holes").stat().st_blocks <= 16
