"""The ring of data keys and the key that seals it."""

from __future__ import annotations

import copy
import os
import pickle
import random
from pathlib import Path

import pytest

from proto.errors import (
    ConflictError,
    CorruptError,
    InUseError,
    InvalidError,
    LockedError,
    NotFoundError,
    ResourceExhaustedError,
)
from raft.keys import KEK_NAME, RING_NAME, Kek, KeyRing, is_locked
from raft.simdisk import SimFiles

PLACE = Path("/node/keys")
OLD = Kek(bytes(range(32)))
NEW = Kek(bytes(range(100, 132)))
WRONG = Kek(bytes(32))


def make(kek: Kek | None, seed: int = 1) -> tuple[SimFiles, KeyRing]:
    """Make a ring with a secret on a disk in memory."""
    rng = random.Random(seed)
    files = SimFiles(rng)
    ring = KeyRing.create(PLACE, rng.randbytes, kek, files=files)
    ring.seal("tls", b"the TLS key")
    return files, ring


def test_unlock_key_has_dockers_form():
    """`SWMKEY-1-` and 43 letters of raw standard base64; parsing gives the same key."""
    text = OLD.format()
    assert text == "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert Kek.parse(text) == Kek.parse(text + "\n") == OLD
    assert OLD != NEW
    docker = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8"
    assert Kek.parse(docker).format() == docker


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SWMKEY-1-",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9",
        "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg",
        "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8A",
        "SWMKEY-2-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH!8",
        "SWMKEY-1-ä",
    ],
)
def test_what_is_no_unlock_key_is_refused_without_repeating_it(text):
    """The message starts as Docker's does and does not hold what may be nearly a key."""
    with pytest.raises(InvalidError, match=r"^invalid key") as caught:
        Kek.parse(text)
    assert "BgcICQ" not in str(caught.value)


def test_keys_do_not_show_themselves():
    """Neither repr, str, formatting, pickles nor hashes give a key away."""
    _, ring = make(OLD)
    data_key = ring.data_key(1)
    for shown in (repr(OLD), str(OLD), f"{OLD}", repr(ring), repr(ring._content), repr([OLD])):
        for secret in (OLD._secret, data_key, b"the TLS key"):
            assert secret.hex() not in shown
            assert repr(secret)[2:-1] not in shown
        assert OLD.format() not in shown
    for refused in (pickle.dumps, copy.copy, hash):
        with pytest.raises(TypeError):
            refused(OLD)


def test_without_autolock_the_ring_opens_by_itself():
    """The stored key is found; data keys and secrets are as they were."""
    files, ring = make(None)
    assert (ring.is_autolocked, is_locked(PLACE, files)) == (False, False)
    key = ring.data_key(1)
    ring.close()
    ring = KeyRing.open(PLACE, files=files)
    assert (ring.data_key(1), ring.data_key(2), ring.unseal("tls")) == (key, None, b"the TLS key")


def test_with_autolock_it_opens_with_the_key_only():
    """No key: locked; another one: Docker's sentence; the one: open."""
    files, ring = make(OLD)
    ring.close()
    assert is_locked(PLACE, files)
    with pytest.raises(LockedError, match='Please use "swarm unlock"'):
        KeyRing.open(PLACE, files=files)
    with pytest.raises(InvalidError, match=r"^swarm could not be unlocked: invalid key provided$"):
        KeyRing.open(PLACE, WRONG, files=files)
    ring = KeyRing.open(PLACE, OLD, files=files)
    assert ring.is_autolocked
    assert ring.unseal("tls") == b"the TLS key"


def test_the_sealed_ring_shows_nothing():
    """No key, secret or name is in the file."""
    files, ring = make(OLD)
    content = files.content(PLACE / RING_NAME)
    for secret in (ring.data_key(1), OLD._secret, b"tls", b"the TLS key"):
        assert secret not in content


def test_files_are_for_the_owner_only(tmp_path):
    """On a real disk: directory 0700, files 0600."""
    ring = KeyRing.create(tmp_path / "keys")
    ring.rotate_kek(None)
    ring.close()
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    assert KeyRing.open(tmp_path / "keys").ids == (1,)


def test_a_ring_is_made_once_and_opened_once():
    """Creating over a ring, opening none, and opening twice are refused."""
    files, ring = make(None)
    with pytest.raises(InUseError):
        KeyRing.open(PLACE, files=files)
    assert KeyRing.read(PLACE, files=files).ids == ring.ids
    ring.close()
    with pytest.raises(ConflictError, match="key ring already"):
        KeyRing.create(PLACE, files=files)
    with pytest.raises(NotFoundError):
        KeyRing.open(Path("/none"), files=files)
    with pytest.raises(NotFoundError):
        is_locked(Path("/none"), files)


