"""Network namespaces: made in a thread of their own, kept by a bind mount of a file.

A thread that changed its network namespace is never used again: each job gets a new thread, which
ends with the job and gives the namespace up. The main thread never moves, so that every socket the
rest of the daemon opens is in the node's namespace.

Unlinking the file after the unmount also drops the copies of the mount that other mount namespaces
may hold (the kernel detaches mounts from a removed name, since Linux 3.18), so the directory needs
no mount point with a propagation of its own and nothing keeps a namespace alive by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_OWN_NAMESPACE = b"/proc/thread-self/ns/net"
# A crash between two starts cannot stack more; the bound only keeps the loop finite.
_STACKED_MOUNTS_MAX = 16

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


async def in_new_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread that ends with it, and give back what it returns or raises.

    Cancelling the caller does not stop the thread: `uncancelled` waits for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # T may include None

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 -- raised again where it is awaited
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=run, name="swarm-netns", daemon=True).start()
    return await future


def enter_new_namespace() -> None:
    """Move the calling thread into a fresh network namespace; never the main thread.

    Raises:
        OSError: the kernel refused.
    """
    _assert_own_thread()
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")


def enter_namespace(path: Path) -> None:
    """Move the calling thread into an existing namespace; never the main thread.

    Raises:
        OSError: the file is gone or no namespace.
    """
    _assert_own_thread()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, _CLONE_NEWNET), str(path))
    finally:
        os.close(descriptor)


def open_own_namespace() -> int:
    """Open a descriptor of the calling thread's network namespace."""
    return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


def pin(path: Path) -> None:
    """Keep the calling thread's namespace under `path`.

    Raises:
        OSError: the file exists or the mount was refused.
    """
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400))
    result = _libc.mount(_OWN_NAMESPACE, os.fsencode(path), b"none", _MS_BIND, None)
    _check(result, str(path))


def unpin(path: Path) -> None:
    """Give the namespace under `path` up; nothing happens when there is none.

    Raises:
        OSError: the file could not be removed.
    """
    for _ in range(_STACKED_MOUNTS_MAX):
        if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            number = ctypes.get_errno()
            if number not in {errno.EINVAL, errno.ENOENT}:
                raise OSError(number, os.strerror(number), str(path))
            break
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def is_pinned(path: Path) -> bool:
    """Tell whether a namespace is mounted on `path`, not only an empty file left there."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def _assert_own_thread() -> None:
    assert threading.current_thread() is not threading.main_thread()


def _check(result: int, name: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
