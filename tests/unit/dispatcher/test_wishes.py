"""Who is told that somebody wishes to read a task's output."""

import asyncio

import msgspec
import pytest

from manager.dispatcher import wishes as module
from proto.errors import NotLeaderError
from proto.logs import LogOptions, LogRequest


def wish(number=1, task="t1"):
    """Make a wish."""
    return LogRequest(
        id=f"wish{number}",
        task_id=task,
        options=LogOptions(follow=True),
        manager_id="m1",
        address="10.0.0.1:2378",
    )


class Answers(list):
    """Takes answers."""

    def __call__(self, obstacle):
        """Note one."""
        self.append(obstacle)

    @property
    def last(self):
        """Return what was said last."""
        return self[-1]


async def settle():
    """Let the core follow the store."""
    await asyncio.sleep(0.05)


async def told(session):
    """Return the wishes that a node is told now."""
    result = []
    while (message := session._take()) is not None:
        result += [message] if isinstance(message, LogRequest) else []
    return result


def test_the_node_of_the_task_is_told_once(play):
    """After its tasks; nobody else is told."""

    async def scenario(world):
        await world.assign("t1", node="n1")
        one, other = await world.register("n1"), await world.register("n2")
        answers = Answers()
        (await world.core.wishes()).add(wish(), answers)
        messages = [one._take(), one._take(), one._take(), one._take()]
        assert [type(m).__name__ for m in messages] == [
            "Session",
            "Numbered",
            "LogRequest",
            "NoneType",
        ]
        assert messages[2] == wish()
        assert await told(other) == []
        assert answers == [""]

    play(scenario)


def test_a_node_that_is_away_is_named_and_told_when_it_comes(play):
    """As often as it comes: it knows by the ID whether it is at it already."""

    async def scenario(world):
        await world.assign("t1", node="n1")
        answers = Answers()
        (await world.core.wishes()).add(wish(), answers)
        assert answers.last == "node n1 has no connection with the managers"
        session = await world.register("n1")
        assert answers.last == ""
        assert await told(session) == [wish()]
        world.core.end(session)
        assert answers.last == "node n1 (n1) has no connection with the managers"
        session = await world.register("n1")
        assert await told(session) == [wish()]
        await asyncio.sleep(10)  # it falls silent
        assert "no connection" in answers.last

    play(scenario)


def test_a_task_that_gets_a_node_later(play):
    """Its node is told then; a task that is removed is said to be gone."""

    async def scenario(world):
        session = await world.register("n1")
        await world.assign("t1", node="")
        answers = Answers()
        (await world.core.wishes()).add(wish(), answers)
        assert answers.last == "task t1 is on no node yet"
        task = world.store.view().tasks.get("t1")
        await world.change(msgspec.structs.replace(task, node_id="n1"))
        await settle()
        assert answers.last == ""
        assert await told(session) == [wish()]
        await world.store.update(lambda tx: tx.delete("tasks", "t1"))
        await settle()
        assert answers.last == "task t1 does not exist any more"

    play(scenario)


def test_a_wish_that_is_over_is_not_told_again(play):
    """And leaves nothing; to remove it twice is no fault."""

    async def scenario(world):
        await world.assign("t1", node="n1")
        wishes = await world.core.wishes()
        wishes.add(wish(1), Answers())
        wishes.add(wish(2), Answers())
        for _ in range(2):
            wishes.remove("wish1")
        session = await world.register("n1")
        assert [w.id for w in await told(session)] == ["wish2"]
        wishes.remove("wish2")
        assert not wishes._by_id
        assert not wishes._by_task

    play(scenario)


def test_wishes_end_with_the_leadership(play):
    """Whoever had them is told by `ended`; the next leadership has none."""

    async def scenario(world):
        wishes = await world.core.wishes()
        wishes.add(wish(), Answers())
        assert not wishes.ended.is_set()
        await world.stop()
        assert wishes.ended.is_set()
        assert not wishes._by_id
        await world.run()
        assert await world.core.wishes() is not wishes

    play(scenario)


def test_who_does_not_lead_has_no_wishes(play):
    """The refusal names the leader."""

    async def scenario(world):
        world.store.follow()
        with pytest.raises(NotLeaderError):
            await world.core.wishes()

    play(scenario)


def test_there_is_a_limit(play, monkeypatch):
    """A sentence, and what was one too many is not kept."""

    async def scenario(world):
        monkeypatch.setattr(module, "WISHES_MAX", 2)
        wishes = await world.core.wishes()
        wishes.add(wish(1), Answers())
        wishes.add(wish(2), Answers())
        answers = Answers()
        wishes.add(wish(3), answers)
        assert answers.last == "the output of 2 tasks is being read already"
        wishes.remove("wish3")
        wishes.remove("wish1")
        wishes.add(wish(3), answers)
        assert answers.last == "task t1 does not exist any more"

    play(scenario)
