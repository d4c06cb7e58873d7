"""Whose output managers wish to see, and who was told: the leader's part of `service logs`.

A wish is told to the session of its task's node: at once, when the task is assigned, and when the
node comes back. The node sends the lines to the manager that wished for them; nothing of them
passes here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from manager.dispatcher.session import OpenSession
from manager.store.tables import View
from proto.ids import NodeID, TaskID
from proto.logs import LogRequest

WISHES_MAX = 20_000

Answer = Callable[[str], None]
"""Takes why nobody can fulfil a wish now; "" if a node was told."""


class _Wish(msgspec.Struct, frozen=True):
    request: LogRequest
    answer: Answer


class LogWishes:
    """The wishes of one leadership. Belongs to one event loop.

    Attributes:
        ended: set when the leadership is over, and all wishes with it.
    """

    def __init__(
        self, view: Callable[[], View], session_of: Callable[[NodeID], OpenSession | None]
    ) -> None:
        """Have none."""
        self.ended = asyncio.Event()
        self._view = view
        self._session_of = session_of
        self._by_id: dict[str, _Wish] = {}
        self._by_task: dict[TaskID, dict[str, _Wish]] = {}

    def add(self, request: LogRequest, answer: Answer) -> None:
        """Tell the node of the task now, and whenever there is reason to, until `remove`.

        One too many is answered with that, and not kept.
        """
        if len(self._by_id) >= WISHES_MAX:
            answer(f"the output of {WISHES_MAX} tasks is being read already")
            return
        wish = self._by_id[request.id] = _Wish(request, answer)
        self._by_task.setdefault(request.task_id, {})[request.id] = wish
        self._tell(wish)

    def remove(self, request_id: str) -> None:
        """Forget a wish; whoever fulfils it learns that from the manager that had it."""
        wish = self._by_id.pop(request_id, None)
        if wish is None:
            return
        of_task = self._by_task[wish.request.task_id]
        del of_task[request_id]
        if not of_task:
            del self._by_task[wish.request.task_id]

    def session_changed(self, node_id: NodeID) -> None:
        """Tell a node that has opened a session, or say of one that lost it that it is away."""
        for wish in self._wishes_on(node_id):
            self._tell(wish)

    def task_changed(self, old: NodeID | None, new: NodeID | None, task_id: TaskID) -> None:
        """Tell of a task's wishes, if the task went to another node, or is no more.

        Args:
            old: the node that had it, "" for none; None if it was not there.
            new: likewise what is so now.
            task_id: the task's.
        """
        if old != new:
            for wish in list(self._by_task.get(task_id, {}).values()):
                self._tell(wish)

    def tell_all(self) -> None:
        """Tell everything again: changes were lost."""
        for wish in list(self._by_id.values()):
            self._tell(wish)

    def end(self) -> None:
        """End with the leadership."""
        self._by_id.clear()
        self._by_task.clear()
        self.ended.set()

    def _wishes_on(self, node_id: NodeID) -> list[_Wish]:
        if not self._by_task:
            return []
        tasks = self._view().tasks
        return [
            wish
            for task_id, wishes in self._by_task.items()
            if (task := tasks.get(task_id)) is not None and task.node_id == node_id
            for wish in wishes.values()
        ]

    def _tell(self, wish: _Wish) -> None:
        request = wish.request
        view = self._view()
        task = view.tasks.get(request.task_id)
        if task is None:
            obstacle = f"task {request.task_id} does not exist any more"
        elif not task.node_id:
            obstacle = f"task {request.task_id} is on no node yet"
        elif (session := self._session_of(task.node_id)) is None:
            obstacle = _is_away(view, task.node_id)
        else:
            session.wish(request)
            obstacle = ""
        wish.answer(obstacle)


def _is_away(view: View, node_id: NodeID) -> str:
    node = view.nodes.get(node_id)
    if node is None:
        return f"node {node_id} is not in the swarm any more"
    hostname = node.description.hostname
    name = f"{hostname} ({node_id})" if hostname else node_id
    return f"node {name} has no connection with the managers"
