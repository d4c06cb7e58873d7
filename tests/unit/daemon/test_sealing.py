"""By which key a manager seals: only by one that is the cluster's now."""

from __future__ import annotations

import random

import msgspec
import pytest

from manager.daemon.membership import Membership, NewCluster
from proto.clock import SystemClock
from proto.errors import UnavailableError
from proto.objects import ClusterSpec, NodeAvailability, NodeDescription
from raft.keys import Kek


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
    assert not await membership.seal_keys()
    assert membership.unlock_key() == second
    await membership.close()
