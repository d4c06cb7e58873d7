"""/swarm: the cluster as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from manager.ca.rootchange import NewRoot
from manager.httpapi.backend import InitRequest, JoinRequest
from manager.httpapi.convert.node import availability_of
from manager.httpapi.convert.swarm import (
    cluster_spec_from,
    new_root_from,
    refuse_rotation,
    swarm_to_json,
)
from manager.httpapi.convert.wire import WireCluster, WireInit, WireJoin, WireUnlock, decoded
from manager.httpapi.repeats import settle_update
from manager.httpapi.requests import (
    attempt_of,
    backend_of,
    flag,
    json_body,
    json_response,
    version_of,
)
from proto.errors import InvalidError, SequenceConflictError
from proto.objects import ClusterSpec

T = TypeVar("T")


async def inspect(request: web.Request) -> web.StreamResponse:
    """Describe the cluster, join tokens and all."""
    return json_response(swarm_to_json(backend_of(request).control().cluster()))


async def init(request: web.Request) -> web.StreamResponse:
    """Begin a cluster."""
    wire = decoded(await json_body(request), WireInit)
    refuse_rotation(wire.spec.ca_config)
    spec = cluster_spec_from(wire.spec, ClusterSpec())
    # The lock is asked for in the spec; an older place beside it counts too.
    auto_lock = spec.auto_lock_managers or wire.auto_lock_managers
    node_id = await _to_the_end(
        backend_of(request).swarm_init(
            InitRequest(
                listen_addr=wire.listen_addr,
                advertise_addr=wire.advertise_addr,
                data_path_addr=wire.data_path_addr,
                data_path_port=wire.data_path_port,
                default_addr_pool=wire.default_addr_pool,
                subnet_size=wire.subnet_size,
                force_new_cluster=wire.force_new_cluster,
                auto_lock=auto_lock,
                availability=availability_of(wire.availability),
                spec=msgspec.structs.replace(spec, auto_lock_managers=auto_lock),
            )
        )
    )
    return json_response(node_id)


async def join(request: web.Request) -> web.StreamResponse:
    """Join a cluster that exists."""
    wire = decoded(await json_body(request), WireJoin)
    await _to_the_end(
        backend_of(request).swarm_join(
            JoinRequest(
                listen_addr=wire.listen_addr,
                advertise_addr=wire.advertise_addr,
                data_path_addr=wire.data_path_addr,
                remote_addrs=wire.remote_addrs,
                join_token=wire.join_token,
                availability=availability_of(wire.availability),
            )
        )
    )
    return web.Response()


async def leave(request: web.Request) -> web.StreamResponse:
    """Leave the cluster."""
    await _to_the_end(backend_of(request).swarm_leave(force=flag(request, "force")))
    return web.Response()


async def update(request: web.Request) -> web.StreamResponse:
    """Change the cluster's spec, and rotate its root, tokens and unlock key where asked."""
    control = backend_of(request).control()
    version = version_of(request, "swarm")
    wire = decoded(await json_body(request), WireCluster)
    spec = cluster_spec_from(wire, control.cluster().spec)
    new_root = new_root_from(wire.ca_config)
    try:
        await control.update_cluster(
            version,
            spec,
            rotate_worker_token=flag(request, "rotateWorkerToken"),
            rotate_manager_token=flag(request, "rotateManagerToken"),
            rotate_unlock_key=flag(request, "rotateManagerUnlockKey"),
            new_root=new_root,
        )
    except SequenceConflictError as error:
        if not attempt_of(request).is_repeat:
            raise
        found = control.cluster()
        settle_update(
            error,
            given=version,
            committed=found.version,
            # A new root is not in the spec, so whether it was begun cannot be seen there.
            is_wanted=new_root == NewRoot() and found.spec == spec,
        )
    return web.Response()


async def unlock_key(request: web.Request) -> web.StreamResponse:
    """Tell the key that unlocks managers; "" when they are not locked."""
    return json_response({"UnlockKey": backend_of(request).swarm_unlock_key()})


async def unlock(request: web.Request) -> web.StreamResponse:
    """Unlock this manager."""
    key = decoded(await json_body(request), WireUnlock).unlock_key
    if not key:
        raise InvalidError("the unlock key is empty: give the one of `swarm unlock-key`")
    await _to_the_end(backend_of(request).swarm_unlock(key))
    return web.Response()


_running: set[asyncio.Task[Any]] = set()


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await work of several steps, which goes on though the client goes away in between."""
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return await asyncio.shield(task)


ROUTES = (
    ("GET", "/swarm", inspect),
    ("POST", "/swarm/init", init),
    ("POST", "/swarm/join", join),
    ("POST", "/swarm/leave", leave),
    ("POST", "/swarm/update", update),
    ("GET", "/swarm/unlockkey", unlock_key),
    ("POST", "/swarm/unlock", unlock),
)
