"""The container's root: an overlay of the image's layers with a writable layer of its own.

Mounted with mount(2) itself, no program. What is made inside (working directory, first content of
volumes) is reached by descriptors that cannot leave the root, whatever links the image holds.
Everything here blocks and is called from a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from proto.errors import RuntimeFailedError
from worker.files import beneath, filling
from worker.runtime import syscalls
from worker.runtime.api import ContainerMount

# A writable layer is deleted with its container and never mounted a second time, so nothing is
# gained by syncing it: without this, unmounting syncs the whole filesystem below.
_VOLATILE = ",volatile"
# The kernel copies the options of mount(2) into one page, with a final zero.
_OPTIONS_BYTES_MAX = os.sysconf("SC_PAGESIZE") - 1 - len(_VOLATILE)


def mount(layers: Sequence[str], directory: Path) -> None:
    """Mount `layers` (lowest first) at `directory/rootfs`, changes going to `directory/upper`.

    Raises:
        RuntimeFailedError: a layer is missing, or the kernel refuses.
    """
    if not layers:
        raise RuntimeFailedError("the image has no layers: its unpacked content is missing")
    for name in ("upper", "work", "rootfs"):
        (directory / name).mkdir(exist_ok=True)
    # The root of the merged view takes its mode and owner from the upper directory.
    _copy_attributes(layers, directory / "upper")
    with contextlib.ExitStack() as stack:
        options = overlay_options(layers, directory)
        if len(options.encode()) > _OPTIONS_BYTES_MAX:
            short = []
            for layer in layers:
                descriptor = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                short.append(f"/proc/self/fd/{descriptor}")
            options = overlay_options(short, directory)
        try:
            _mount_overlay(str(directory / "rootfs"), options)
        except OSError as error:
            raise RuntimeFailedError(_mount_sentence(error, layers, directory)) from error


def _mount_overlay(target: str, options: str) -> None:
    try:
        syscalls.mount("overlay", target, "overlay", 0, options + _VOLATILE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A kernel before 5.10 knows no such option.
        syscalls.mount("overlay", target, "overlay", 0, options)


def overlay_options(layers: Sequence[str], directory: Path) -> str:
    """Return the options of the overlay; the kernel wants the highest layer first.

    Without `index` a directory may serve as layer in many mounts at once.
    """
    lower = ":".join(_escaped(layer) for layer in reversed(layers))
    upper, work = _escaped(str(directory / "upper")), _escaped(str(directory / "work"))
    return f"lowerdir={lower},upperdir={upper},workdir={work},index=off"


def _escaped(path: str) -> str:
    for character in ("\\", ":", ","):
        path = path.replace(character, "\\" + character)
    return path


def _copy_attributes(layers: Sequence[str], upper: Path) -> None:
    try:
        top = Path(layers[-1]).stat()
    except FileNotFoundError as error:
        raise RuntimeFailedError(
            f"the image's layer {layers[-1]} is missing; remove the image and pull it again"
        ) from error
    os.chown(upper, top.st_uid, top.st_gid)
    upper.chmod(stat.S_IMODE(top.st_mode))


def _mount_sentence(error: OSError, layers: Sequence[str], directory: Path) -> str:
    for layer in layers:
        if not Path(layer).is_dir():
            return f"the image's layer {layer} is missing; remove the image and pull it again"
    hint = {
        errno.EINVAL: f"; the filesystem of {directory} must be able to hold an overlay's upper"
        " directory (ext4, xfs, btrfs, tmpfs can; an overlay cannot)",
        errno.ENODEV: "; the kernel has no overlayfs (modprobe overlay)",
        errno.EPERM: "; the daemon must be root in the machine's user namespace",
    }.get(error.errno or 0, "")
    return f"the container's root cannot be mounted: {error.strerror}{hint}"


def unmount(directory: Path) -> None:
    """Unmount `directory/rootfs` however often it is mounted; nothing if it is not.

    Raises:
        RuntimeFailedError: it stays mounted, so nothing below may be deleted.
    """
    target = str(directory / "rootfs")
    try:
        syscalls.unmount_all(target)
    except OSError as error:
        raise RuntimeFailedError(
            f"the container's root {target} cannot be unmounted: {error.strerror}"
        ) from error


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Give a descriptor of the mounted root."""
    descriptor = os.open(directory / "rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ensure_directory(root_fd: int, path: str) -> None:
    """Make a directory of the container and its parents, owned by root, if they are missing.

    Raises:
        RuntimeFailedError: something else has that name; the sentence is Docker's.
    """
    if path in {"", "/"}:
        return
    try:
        found = beneath.open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        found = _made(root_fd, path)
    except NotADirectoryError as error:
        raise _no_directory(path) from error
    os.close(found)


def _made(root_fd: int, path: str) -> int:
    parts = os.fsencode(path).split(b"/")
    try:
        return beneath.make_directories(root_fd, parts, beneath.make_directory, beneath.stop_at)
    except NotADirectoryError as error:
        raise _no_directory(path) from error


def _no_directory(path: str) -> RuntimeFailedError:
    return RuntimeFailedError(f"Cannot mkdir: {path} is not a directory")


def fill_volume(root_fd: int, mount: ContainerMount, after_step: Callable[[str], None]) -> None:
    """Give an empty volume what the image has at its target, owners and modes included.

    Raises:
        RuntimeFailedError: the copy fails; the next container of the volume goes on with it.
    """
    assert mount.fill_record
    with contextlib.ExitStack() as stack:
        content = _content_of(root_fd, mount.target)
        if content is not None:
            stack.callback(os.close, content)
        try:
            volume = os.open(mount.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, volume)
            filling.fill(content, volume, Path(mount.fill_record), after_step)
        except OSError as error:
            raise RuntimeFailedError(
                f"the image's content of {mount.target} cannot be copied to the volume at"
                f" {mount.source}: {error.strerror or error}"
                + (f": {error.filename}" if error.filename else "")
            ) from error


def _content_of(root_fd: int, target: str) -> int | None:
    try:
        return beneath.open_in_root(root_fd, target, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise
