"""Lists that are empty in this version, so that clients which only look are told the truth.

`docker inspect NAME` tries one kind of object after the other and goes on only if the answer is
404; so what cannot exist yet is "not found" when it is looked for, and "not served" (501, in
`middleware`) when it is to be made or changed.
"""

from __future__ import annotations

from aiohttp import web

from manager.httpapi.requests import backend_of, json_response
from manager.httpapi.routes.tasks import container_summaries
from proto.errors import NotFoundError, NotImplementedYetError


async def no_networks(_request: web.Request) -> web.StreamResponse:
    """List networks: none."""
    return json_response([])


async def no_plugins(_request: web.Request) -> web.StreamResponse:
    """List plugins: none."""
    return json_response([])


async def no_object(request: web.Request) -> web.StreamResponse:
    """Describe an object of a kind that there is none of."""
    kind = request.match_info["kind"]
    name = request.match_info["name"]
    raise NotFoundError(kind.removesuffix("s"), name)


async def a_container(request: web.Request) -> web.StreamResponse:
    """Say of a task's container, which `docker ps` lists, where to look instead."""
    name = request.match_info["name"].removeprefix("/")
    for one in container_summaries(request, show_all=True):
        task_name = one["Names"][0].removeprefix("/")
        if name and (one["Id"].startswith(name) or task_name == name):
            task_id = one["Labels"]["com.docker.swarm.task.id"]
            raise NotImplementedYetError(
                f"container {name} is that of task {task_name}, and this version of Swarm serves "
                f"no commands on single containers: use service logs {task_id} or "
                f"inspect --type task {task_id}"
            )
    raise NotFoundError("container", name, f"No such container: {name}")


async def none_of_the_cluster(request: web.Request) -> web.StreamResponse:
    """List secrets or configs: none, but only a manager may say so."""
    backend_of(request).control()
    return json_response([])


ROUTES = (
    ("GET", "/networks", no_networks),
    ("GET", "/plugins", no_plugins),
    ("GET", "/containers/{name:.+}/json", a_container),
    ("GET", "/{kind:plugins}/{name:.+}/json", no_object),
    ("GET", "/{kind:networks|secrets|configs}/{name}", no_object),
    ("GET", "/secrets", none_of_the_cluster),
    ("GET", "/configs", none_of_the_cluster),
)
