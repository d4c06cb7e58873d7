"""The agent's handle, while the leadership moves."""

import asyncio

import pytest

from manager.dispatcher.switch import DispatcherSwitch
from proto.assignments import CompleteAssignments
from proto.errors import NotLeaderError, UnavailableError
from proto.objects import Node, NodeDescription


class Client:
    """A client whose sessions the test ends."""

    def __init__(self):
        self.ended = asyncio.get_running_loop().create_future()
        self.reason = ""
        self.reports = []

    def interrupt(self, reason):
        """End the session."""
        self.reason = reason
        if not self.ended.done():
            self.ended.set_result(None)

    async def register(self, node_id, description):
        """Open a session."""
        return Node(id=node_id, description=description)

    async def assignments(self, _node_id):
        """Yield nothing but the beginning."""
        yield CompleteAssignments(())
        await self.ended
        raise UnavailableError(self.reason)

    async def update_statuses(self, node_id, updates):
        """Remember."""
        self.reports.append((node_id, updates))


async def first(switch):
    """Open a session and read its first message; return the rest of it."""
    await switch.register("n1", NodeDescription(hostname="h"))
    messages = switch.assignments("n1")
    assert isinstance(await anext(messages), CompleteAssignments)
    return messages


def test_without_anybody_a_registration_waits(play):
    """There is nothing better to do; other calls are refused."""

    async def scenario(_world):
        switch = DispatcherSwitch()
        with pytest.raises(UnavailableError):
            await switch.update_statuses("n1", [])
        waiting = asyncio.create_task(switch.register("n1", NodeDescription()))
        await asyncio.sleep(100)
        assert not waiting.done()
        switch.use(Client())
        assert (await waiting).id == "n1"

    play(scenario)


def test_while_it_leads_the_core_is_used(play):
    """In process, with what changes about the node."""

    async def scenario(world):
        told = []
        switch = DispatcherSwitch(told.append)
        switch.use(Client())
        switch.lead(world.core)
        messages = await first(switch)
        await world.assign("t1")
        assert [a.task.id for a in (await anext(messages)).updated] == ["t1"]
        assert [session.node.id for session in told] == ["n1"]
        await messages.aclose()
        assert world.core._sessions == {}

    play(scenario)


def test_a_session_ends_when_the_leadership_comes(play):
    """The client's session is left for the core's."""

    async def scenario(world):
        switch, client = DispatcherSwitch(), Client()
        switch.use(client)
        messages = await first(switch)
        await switch.update_statuses("n1", ["x"])
        assert client.reports == [("n1", ["x"])]
        switch.lead(world.core)
        with pytest.raises(UnavailableError, match="the leadership moved"):
            await anext(messages)
        await first(switch)
        assert "n1" in world.core._sessions

    play(scenario)


def test_a_session_ends_when_the_leadership_goes(play):
    """The core's session ends with the reason, and the next one is the client's."""

    async def scenario(world):
        switch, client = DispatcherSwitch(), Client()
        switch.use(client)
        switch.lead(world.core)
        messages = await first(switch)
        world.store.follow()
        with pytest.raises(NotLeaderError):
            await anext(messages)
        switch.lead(None)
        await first(switch)
        await switch.update_statuses("n1", [])
        assert client.reports == [("n1", [])]

    play(scenario)


def test_a_registration_that_is_overtaken_is_refused(play):
    """If the leadership moves while it is under way, the session would be with the wrong one."""

    async def scenario(world):
        switch = DispatcherSwitch()
        switch.lead(world.core)
        waiting = asyncio.create_task(switch.register("n1", NodeDescription()))
        await asyncio.sleep(0)
        switch.lead(None)
        with pytest.raises(UnavailableError, match="the leadership moved"):
            await waiting
        assert world.core._sessions == {}

    play(scenario)
