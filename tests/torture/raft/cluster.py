"""The members' processes: begun, killed, stopped, and begun again when they die by themselves."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
from authority import Authority
from checker import ACKED, REFUSED
from config import DISK_FULL_EXIT, MemberConfig, node_name
from lab import Lab
from wire import Client, Reply

HERE = Path(__file__).parent
PORT = 7400
STATUS_SECONDS_MAX = 0.5
START_SECONDS_MAX = 30.0


class Cluster:
    """One group of members, one on each host of the lab.

    Attributes:
        clients: the way to each member.
        crashes: what members that died by themselves said last.
        starts: how many processes were begun.
    """

    def __init__(self, system: str, lab: Lab, settings: dict[str, object]) -> None:
        """Prepare; nothing runs yet."""
        self.system = system
        self.lab = lab
        self.crashes: list[str] = []
        self.disk_full_exits = 0
        self.starts = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._configs: dict[int, MemberConfig] = {}
        authority = Authority()
        addresses = [f"{lab.address(host)}:{PORT}" for host in range(lab.hosts)]
        self.clients = [Client(str(self._socket(host))) for host in range(lab.hosts)]
        for host in range(lab.hosts):
            data = self.data(host)
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir()
            credentials = authority.issue(node_name(host))
            self._configs[host] = MemberConfig(
                id=host,
                addresses=addresses,
                address=addresses[host],
                directory=str(data),
                socket=str(self._socket(host)),
                hang=str(lab.hang(host)),
                certificate=credentials.certificate_pem.decode(),
                key=credentials.key_pem.decode(),
                roots=credentials.roots_pem.decode(),
                **settings,
            )
            self._log(host).unlink(missing_ok=True)

    async def found(self) -> None:
        """Begin the group: all members run, and vote."""
        if self.system == "pysyncobj":
            for host in range(self.lab.hosts):
                self.start(host)
            assert await self.wait_for_leader(START_SECONDS_MAX) is not None, self.story()
            return
        self.start(0)
        assert await self.wait_for_leader(START_SECONDS_MAX) is not None, self.story()
        for host in range(1, self.lab.hosts):
            await self.admit(host)
        async with asyncio.timeout(START_SECONDS_MAX):
            await self._wait_for_votes()

    async def _wait_for_votes(self) -> None:
        while True:
            members = (await self.status(0)).members
            if sum(votes for _, votes, _, _ in members) == self.lab.hosts:
                return
            await asyncio.sleep(0.1)

    async def change(self, change: str, host: int, seconds: float) -> Reply:
        """Ask whoever leads to change the membership, until it is done or time is up."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            leader = await self.leader()
            if leader is not None:
                client = self.clients[leader]
                reply = await client.ask("change", change=change, value=host, timeout=6.0)
                if reply.outcome == ACKED:
                    return reply
            else:
                reply = Reply(0, REFUSED, "nobody leads")
            if asyncio.get_running_loop().time() >= deadline:
                return reply
            await asyncio.sleep(0.1)

    async def admit(self, host: int) -> None:
        """Let a member with an empty disk join."""
        reply = await self.change("add", host, START_SECONDS_MAX)
        assert reply.outcome == ACKED, f"member {host} was not let in: {reply.reason}"
        self._configs[host] = msgspec.structs.replace(
            self._configs[host], how="join", member_id=reply.member_id, peers=reply.members
        )
        self.start(host)

    async def replace(self, host: int, seconds: float) -> None:
        """Take a member's disk away for good, and let it join anew under another number."""
        self.kill(host)
        await asyncio.sleep(seconds)
        reply = await self.change("remove", host, START_SECONDS_MAX)
        assert reply.outcome == ACKED, f"member {host} was not removed: {reply.reason}"
        shutil.rmtree(self.data(host))
        self.data(host).mkdir()
        await self.admit(host)

    def story(self) -> str:
        """Return what the members said last, for a person who looks for the reason."""
        logs = (self._log(host) for host in range(self.lab.hosts))
        return "\n".join(log.read_text(errors="replace")[-2_000:] for log in logs if log.exists())

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
        self._config(host).write_bytes(msgspec.json.encode(self._configs[host]))
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
                if code == DISK_FULL_EXIT:
                    self.disk_full_exits += 1
                else:
                    self._note_crash(host, code)
                self.clients[host].close()
                await asyncio.sleep(0.3)
                if self._processes.get(host) is process:
                    self.start(host)

    def _note_crash(self, host: int, code: int) -> None:
        tail = self._log(host).read_text(errors="replace")[-1_500:]
        self.crashes.append(f"member {host} ended with {code}: {tail}")

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
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            leader = await self.leader()
            if leader is not None or asyncio.get_running_loop().time() >= deadline:
                return leader
            await asyncio.sleep(0.1)
