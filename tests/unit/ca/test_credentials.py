"""The node's certificate on disk: switched as one, sealed, and usable after a crash anywhere."""

from __future__ import annotations

import asyncio
import itertools
import random
import stat
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from manager.ca.credentials import NodeCredentials
from manager.ca.pair_files import CERTIFICATE_NAME, KEY_NAME, NEXT_NAME, ROOTS_NAME, PairFiles
from manager.ca.sealing import is_sealed
from proto.errors import (
    CorruptError,
    InvalidError,
    LockedError,
    NotFoundError,
    ResourceExhaustedError,
    SwarmError,
)
from raft.kek import Kek
from raft.simdisk import SimFiles
from raft.transport.identity import MANAGER_ROLE

PLACE = Path("/state/certificates")
FIRST_KEK, SECOND_KEK = Kek(b"1" * 32), Kek(b"2" * 32)
KEKS = (None, FIRST_KEK, SECOND_KEK)


@pytest.fixture
def old(issue, parts):
    """Give a first certificate."""
    return parts(issue("node1"))


@pytest.fixture
def new(issue, parts, root, other_root):
    """Give the next: with another role and two roots."""
    roots = root.certificate_pem + other_root.certificate_pem
    return parts(issue("node1", role=MANAGER_ROLE, roots=roots))


def disk(seed: int = 1) -> SimFiles:
    """Make a disk with the directory above."""
    files = SimFiles(random.Random(seed))
    files.make_directory(PLACE.parent)
    return files


def shown(credentials: NodeCredentials) -> dict[str, bytes]:
    """Return what is shown, as keyword arguments."""
    now = credentials.source()
    return {
        "certificate_pem": now.certificate_pem,
        "key_pem": now.key_pem,
        "roots_pem": now.roots_pem,
    }


def crashes(act, prepare, *, seeds=range(3)):
    """Yield the disk after a crash at each operation of `act`, and how it crashed.

    Every operation is tried with a killed process and, for each seed, with lost power; the last
    disk yielded is one on which `act` ended by itself.
    """
    ways = [("killed", 0), *(("power", seed) for seed in seeds)]
    for operation in itertools.count():
        for way, seed in ways:
            files = disk(seed)
            subject = prepare(files)
            with files.stopping_at(operation):
                act(files, subject)
            is_stopped = files.is_stopped
            if way == "killed":
                files.kill_process()
            else:
                files.lose_power()
            yield files, operation
        if not is_stopped:
            assert operation > 8, "there was something to interrupt"
            return


