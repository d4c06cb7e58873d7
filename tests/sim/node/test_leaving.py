"""A node that leaves its swarm has left it, whenever the daemon is killed meanwhile."""

import asyncio
from typing import Any

import pytest

from manager.daemon.protection import PortProtection
from proto.objects import ContainerSpec, ServiceSpec, TaskSpec

from .machine import GOOD_IMAGES
from .simulation import Simulation, simulate


class Firewall:
    """Rules that outlive the daemon."""

    def __init__(self) -> None:
        self.is_there = False

    async def protect(self, _protected: Any) -> None:
        """Make them."""
        self.is_there = True

    async def remove(self) -> None:
        """Remove them."""
        self.is_there = False


@pytest.mark.parametrize("turns", [0, 3, 10, 30, 100, 300])
def test_a_crash_while_leaving_leaves_nothing_behind(turns, tmp_path, monkeypatch):
    """No container of the swarm runs on, and no rule keeps containers from its managers."""
    firewall = Firewall()

    async def story(host: Simulation) -> None:
        host.machine.is_rough = False
        await host.found()
        await host.start()
        node = host.node
        assert node is not None
        await node.protection.protect(*node._to_protect())
        spec = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image=GOOD_IMAGES[0])))
        await host.call(lambda: node.control().create_service(spec))
        await asyncio.sleep(60)
        assert await host.machine.runtime.list_containers()
        assert firewall.is_there
        identity = host.config.identity_file
        before = identity.read_bytes()
        leaving = asyncio.ensure_future(host.call(lambda: node.swarm_leave(force=True)))
        while identity.exists() and identity.read_bytes() == before:  # noqa: ASYNC110 -- a file
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        host.kill()
        await asyncio.gather(leaving, return_exceptions=True)
        await host.start()
        await asyncio.sleep(60)
        assert host.node is not None
        assert host.node.state == "inactive"
        assert not await host.machine.runtime.list_containers()
        assert not firewall.is_there
        assert not identity.exists()

    monkeypatch.setattr("manager.daemon.parts.PortProtection", lambda: protection_with(firewall))
    simulate(1, tmp_path, story)


def protection_with(firewall: Firewall) -> Any:
    """Make what each daemon begins with."""
    protection = PortProtection()
    protection.use(firewall, is_open_to_containers=False)
    return protection
