"""The switch between hosts: a bridge in a network namespace that holds nothing else.

The namespace also stands for the world outside: its own address is the hosts' gateway, and a
program in it is a client on another machine. A cut drops frames between two ports on their way
through the bridge, so nobody is told: what was on its way in a TCP connection just stops.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from manager.lab.processes import ProcessRef, command_name, run, spawn, wait_for
from proto.errors import RuntimeFailedError

CLIENT_ADDRESS = "10.77.0.254"
PREFIX_BITS = 24
_NAME_LENGTH_MAX = 15  # of a link, IFNAMSIZ

# The bridge's own traffic through the machine's packet filter is the one switch that a namespace
# inherits from the kernel's defaults; some kernels have no such filter.
_SETUP = f"""
set -e
ip -batch - <<END
link set lo up
link add switch type bridge stp_state 0 forward_delay 0 mcast_snooping 0
addr add {CLIENT_ADDRESS}/{PREFIX_BITS} dev switch
link set switch up
END
for file in iptables ip6tables arptables; do
  file=/proc/sys/net/bridge/bridge-nf-call-$file
  if [ -e $file ]; then echo 0 > $file; fi
done
nft -f - <<END
table bridge lab {{
  set cuts {{ type ifname . ifname; }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname . oifname @cuts drop
  }}
}}
END
exec sleep infinity
"""


class Switch:
    """A bridge, held by a process that sleeps.

    Args:
        holder: that process, if the switch is there already.
        mark: for finding the process when whoever started it is gone.
        dies_with_us: whether it ends with this program.
    """

    def __init__(
        self, holder: ProcessRef | None = None, *, mark: str = "", dies_with_us: bool = True
    ) -> None:
        self.holder = holder
        self._mark = mark
        self._dies_with_us = dies_with_us
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Make the namespace and the bridge; `log` gets what goes wrong."""
        with log.open("ab") as output:
            process = spawn(
                ["unshare", "--net", "sh", "-c", _SETUP],
                mark=self._mark,
                dies_with_us=self._dies_with_us,
                output=output,
            )
        self._process = process

        def is_ready() -> bool:
            if process.poll() is not None:
                said = log.read_text(errors="replace").strip()
                raise RuntimeFailedError(f"the switch could not be made: {said[-1000:]}")
            return command_name(process.pid) == "sleep"

        wait_for(is_ready, "the switch could not be made in time")
        self.holder = ProcessRef.of(process.pid)

    def stop(self) -> None:
        """Take everything of it away."""
        if self.holder is not None:
            holder = self.holder
            holder.kill()
            wait_for(lambda: not holder.is_alive, "the switch does not end")
        elif self._process is not None:
            self._process.kill()
        if self._process is not None:
            self._process.wait()
        self.holder = self._process = None

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        assert self.holder is not None, "the switch is there"
        return self.holder.pid

    def enter(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in the switch's network."""
        return ["nsenter", "-t", str(self.pid), "-n", "--", *command]

    def _ip(self, *lines: str) -> None:
        run(self.enter(["ip", "-batch", "-"]), "\n".join(lines) + "\n")

    def attach(self, name: str, init_pid: int, address: str) -> None:
        """Give a host a link `eth0` with its address, the switch its other end.

        The hardware address follows from the other, as a machine keeps its card over a restart.
        """
        self.detach(name)
        port = name[:_NAME_LENGTH_MAX]
        hardware = "02:4c" + "".join(f":{int(part):02x}" for part in address.split("."))
        self._ip(
            f"link add {port} type veth peer name eth0 address {hardware} netns {init_pid}",
            f"link set {port} master switch up",
        )
        run(
            ["nsenter", "-t", str(init_pid), "-n", "ip", "-batch", "-"],
            "link set lo up\n"
            f"addr add {address}/{PREFIX_BITS} dev eth0\n"
            "link set eth0 up\n"
            f"route add default via {CLIENT_ADDRESS}\n",
        )

    def detach(self, name: str) -> None:
        """Take a host's link away, if it has one."""
        port = name[:_NAME_LENGTH_MAX]
        if port in self.ports():
            self._ip(f"link del {port}")

    def ports(self) -> set[str]:
        """Name the links."""
        lines = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()
        return {line.split(":")[0].strip() for line in lines if ":" in line}

    def cuts(self) -> set[tuple[str, str]]:
        """Return the pairs that are cut, both directions."""
        listed = run(self.enter(["nft", "-j", "list", "set", "bridge", "lab", "cuts"]))
        for item in json.loads(listed)["nftables"]:
            if "set" in item:
                elements = item["set"].get("elem", [])
                return {(element["concat"][0], element["concat"][1]) for element in elements}
        raise RuntimeFailedError("the switch has lost its table of cuts")

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Drop what either of a pair sends to the other; those already cut stay so."""
        self._change("add", _both_ways(pairs))

    def heal(self, pairs: Iterable[tuple[str, str]] | None = None) -> None:
        """Undo the cuts of these pairs, or all."""
        cuts = self.cuts()
        self._change("delete", cuts if pairs is None else cuts & _both_ways(pairs))

    def _change(self, verb: str, pairs: Iterable[tuple[str, str]]) -> None:
        elements = ", ".join(f'"{one}" . "{other}"' for one, other in sorted(pairs))
        if elements:
            run(self.enter(["nft", f"{verb} element bridge lab cuts {{ {elements} }}"]))


def _both_ways(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    return {way for one, other in pairs for way in ((one, other), (other, one))}
