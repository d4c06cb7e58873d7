"""A global service has a slot on each eligible node: which are filled and made. None is removed.

Tasks on nodes that may keep none, or that the constraints exclude, have been retired before; where
a node takes no tasks now (paused, or not heard) what it has stays, and what ended there is followed
when it takes tasks again.
"""

from __future__ import annotations

from manager.orchestrator.draft import Draft
from manager.orchestrator.slots import sort_slots, succeed
from proto.states import TaskState
from scheduler import eligible


def spread(draft: Draft) -> None:
    """Give each eligible node its task."""
    assert draft.service is not None
    vacant = sort_slots(draft).vacant
    for node_id in eligible(draft.service.spec.task, draft.nodes.all):
        slot = (0, node_id)
        if slot in vacant:
            succeed(draft, slot, vacant[slot])
        elif not draft.has_slot(slot) and draft.has_room():
            # READY first: a removed task may still run on the node.
            draft.create(slot, desired=TaskState.READY)
