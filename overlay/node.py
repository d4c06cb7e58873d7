"""`BridgeNetwork`: the node's NAT bridge, the containers' places on it, and published ports.

The shell of this package. It reads the kernel, asks `diff`, `ipam` and `rules` what to do, and has
it done in threads that end with their job. It holds no socket and no namespace between calls, only
the nftables context.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog
from typing_extensions import override

from overlay import diff, links, names, rules
from overlay.api import Attachment, NodeNetwork, PublishedPort
from overlay.desired import Desired
from overlay.ipam import AddressPool
from overlay.netns import in_new_thread
from overlay.nft import Nft, NftError, open_nft
from overlay.observed import Observed, is_our_bridge, is_our_container_link
from proto.errors import ConflictError, RuntimeFailedError, UnavailableError, reason_of
from proto.ids import ContainerID

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

DEFAULT_RUN = Path("/run/swarm/netns")
# The kernel serialises most of an attach; more threads only wait for one another.
ATTACHES_AT_ONCE_MAX = 4

T = TypeVar("T")


def _nothing(step: str) -> None:
    """Stand for a test that stops the process after a step."""


class BridgeNetwork(NodeNetwork):
    """The network of one node, in the network namespace of the process.

    Args:
        run: directory of the namespaces' files; on a file system that a reboot empties.
        pool: the bridge's network in CIDR notation; "" picks a free one.
        after_step: called in the worker thread after each step of an attach.
    """

    def __init__(
        self,
        run: Path = DEFAULT_RUN,
        pool: str = "",
        *,
        after_step: Callable[[str], None] = _nothing,
    ) -> None:
        self._run = run
        self._requested_pool = pool
        self._after_step = after_step
        self._pool: AddressPool | None = None
        self._bridge_index = 0
        self._attached: dict[ContainerID, Attachment] = {}
        self._locks = _Locks()
        self._slots = asyncio.Semaphore(ATTACHES_AT_ONCE_MAX)
        self._nft: Nft | None = None
        self._table = rules.TableState()
        self._wanted: dict[rules.Key, PublishedPort] = {}
        self._publish_lock = asyncio.Lock()
        self._doomed: list[ContainerID] = []
        self._removal_lock = asyncio.Lock()
        # Addresses that a tracked connection may have been translated to.
        self._once_published: set[str] = set()

    @override
    async def start(self, live: frozenset[ContainerID]) -> dict[ContainerID, Attachment]:
        """Make bridge and rules, adopt the attachments in `live`, remove all other leftovers.

        Connections through what stays are not disturbed: only differences are applied.

        Returns:
            The adopted attachments. One of `live` that is missing here has no network any more.

        Raises:
            ConflictError: a link named like the bridge is not ours.
            InvalidError: the requested pool is malformed or in use.
            ResourceExhaustedError: no default pool is free.
            RuntimeFailedError: the kernel refused, or nftables is not installed.
        """
        assert self._pool is None, "started twice"
        for container_id in live:
            names.check_container_id(container_id)
        self._nft = open_nft()
        try:
            plan, gateway = await self._kernel("start", lambda: self._start(live))
        except BaseException:
            self._nft.close()
            self._nft = None
            raise
        pool = AddressPool(gateway.network)
        for container_id, interface in plan.adopted.items():
            is_reserved = pool.reserve(container_id, interface.ip)
            assert is_reserved
            self._attached[container_id] = self._attachment(container_id, interface, pool)
        self._pool = pool
        pool.check()
        self._note_backends()
        log.info(
            "node_network_started",
            pool=str(gateway.network),
            adopted=len(plan.adopted),
            changes=len(plan.operations),
        )
        return dict(self._attached)

    @override
    async def attach(self, container_id: ContainerID) -> Attachment:
        """Make the namespace with `lo`, `eth0`, an address and a default route; idempotent.

        When it fails or is cancelled, nothing of it remains.

        Raises:
            ConflictError: another container's link has the name that this one's would have.
            InvalidError: the ID is malformed.
            ResourceExhaustedError: the pool has no free address.
            RuntimeFailedError: the kernel refused.
        """
        names.check_container_id(container_id)
        pool = self._started_pool()
        async with self._locks.hold(container_id):
            known = self._attached.get(container_id)
            if known is not None:
                return known
            if self._has_namesake(container_id, pool):
                raise ConflictError(
                    f"container {container_id} cannot be attached: another container's ID begins "
                    f"with {container_id[:12]} too, and links are named after that"
                )
            address = pool.allocate(container_id)
            interface = ipaddress.IPv4Interface((address, pool.network.prefixlen))
            wiring = links.Wiring(
                container_id=container_id,
                namespace=self._run / container_id,
                interface=interface,
                gateway=pool.gateway,
                bridge_index=self._bridge_index,
            )
            build = functools.partial(links.build, wiring, self._after_step)
            try:
                async with self._slots:
                    await self._kernel(f"attach container {container_id[:12]}", build)
            except BaseException:
                # The thread has ended, cancelled caller or not: what it made goes again.
                await _uncancelled(self._detach(container_id))
                raise
            attachment = self._attachment(container_id, interface, pool)
            self._attached[container_id] = attachment
        log.debug("container_attached", container_id=container_id, address=attachment.address)
        return attachment

    @override
    async def detach(self, container_id: ContainerID) -> None:
        """Remove the namespace and the veth pair, free the address; idempotent.

        Tracked connections that lead to the address are forgotten, so that a client that keeps
        sending reaches another backend.

        Raises:
            InvalidError: the ID is malformed.
            RuntimeFailedError: the kernel refused.
        """
        names.check_container_id(container_id)
        pool = self._started_pool()
        async with self._locks.hold(container_id):
            if self._has_namesake(container_id, pool):
                return  # never attached: the link of that name is the other's
            await _uncancelled(self._detach(container_id))
        log.debug("container_detached", container_id=container_id)

    @override
    async def publish(self, ports: tuple[PublishedPort, ...]) -> None:
        """Make exactly these ports lead to these backends: only the difference is applied.

        Of calls that wait for one another only the last one's ports are put into force. When the
        rules were removed from outside (`nft flush ruleset`), they are made again.

        Raises:
            InvalidError: a port is malformed or given twice; nothing was changed.
            NftError: the kernel refused; the former ports are in force, or some of both.
        """
        self._started_pool()
        self._wanted = rules.check_ports(ports)
        async with self._publish_lock:
            wanted = self._wanted
            begun = rules.begun_udp_ports(self._table.ports, wanted)
            if wanted == self._table.ports and not self._table.stray:
                return
            await _uncancelled(in_new_thread(lambda: self._apply_ports(wanted)))
            self._note_backends()
            if begun:
                await self._forget(lambda: links.forget_untranslated(begun))
        log.info("ports_published", count=len(wanted))

    @override
    async def close(self) -> None:
        """Close sockets. Links, namespaces and rules stay: containers keep their network."""
        if self._nft is not None:
            self._nft.close()
        self._nft = None
        self._pool = None
        self._attached.clear()

    @override
    async def destroy(self) -> None:
        """Remove everything of ours from the kernel (the node leaves, or the demo ends).

        Settings of the kernel (`ip_forward`) stay: others may rely on them by now.

        Raises:
            RuntimeFailedError: the kernel refused.
        """
        if self._nft is None:
            self._nft = open_nft()
        await self._kernel("remove the node's network", self._destroy)
        await self.close()
        log.info("node_network_destroyed")

    def _start(self, live: frozenset[ContainerID]) -> tuple[diff.Plan, ipaddress.IPv4Interface]:
        assert self._nft is not None
        links.prepare_directory(self._run)
        self._table = _read_table(self._nft)
        observed = links.observe(self._run, self._table)
        gateway = diff.decide_gateway(self._requested_pool, observed, live)
        desired = Desired(gateway=gateway, live=live)
        plan = diff.plan(desired, observed)
        _warn(observed, gateway, self._requested_pool, plan)
        for operation in plan.operations:
            log.debug("node_network_changed", operation=repr(operation))
            links.carry_out(operation, self._run, self._nft)
        self._bridge_index = links.bridge_index()
        for chain in rules.forward_obstacles(self._nft.list_json("list chains")):
            log.warning(
                "forward_chain_drops",
                chain=chain,
                remedy=f"accept packets from and to {names.BRIDGE} there, for example: iptables "
                f"-I FORWARD -o {names.BRIDGE} -j ACCEPT; iptables -I FORWARD -i {names.BRIDGE} "
                "-j ACCEPT (firewalld: firewall-cmd --zone=trusted "
                f"--add-interface={names.BRIDGE})",
            )
        self._table = _read_table(self._nft)
        return plan, gateway

    def _apply_ports(self, wanted: dict[rules.Key, PublishedPort]) -> None:
        assert self._nft is not None
        assert self._pool is not None
        try:
            self._run_port_changes(wanted)
        except NftError as error:
            # Somebody may have changed our table: compare with the kernel, once.
            log.warning("port_rules_differed", reason=error.message)
            base = rules.base(names.BRIDGE, self._pool.network)
            self._table = _read_table(self._nft)
            change = rules.base_change(base, self._table)
            if change:
                self._nft.run(change)
            self._run_port_changes(wanted)

    def _run_port_changes(self, wanted: dict[rules.Key, PublishedPort]) -> None:
        assert self._nft is not None
        try:
            for text in rules.port_changes(self._table.ports, wanted, self._table.stray):
                self._nft.run(text)
        except NftError:
            self._table = _read_table(self._nft)
            raise
        self._table = rules.TableState(exists=True, ports=wanted)

    def _destroy(self) -> None:
        assert self._nft is not None
        observed = links.observe(self._run, rules.TableState())
        bridge = observed.bridge
        gone: list[diff.Operation] = [diff.ChangeRules(rules.delete_table())]
        doomed = [link.name for link in observed.links if is_our_container_link(link)]
        if bridge is not None and is_our_bridge(bridge):
            doomed.append(bridge.name)
        gone.append(diff.DeleteLinks(tuple(doomed)))
        gone += [diff.RemoveNamespace(name) for name in sorted(observed.namespaces)]
        for operation in gone:
            links.carry_out(operation, self._run, self._nft)
        with contextlib.suppress(FileNotFoundError):
            self._run.rmdir()

    async def _detach(self, container_id: ContainerID) -> None:
        """Take part in a common removal: whoever gets the lock removes all that wait.

        An attempt that fails is the failure of the caller that made it; the others' turn comes.
        """
        self._doomed.append(container_id)
        async with self._removal_lock:
            if container_id not in self._doomed:
                return
            batch = tuple(self._doomed)
            try:
                await self._kernel(
                    f"detach container {container_id[:12]}",
                    functools.partial(links.tear_down, self._run, batch),
                )
            except BaseException:
                self._doomed.remove(container_id)
                raise
            del self._doomed[: len(batch)]
            await self._released(batch)

    async def _released(self, batch: tuple[ContainerID, ...]) -> None:
        gone = [self._attached.pop(container_id, None) for container_id in batch]
        addresses = {attachment.address for attachment in gone if attachment is not None}
        served = frozenset(
            ipaddress.IPv4Address(address) for address in addresses & self._once_published
        )
        if served:
            await self._forget(functools.partial(links.forget_connections, served))
        self._once_published -= addresses
        if self._pool is not None:
            for container_id in batch:
                self._pool.release(container_id)

    async def _forget(self, function: Callable[[], None]) -> None:
        """Delete tracked connections; not to be able to is a fault that a node can live with."""
        try:
            await _uncancelled(in_new_thread(function))
        except OSError as error:
            log.warning("connections_not_forgotten", reason=reason_of(error))

    async def _kernel(self, what: str, function: Callable[[], T]) -> T:
        """Run blocking work in a thread; it always ends before this does."""
        try:
            return await _uncancelled(in_new_thread(function))
        except OSError as error:
            raise RuntimeFailedError(
                f"cannot {what}: {error}; swarmd needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN) and a "
                "kernel with veth, bridge and nf_tables"
            ) from error

    @staticmethod
    def _has_namesake(container_id: ContainerID, pool: AddressPool) -> bool:
        name = names.link_name(container_id)
        others = (ContainerID(owner) for owner in pool.owners() if owner != container_id)
        return any(names.link_name(other) == name for other in others)

    def _note_backends(self) -> None:
        for port in self._table.ports.values():
            self._once_published.update(port.backends)

    def _started_pool(self) -> AddressPool:
        if self._pool is None:
            raise UnavailableError("the node's network is not started")
        return self._pool

    def _attachment(
        self, container_id: ContainerID, interface: ipaddress.IPv4Interface, pool: AddressPool
    ) -> Attachment:
        return Attachment(
            container_id=container_id,
            netns_path=str(self._run / container_id),
            address=str(interface.ip),
            prefix_length=interface.network.prefixlen,
            gateway=str(pool.gateway),
            mac=names.mac_of(interface.ip),
        )


class _Locks:
    """One lock for each container that a call works on."""

    def __init__(self) -> None:
        self._locks: dict[ContainerID, asyncio.Lock] = {}
        self._users: collections.Counter[ContainerID] = collections.Counter()

    @contextlib.asynccontextmanager
    async def hold(self, container_id: ContainerID) -> AsyncIterator[None]:
        """Let one call at a time work on a container; the last user takes the lock away."""
        self._users[container_id] += 1
        try:
            async with self._locks.setdefault(container_id, asyncio.Lock()):
                yield
        finally:
            self._users[container_id] -= 1
            if self._users[container_id] == 0:
                del self._users[container_id]
                del self._locks[container_id]


async def _uncancelled(work: Awaitable[T]) -> T:
    """Wait for `work` to end, even when cancelled; then raise the cancellation."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("cancelled_work_failed", reason=reason_of(error))
        raise


def _read_table(nft: Nft) -> rules.TableState:
    tables = nft.list_json("list tables ip")
    if not rules.has_table(tables):
        return rules.TableState()
    return rules.parse_table(nft.list_json(f"list table ip {rules.TABLE}"))


def _warn(
    observed: Observed, gateway: ipaddress.IPv4Interface, requested: str, plan: diff.Plan
) -> None:
    if requested and str(gateway.network) != requested:
        log.warning(
            "pool_kept",
            pool=str(gateway.network),
            requested=requested,
            remedy="containers of this node still have addresses of the former pool; "
            "drain the node and restart swarmd to change it",
        )
    for container_id in plan.adopted:
        if not observed.namespaces.get(container_id, False):
            log.warning("adopted_namespace_not_mounted", container_id=container_id)
