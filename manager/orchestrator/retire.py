"""Which tasks are no longer wanted because of what they or their nodes have become.

* A task that has ended: its slot is decided afresh.
* A task on a node that is DOWN, drained or removed. Its observed state stays what the node last
  said, since nobody knows better; of a removed node nobody ever will, hence ORPHANED.
* A task on an active node that no longer meets its constraints. On a paused node it stays: nothing
  moves there. Source: swarmkit manager/orchestrator/constraintenforcer, which reports such a task
  REJECTED; here its agent tells how it ended, and its successor waits for that.
"""

from __future__ import annotations

from manager.orchestrator.draft import Draft
from manager.orchestrator.plan import is_wanted
from manager.orchestrator.update import is_dirty
from proto.objects import Node, NodeAvailability, Task, TaskSpec
from proto.states import TRANSITIONS, Actor, TaskState
from scheduler import meets_constraints, suits

NODE_REMOVED = "the node was removed from the cluster"
CONSTRAINTS_BROKEN = "assigned node no longer meets constraints"

_ORPHANABLE = frozenset(old for old, _ in TRANSITIONS[Actor.LEADER])


def orphan(draft: Draft) -> None:
    """End the tasks of nodes that were removed."""
    for task in draft.tasks():
        if task.status.state in _ORPHANABLE and task.node_id not in draft.nodes.by_id:
            draft.advance(task, Actor.LEADER, TaskState.ORPHANED, NODE_REMOVED)


def retire(draft: Draft) -> None:
    """Want no task that has ended or may not stay where it is."""
    constraints = _Constraints(draft)
    for task in draft.tasks():
        if not is_wanted(task):
            continue
        if task.status.state.is_terminal:
            draft.want(task, TaskState.SHUTDOWN)
        elif not task.node_id:
            continue
        elif task.node_id not in draft.nodes.keeping:
            _dismiss(draft, task)
        elif constraints.are_broken(task):
            draft.explain(task, CONSTRAINTS_BROKEN)
            _dismiss(draft, task)


def _dismiss(draft: Draft, task: Task) -> None:
    """Let a task go; one that its node never had leaves no history."""
    is_unknown = task.status.state < TaskState.ASSIGNED
    draft.want(task, TaskState.REMOVE if is_unknown else TaskState.SHUTDOWN)


class _Constraints:
    """Answers for each pair of template and node once."""

    def __init__(self, draft: Draft) -> None:
        assert draft.service is not None
        self._draft = draft
        self._service = draft.service
        self._are_broken: dict[tuple[int, str], bool] = {}

    def are_broken(self, task: Task) -> bool:
        """Tell whether a task's node does not, or no longer, meet its constraints.

        A replicated task that is to be replaced anyway has the constraints of its own spec: the
        updater replaces it, as fast as the update's settings allow. A global service has no task
        where its present constraints want none, or on a platform that its image is not for.
        """
        version = self._service.spec_version
        if not self._draft.is_global and is_dirty(self._draft, task):
            version = task.spec_version
        key = (version, task.node_id)
        answer = self._are_broken.get(key)
        if answer is None:
            is_present = version == self._service.spec_version
            spec = self._service.spec if is_present else self._draft.state.specs[version]
            node = self._draft.nodes.by_id[task.node_id]
            answer = self._are_broken[key] = self._is_broken(spec.task, node)
        return answer

    def _is_broken(self, spec: TaskSpec, node: Node) -> bool:
        if node.spec.availability is NodeAvailability.PAUSE:
            return False
        return not (suits if self._draft.is_global else meets_constraints)(spec, node)