def test_data_keys_grow_and_go():
    """Ids are never used twice; the current one cannot be dropped."""
    files, ring = make(None)
    first = ring.data_key(1)
    assert ring.add_data_key() == 2
    assert ring.add_data_key() == 3
    assert len({first, ring.data_key(2), ring.data_key(3)}) == 3
    ring.retain_data_keys([1])
    assert (ring.ids, ring.current_id) == ((1, 3), 3)
    ring.close()
    ring = KeyRing.open(PLACE, files=files)
    assert (ring.ids, ring.current_id, ring.data_key(1)) == ((1, 3), 3, first)
    ring.retain_data_keys([])
    assert ring.add_data_key() == 4


def test_sealed_secrets():
    """They can be replaced and forgotten, and are limited."""
    _, ring = make(None)
    ring.seal("tls", b"new")
    assert ring.unseal("tls") == b"new"
    ring.forget("tls")
    with pytest.raises(NotFoundError):
        ring.unseal("tls")
    with pytest.raises(InvalidError, match="larger"):
        ring.seal("large", bytes((64 << 10) + 1))
    for number in range(64):
        ring.seal(str(number), b"")
    with pytest.raises(InvalidError, match="64 secrets"):
        ring.seal("one more", b"")


CHANGES = [
    pytest.param(None, None, id="stored to another stored"),
    pytest.param(None, NEW, id="lock"),
    pytest.param(OLD, None, id="unlock"),
    pytest.param(OLD, NEW, id="locked to another key"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changing_the_key(before, after):
    """The new one opens the ring, the old one does not, and no stored key is left over."""
    files, ring = make(before)
    key, stored = ring.data_key(1), ring.kek
    ring.rotate_kek(after)
    assert ring.kek != stored
    ring.close()
    assert is_locked(PLACE, files) == (after is not None)
    with pytest.raises(InvalidError, match="invalid key"):
        KeyRing.open(PLACE, stored, files=files)
    ring = KeyRing.open(PLACE, after, files=files)
    assert (ring.data_key(1), ring.is_autolocked) == (key, after is not None)
    names = {RING_NAME} if after else {RING_NAME, KEK_NAME}
    assert set(files.names(PLACE)) == names
    for path in files.paths():
        assert stored._secret not in files.content(path)


def reopen(files: SimFiles, *candidates: Kek | None) -> KeyRing:
    """Open with the first that works of no key and these, as an operator would."""
    for kek in (None, *candidates):
        try:
            return KeyRing.open(PLACE, kek, files=files)
        except (LockedError, InvalidError):
            continue
    pytest.fail("locked out: no key opens the ring")


@pytest.mark.parametrize("is_only_killed", [False, True])
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changing_the_key_survives_a_crash_at_every_step(before, after, is_only_killed):
    """Power loss or kill at each operation: the old or the new key opens it, then all works."""
    steps = 0
    for step in range(100):
        for seed in range(8):
            files, ring = make(before, seed)
            key = ring.data_key(1)
            with files.stopping_at(step):
                ring.rotate_kek(after)
            if not files.is_stopped:
                assert step >= 5
                return
            steps += 1
            if is_only_killed:
                files.kill_process()
            else:
                files.lose_power()
            ring = reopen(files, before, after)
            assert (ring.data_key(1), ring.unseal("tls")) == (key, b"the TLS key")
            is_exposed = before is None and ring.is_autolocked
            assert (ring.is_data_key_exposed, ring.is_exposed("tls")) == (is_exposed, is_exposed)
            # It can be finished, and leaves nothing of the interrupted attempt.
            ring.rotate_kek(after)
            ring.add_data_key()
            ring.close()
            assert is_locked(PLACE, files) == (after is not None)
            assert KeyRing.open(PLACE, after, files=files).ids == (1, 2)
            names = {RING_NAME} if after else {RING_NAME, KEK_NAME}
            assert {name for name in files.names(PLACE) if not name.endswith(".tmp")} == names
    pytest.fail("the change never ended")


@pytest.mark.parametrize("step", range(12))
def test_a_change_that_failed_and_was_repeated_survives_a_crash(step):
    """An error at one step, another attempt, then a crash at any step of that: never locked out."""
    for second in range(16):
        for seed in range(6):
            files, ring = make(None, seed)
            with files.stopping_at(step):
                ring.rotate_kek(None)
            # The disk works again, the process lives on.
            with files.stopping_at(second):
                ring.rotate_kek(None)
            files.lose_power()
            assert reopen(files).unseal("tls") == b"the TLS key"


def test_what_an_opened_ring_holds_survives_the_next_power_loss():
    """Killed between rename and sync: files are made under the key that is seen, so it stays."""
    for step in range(20):
        for seed in range(6):
            files, ring = make(None, seed)
            with files.stopping_at(step):
                ring.add_data_key()
            is_over = not files.is_stopped
            files.kill_process()
            ids = KeyRing.open(PLACE, files=files).ids
            files.lose_power()
            assert KeyRing.open(PLACE, files=files).ids == ids
            if is_over:
                return
    pytest.fail("adding a key never ended")


def test_creating_survives_a_crash_at_every_step():
    """Either there is no ring yet and creating it works, or there is a whole one."""
    for step in range(50):
        files = SimFiles(random.Random(step))
        with files.stopping_at(step):
            KeyRing.create(PLACE, files=files)
        if not files.is_stopped:
            return
        files.lose_power()
        try:
            ring = KeyRing.open(PLACE, files=files)
        except NotFoundError:
            ring = KeyRing.create(PLACE, files=files)
        ring.close()
        assert KeyRing.open(PLACE, files=files).ids == (1,)
    pytest.fail("creating never ended")


def test_every_flipped_or_missing_byte_is_refused():
    """Of the ring and of the stored key: never another content, never taken for a wrong key."""
    for name in (RING_NAME, KEK_NAME):
        files, ring = make(None)
        ring.close()
        path = PLACE / name
        good = files.content(path)
        changed = [
            good[:place] + bytes([value ^ bit]) + good[place + 1 :]
            for place, value in enumerate(good)
            for bit in (1, 0x80, 0xFF)
        ]
        for content in [*changed, *(good[:size] for size in range(len(good))), good + b"\0"]:
            files.put(path, content)
            with pytest.raises(CorruptError) as caught:
                KeyRing.open(PLACE, files=files)
            assert caught.value.path == str(path)
        files.put(path, good)
        assert KeyRing.open(PLACE, files=files).ids == (1,)


def test_full_disk_leaves_the_old_key():
    """A change that finds no room is said, and nothing is different."""
    for room in (0, 10, 60, 100):
        files, ring = make(None)
        kek = ring.kek
        files.room_bytes = room
        with pytest.raises(ResourceExhaustedError, match="/node/keys"):
            ring.rotate_kek(NEW)
        with pytest.raises(ResourceExhaustedError):
            ring.add_data_key()
        files.room_bytes = None
        assert (ring.kek, ring.ids) == (kek, (1,))
        ring.close()
        assert KeyRing.open(PLACE, files=files).kek == kek


def test_what_lay_open_is_exposed_until_it_is_replaced():
    """Turning autolock on says so in the same step; a restart does not forget it."""
    files, ring = make(None, 1)
    ring.seal("other", b"the same")
    assert not ring.is_data_key_exposed
    ring.rotate_kek(NEW)
    ring.close()
    ring = KeyRing.open(PLACE, NEW, files=files)
    assert ring.is_data_key_exposed
    ring.add_data_key()
    assert not ring.is_data_key_exposed
    ring.seal("tls", b"the same")  # which lay open under another name
    assert ring.is_exposed("tls")
    ring.seal("tls", b"another")
    assert [ring.is_exposed(name) for name in ("tls", "other", "none")] == [False, True, False]
    ring.close()
    ring = KeyRing.open(PLACE, NEW, files=files)
    assert (ring.is_data_key_exposed, ring.is_exposed("tls"), ring.is_exposed("other")) == (
        False,
        False,
        True,
    )
    ring.rotate_kek(Kek.generate(os.urandom))
    assert not ring.is_data_key_exposed
    ring.rotate_kek(None)
    assert not ring.is_exposed("other")
    ring.rotate_kek(NEW)
    assert ring.is_data_key_exposed


def test_a_key_file_that_could_not_be_removed_is_removed_later():
    """The last step failed: it is known that it is to be repeated."""
    files, ring = make(None, 1)
    remove = files.remove

    def fail(_path):
        raise OSError(5, "the disk fails")

    files.remove = fail
    with pytest.raises(ResourceExhaustedError):
        ring.rotate_kek(NEW)
    assert ring.is_autolocked
    assert ring.is_unfinished
    files.remove = remove
    ring.finish_change()
    assert not ring.is_unfinished
    assert KEK_NAME not in files.names(PLACE)
