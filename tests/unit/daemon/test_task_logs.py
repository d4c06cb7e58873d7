"""The output of tasks on this node and on others, as one stream."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from manager.daemon.logs import TaskLogs, merge
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.errors import UnavailableError
from proto.logs import LogOptions, LogRecord
from proto.objects import Task, TaskStatus
from proto.states import TaskState


def record(text):
    """Make a line."""
    return LogRecord(1, "stdout", text.encode())


class Cluster:
    """Tasks, and where their lines are."""

    def __init__(self, **nodes):
        tx = Transaction(View.empty(), 1.0)
        for task_id, node_id in nodes.items():
            tx.create(Task(id=task_id, service_id="s", spec_version=1, node_id=node_id))
        self.view = tx.to_view()
        self.asked = []
        self.failing = {}

    def tasks(self):
        """Return the tasks in order."""
        return sorted(self.view.tasks, key=lambda task: task.id)

    def change(self, task_id, **fields):
        """Change a task."""
        tx = Transaction(self.view, 2.0)
        tx.update(msgspec.structs.replace(tx.tasks.get(task_id), **fields))
        self.view = tx.to_view()

    def reader(self, where):
        """Return what reads a task's two lines."""

        async def read(task_id, _options):
            self.asked.append((where, task_id))
            yield record(f"{task_id} 1")
            if task_id in self.failing:
                raise UnavailableError(self.failing[task_id])
            yield record(f"{task_id} 2")

        return read

    def logs(self, *, is_alone=False):
        """Return what is tested."""
        return TaskLogs(
            "here",
            lambda: self.view,
            here=self.reader("here"),
            elsewhere=lambda: None if is_alone else SimpleNamespace(read=self.reader("elsewhere")),
        )


async def read_all(logs, tasks, **options):
    """Return the lines, and the error at the end."""
    lines = []
    try:
        async for task, line in logs.read(tasks, LogOptions(**options)):
            lines.append((task.id, line.data.decode()))
    except UnavailableError as error:
        return lines, error.message
    return lines, ""


async def test_each_task_is_read_where_it_is():
    """Every line once, each task's in order; a task that never had a node has none."""
    cluster = Cluster(a="here", b="there", c="")
    lines, missing = await read_all(cluster.logs(), cluster.tasks())
    assert sorted(lines) == [("a", "a 1"), ("a", "a 2"), ("b", "b 1"), ("b", "b 2")]
    assert missing == ""
    assert sorted(cluster.asked) == [("elsewhere", "b"), ("here", "a")]


async def test_what_is_missing_is_said_after_all_other_lines():
    """One reason for many tasks is said once, with their number."""
    cluster = Cluster(a="here", b="there", c="there", d="far", e="here")
    cluster.failing = {"b": "node there is away", "c": "node there is away", "d": "it broke"}
    lines, missing = await read_all(cluster.logs(), cluster.tasks())
    assert len(lines) == 7
    assert missing == "it broke; node there is away (2 tasks)"


async def test_a_sentence_stays_short():
    """However many nodes are away."""
    cluster = Cluster(**{f"t{n:02}": f"n{n}" for n in range(30)})
    cluster.failing = {f"t{n:02}": f"node n{n} is away" for n in range(30)}
    _, missing = await read_all(cluster.logs(), cluster.tasks())
    assert missing.count("away") == 10
    assert missing.endswith("; and 20 more")


async def test_a_manager_that_is_alone_says_what_it_cannot_know():
    """The task of a node that was removed."""
    cluster = Cluster(a="here", b="gone")
    lines, missing = await read_all(cluster.logs(is_alone=True), cluster.tasks())
    assert [task for task, _ in lines] == ["a", "a"]
    assert missing == "node gone is not in the swarm any more"


async def test_a_manager_that_was_alone_reads_the_nodes_that_came_since():
    """A follower that waits for a task's node learns of others only when there are some."""
    cluster = Cluster(a="")
    others = []
    logs = TaskLogs(
        "here",
        lambda: cluster.view,
        here=cluster.reader("here"),
        elsewhere=lambda: others[0] if others else None,
    )
    reading = asyncio.create_task(read_all(logs, cluster.tasks(), follow=True))
    await asyncio.sleep(0)
    others.append(SimpleNamespace(read=cluster.reader("elsewhere")))
    cluster.change("a", node_id="there")
    lines, missing = await asyncio.wait_for(reading, 2)
    assert (len(lines), missing) == (2, "")


@pytest.mark.parametrize("node", ["here", "there"])
async def test_a_follower_waits_for_a_task_to_get_a_node(node):
    """And reads it there."""
    cluster = Cluster(a="")
    reading = asyncio.create_task(read_all(cluster.logs(), cluster.tasks(), follow=True))
    await asyncio.sleep(0.3)
    assert not reading.done()
    cluster.change("a", node_id=node)
    lines, _ = await asyncio.wait_for(reading, 2)
    assert len(lines) == 2


async def test_a_follower_does_not_wait_for_a_task_that_will_never_run():
    """One that was rejected, and one that was removed meanwhile."""
    cluster = Cluster(a="", b="")
    cluster.change("a", status=TaskStatus(state=TaskState.REJECTED))
    tasks = cluster.tasks()
    reading = asyncio.create_task(read_all(cluster.logs(), tasks, follow=True))
    await asyncio.sleep(0.3)
    assert not reading.done()
    cluster.view = View.empty()
    assert await asyncio.wait_for(reading, 2) == ([], "")


async def test_merging_closes_all_sources_when_one_fails_or_the_reader_leaves():
    """Nothing goes on to be read for nobody."""
    closed = []

    async def endless(name):
        try:
            while True:
                yield name
                await asyncio.sleep(0.001)
        finally:
            closed.append(name)

    async def failing():
        yield "f"
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        async for _ in merge([endless("a"), failing()]):
            pass
    assert closed == ["a"]
    merged = merge([endless("b"), endless("c")])
    await anext(merged)
    await merged.aclose()
    assert sorted(closed) == ["a", "b", "c"]
