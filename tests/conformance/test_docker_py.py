"""The Python SDK of Docker."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import docker as sdk
import pytest

if TYPE_CHECKING:
    from tests.conformance.conftest import Docker

pytestmark = pytest.mark.integration


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run the blocking client beside the server's loop."""
    async with asyncio.timeout(60):
        return await asyncio.to_thread(function)


@pytest.fixture
async def client(swarm: Docker) -> AsyncIterator[Any]:
    """Connect to the served node; the SDK asks for the version at once."""
    made = await in_thread(lambda: sdk.DockerClient(base_url=f"unix://{swarm.path}", timeout=20))
    yield made
    made.close()


async def test_the_sdk_negotiates(swarm: Docker) -> None:
    """`version="auto"` settles on ours."""
    client = await in_thread(
        lambda: sdk.DockerClient(base_url=f"unix://{swarm.path}", version="auto")
    )
    assert client.api._version == "1.50"
    assert await in_thread(client.ping)
    client.close()


async def test_services_through_the_sdk(swarm: Docker, client: Any) -> None:
    """Create, list, scale, update, logs, tasks and remove."""

    def work() -> None:
        service = client.services.create(
            "local:1",
            command=["sleep", "9"],
            name="web",
            env=["A=b"],
            mode=sdk.types.ServiceMode("replicated", replicas=2),
            endpoint_spec=sdk.types.EndpointSpec(ports={8080: (80, "tcp", "ingress")}),
            resources=sdk.types.Resources(mem_limit=2**26),
            restart_policy=sdk.types.RestartPolicy(condition="any", delay=1),
            update_config=sdk.types.UpdateConfig(parallelism=2),
            mounts=[sdk.types.Mount("/data", "data")],
        )
        assert [found.name for found in client.services.list(filters={"name": "web"})] == ["web"]
        assert service.scale(3)
        service.reload()
        assert service.attrs["Spec"]["Mode"]["Replicated"]["Replicas"] == 3
        assert service.update(env=["A=c"], fetch_current_spec=True) is not None
        service.reload()
        container = service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]
        assert container["Env"] == ["A=c"]
        assert container["Image"] == "local:1"
        assert container["Mounts"][0]["Target"] == "/data"
        tasks = service.tasks(filters={"desired-state": "running"})
        assert {task["Status"]["State"] for task in tasks} == {"running"}
        output = b"".join(service.logs(stdout=True, details=False))
        assert b"stdout of 1" in output
        assert service.remove()
        with pytest.raises(sdk.errors.NotFound):
            client.services.get("web")

    await in_thread(work)
    assert swarm.backend.control().services() == []


async def test_nodes_and_swarm_through_the_sdk(client: Any) -> None:
    """Attributes come back typed as the SDK expects."""

    def work() -> None:
        (node,) = client.nodes.list(filters={"role": "manager"})
        spec = {"Role": "manager", "Availability": "drain", "Labels": {"a": "b"}}
        assert node.update(spec)
        node.reload()
        assert node.attrs["Spec"] == spec
        client.swarm.reload()
        assert client.swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
        assert client.swarm.update(rotate_worker_token=True)
        assert client.info()["Swarm"]["LocalNodeState"] == "active"

    await in_thread(work)


async def test_images_through_the_sdk(client: Any) -> None:
    """Import, tag, save, remove and load."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))

    def work() -> None:
        client.api.import_image_from_data(buffer.getvalue(), repository="mini", tag="1")
        image = client.images.get("mini:1")
        assert image.tag("mini", "2")
        data = b"".join(image.save(named=True))
        client.images.remove("mini:1")
        client.images.remove("mini:2")
        assert client.images.list() == []
        (loaded,) = client.images.load(data)
        assert loaded.id == image.id
        assert client.images.prune(filters={"dangling": False})["SpaceReclaimed"] > 0
        with pytest.raises(sdk.errors.ImageNotFound):
            client.images.get("mini:1")

    await in_thread(work)


async def test_errors_are_the_sdks(client: Any) -> None:
    """Status and sentence reach the exception."""

    def work() -> None:
        with pytest.raises(sdk.errors.APIError, match="invalid filter 'color'"):
            client.api.services(filters={"color": "red"})
        with pytest.raises(sdk.errors.APIError) as caught:
            client.containers.run("x")
        assert caught.value.status_code in {404, 501}

    await in_thread(work)
