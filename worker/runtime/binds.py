"""Sources of mounts that lie inside a volume, held fast until the container has them.

A container that has the volume may exchange any name in it at any time, and the runtime takes
paths. So the source is opened once, beneath the volume, and what was opened is bound to a path in
the container's own directory, which nobody else reaches; the runtime binds from there. Once the
container is created its mounts stand by themselves, and the paths go.

    <container's directory>/binds/<number>   a mount each
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from proto.errors import RuntimeFailedError
from worker.files import beneath
from worker.runtime import syscalls
from worker.runtime.api import ContainerMount

_DIRECTORY = "binds"
_OUTSIDE = frozenset({errno.EXDEV, errno.ELOOP})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})


def pin(mounts: Sequence[ContainerMount], directory: Path) -> list[ContainerMount]:
    """Return the mounts, those of a subpath with a source that nobody can exchange.

    Raises:
        RuntimeFailedError: a subpath leads out of its volume or does not exist.
        OSError: of the kernel.
    """
    place = directory / _DIRECTORY
    pinned = []
    for number, mount in enumerate(mounts):
        if not mount.subpath:
            pinned.append(mount)
            continue
        place.mkdir(exist_ok=True)
        target = place / str(number)
        descriptor = _opened(mount)
        try:
            _bind(descriptor, target, mount)
        finally:
            os.close(descriptor)
        pinned.append(msgspec.structs.replace(mount, source=str(target), subpath=""))
    return pinned


def unpin(directory: Path) -> None:
    """Let go of what `pin` holds for a container; nothing if that is nothing. Repeatable.

    Raises:
        RuntimeFailedError: a mount stays, so that nothing below may be deleted.
    """
    place = directory / _DIRECTORY
    if not place.is_dir():
        return
    for target in place.iterdir():
        try:
            syscalls.unmount_all(str(target))
            target.rmdir() if target.is_dir() else target.unlink()
        except OSError as error:
            raise RuntimeFailedError(
                f"the mount {target} cannot be undone: {error.strerror}"
            ) from error
    place.rmdir()


def _opened(mount: ContainerMount) -> int:
    volume = os.open(mount.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if mount.create_source:
            os.close(_made(volume, mount.subpath))
        return beneath.open_beneath(volume, mount.subpath, os.O_PATH)
    except OSError as error:
        what = f'subpath "{mount.subpath}" of the volume at {mount.source}'
        if error.errno in _OUTSIDE:
            raise RuntimeFailedError(f"{what} leads outside of the volume") from error
        if error.errno in _MISSING:
            raise RuntimeFailedError(f"{what} does not exist") from error
        raise
    finally:
        os.close(volume)


def _made(volume: int, subpath: str) -> int:
    parts = os.fsencode(subpath).split(b"/")
    return beneath.make_directories(volume, parts, beneath.make_directory, beneath.stop_at)


def _bind(descriptor: int, target: Path, mount: ContainerMount) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        target.mkdir()
    else:
        target.touch()
    flags = syscalls.MS_BIND | (syscalls.MS_REC if mount.is_recursive else 0)
    syscalls.mount(f"/proc/self/fd/{descriptor}", str(target), "", flags, "")
