"""Hosts for members on one machine: namespaces, a switch between them, disks that can be full.

`enter` starts the program anew in namespaces of its own (network, mounts, processes), so nothing
of the machine's is touched and everything goes when the program ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

MARK = "SWARM_TORTURE_INSIDE"
SWITCH = "switch"
_TABLE = """
table bridge torture {
  set cut { type ifname . ifname; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname . oifname @cut drop
  }
}
"""


def enter() -> None:
    """Go on in new namespaces; returns only inside them."""
    if os.environ.get(MARK) == str(os.getpid()) or os.environ.get(MARK) == "yes":
        return
    if os.geteuid() != 0:
        sys.exit("the torture makes namespaces: run it as root")
    os.environ[MARK] = "yes"
    os.execvp(
        "unshare",
        [
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("--propagation", "private", sys.executable, *sys.argv),
        ],
    )


def run(*words: str | Path, text: str | None = None) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(
        words, input=text, text=True, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"


class Lab:
    """The hosts, numbered from 0.

    Attributes:
        folder: everything that is stored lies below it.
    """

    def __init__(self, folder: Path, hosts: int, *, disk_mib: int) -> None:
        """Make the hosts.

        All but the first have a disk in memory that `fill` makes full; that of the first is the
        folder's, so that syncs there are real ones.
        """
        self.folder = folder
        self.hosts = hosts
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", SWITCH, "type", "bridge")
        run("ip", "link", "set", SWITCH, "up")
        run("nft", "-f", "-", text=_TABLE)
        for host in range(hosts):
            self._add_host(host)
            disk = self.disk(host)
            disk.mkdir(parents=True)
            if host:
                run("mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", disk)

    def _add_host(self, host: int) -> None:
        name = f"m{host}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", SWITCH, "up")
        inside = ("ip", "-n", name)
        run(*inside, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")

    def address(self, host: int) -> str:
        """Return a host's address."""
        return f"10.99.0.{host + 1}"

    def disk(self, host: int) -> Path:
        """Return the directory that is a host's disk."""
        return self.folder / f"disk{host}"

    def command(self, host: int, *words: str | Path) -> list[str]:
        """Return the command that runs another on a host."""
        return ["nsenter", f"--net=/run/netns/m{host}", *map(str, words)]

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Drop what the first of each pair sends to the second."""
        elements = ", ".join(f'"m{source}" . "m{target}"' for source, target in pairs)
        run("nft", f"add element bridge torture cut {{ {elements} }}")

    def join(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Undo `cut`."""
        elements = ", ".join(f'"m{source}" . "m{target}"' for source, target in pairs)
        run("nft", f"delete element bridge torture cut {{ {elements} }}")

    def fill(self, host: int, spare_bytes: int) -> bool:
        """Leave only so much room on a host's disk; say whether it can be done there."""
        if host == 0:
            return False
        with (self.disk(host) / "ballast").open("ab") as file:
            # What is free shrinks while we look at it: the member writes too.
            while (free := shutil.disk_usage(self.disk(host)).free) > spare_bytes:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), file.tell(), free - spare_bytes)
                    file.seek(0, os.SEEK_END)
        return True

    def relieve(self, host: int) -> None:
        """Undo `fill`."""
        (self.disk(host) / "ballast").unlink(missing_ok=True)

    def hang(self, host: int) -> Path:
        """Return the file that makes a host's disk hang while it is there."""
        return self.folder / f"hang{host}"

    def close(self) -> None:
        """Take the disks away, so that their folder can be removed."""
        for host in range(1, self.hosts):
            run("umount", "--lazy", self.disk(host))
