"""The key that seals the TLS key: whatever moment a change ends at, the certificate opens."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest

from manager.ca.credentials import NodeCredentials
from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import create_root
from manager.daemon.tlskey import (
    EXPOSED_CERTIFICATE,
    NEXT_TLS_KEY,
    TLS_KEY,
    change_tls_key,
    open_credentials,
    replace_exposed,
)
from proto.errors import CorruptError, NotFoundError
from proto.ids import ClusterID, NodeID
from raft.keys import Kek, KeyRing
from raft.simdisk import SimFiles
from raft.transport.identity import MANAGER_ROLE

RING, PLACE = Path("/state/raft"), Path("/state/certificates")
KEYS = (b"1" * 32, b"2" * 32, b"3" * 32)


def issued():
    """Make a manager's certificate and its key, by an authority of its own."""
    now = time.time()
    root = create_root(now)
    key_pem, csr_pem = new_key_and_csr()
    return {
        "certificate_pem": issue_certificate(
            root.certificate_pem,
            root.key_pem,
            csr_pem,
            node_id=NodeID("n1"),
            role=MANAGER_ROLE,
            cluster_id=ClusterID("c1"),
            expiry_seconds=86_400.0,
            now=now,
        ),
        "key_pem": key_pem,
        "roots_pem": root.certificate_pem.encode(),
    }


@pytest.fixture(scope="module")
def certificate():
    """Make one for all tests."""
    return issued()


@pytest.fixture
def prepare(certificate):
    """Lay a ring and a sealed certificate on a new disk."""

    def make(seed: int) -> SimFiles:
        files = SimFiles(random.Random(seed))
        files.make_directory(RING)
        ring = KeyRing.create(RING, random.Random(seed).randbytes, files=files)
        ring.seal(TLS_KEY, KEYS[0])
        NodeCredentials.save_new(PLACE, **certificate, kek=Kek(KEYS[0]), files=files)
        ring.close()
        return files

    return make


def opened(files: SimFiles) -> tuple[KeyRing, NodeCredentials]:
    """Take both up as a daemon does at its start."""
    ring = KeyRing.open(RING, None, rng_bytes=random.Random(9).randbytes, files=files)
    return ring, open_credentials(ring, PLACE, files)


def changed(files: SimFiles, new: bytes, operation: int, *, is_power_lost: bool) -> bool:
    """Change the key and crash at an operation; tell whether it came to its end before."""
    ring, credentials = opened(files)
    with files.stopping_at(operation):
        change_tls_key(ring, credentials, new)
    is_stopped = files.is_stopped
    if is_power_lost:
        files.lose_power()
    else:
        files.kill_process()
    return not is_stopped


@pytest.mark.parametrize("is_power_lost", [False, True])
def test_a_certificate_opens_after_a_crash_anywhere(prepare, certificate, is_power_lost):
    """Also when a second change is cut short after the first one was, at every pair of steps."""
    for first in itertools.count():
        is_first_done = False
        for second in itertools.count():
            files = prepare(first)
            is_first_done = changed(files, KEYS[1], first, is_power_lost=is_power_lost)
            ring, _ = opened(files)
            ring.close()
            is_done = changed(files, KEYS[2], second, is_power_lost=is_power_lost)
            ring, credentials = opened(files)
            assert credentials.source().key_pem == certificate["key_pem"]
            if is_done:
                assert credentials.is_sealed_by(Kek(KEYS[2]))
                assert ring.unseal(TLS_KEY) == KEYS[2]
                with pytest.raises(NotFoundError):
                    ring.unseal(NEXT_TLS_KEY)
            ring.close()
            if is_done:
                break
        if is_first_done:
            return


def test_a_clear_key_of_a_new_manager_is_sealed(prepare):
    """A node that ended between its promotion and the sealing seals at its next start."""
    files = prepare(1)
    ring, credentials = opened(files)
    credentials.seal(None)
    ring.close()
    ring, credentials = opened(files)
    assert credentials.is_sealed_by(Kek(KEYS[0]))
    ring.close()


def test_a_ring_without_the_key_is_named(prepare):
    """That can only be damage; nothing is made up in its place."""
    files = prepare(1)
    ring, _ = opened(files)
    ring.forget(TLS_KEY)
    with pytest.raises(CorruptError, match="not in the ring"):
        open_credentials(ring, PLACE, files)
    ring.close()


def test_an_exposed_key_is_replaced_whenever_it_was_interrupted(prepare):
    """After autolock was turned on: a new key, and a new certificate, after a crash anywhere."""
    lock = Kek(b"9" * 32)
    for operation in itertools.count():
        files = prepare(operation)
        ring, credentials = opened(files)
        assert not replace_exposed(ring, credentials, KEYS[1])
        ring.rotate_kek(lock)
        with files.stopping_at(operation):
            replace_exposed(ring, credentials, KEYS[1])
        is_done = not files.is_stopped
        files.lose_power()
        ring = KeyRing.open(RING, lock, rng_bytes=random.Random(9).randbytes, files=files)
        credentials = open_credentials(ring, PLACE, files)
        # It is told again and again that the certificate has to go, until it is gone.
        assert replace_exposed(ring, credentials, KEYS[2])
        assert replace_exposed(ring, credentials, KEYS[2])
        assert not ring.is_exposed(TLS_KEY)
        assert ring.unseal(TLS_KEY) in KEYS[1:]
        assert credentials.is_sealed_by(Kek(ring.unseal(TLS_KEY)))
        credentials.replace(**issued())
        assert not replace_exposed(ring, credentials, KEYS[2])
        with pytest.raises(NotFoundError):
            ring.unseal(EXPOSED_CERTIFICATE)
        ring.close()
        if is_done:
            return
