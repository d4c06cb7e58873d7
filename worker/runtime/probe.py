"""Find programs that really can run containers on this machine, or say what is missing.

A version or a look at the cgroups proves little (crun 1.8 refuses a machine that has version 1
and 2 mounted together, runc does not), so each candidate creates a container and removes it, by
the very code that will do so later: 50 ms at the daemon's start. The process is not started, so
the trial needs no program that could run inside.

A full disk says nothing about a program, and must not keep the daemon from starting, or nobody
could make room by it: then the trial is made elsewhere, and if there is no room either, the first
program that is there is taken untried.

Source: crun `src/libcrun/cgroup-setup.c` for what it refuses.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from proto.clock import Clock
from proto.errors import RuntimeFailedError, reason_of
from proto.ids import ContainerID
from worker.diskspace import full_disk
from worker.files import tree
from worker.runtime import conmon, spawn
from worker.runtime.api import ContainerConfig, ContainerLimits, LogConfig, Probe
from worker.runtime.conmon import Binaries
from worker.runtime.oci import OciRuntime

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# crun first: a quarter of runc's time and memory.
CANDIDATES = ("crun", "runc")
_PIDS = 8
_VERSION_BYTES_MAX = 4096
_VERSION_SECONDS_MAX = 10.0


async def probe(
    state_dir: Path,
    *,
    spare_dir: Path | None = None,
    candidates: Sequence[str] = CANDIDATES,
    cgroup_parent: str = "/swarm",
    clock: Clock | None = None,
) -> tuple[Binaries, Probe]:
    """Choose the first candidate that works, and say why.

    Args:
        state_dir: where containers will live (`/var/lib/swarm`): the trial is on its filesystem.
        spare_dir: where it is made if that one is full.
        candidates: names of runtimes, best first.
        cgroup_parent: as the runtime will have it.
        clock: as the runtime will have it.

    Raises:
        RuntimeFailedError: none works; the sentence names each reason and the remedy.
    """
    monitor = shutil.which("conmon")
    if monitor is None:
        raise RuntimeFailedError(
            "no container can be run: conmon is not installed (apt-get install conmon)"
        )
    reasons = []
    places = [state_dir] if spare_dir is None else [state_dir, spare_dir]
    if spare_dir is not None and (full := full_disk(state_dir)):
        # It would fail, and cost time in which the managers take this node for dead.
        reasons.append(full)
        places = [spare_dir]
    untried: Binaries | None = None
    for name in candidates:
        path = shutil.which(name)
        if path is None:
            reasons.append(f"{name} is not installed (apt-get install {name})")
            continue
        binaries = Binaries(name, path, monitor, await _version(path))
        for place in places:
            refusal = await _try(binaries, place, cgroup_parent, clock)
            if refusal is None:
                return binaries, _found(binaries, reasons)
            full = full_disk(place)
            reasons.append(f"{binaries.version} refuses: {full or refusal}")
            if not full:
                break
        else:
            untried = untried or binaries
    if untried is not None:
        return untried, _untried(untried, reasons)
    reason = "no container can be run: " + "; ".join(reasons)
    log.error("runtime_missing", reason=reason)
    raise RuntimeFailedError(reason)


def _found(binaries: Binaries, reasons: Sequence[str]) -> Probe:
    sentence = f"{binaries.version} creates containers here"
    if reasons:
        sentence += "; not used: " + "; ".join(reasons)
        log.warning("runtime_chosen", runtime=binaries.runtime, reason=sentence)
    else:
        log.info("runtime_chosen", runtime=binaries.runtime, reason=sentence)
    return Probe(works=True, reason=sentence)


def _untried(binaries: Binaries, reasons: Sequence[str]) -> Probe:
    sentence = f"{binaries.version} is taken without a trial: " + "; ".join(reasons)
    log.warning("runtime_chosen", runtime=binaries.runtime, reason=sentence)
    return Probe(works=True, reason=sentence)


async def _version(path: str) -> str:
    try:
        async with asyncio.timeout(_VERSION_SECONDS_MAX):
            finished = await spawn.run(
                [path, "--version"],
                environment=conmon.environment(),
                output_bytes_max=_VERSION_BYTES_MAX,
            )
    except TimeoutError:
        return Path(path).name  # the trial says what is wrong with it
    # "crun version 1.8.1"
    first = finished.output.decode(errors="replace").partition("\n")[0].strip()
    return first.replace(" version", "") or Path(path).name


async def _try(
    binaries: Binaries, state_dir: Path, cgroup_parent: str, clock: Clock | None
) -> str | None:
    """Create and remove a container; return why that failed, or None."""
    place = state_dir / "probe"
    layer = place / "layer"
    container_id = ContainerID(
        hashlib.sha256(f"probe {binaries.name} {state_dir}".encode()).hexdigest()
    )
    try:
        layer.mkdir(parents=True, exist_ok=True, mode=0o700)
        program = layer / "probe"
        program.write_bytes(b"")
        program.chmod(0o755)
        runtime = OciRuntime(
            place / "containers", place, binaries, cgroup_parent=cgroup_parent, clock=clock
        )
    except (OSError, RuntimeFailedError) as error:
        _clear(place)
        return str(error)
    try:
        await runtime.remove(container_id)
        await runtime.create(
            ContainerConfig(
                id=container_id,
                name="probe",
                layers=(str(layer),),
                argv=("/probe",),
                limits=ContainerLimits(pids=_PIDS),
                log=LogConfig(driver="none"),
            )
        )
        await runtime.remove(container_id)
    except RuntimeFailedError as error:
        return error.message
    finally:
        await runtime.close()
        # Not the container's directory, if it could not be removed: something is mounted there.
        if not (place / "containers" / container_id).exists():
            _clear(place)
    return None


def _clear(place: Path) -> None:
    """Remove what the trial made; whatever stays is removed by the next."""
    try:
        tree.remove(place)
    except OSError as error:
        log.warning("trial_not_removed", path=str(place), error=reason_of(error))
