"""Replacing a small file whole. Blocks for the disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TEMPORARY = ".new"


def replace_file(
    path: Path, data: bytes, *, mode: int = 0o600, temporary: Path | None = None
) -> None:
    """Replace a file so that a crash leaves its old or its new content; durable on return.

    Args:
        path: the file, which need not exist.
        data: its new content.
        mode: of the file.
        temporary: where the content is written first, on the same file system; beside the file if
            not given. Whatever is there is overwritten.

    Raises:
        OSError: the disk refuses. The old content stays, or, if only the last step failed, the new
            one may be there.
    """
    partial = temporary or path.with_name(path.name + TEMPORARY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with open(os.open(partial, flags, mode), "wb") as file:  # noqa: PTH123 -- a descriptor
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