def test_a_round_trip(tmp_path, old):
    """What was saved is opened, sealed or not; nobody else may read any of it."""
    for kek in KEKS:
        place = tmp_path / f"{kek is None}{kek == FIRST_KEK}" / "certificates"
        made = NodeCredentials.save_new(place, **old, kek=kek)
        opened = NodeCredentials.open(place, kek)
        assert shown(opened) == shown(made) == old
        assert opened.identity == made.identity
        assert opened.is_sealed == (kek is not None)
        assert sorted(path.name for path in place.iterdir()) == [
            CERTIFICATE_NAME,
            KEY_NAME,
            ROOTS_NAME,
        ]
        modes = {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
        assert modes == {0o600}
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert (b"PRIVATE KEY" in (place / KEY_NAME).read_bytes()) == (kek is None)


def test_a_sealed_key_needs_its_unlock_key(old):
    """None: locked. Another: invalid. Either of two while it is being changed: fine."""
    files = disk()
    NodeCredentials.save_new(PLACE, **old, kek=FIRST_KEK, files=files)
    with pytest.raises(LockedError):
        NodeCredentials.open(PLACE, None, files=files)
    with pytest.raises(InvalidError, match="invalid key provided"):
        NodeCredentials.open(PLACE, SECOND_KEK, files=files)
    opened = NodeCredentials.open(PLACE, SECOND_KEK, other_kek=FIRST_KEK, files=files)
    assert shown(opened) == old


def test_a_clear_key_opens_whatever_is_given(old):
    """A manager that is unlocked with a key it no longer needs must start."""
    files = disk()
    NodeCredentials.save_new(PLACE, **old, kek=None, files=files)
    assert shown(NodeCredentials.open(PLACE, FIRST_KEK, files=files)) == old


def test_a_first_save_is_there_or_not_at_every_crash(old):
    """After a crash at any step there is a whole certificate or none, never a half one."""
    outcomes = set()

    def save(files, _):
        NodeCredentials.save_new(PLACE, **old, kek=FIRST_KEK, files=files)

    for files, _ in crashes(save, lambda _: None):
        try:
            opened = NodeCredentials.open(PLACE, FIRST_KEK, files=files)
        except NotFoundError:
            outcomes.add("none")
            save(files, None)
        else:
            outcomes.add("whole")
            assert shown(opened) == old
        assert shown(NodeCredentials.open(PLACE, FIRST_KEK, files=files)) == old
    assert outcomes == {"none", "whole"}


def test_a_switch_is_made_or_not_at_every_crash(old, new):
    """After a crash at any step the old three or the new three are opened, never a mixture."""
    outcomes = set()

    def prepare(files):
        return NodeCredentials.save_new(PLACE, **old, kek=None, files=files)

    def switch(_, credentials):
        credentials.replace(**new)

    for files, _ in crashes(switch, prepare):
        opened = shown(NodeCredentials.open(PLACE, None, files=files))
        assert opened in (old, new)
        outcomes.add(opened == new)
        # What was found stays found, and nothing with a key in it is left over.
        files.lose_power()
        assert shown(NodeCredentials.open(PLACE, None, files=files)) == opened
        assert [path.name for path in files.paths()] == [CERTIFICATE_NAME, KEY_NAME, ROOTS_NAME]
    assert outcomes == {False, True}


def test_opening_may_be_interrupted_as_well(old, new):
    """A crash while a switch is being finished leaves it to be finished."""
    halfway = []
    for files, _ in crashes(
        lambda _, credentials: credentials.replace(**new),
        lambda files: NodeCredentials.save_new(PLACE, **old, kek=None, files=files),
        seeds=range(1),
    ):
        if NEXT_NAME in {path.name for path in files.paths()}:
            halfway.append({path: files.content(path) for path in files.paths()})
    assert halfway
    for left in halfway[:: max(len(halfway) // 4, 1)]:
        for operation in itertools.count():
            files = disk(operation)
            files.make_directory(PLACE)
            for path, content in left.items():
                files.put(path, content)
            with files.stopping_at(operation):
                NodeCredentials.open(PLACE, None, files=files)
            is_stopped = files.is_stopped
            files.lose_power()
            assert shown(NodeCredentials.open(PLACE, None, files=files)) in (old, new)
            if not is_stopped:
                break


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(KEKS, 2)))
def test_sealing_is_done_or_not_at_every_crash(old, before, after):
    """After a crash at any step the old or the new unlock key opens it, and nothing is lost."""
    outcomes = set()
    for files, _ in crashes(
        lambda _, credentials: credentials.seal(after),
        lambda files: NodeCredentials.save_new(PLACE, **old, kek=before, files=files),
        seeds=range(2),
    ):
        opened = NodeCredentials.open(PLACE, before, other_kek=after, files=files)
        assert shown(opened) == old
        outcomes.add(opened._kek == after)
        opened.seal(after)
        assert shown(NodeCredentials.open(PLACE, after, files=files)) == old
    assert outcomes == {False, True}


def test_a_sealed_key_is_nowhere_clear(old):
    """After sealing, a leftover of an interrupted clear save is gone too."""
    files = disk()
    NodeCredentials.save_new(PLACE, **old, kek=None, files=files).seal(FIRST_KEK)
    files.put(PLACE / "swarm-node.next.tmp", old["key_pem"])
    NodeCredentials.open(PLACE, FIRST_KEK, files=files)
    secret = b"".join(old["key_pem"].split(b"\n")[1:2])
    assert all(secret not in files.content(path) for path in files.paths())
    assert is_sealed(files.content(PLACE / KEY_NAME))


def test_a_full_disk_changes_nothing(old, new):
    """At any amount of room the old or the new three are shown, in memory as on disk."""
    outcomes = set()
    for room in range(0, 16_000, 400):
        files = disk()
        credentials = NodeCredentials.save_new(PLACE, **old, kek=None, files=files)
        files.room_bytes = room
        try:
            credentials.replace(**new)
        except ResourceExhaustedError:
            assert shown(credentials) == old
            outcomes.add("refused")
        else:
            assert shown(credentials) == new
            outcomes.add("done")
        files.room_bytes = None
        assert shown(NodeCredentials.open(PLACE, None, files=files)) == shown(credentials)
        credentials.replace(**new)
        assert shown(NodeCredentials.open(PLACE, None, files=files)) == new
    assert outcomes == {"refused", "done"}


def test_sealing_says_when_the_key_may_still_lie_clear(old):
    """A seal that could not be finished is an error, unlike a switch."""
    outcomes = set()
    for room in range(0, 8_000, 200):
        files = disk()
        credentials = NodeCredentials.save_new(PLACE, **old, kek=None, files=files)
        files.room_bytes = room
        try:
            credentials.seal(FIRST_KEK)
        except ResourceExhaustedError:
            outcomes.add("refused")
        else:
            outcomes.add("done")
            assert is_sealed(files.content(PLACE / KEY_NAME))
        files.room_bytes = None
        credentials.seal(FIRST_KEK)
        assert is_sealed(files.content(PLACE / KEY_NAME))
    assert outcomes == {"refused", "done"}


@pytest.mark.parametrize("name", [CERTIFICATE_NAME, KEY_NAME, ROOTS_NAME])
def test_damage_is_found(old, name):
    """A missing, empty, cut or overwritten file is named, and is never a crash."""
    for kek in (None, FIRST_KEK):
        for spoil in (
            lambda _: None,
            lambda _: b"",
            lambda data: data[: len(data) // 2],
            lambda data: data[:100] + b"\0" * 100 + data[200:],
        ):
            files = disk()
            NodeCredentials.save_new(PLACE, **old, kek=kek, files=files)
            spoiled = spoil(files.content(PLACE / name))
            if spoiled is None:
                files.remove(PLACE / name)
            else:
                files.put(PLACE / name, spoiled)
            with pytest.raises(CorruptError) as caught:
                NodeCredentials.open(PLACE, kek, files=files)
            assert name in str(caught.value) or name == ROOTS_NAME
            assert "PRIVATE" not in str(caught.value)


def test_a_key_of_another_certificate_is_found(old, new):
    """Files copied from two nodes do not become one."""
    files = disk()
    NodeCredentials.save_new(PLACE, **old, kek=None, files=files)
    files.put(PLACE / KEY_NAME, new["key_pem"])
    with pytest.raises(CorruptError, match="does not belong to the node's certificate"):
        NodeCredentials.open(PLACE, None, files=files)


def test_a_damaged_change_does_not_spoil_what_is_whole(old):
    """The old three are opened; without them the damage is named."""
    files = disk()
    NodeCredentials.save_new(PLACE, **old, kek=None, files=files)
    files.put(PLACE / NEXT_NAME, b"SWMN\x01garbage")
    assert shown(NodeCredentials.open(PLACE, None, files=files)) == old
    files.remove(PLACE / KEY_NAME)
    with pytest.raises(CorruptError, match=r"swarm-node\.next"):
        NodeCredentials.open(PLACE, None, files=files)


def test_what_does_not_fit_is_refused_before_it_is_written(issue, parts, old, other_root):
    """A foreign key, root, node or cluster; afterwards all is as before."""
    files = disk()
    credentials = NodeCredentials.save_new(PLACE, **old, kek=None, files=files)
    before = files.content(PLACE / CERTIFICATE_NAME)
    other = parts(issue("node1"))
    for change, sentence in (
        ({**old, "key_pem": other["key_pem"]}, "does not belong"),
        ({**other, "roots_pem": other_root.certificate_pem.encode()}, "not issued by a root"),
        (parts(issue("node2")), "is that of node node2"),
        ({**old, "certificate_pem": b"x"}, "not a certificate"),
    ):
        with pytest.raises(InvalidError, match=sentence):
            credentials.replace(**change)
    with pytest.raises(InvalidError, match="not issued by a root"):
        credentials.set_roots(other_root.certificate_pem.encode())
    with pytest.raises(InvalidError):
        credentials.set_roots(b"")
    assert shown(credentials) == old
    assert files.content(PLACE / CERTIFICATE_NAME) == before


def test_subscribers_are_told_of_changes_only(old, new):
    """Once for each change; not for the same roots again, nor for a seal."""
    calls = []
    credentials = NodeCredentials.save_new(PLACE, **old, kek=None, files=disk())
    credentials.subscribe(lambda: calls.append(credentials.identity.role))
    credentials.replace(**new)
    assert calls == [MANAGER_ROLE]
    credentials.set_roots(new["roots_pem"])
    credentials.seal(FIRST_KEK)
    assert len(calls) == 1
    credentials.set_roots(old["roots_pem"])
    assert len(calls) == 2


async def test_subscribers_are_called_in_their_loop(old, new):
    """A change made in a thread reaches a subscriber where it lives."""
    called = asyncio.get_running_loop().create_future()
    credentials = NodeCredentials.save_new(PLACE, **old, kek=None, files=disk())
    credentials.subscribe(lambda: called.set_result(threading.get_ident()))
    await asyncio.to_thread(credentials.replace, **new)
    assert await asyncio.wait_for(called, 5.0) == threading.get_ident()


def test_removal_leaves_nothing(tmp_path, old):
    """All of ours go, others stay; twice is fine, and a crash in between too."""
    place = tmp_path / "certificates"
    NodeCredentials.remove(place)
    NodeCredentials.save_new(place, **old, kek=None)
    (place / "others").write_text("x")
    NodeCredentials.remove(place)
    assert [path.name for path in place.iterdir()] == ["others"]
    NodeCredentials.remove(place)
    for files, _ in crashes(
        lambda files, _: [NodeCredentials.remove(PLACE, files=files), files.operations],
        lambda files: [
            NodeCredentials.save_new(PLACE, **old, kek=None, files=files),
            files.put(PLACE / (NEXT_NAME + ".tmp"), b""),
            *[files.put(PLACE / f"{name}.tmp", b"") for name in (KEY_NAME, ROOTS_NAME)],
            files.put(PLACE / NEXT_NAME, b""),
        ],
    ):
        NodeCredentials.remove(PLACE, files=files)
        assert files.paths() == []


def test_keys_are_shown_nowhere(old, new):
    """Neither representations, nor errors, nor the log have a key in them."""
    files = disk()
    secrets = [part["key_pem"].decode().split("\n")[1] for part in (old, new)] + [
        FIRST_KEK.format()
    ]
    with capture_logs() as logged:
        credentials = NodeCredentials.save_new(PLACE, **old, kek=FIRST_KEK, files=files)
        files.room_bytes = 6_000
        try:
            credentials.replace(**new)
        except SwarmError as error:
            logged.append({"error": repr(error)})
    content = PairFiles(certificate=b"", key=old["key_pem"], roots=b"")
    text = f"{credentials!r} {credentials.source()!r} {content!r} {logged!r}"
    assert "node1" in text
    assert all(secret not in text for secret in secrets)
