"""A small image from the machine's static busybox: no registry is needed to try Swarm out."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from proto.errors import RuntimeFailedError

BUSYBOX = Path("/bin/busybox")


def make_rootfs_tar(target: Path, *, page: str = "hello from swarm\n") -> None:
    """Write a root file system as a tar: busybox with all its applets, a user, and a web page.

    Args:
        target: the file to write.
        page: the text of /www/index.html.

    Raises:
        RuntimeFailedError: there is no static busybox on this machine.
    """
    if not BUSYBOX.exists():
        raise RuntimeFailedError(f"{BUSYBOX} is missing: apt-get install busybox-static")
    listed = subprocess.run(
        [str(BUSYBOX), "--list"], capture_output=True, text=True, check=True, timeout=10
    )
    with tarfile.open(target, "w") as tar:
        for name in ("bin", "etc", "dev", "proc", "sys", "root", "www", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type = tarfile.DIRTYPE
            directory.mode = 0o1777 if name == "tmp" else 0o755
            tar.addfile(directory)
        tar.add(BUSYBOX, "bin/busybox", filter=_as_root)
        for applet in sorted(set(listed.stdout.split()) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type = tarfile.SYMTYPE
            link.linkname = "busybox"
            tar.addfile(link)
        _add_text(
            tar, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/www:/bin/sh\n"
        )
        _add_text(tar, "etc/group", "root:x:0:\nweb:x:1000:\n")
        _add_text(tar, "www/index.html", page)


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.mode = 0o755
    return info


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(text.encode()))
