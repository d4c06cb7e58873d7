"""Tells whether a disk is full, and says so: one answer and one sentence for the whole worker."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})

# Less than this is none: a container's own files take a few hundred kilobytes.
FREE_BYTES_MIN = 1024 * 1024


def full_disk(directory: Path) -> str:
    """Return a sentence if the file system of `directory` is full; "" otherwise.

    What is left is as `df` has it: root may have a reserve beyond that, of which no file system
    tells how much it can really use.

    A directory that is missing or cannot be asked about is not full: whoever uses it says what is
    wrong with it. The sentence has no numbers: it changes only when the answer does.
    """
    try:
        found = os.statvfs(directory)
    except OSError:
        return ""
    # File systems that make room for names as they need it say that they have none in all.
    has_names = not found.f_files or found.f_ffree > 0
    if found.f_bavail * found.f_frsize >= FREE_BYTES_MIN and has_names:
        return ""
    what = "is full" if has_names else "has no room for more files"
    return (
        f"the disk of {directory} {what}: remove what is not needed (docker image prune, docker "
        "volume prune) or give it a larger disk; running tasks go on"
    )
