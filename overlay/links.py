"""Reads and changes links, addresses and namespaces of the kernel: the hands of this package.

Everything here blocks for some milliseconds at most and is called in threads of its own (see
`netns.in_new_thread`). It decides nothing: `diff` and `node` do.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

import msgspec

from overlay import conntrack, diff, names, netns
from overlay import rtnetlink as rt
from overlay.desired import SETTINGS
from overlay.netlink import NetlinkError, NetlinkSocket
from overlay.nft import Nft
from overlay.observed import Observed
from overlay.rules import TableState
from proto.errors import RuntimeFailedError
from proto.ids import ContainerID

_SYSCTL = Path("/proc/sys")
_NO_IPV6 = _SYSCTL / "net/ipv6/conf/all/disable_ipv6"
_TRACKED = _SYSCTL / "net/netfilter/nf_conntrack_count"
_DIRECTORY_MODE = 0o700
# Half a second in all; after that the attachment counts nevertheless.
_CARRIER_ATTEMPTS_MAX = 500
_CARRIER_PAUSE_SECONDS = 0.001


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """What `build` makes for one container."""

    container_id: ContainerID
    namespace: Path
    interface: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address
    bridge_index: int


def observe(run: Path, table: TableState) -> Observed:
    """Read everything that `diff` compares."""
    with NetlinkSocket() as route:
        links = tuple(rt.parse_link(body) for body in route.dump(rt.list_links()))
        addresses = tuple(rt.parse_address(body) for body in route.dump(rt.list_addresses()))
        routes = [rt.parse_route(body) for body in route.dump(rt.list_routes())]
    settings: dict[str, str] = {}
    for path, _ in SETTINGS:
        with contextlib.suppress(FileNotFoundError):
            settings[path] = (_SYSCTL / path).read_text().strip()
    found = sorted(run.iterdir()) if run.is_dir() else []
    return Observed(
        links=links,
        addresses=addresses,
        routes=tuple(item for item in routes if item is not None),
        namespaces={
            path.name: netns.is_pinned(path) for path in found if names.is_namespace_name(path.name)
        },
        settings=settings,
        table=table,
    )


def prepare_directory(run: Path) -> None:
    """Make the directory of namespaces, for root only."""
    run.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)


def carry_out(operation: diff.Operation, run: Path, nft: Nft) -> None:
    """Do one operation of a plan.

    Raises:
        OSError: the kernel refused.
        NftError: the rules were refused.
    """
    match operation:
        case diff.ChangeRules(text):
            nft.run(text)
        case diff.RemoveNamespace(name):
            netns.unpin(run / name)
        case diff.WriteSetting(path, value):
            # Missing means: a kernel without IPv6 or without that module, where nothing is to do.
            with contextlib.suppress(FileNotFoundError):
                (_SYSCTL / path).write_text(value)
        case _:
            with NetlinkSocket() as route:
                _change_link(operation, route)


def _change_link(
    operation: diff.DeleteLinks
    | diff.CreateBridge
    | diff.SetAlias
    | diff.DeleteBridgeAddress
    | diff.AddBridgeAddress
    | diff.BringBridgeUp
    | diff.AttachPort,
    route: NetlinkSocket,
) -> None:
    match operation:
        case diff.DeleteLinks(doomed):
            _delete_links(route, doomed)
        case diff.CreateBridge(mac):
            route.request(rt.create_bridge(names.BRIDGE, mac))
        case diff.SetAlias(name, alias):
            route.request(rt.set_alias(name, alias))
        case diff.DeleteBridgeAddress(interface):
            route.request(rt.delete_address(_index(route, names.BRIDGE), interface))
        case diff.AddBridgeAddress(interface):
            route.request(rt.add_address(_index(route, names.BRIDGE), interface))
        case diff.BringBridgeUp():
            route.request(rt.bring_up(_index(route, names.BRIDGE)))
        case diff.AttachPort(name, alias):
            bridge = _index(route, names.BRIDGE)
            enslave = rt.enslave(name, bridge, has_ipv6=_NO_IPV6.exists())
            route.request(enslave, rt.finish_port(name, alias))
        case _:
            assert_never(operation)


def bridge_index() -> int:
    """Give the bridge's index.

    Raises:
        RuntimeFailedError: there is no bridge.
    """
    with NetlinkSocket() as route:
        return _index(route, names.BRIDGE)


def build(wiring: Wiring, after_step: Callable[[str], None]) -> None:
    """Make a container's namespace and its link to the bridge.

    To be called in a thread that ends afterwards: it stays in the container's namespace. The
    alias, which makes the attachment count after a crash, is written by the last request.

    Args:
        wiring: what to make.
        after_step: called with the name of each finished step; tests stop the process there.

    Raises:
        OSError: the kernel refused; `tear_down` removes what was made until then.
    """
    with NetlinkSocket() as host:
        _build(wiring, host, after_step)


def _build(wiring: Wiring, host: NetlinkSocket, after_step: Callable[[str], None]) -> None:
    name = names.link_name(wiring.container_id)
    netns.enter_new_namespace()
    netns.pin(wiring.namespace)
    after_step("namespace")
    # Before the link is there, so that IPv6 never begins on it.
    has_ipv6 = _NO_IPV6.exists()
    if has_ipv6:
        _NO_IPV6.write_text("1")
    namespace = netns.open_own_namespace()
    try:
        veth = rt.create_veth(
            name,
            peer=names.CONTAINER_LINK,
            peer_mac=names.mac_of(wiring.interface.ip),
            peer_namespace=namespace,
        )
        host.request(veth, rt.enslave(name, wiring.bridge_index, has_ipv6=has_ipv6))
    finally:
        os.close(namespace)
    after_step("link")
    with NetlinkSocket() as inside:
        index = _index(inside, names.CONTAINER_LINK)
        inside.request(
            rt.bring_up(rt.LOOPBACK_INDEX),
            rt.add_address(index, wiring.interface),
            rt.bring_up(index),
            rt.add_default_route(wiring.gateway, index),
        )
        after_step("inside")
        owner = names.Owner(wiring.container_id, wiring.interface)
        host.request(rt.finish_port(name, names.link_alias(owner)))
        after_step("finished")
        _wait_for_carrier((host, name), (inside, names.CONTAINER_LINK), (host, names.BRIDGE))


def _wait_for_carrier(*where: tuple[NetlinkSocket, str]) -> None:
    """Wait until packets pass; until then links drop what they get, and TCP repeats after 1 s.

    A kernel thread starts a link's queue and a bridge port's forwarding after the carrier came.
    Kernels from 6.8 do it at once for a link that is asked for, others within a few milliseconds.
    """
    for route, name in where:
        for _ in range(_CARRIER_ATTEMPTS_MAX):
            (body,) = route.request(rt.get_link(name))
            if rt.parse_link(body).is_running:
                break
            time.sleep(_CARRIER_PAUSE_SECONDS)


def tear_down(run: Path, container_ids: Sequence[ContainerID]) -> None:
    """Remove the links and namespaces of containers, whatever of them exists.

    Raises:
        OSError: the kernel refused.
    """
    with NetlinkSocket() as host:
        # The links by hand: a process that still runs in a namespace would keep its link alive.
        _delete_links(host, [names.link_name(container_id) for container_id in container_ids])
    for container_id in container_ids:
        netns.unpin(run / container_id)


def forget_connections(addresses: frozenset[ipaddress.IPv4Address]) -> None:
    """Delete the tracked connections that were translated to one of the addresses.

    Listing costs the kernel a walk over its whole table (11 ms with 262,144 buckets, even empty),
    so it is done once for all addresses, and not at all when nothing is tracked.

    Raises:
        OSError: the kernel refused.
    """
    if _TRACKED.read_text().strip() == "0":
        return
    _forget(conntrack.list_translated(), lambda entry: entry.answer_address in addresses)


def forget_untranslated(udp_ports: frozenset[int]) -> None:
    """Delete tracked UDP flows to ports that are published only now.

    Raises:
        OSError: the kernel refused.
    """
    with NetlinkSocket() as route:
        addresses = [rt.parse_address(body) for body in route.dump(rt.list_addresses())]
    local = {address.interface.ip for address in addresses}
    _forget(
        conntrack.list_protocol(socket.IPPROTO_UDP),
        lambda entry: (
            entry.protocol == socket.IPPROTO_UDP
            and entry.asked_port in udp_ports
            and entry.answer_address == entry.asked_address
            and (entry.asked_address in local or entry.asked_address.is_loopback)
        ),
    )


def _forget(listing: rt.Message, is_meant: Callable[[conntrack.Entry], bool]) -> None:
    with NetlinkSocket(conntrack.NETLINK_NETFILTER) as netfilter:
        listed = (conntrack.parse(body) for body in netfilter.dump(listing))
        deletions = [conntrack.delete(entry) for entry in listed if entry and is_meant(entry)]
        for error in netfilter.attempt(deletions):
            if error.errno != errno.ENOENT:  # it ended by itself meanwhile
                raise error


def _index(route: NetlinkSocket, name: str) -> int:
    try:
        (body,) = route.request(rt.get_link(name))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            raise RuntimeFailedError(
                f"the link {name} is gone; restart swarmd to make the node's network again"
            ) from error
        raise
    return rt.parse_link(body).index


def _delete_links(route: NetlinkSocket, doomed: Sequence[str]) -> None:
    for error in route.attempt([*(rt.doom(name) for name in doomed), rt.delete_doomed()]):
        if error.errno != errno.ENODEV:
            raise error
