"""Users and groups, as Docker finds them in the image's files."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import InvalidError
from worker.runtime.users import Identity, read_in_root, resolve

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment

web:x:1000:1001:Web,,,:/home/web:/bin/sh
web:x:1:1::/second:/bin/sh
1234:x:4321:4321::/number:/bin/sh
short:x:7:8
broken:x:no:number::/:
"""
GROUP = "root:x:0:\nweb:x:1001:\nextra:x:2000:other,web\nmore:x:3000:web\n+\nbad:x:no:web\n"


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", (), Identity(0, 0, (0,), "/root")),
        ("root", (), Identity(0, 0, (0,), "/root")),
        ("web", (), Identity(1000, 1001, (1001, 2000, 3000), "/home/web")),
        ("1000", (), Identity(1000, 1001, (1001, 2000, 3000), "/home/web")),
        ("web:extra", (), Identity(1000, 2000, (2000,), "/home/web")),
        ("web:42", (), Identity(1000, 42, (42,), "/home/web")),
        ("5000", (), Identity(5000, 0, (0,), "/")),
        ("5000:6000", (), Identity(5000, 6000, (6000,), "/")),
        (":extra", (), Identity(0, 2000, (2000,), "/root")),
        # A number is an ID even if a user has it as his name.
        ("1234", (), Identity(1234, 0, (0,), "/")),
        ("short", (), Identity(7, 8, (8,), "/")),
        ("web", ("more", "77", "1001"), Identity(1000, 1001, (1001, 2000, 3000, 77), "/home/web")),
    ],
)
def test_found(user: str, groups: tuple[str, ...], expected: Identity):
    """Names, numbers, groups of both kinds; the first line wins."""
    assert expected == resolve(user, groups, PASSWD, GROUP)


@pytest.mark.parametrize(
    ("user", "groups", "sentence"),
    [
        ("nobody", (), "unable to find user nobody: no matching entries in passwd file"),
        ("web:wheel", (), "unable to find group wheel: no matching entries in group file"),
        ("web", ("wheel",), "unable to find group wheel: no matching entries in group file"),
        (
            "4294967296",
            (),
            "unable to find user 4294967296: uids and gids must be in range 0-2147483647",
        ),
        ("-1", (), "unable to find user -1: no matching entries in passwd file"),
        ("broken", (), "unable to find user broken: no matching entries in passwd file"),
    ],
)
def test_refused(user: str, groups: tuple[str, ...], sentence: str):
    """What cannot be found is told in Docker's words."""
    with pytest.raises(InvalidError) as caught:
        resolve(user, groups, PASSWD, GROUP)
    assert sentence == caught.value.message


@given(user=st.text(), passwd=st.text(), group=st.text())
def test_any_text_is_survived(user: str, passwd: str, group: str):
    """Whatever an image holds, the answer is an identity or a refusal."""
    try:
        identity = resolve(user, (), passwd, group)
    except InvalidError:
        return
    assert identity.uid >= 0
    assert identity.additional_gids[0] == identity.gid


@pytest.fixture
def root(tmp_path: Path):
    """A container's root beside a file that must not be read."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root/etc").mkdir(parents=True)
    descriptor = os.open(tmp_path / "root", os.O_PATH)
    yield tmp_path / "root", descriptor
    os.close(descriptor)


def test_reading_stays_inside(root: tuple[Path, int]):
    """Links lead nowhere but into the root itself, absolute and upward ones too."""
    path, descriptor = root
    (path / "etc/real").write_text("real")
    (path / "secret").write_text("inside")
    for target, expected in (
        ("real", "real"),
        ("/etc/real", "real"),
        ("../../../../secret", "inside"),
        (str(path.parent / "secret"), ""),
        ("/proc/self/root/etc/passwd", ""),
        ("link", ""),
        ("absent", ""),
    ):
        link = path / "etc/link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert read_in_root(descriptor, "/etc/link") == expected


def test_only_regular_files(root: tuple[Path, int]):
    """A directory, a FIFO and nothing at all have no text; nothing waits."""
    path, descriptor = root
    os.mkfifo(path / "etc/fifo")
    (path / "etc/directory").mkdir()
    for name in ("fifo", "directory", "absent", "directory/absent"):
        assert read_in_root(descriptor, f"/etc/{name}") == ""


@pytest.mark.parametrize("user", ["9" * 5000, "x:" + "9" * 5000, "٣", "u" * 100_000])
def test_absurd_names(user: str):
    """Numbers that Python would not read, digits of other scripts, names of a megabyte."""
    with pytest.raises(InvalidError, match="unable to find") as caught:
        resolve(user, (), "x:x:1:1::/:/bin/sh\n" + "y:x:" + "9" * 5000 + ":1::/:\n", "")
    assert len(caught.value.message) < 400


def test_lines_with_impossible_numbers_count_for_nothing():
    """An ID beyond the kernel's is no user, and does not end the search."""
    passwd = f"web:x:{1 << 40}:1::/:\nweb:x:1000:{'9' * 5000}::/:\nweb:x:7:8::/home:\n"
    assert resolve("web", (), passwd, f"big:x:{'9' * 5000}:web\n").uid == 7
