"""A volume gets its first content without ever losing what a container has written to it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.files import filling, tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


class CrashError(BaseException):
    """The daemon is killed here."""


class Place:
    """An image's directory, a volume and the directory that keeps its mark."""

    def __init__(self, directory: Path) -> None:
        self.image, self.volume = directory / "image", directory / "volume"
        self.record = directory / "record"
        for path in (self.image, self.volume, self.record):
            path.mkdir()

    def fill(self, after_step: Callable[[str], None] = lambda _: None) -> None:
        """Do what the creation of a container does."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        content, volume = os.open(self.image, flags), os.open(self.volume, flags)
        try:
            filling.fill(content, volume, self.record, after_step)
        finally:
            os.close(content)
            os.close(volume)

    def seen(self, top: Path) -> dict[str, tuple[object, ...]]:
        """All that can be told of a tree."""
        found: dict[str, tuple[object, ...]] = {}
        for path in [top, *sorted(top.rglob("*"))]:
            status = path.lstat()
            data: object = None
            if path.is_symlink():
                data = path.readlink()
            elif path.is_file():
                data = (path.read_bytes(), os.listxattr(path))
            found[str(path.relative_to(top))] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink,
                status.st_rdev, data,
            )  # fmt: skip
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Make an image with one entry of each kind."""
    made = Place(tmp_path)
    image = made.image
    (image / "dir/inner").mkdir(parents=True)
    (image / "dir/inner/file").write_text("inner")
    (image / "first").write_text("first")
    os.setxattr(image / "first", "user.note", b"x")
    os.link(image / "first", image / "dir/second")
    (image / "link").symlink_to("/etc/passwd")
    os.lchown(image / "link", 7, 8)
    os.mkfifo(image / "pipe", 0o620)
    os.mknod(image / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (image / "holes").open("wb") as file:
        file.seek(1 << 24)
        file.write(b"end")
    (image / "program").write_bytes(b"x")
    os.chown(image / "program", 5, 6)
    (image / "program").chmod(0o6755)
    os.chown(image / "dir", 1000, 1001)
    (image / "dir").chmod(0o2750)
    os.chown(image, 999, 998)
    image.chmod(0o1770)
    for path in [*image.rglob("*"), image]:
        os.utime(path, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
    return made


def test_all_is_copied_into_the_same_directory(place: Place) -> None:
    """Owners, modes, times, links, holes and devices come along; the volume's inode stays."""
    before = place.volume.stat().st_ino
    place.fill()
    assert place.seen(place.volume) == place.seen(place.image)
    assert place.volume.stat().st_ino == before
    assert (place.volume / "holes").stat().st_blocks * 512 < 1 << 20
    assert list(place.record.iterdir()) == []


def test_a_used_volume_stays_as_it_is(place: Place) -> None:
    """Not even its owner changes."""
    (place.volume / "mine").write_text("x")
    before = place.seen(place.volume)
    place.fill()
    assert place.seen(place.volume) == before


def test_an_empty_directory_gives_its_owner_and_mode(tmp_path: Path) -> None:
    """As in Docker; what a container writes meanwhile has nothing to fear."""
    place = Place(tmp_path)
    os.chown(place.image, 70, 71)
    place.image.chmod(0o700)
    held = os.open(place.volume, os.O_RDONLY)
    place.fill()
    os.close(os.open("written", os.O_WRONLY | os.O_CREAT, dir_fd=held))
    os.close(held)
    status = place.volume.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (70, 71, 0o700)
    assert [path.name for path in place.volume.iterdir()] == ["written"]


def test_what_a_container_writes_meanwhile_wins(place: Place) -> None:
    """It has the volume mounted and emptied it: nothing of what it writes is replaced."""

    def write(step: str) -> None:
        if step == "volume marked":
            (place.volume / "first").write_text("theirs")
            (place.volume / "dir").write_text("a file, where the image has a directory")
            (place.volume / "link").mkdir()

    place.fill(write)
    assert (place.volume / "first").read_text() == "theirs"
    assert (place.volume / "dir").is_file()
    assert (place.volume / "link").is_dir()
    assert (place.volume / "program").read_bytes() == b"x"
    assert list(place.record.iterdir()) == []


def crash_after(count: int) -> Callable[[str], None]:
    """Kill the daemon at its step number `count`."""
    left = [count]

    def step(_: str) -> None:
        left[0] -= 1
        if not left[0]:
            raise CrashError

    return step


def test_a_crash_between_any_two_steps_is_made_good(place: Place, tmp_path: Path) -> None:
    """The next container completes the content; what was written meanwhile stays."""
    steps: list[str] = []
    place.fill(steps.append)
    assert steps.count("volume entry") > 5
    whole = place.seen(place.volume)
    for count in range(1, len(steps) + 1):
        base = tmp_path / f"crash-{count}"
        base.mkdir()
        again = Place(base)
        again.image.rmdir()
        again.image = place.image
        with pytest.raises(CrashError):
            again.fill(crash_after(count))
        assert filling.is_begun(again.record) == (steps[count - 1] != "volume unmarked")
        (again.volume / "theirs").write_text("written after the crash")
        if filling.is_begun(again.record):
            (again.volume / filling.UNFINISHED).write_text("half an entry")
        again.fill()
        (again.volume / "theirs").unlink()
        found = again.seen(again.volume)
        names = {name: seen[-1] for name, seen in found.items()}
        assert names == {name: seen[-1] for name, seen in whole.items()}
        assert not filling.is_begun(again.record)


def test_deep_content_is_copied(tmp_path: Path) -> None:
    """As deep as a layer can be."""
    place = Place(tmp_path)
    here = os.open(place.image, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    place.fill()
    assert Path(str(place.volume) + "/d" * 1100 + "/bottom").exists()
    tree.remove(place.image)
    tree.remove(place.volume)


def test_links_in_the_volume_are_not_followed(place: Place, tmp_path: Path) -> None:
    """A container that puts links where directories will be gets nothing outside."""
    outside = tmp_path / "outside"
    outside.mkdir()

    def attack(step: str) -> None:
        if step == "volume marked":
            (place.volume / "dir").symlink_to(outside)

    place.fill(attack)
    assert list(outside.iterdir()) == []


def test_a_copy_that_was_given_up_keeps_others_away(place: Place, monkeypatch) -> None:
    """A thread cannot be stopped: while it still copies, nobody else touches what it has begun."""
    copy, inside, gate = filling._copy_data, threading.Event(), threading.Event()

    def slow(source: int, target: int, size: int) -> None:
        inside.set()
        assert gate.wait(30)
        copy(source, target, size)

    monkeypatch.setattr(filling, "_copy_data", slow)
    first = threading.Thread(target=place.fill)
    first.start()
    assert inside.wait(30)
    monkeypatch.setattr(filling, "_copy_data", copy)
    with pytest.raises(OSError, match="a former attempt is still copying it"):
        place.fill()
    gate.set()
    first.join(30)
    place.fill()
    assert place.seen(place.volume) == place.seen(place.image)
    assert not filling.is_begun(place.record)
