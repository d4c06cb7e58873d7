"""The members' processes: begun, killed, stopped, and begun again when they die by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
from config import MemberConfig
from lab import Lab
from wire import Client, Reply

HERE = Path(__file__).parent
PORT = 7400
STATUS_SECONDS_MAX = 0.5


class Cluster:
    """One group of members, one on each host of the lab.

    Attributes:
        clients: the way to each member.
        crashes: what members that died by themselves said last.
        starts: how many processes were begun.
    """

    def __init__(self, system: str, lab: Lab, settings: dict[str, object], first: int) -> None:
        """Prepare; `first` members found the group."""
        self.system = system
        self.lab = lab
        self.crashes: list[str] = []
        self.starts = 0
        self.first = first
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._busy: set[int] = set()
        founders = [f"{lab.address(host)}:{PORT}" for host in range(first)]
        self.clients = [Client(str(self._socket(host))) for host in range(lab.hosts)]
        for host in range(lab.hosts):
            data = self.data(host)
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir()
            config = MemberConfig(
                id=host,
                addresses=founders,
                address=f"{lab.address(host)}:{PORT}",
                directory=str(data),
                socket=str(self._socket(host)),
                **settings,
            )
            self._config(host).write_bytes(msgspec.json.encode(config))
            self._log(host).unlink(missing_ok=True)

    def data(self, host: int) -> Path:
        """Return where a member stores."""
        return self.lab.disk(host) / "data"

    def _config(self, host: int) -> Path:
        return self.lab.folder / f"member{host}.json"

    def _log(self, host: int) -> Path:
        return self.lab.folder / f"member{host}.log"

    def _socket(self, host: int) -> Path:
        return self.lab.folder / f"member{host}.socket"

    @property
    def members(self) -> list[int]:
        """Those whose processes should run."""
        return sorted(self._processes)

    def start(self, host: int) -> None:
        """Begin a member's process."""
        self._socket(host).unlink(missing_ok=True)
        program = HERE / f"member_{self.system}.py"
        command = self.lab.command(host, sys.executable, program, self._config(host))
        with self._log(host).open("ab") as log:
            self._processes[host] = subprocess.Popen(command, stdout=log, stderr=log)
        self.starts += 1

    def kill(self, host: int) -> None:
        """End a member's process as a power cut would, but for the kernel's caches."""
        process = self._processes.pop(host)
        process.kill()
        process.wait(10)
        self.clients[host].close()

    def pause(self, host: int) -> None:
        """Stop a member's process."""
        self._processes[host].send_signal(signal.SIGSTOP)

    def resume(self, host: int) -> None:
        """Let it go on."""
        self._processes[host].send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End everything."""
        for host in self.members:
            self.kill(host)
        for client in self.clients:
            client.close()

    async def supervise(self) -> None:
        """Begin again what died by itself, as an init system would; never returns."""
        while True:
            await asyncio.sleep(0.2)
            for host, process in sorted(self._processes.items()):
                code = process.poll()
                if code is None:
                    continue
                tail = self._log(host).read_text(errors="replace")[-1500:]
                self.crashes.append(f"member {host} ended with {code}: {tail}")
                self.clients[host].close()
                await asyncio.sleep(0.3)
                if self._processes.get(host) is process:
                    self.start(host)

    async def status(self, host: int) -> Reply:
        """Ask a member how it is; a paused one does not answer."""
        return await self.clients[host].ask("status", timeout=STATUS_SECONDS_MAX)

    async def leader(self) -> int | None:
        """Return who leads, by the highest term that a member claims to lead."""
        replies = await asyncio.gather(*(self.status(host) for host in self.members))
        claims = [
            (reply.term, host)
            for host, reply in zip(self.members, replies, strict=False)
            if reply.is_leader
        ]
        return max(claims)[1] if claims else None

    async def wait_for_leader(self, seconds: float) -> int | None:
        """Return the leader as soon as there is one; None if none is found in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (leader := await self.leader()) is None:
                    await asyncio.sleep(0.1)
                return leader
        return None
