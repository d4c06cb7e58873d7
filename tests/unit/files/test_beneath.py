"""Paths below a directory lead nowhere else, and nothing is opened that should not be."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.files import beneath, tree
from worker.runtime import syscalls

IN_OPEN = 0x20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a root with links of every kind, in a directory with a secret."""
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "run/pid").write_text("inside")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "out").symlink_to("../../../../secret")
    (root / "loop").symlink_to("loop")
    (tmp_path / "secret").write_text("secret")
    return root


@pytest.fixture
def opened(root: Path) -> Iterator[int]:
    """Open the root."""
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_a_root_is_a_root(opened: int) -> None:
    """Absolute links begin at it, and `..` stops there."""
    for path in ("var/run/pid", "/var/run/pid", "../../var/run/../run/pid"):
        descriptor = beneath.open_in_root(opened, path, os.O_RDONLY)
        assert os.read(descriptor, 10) == b"inside"
        os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        beneath.open_in_root(opened, "out", os.O_RDONLY)


@pytest.mark.parametrize("path", ["out", "var/run/pid", "..", "/run", "run/../.."])
def test_what_leads_out_is_refused(opened: int, path: str) -> None:
    """Beneath a directory even an absolute link leads out."""
    with pytest.raises(OSError, match=r"\[Errno 18\]") as caught:
        beneath.open_beneath(opened, path, os.O_PATH)
    assert caught.value.errno == errno.EXDEV


def test_a_null_byte_is_no_end(opened: int) -> None:
    """The kernel would stop reading there."""
    with pytest.raises(ValueError, match="null byte"):
        beneath.open_beneath(opened, "run\0/../..", os.O_PATH)


@pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")
def test_only_regular_files_are_opened(root: Path, opened: int) -> None:
    """A FIFO or device is looked at without an `open` that could wait or act."""
    os.mkfifo(root / "pipe")
    os.mknod(root / "kmsg", stat.S_IFCHR | 0o666, os.makedev(1, 11))
    watch = syscalls.inotify_open()
    for name in ("pipe", "kmsg"):
        syscalls.inotify_add(watch, str(root / name), IN_OPEN)
        assert beneath.open_regular(opened, name) is None
    with pytest.raises(BlockingIOError):
        os.read(watch, 4096)
    os.close(watch)
    descriptor = beneath.open_regular(opened, "/var/run/pid")
    assert descriptor is not None
    assert os.read(descriptor, 10) == b"inside"
    os.close(descriptor)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("a/b/c", "a/b/c"),
        ("/var/run/a/b", "run/a/b"),
        ("new/a/../b", "new/b"),
        ("dangling/a", "later/below/a"),
        ("up/a", "a"),
        ("d/" * 1100, "d/" * 1100),
    ],
)
def test_directories_are_made_inside(
    root: Path, opened: int, tmp_path: Path, path: str, where: str
) -> None:
    """Through links, also those to what is not there yet; however many are missing."""
    (root / "dangling").symlink_to("/later/below")
    (root / "up").symlink_to("../../..")
    made = beneath.make_directories(
        opened, os.fsencode(path).split(b"/"), beneath.make_directory, beneath.stop_at
    )
    assert os.fstat(made).st_ino == (root / where).stat().st_ino
    os.close(made)
    tree.remove(root / "d")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["root", "secret"]


@pytest.mark.parametrize(
    ("path", "number"), [("loop/a", errno.ELOOP), ("run/pid/a", errno.ENOTDIR)]
)
def test_directories_are_not_made_of_anything(opened: int, path: str, number: int) -> None:
    """A link to itself ends; a file stays one."""
    with pytest.raises(OSError, match=r"Errno") as caught:
        beneath.make_directories(
            opened, os.fsencode(path).split(b"/"), beneath.make_directory, beneath.stop_at
        )
    assert caught.value.errno == number
