"""By which key a manager seals: only by one that is the cluster's now."""

from __future__ import annotations

import random

import msgspec
import pytest

from manager.daemon.membership import Membership, NewCluster
from proto.clock import SystemClock
from proto.errors import UnavailableError
from proto.objects import ClusterSpec, NodeAvailability, NodeDescription
from raft.keys import Kek, KeyRing


async def test_a_key_that_may_be_old_is_not_sealed_by(tmp_path, monkeypatch):
    """A manager that cannot ask which key counts keeps the one it has, and follows later."""
    rng = random.Random(1)
    new = NewCluster(
        spec=ClusterSpec(auto_lock_managers=True),
        availability=NodeAvailability.ACTIVE,
        description=NodeDescription(),
        advertise_addr="10.0.0.1:2377",
        default_address_pool=(),
        subnet_size=24,
        data_path_port=4789,
    )
    membership, _ = await Membership.create(tmp_path, new, clock=SystemClock(), rng=rng)
    first = membership.unlock_key()
    second = Kek.generate(rng.randbytes)

    def rotate(tx):
        (cluster,) = tx.clusters
        tx.update(msgspec.structs.replace(cluster, unlock_key=second.format()))

    await membership.store.update(rotate)

    async def unknown():
        raise UnavailableError("no majority answers")

    with monkeypatch.context() as patched:
        patched.setattr(membership.store, "read_barrier", unknown)
        with pytest.raises(UnavailableError):
            await membership.seal_keys()
    assert membership.unlock_key() == first
    await membership.seal_keys()
    assert membership.unlock_key() == second
    await membership.close()


def open_cluster():
    """Describe a cluster whose keys lie beside what they open."""
    return NewCluster(
        spec=ClusterSpec(),
        availability=NodeAvailability.ACTIVE,
        description=NodeDescription(),
        advertise_addr="10.0.0.1:2377",
        default_address_pool=(),
        subnet_size=24,
        data_path_port=4789,
    )


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("failing", ["rotate_data_key", "save_snapshot"])
async def test_the_data_key_is_changed_however_often_it_failed(
    tmp_path, monkeypatch, failing, is_restarted
):
    """After autolock was turned on: what lay beside its key is read by nobody else any more."""
    rng = random.Random(1)
    membership, _ = await Membership.create(tmp_path, open_cluster(), clock=SystemClock(), rng=rng)
    kek = Kek.generate(rng.randbytes)

    def lock(tx):
        (cluster,) = tx.clusters
        tx.update(msgspec.structs.replace(cluster, unlock_key=kek.format()))

    await membership.store.update(lock)

    async def fail(*_what):
        raise UnavailableError("the disk failed")

    for _ in range(2):
        with monkeypatch.context() as patched:
            owner = membership.raft if failing == "rotate_data_key" else membership.store
            patched.setattr(type(owner), failing, fail)
            with pytest.raises(UnavailableError):
                await membership.seal_keys()
            if is_restarted:
                await membership.close()
                # That it still fails is no reason not to open.
                membership = await Membership.open(tmp_path, kek, clock=SystemClock(), rng=rng)
    assert membership.unlock_key() == kek
    await membership.seal_keys()
    assert not membership.raft.is_rotating
    await membership.close()
    ring = KeyRing.read(tmp_path, kek)
    assert ring.ids == (2,)
    assert not ring.is_data_key_exposed
