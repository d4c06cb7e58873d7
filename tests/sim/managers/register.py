"""Clients of a group of managers in trouble, and whether what they were told is linearizable.

Clients create, update, remove and inspect one service by the control API of any manager that
believes to lead, with a read barrier before each read as the HTTP API has it; and they put a label
on a node by a transaction of their own, as the managers' RPCs do. Meanwhile managers are cut off,
killed and started, hand over; links are cut in one direction, or stall; machines are paused, and
those that go on believing to lead are asked at once.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from manager.store import Transaction
from proto.errors import (
    ConflictError,
    NotFoundError,
    NotLeaderError,
    ResourceExhaustedError,
    SwarmError,
)
from proto.ids import NodeID, ServiceID
from proto.objects import ContainerSpec, Node, Service, ServiceSpec, TaskSpec
from raft.core import Config, RaftID
from raft.sim.linear import UndecidedError, is_linearizable

from .model import LABEL, SERVICE, Answer, Call, applied, told
from .world import NAMES, KilledError, Manager, World

replace = msgspec.structs.replace

CLIENTS = 5
CALLS_MAX = 70
TROUBLES = 12
TROUBLE = ("isolate", "isolate", "heal", "kill", "hand over", "cut", "stall", "pause", "pause")
# A pause that no clock tells of makes reads by a lease stale, which is why they are an option.
COUNTED = 1.0 if Config(id=RaftID(1)).has_lease_reads else 0.5
NAME = "web"
NODE = NodeID("node")
# Few, so that the same is often wanted twice.
VALUES = (1, 2)


class Outcome(msgspec.Struct):
    """How a story ended.

    Attributes:
        failure: what is not linearizable; "" if all is.
        answered: how many calls got an answer, by kind and answer.
        is_undecided: the history is too wild to be judged.
    """

    failure: str = ""
    answered: dict[str, int] = {}
    is_undecided: bool = False


class Story:
    """One seed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._histories: dict[int, list[Call]] = {SERVICE: [], LABEL: []}
        self._moment = 0
        self._incarnation = 0
        # What was read last, for updates.
        self._found: tuple[int, int] = (1, 1)

    async def run(self) -> Outcome:
        """Play it, and judge."""
        world = self._world
        await world.form()
        (leader,) = world.leaders()
        await leader.call(lambda: leader.store.update(lambda tx: tx.create(Node(id=NODE))))
        clients = [asyncio.ensure_future(self._client()) for _ in range(CLIENTS)]
        for _ in range(TROUBLES):
            await asyncio.sleep(self._rng.uniform(0.1, 1.2))
            await self._trouble()
        world.heal()
        await asyncio.sleep(3.0)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        for client in clients:
            if not client.cancelled() and (error := client.exception()) is not None:
                raise error
        return self._judged()

    def _judged(self) -> Outcome:
        outcome = Outcome(answered={})
        for history in self._histories.values():
            for call in history:
                name = f"{call.kind} {call.answer.name}"
                outcome.answered[name] = outcome.answered.get(name, 0) + 1
            try:
                if not is_linearizable(history, applied):
                    outcome.failure = told(history)
            except UndecidedError:
                outcome.is_undecided = True
        return outcome

    # Trouble.

    async def _trouble(self) -> None:
        world, rng = self._world, self._rng
        leaders = world.leaders()
        victim = leaders[0] if leaders and rng.random() < 0.7 else self._any()
        match rng.choice(TROUBLE):
            case "heal":
                world.heal()
            case "hand over":
                if victim.node is not None and victim.is_leader:
                    with contextlib.suppress(SwarmError, KilledError):
                        await victim.call(victim.node.transfer_leadership)
            case "pause":
                await world.pause(
                    victim.name, rng.uniform(0.5, 4.0), is_counted=rng.random() < COUNTED
                )
                # Before it hears what happened meanwhile.
                await asyncio.gather(*(self._call(victim) for _ in range(4)))
                world.heal()
            case "kill":
                if victim.node is not None:
                    victim.kill(is_power_lost=rng.random() < 0.5)
                    await asyncio.sleep(rng.uniform(0.0, 1.5))
                    await victim.start()
            case kind:
                self._trouble_links(kind, victim.name)

    def _trouble_links(self, kind: str, name: str) -> None:
        world, rng = self._world, self._rng
        other = rng.choice([one for one in NAMES if one != name])
        link = (name, other) if rng.random() < 0.5 else (other, name)
        match kind:
            case "isolate":
                world.heal()
                world.isolate(name)
            case "cut":
                world.cuts.add(link)
            case "stall":
                # In one direction, so that entries come out and their acknowledgements do not.
                world.stall(*link)
                if rng.random() < 0.5:
                    world.isolate(name)
                    world.cuts.discard(link)

    def _any(self) -> Manager:
        return self._world.managers[self._rng.choice(NAMES)]

    # Clients.

    def _now(self) -> int:
        self._moment += 1
        return self._moment

    async def _client(self) -> None:
        rng = self._rng
        while sum(len(history) for history in self._histories.values()) < 2 * CALLS_MAX:
            await asyncio.sleep(rng.uniform(0.0, 0.15))
            leaders = self._world.leaders()
            manager = rng.choice(leaders) if leaders and rng.random() < 0.8 else self._any()
            if not manager.is_paused:
                await self._call(manager)

    async def _call(self, manager: Manager) -> None:
        rng = self._rng
        key = rng.choice((SERVICE, LABEL))
        if manager.node is None or len(self._histories[key]) >= CALLS_MAX:
            return
        if rng.random() < 0.3:
            await self._read(manager, key)
        elif key == LABEL:
            await self._change(manager, Call(rng.choice(VALUES), "put", LABEL, self._now()))
        else:
            await self._change(manager, self._drawn())

    def _drawn(self) -> Call:
        rng = self._rng
        kind = rng.choice(("create", "create", "update", "update", "remove"))
        call = Call(rng.choice(VALUES), kind, SERVICE, self._now())
        if kind == "create":
            self._incarnation += 1
            call.incarnation = self._incarnation
        elif kind == "update":
            value, call.version = self._found
            if rng.random() < 0.3:
                call.id = value  # a change that is none
        return call

    async def _read(self, manager: Manager, key: int) -> None:
        call = Call(0, "read", key, self._now())

        async def read() -> tuple[int, ...]:
            view = await manager.store.read_barrier()
            if key == LABEL:
                value = view.nodes.get(NODE).spec.labels.get("v")
                return () if value is None else (int(value),)
            try:
                service = manager.control.service(NAME)
            except NotFoundError:
                return ()
            return (int(service.id), _value_of(service), service.version)

        try:
            call.result = await manager.call(read)
        except (SwarmError, KilledError):
            return
        call.ended = self._now()
        call.answer = Answer.DONE
        self._histories[key].append(call)
        if key == SERVICE and call.result:
            self._found = (call.result[1], call.result[2])

    async def _change(self, manager: Manager, call: Call) -> None:
        history = self._histories[call.key]
        history.append(call)
        try:
            await manager.call(lambda: _asked(manager, call))
        except (NotLeaderError, ResourceExhaustedError):
            history.remove(call)  # surely nothing was done
            return
        except NotFoundError:
            call.answer = Answer.NOT_FOUND
        except ConflictError:
            call.answer = Answer.CONFLICT
        except (SwarmError, KilledError):
            return  # perhaps it was done, perhaps it will be
        else:
            call.answer = Answer.DONE
        call.ended = self._now()


async def _asked(manager: Manager, call: Call) -> object:
    """Call the manager as its API does."""
    control = manager.control
    match call.kind:
        case "create":
            return await control.create_service(
                _spec(call.id), service_id=ServiceID(str(call.incarnation))
            )
        case "update":
            return await control.update_service(NAME, call.version, _spec(call.id))
        case "remove":
            return await control.remove_service(NAME)
        case _:
            return await manager.store.update(lambda tx: _put(tx, call.id))


def _put(tx: Transaction, value: int) -> None:
    node = tx.nodes.get(NODE)
    assert node is not None
    tx.update(replace(node, spec=replace(node.spec, labels={"v": str(value)})))


def _spec(value: int) -> ServiceSpec:
    return ServiceSpec(
        name=NAME, labels={"v": str(value)}, task=TaskSpec(container=ContainerSpec(image="web:1"))
    )


def _value_of(service: Service) -> int:
    return int(service.spec.labels["v"])
