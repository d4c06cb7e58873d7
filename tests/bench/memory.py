"""What a node costs in memory, and what a large store costs at a restart.

Prints one JSON line. `daemon_mib`: resident memory of an idle swarmd after `swarm init`.
`per_task_mib`: for a hundred running containers, the growth of swarmd plus the proportional share
(PSS) of every process that is neither swarmd nor inside a container, a container. `restore_s`:
opening the store with 10,000 services and 100,000 running tasks, key ring, snapshot, log and
indexes. `log_bytes_per_task`: what the log grew by for the whole way of one task to RUNNING,
snapshots left out.
"""

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

TASKS = 100
SERVICES_STORED = 10_000
TASKS_STORED = 100_000
MEASURED_SERVICES = 200
RESTARTS = 3


def memory_kib(pid, field):
    name = "smaps_rollup" if field == "Pss" else "status"
    try:
        text = Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        if line.startswith((f"{field}:", f"Vm{field}:")):
            return int(line.split()[1])
    return 0


def monitors():
    """PIDs of the processes that the node runs beside containers' own."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            comm = Path(entry.path, "comm")
            try:
                if comm.read_text().strip() in {"conmon", "crun", "runc"}:
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def inside(path, pid):
    sys.path.insert(0, str(Path(__file__).parent))
    from start import Api, running, spec, wait

    api = Api(path)
    time.sleep(2)
    idle = memory_kib(pid, "RSS")
    api("POST", "/services/create", spec("many", TASKS))
    wait(lambda: running(api, "many") == TASKS, 0.1)
    time.sleep(2)
    grown = memory_kib(pid, "RSS")
    beside = sum(memory_kib(monitor, "Pss") for monitor in monitors())
    api("DELETE", "/services/many")
    wait(lambda: not api("GET", "/tasks"), 0.1)
    print(
        json.dumps(
            {
                "daemon_mib": round(idle / 1024, 1),
                "per_task_mib": round((grown - idle + beside) / 1024 / TASKS, 2),
                "daemon_growth_mib": round((grown - idle) / 1024, 1),
            }
        )
    )


def node_figures():
    from manager.lab.host import HOST_ADDRESS, Host
    from manager.lab.image import make_rootfs_tar

    host = Host("bench", Path(tempfile.mkdtemp(prefix="swarm-bench-")))
    try:
        host.start()
        archive = host.root / "rootfs.tar"
        make_rootfs_tar(archive)
        host.start_daemon()
        host.exec("swarm", "init", "--advertise-addr", HOST_ADDRESS)
        host.exec("swarm", "image", "import", str(archive), "bench:1")
        # Importing the image is not what an idle daemon does: measure a fresh one.
        host.kill_daemon("TERM")
        host.start_daemon()
        arguments = (sys.executable, __file__, "--inside", str(host.socket), str(host.daemon_pid))
        return json.loads(host.exec(*arguments, timeout=600).stdout)
    finally:
        host.stop()


async def fill(directory):
    """Take 100,000 tasks through the whole way to RUNNING; returns the log's bytes for a task."""
    from manager.controlapi.ports import allocate_ports
    from manager.daemon.membership import Membership, NewCluster
    from manager.dispatcher.statuses import write_status
    from manager.orchestrator.loop import state_of, write
    from manager.orchestrator.nodes import Nodes
    from manager.orchestrator.step import step
    from proto.assignments import StatusUpdate
    from proto.clock import SystemClock
    from proto.ids import ServiceID, new_id
    from proto.objects import (
        ClusterSpec,
        ContainerSpec,
        NodeAvailability,
        NodeDescription,
        NodeState,
        NodeStatus,
        ReplicatedMode,
        Service,
        ServiceSpec,
        ServiceSpecVersion,
        TaskSpec,
        TaskStatus,
        spec_version_id,
    )
    from proto.states import TaskState
    from scheduler import Needs, Usage

    rng, clock = random.Random(7), SystemClock()
    new = NewCluster(
        spec=ClusterSpec(),
        availability=NodeAvailability.ACTIVE,
        description=NodeDescription(hostname="bench"),
        advertise_addr="127.0.0.1:2377",
        default_address_pool=("10.0.0.0/8",),
        subnet_size=24,
        data_path_port=4789,
    )
    membership, founding = await Membership.create(directory, new, clock=clock, rng=rng)
    node_id, store = founding.node_id, membership.store
    per_service = TASKS_STORED // SERVICES_STORED

    def be_ready(tx):
        node = tx.nodes.get(node_id)
        tx.update(msgspec.structs.replace(node, status=NodeStatus(state=NodeState.READY)))

    await store.update(be_ready)
    usage = Usage((), lambda _task: Needs())
    service_ids = [ServiceID(new_id(rng)) for _ in range(SERVICES_STORED)]

    def make_service(tx, index):
        spec = ServiceSpec(
            name=f"service-{index}",
            task=TaskSpec(container=ContainerSpec(image="web:1", env=(f"INDEX={index}",))),
            mode=ReplicatedMode(replicas=per_service),
        )
        tx.create(Service(id=service_ids[index], spec=spec, spec_version=1))
        tx.create(
            ServiceSpecVersion(
                id=spec_version_id(service_ids[index], 1),
                service_id=service_ids[index],
                spec_version=1,
                spec=spec,
            )
        )

    await store.batch(range(SERVICES_STORED), make_service)
    nodes = Nodes(store.view().nodes)

    async def run_service(service_id, *, one_by_one):
        plan = step(
            state_of(store.view(), service_id),
            nodes=nodes,
            usage=usage,
            history_limit=5,
            now=clock.wall(),
            rng=rng,
        )
        await store.update(lambda tx: write(tx, plan, allocate_ports=allocate_ports))
        # As the agent reports when it is not overwhelmed: three reports a task, one task each.
        for state in (TaskState.PREPARING, TaskState.STARTING, TaskState.RUNNING):
            futures = []
            for task in plan.created:
                status = TaskStatus(
                    state=state,
                    timestamp=clock.wall(),
                    message=state.name.lower(),
                    container_id=f"{rng.getrandbits(256):064x}" if state > 384 else "",
                    pid=rng.randrange(2**22) if state is TaskState.RUNNING else 0,
                )
                update = StatusUpdate(task.id, status)
                future = store.update(lambda tx, update=update: write_status(tx, node_id, update))
                if one_by_one:
                    await future
                futures.append(future)
            await asyncio.gather(*futures)

    # The log on the disk, while every report is an entry in a record of its own and no snapshot
    # comes between.
    await store.save_snapshot()
    before = bytes_of(directory)
    for service_id in service_ids[:MEASURED_SERVICES]:
        await run_service(service_id, one_by_one=True)
    grown = bytes_of(directory) - before
    for service_id in service_ids[MEASURED_SERVICES:]:
        await run_service(service_id, one_by_one=False)
    assert len(store.view().tasks) == TASKS_STORED
    await membership.close()
    return grown / (MEASURED_SERVICES * per_service)


def bytes_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*.wal"))


async def restore(directory):
    from manager.daemon.membership import Membership
    from proto.clock import SystemClock

    started = time.perf_counter()
    membership = await Membership.open(
        directory, None, clock=SystemClock(), rng=random.SystemRandom()
    )
    elapsed = time.perf_counter() - started
    assert len(membership.store.view().tasks) == TASKS_STORED
    assert len(membership.store.view().services) == SERVICES_STORED
    await membership.close()
    return elapsed


def main():
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    figures = {"name": "memory", **node_figures()}
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as root:
        directory = Path(root, "raft")
        figures["log_bytes_per_task"] = round(asyncio.run(fill(directory)))
        times = []
        for _ in range(RESTARTS):
            # A process of its own each time: a restart finds an empty heap.
            import subprocess

            done = subprocess.run(
                [sys.executable, __file__, "--restore", str(directory)],
                check=True,
                capture_output=True,
                text=True,
            )
            times.append(float(done.stdout.split()[-1]))
        figures["restore_s"] = round(statistics.median(times), 2)
    figures["load"] = round(os.getloadavg()[0], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--restore"]:
        print(asyncio.run(restore(Path(sys.argv[2]))))
    else:
        main()
