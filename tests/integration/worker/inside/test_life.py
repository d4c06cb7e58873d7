"""Tasks of a real node, from their assignment to their last trace."""

import asyncio
import os
import socket
import subprocess
import time

from proto.ids import TaskID, container_id_of
from proto.logs import LogOptions
from proto.objects import NANOSECONDS, ContainerSpec, HealthConfig, Mount, PortConfig
from proto.states import TaskState

SLEEP = ContainerSpec(command=("sleep", "1000"), stop_signal="SIGKILL")
T = TaskID("t1")


def get(port: int) -> bytes:
    """Ask a published port of this node from beside the bridge."""
    address = subprocess.run(
        ["ip", "-4", "-o", "addr", "show", "gwbr"], capture_output=True, text=True, check=True
    ).stdout.split()[3].split("/")[0]  # fmt: skip
    with socket.create_connection((address, port), timeout=3) as connection:
        connection.sendall(b"GET /data/first HTTP/1.0\r\n\r\n")
        answer = b""
        while block := connection.recv(4096):
            answer += block
    return answer


async def test_service_with_everything(node, assigned, until) -> None:
    """Image, templates, volume, health check, published port, restart, drain, stop, removal."""
    spec = ContainerSpec(
        command=("sh", "-c", "echo $WHO; env; exec httpd -f -p 80 -h /"),
        env=("WHO={{.Service.Name}}-{{.Task.Slot}}@{{.Node.Hostname}}",),
        mounts=(Mount(source="content", target="/data"), Mount(target="/scratch")),
        healthcheck=HealthConfig(
            test=("CMD-SHELL", "test -f /data/first"), interval_ns=NANOSECONDS // 5
        ),
        stop_signal="SIGKILL",
    )
    ports = (PortConfig(target_port=80, published_port=8080),)
    node.manager.tasks[T] = assigned("t1", container=spec, ports=ports)
    async with node.agent() as agent:
        await until(lambda: node.manager.state(T) >= TaskState.RUNNING)
        assert node.manager.reported[T].err == ""
        assert node.manager.state(T) is TaskState.RUNNING
        lines = [r.data async for r in agent.logs(T, LogOptions())]
        assert lines[0] == b"s1-1@host1\n"
        answer = await asyncio.to_thread(get, 8080)
        assert answer.endswith(b"from the image")
        pid = node.manager.reported[T].pid
    assert os.path.exists(f"/proc/{pid}")  # noqa: PTH110 -- a process, not a file
    async with node.agent() as agent:
        await until(lambda: agent.container_counts() == (1, 0))
        assert (await asyncio.to_thread(get, 8080)).endswith(b"from the image")
        assert node.manager.reported[T].pid == pid
        node.manager.want(TaskState.SHUTDOWN, T)
        await until(lambda: node.manager.state(T) is TaskState.SHUTDOWN)
        assert node.manager.reported[T].exit_code == 137
        await until(lambda: agent.container_counts() == (0, 1))
        assert len(agent.volumes.all()) == 2
        node.manager.forget(T)
        await until(lambda: not agent._table.machines)
        assert [volume.name for volume in agent.volumes.all()] == ["content"]
        assert await node.runtime.list_containers() == []
        await agent.leave()


async def test_exit_and_failures(node, assigned, until) -> None:
    """Exit codes, a program that is not there, a mount that is not there."""
    mounts = (Mount(type="bind", source="/does/not/exist", target="/x"),)
    specs = {
        "done": ContainerSpec(command=("sh", "-c", "exit 0")),
        "seven": ContainerSpec(command=("sh", "-c", "exit 7")),
        "noprog": ContainerSpec(command=("/no/such/program",)),
        "nomount": ContainerSpec(command=("sleep", "1"), mounts=mounts),
    }
    for name, spec in specs.items():
        node.manager.tasks[TaskID(name)] = assigned(name, container=spec)
    async with node.agent() as agent:
        await until(lambda: all(node.manager.state(TaskID(n)).is_terminal for n in specs))
        reported = {n: node.manager.reported[TaskID(n)] for n in specs}
        assert reported["done"].state is TaskState.COMPLETE
        assert reported["seven"].err == "task: non-zero exit (7)"
        for name in ("noprog", "nomount"):
            assert reported[name].state in {TaskState.REJECTED, TaskState.FAILED}
            print(name, reported[name].state.name, reported[name].err)
        assert "/no/such/program" in reported["noprog"].err
        assert "/does/not/exist" in reported["nomount"].err
        await agent.leave()
        assert await node.runtime.list_containers() == []


async def test_killed_daemon_leaves_orphans_that_are_removed(node, assigned, until) -> None:
    """A container whose task is gone when the agent returns is removed; one that ended is told."""
    node.manager.tasks[T] = assigned("t1", container=SLEEP)
    gone = TaskID("t2")
    node.manager.tasks[gone] = assigned("t2", container=SLEEP, slot=2)
    async with node.agent():
        await until(lambda: node.manager.state(T) is TaskState.RUNNING)
        await until(lambda: node.manager.state(gone) is TaskState.RUNNING)
    del node.manager.tasks[gone]
    os.kill(node.manager.reported[T].pid, 9)
    async with node.agent() as agent:
        await until(lambda: node.manager.state(T) is TaskState.FAILED)
        assert node.manager.reported[T].exit_code == 137

        async def is_gone() -> bool:
            listed = await node.runtime.list_containers()
            return container_id_of(gone) not in {c.id for c in listed}

        await until(is_gone)
        await agent.leave()


async def test_many_tasks(node, assigned, until) -> None:
    """Many tasks start a few at a time and all run; the time is printed."""
    count = int(os.environ.get("SWARM_TEST_TASKS", "20"))
    for n in range(count):
        node.manager.tasks[TaskID(f"m{n}")] = assigned(f"m{n}", container=SLEEP, slot=n + 1)
    async with node.agent() as agent:
        began = time.monotonic()
        await until(
            lambda: all(
                node.manager.state(TaskID(f"m{n}")) is TaskState.RUNNING for n in range(count)
            ),
            within=60,
        )
        print(f"{count} tasks in {time.monotonic() - began:.2f} s")
        began = time.monotonic()
        await agent.leave()
        print(f"removed in {time.monotonic() - began:.2f} s")
        assert await node.runtime.list_containers() == []
