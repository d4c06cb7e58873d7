"""Who is let into the managers' group, by whom."""

from types import SimpleNamespace

import pytest

from manager.daemon.manager import Manager
from manager.store import Transaction, View
from proto.errors import NotFoundError, NotLeaderError


def manager(term):
    """Give a manager that knows no node, as far as `admit` looks at it before anything is done."""

    async def update(fn):
        return fn(Transaction(View.empty(), 0.0))

    return SimpleNamespace(
        # No `head`: what it says must not be answered.
        store=SimpleNamespace(term=term, update=update),
        leader_node_port=lambda: "10.0.0.9:2378",
    )


async def test_a_follower_that_was_not_told_of_the_node_yet_names_the_leader():
    """It has not heard of a node that was made a moment ago; the leader has."""
    with pytest.raises(NotLeaderError) as caught:
        await Manager.admit(manager(term=0), "new", "10.0.0.4:2378", "10.0.0.4:2377")
    assert caught.value.leader_address == "10.0.0.9:2378"


async def test_the_leader_knows_all_nodes():
    """What it has not, is not there."""
    with pytest.raises(NotFoundError, match="node new not found"):
        await Manager.admit(manager(term=3), "new", "10.0.0.4:2378", "10.0.0.4:2377")
