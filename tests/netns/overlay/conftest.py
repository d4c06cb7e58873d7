"""A node and an outside client: two network namespaces, and a mount namespace, made by the test.

A scenario is a coroutine that runs in a thread of its own whose namespaces nobody else has; they
go with it. Sockets of containers and of the client are opened in their namespaces and then used
from the scenario's one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from overlay import netns
from overlay.api import Attachment
from overlay.node import BridgeNetwork
from proto.ids import ContainerID

NODE, CLIENT = "192.0.2.1", "192.0.2.100"
_NEW_NETWORK_AND_MOUNTS = 0x40000000 | 0x00020000
_MS_PRIVATE_RECURSIVE = (1 << 18) | (1 << 14)
_SCENARIO_SECONDS_MAX = 40.0
_ANSWER_SECONDS_MAX = 5.0

Scenario = Callable[["Lab"], Awaitable[None]]


class Answer(NamedTuple):
    """What a server of the lab says of itself and of its client."""

    server: str
    client: str
    seconds: float


def in_thread(function: Callable[[], Any]) -> Any:
    """Run `function` in a thread that ends with it; what it raises is raised here."""
    box: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            box.append(function())
        except BaseException as error:  # noqa: BLE001 -- raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return box[0]


class Lab:
    """The node of one scenario, and the world around it."""

    node = NODE
    client = CLIENT

    def __init__(self, folder: Path) -> None:
        """Make the client's namespace and the link to it; the caller is on the node."""
        self.folder = folder
        self.run = folder / "netns"
        self.client_namespace = folder / "client"
        self._open: list[BridgeNetwork] = []
        in_thread(lambda: (netns.enter_new_namespace(), netns.pin(self.client_namespace)))
        self.ip("link set lo up")
        self.ip(f"link add up0 type veth peer name eth0 netns {self.client_namespace}")
        self.ip("addr add 192.0.2.1/24 dev up0")
        self.ip("link set up0 up")
        self.on_client(
            "ip link set lo up; ip addr add 192.0.2.100/24 dev eth0; ip link set eth0 up"
        )
        self.ip(f"route add default via {CLIENT}")

    @staticmethod
    def sh(command: str) -> str:
        """Run a shell command on the node."""
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @staticmethod
    def status(command: list[str]) -> int:
        """Run a program on the node and give its exit status."""
        return subprocess.run(command, check=False, timeout=20).returncode

    @staticmethod
    @contextlib.contextmanager
    def program(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Have a program run on the node for a while."""
        with subprocess.Popen(command) as running:
            try:
                yield running
            finally:
                running.kill()

    def ip(self, arguments: str) -> str:
        """Run `ip` on the node."""
        return self.sh(f"ip {arguments}")

    def on_client(self, command: str) -> str:
        """Run a shell command in the client's namespace."""
        return self.sh(f"nsenter --net={self.client_namespace} sh -c '{command}'")

    def network(self, **options: Any) -> BridgeNetwork:
        """Make a `BridgeNetwork` that is closed with the scenario."""
        network = BridgeNetwork(self.run, **options)
        self._open.append(network)
        return network

    async def close(self) -> None:
        """Remove everything."""
        for network in self._open:
            await network.close()
        last = BridgeNetwork(self.run)
        await last.destroy()

    @staticmethod
    def container(number: int) -> ContainerID:
        """Give the ID of the nth container."""
        return ContainerID(hashlib.sha256(str(number).encode()).hexdigest())

    def links(self) -> list[str]:
        """List the node's links of ours."""
        names = [line.split(": ")[1].split("@")[0] for line in self.ip("-o link").splitlines()]
        return sorted(name for name in names if name.startswith("sw") or name == "gwbr")

    def mounts(self) -> list[str]:
        """List namespaces mounted in the run directory."""
        lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
        return sorted(
            line.split()[4] for line in lines if line.split()[4].startswith(f"{self.run}/")
        )

    def files(self) -> list[str]:
        """List the run directory."""
        return sorted(path.name for path in self.run.iterdir()) if self.run.is_dir() else []

    @staticmethod
    def open_socket(where: Attachment | Path | None, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket in a container, in a namespace's file, or on the node (None)."""
        path = Path(where.netns_path) if isinstance(where, Attachment) else where

        def make() -> socket.socket:
            if path is not None:
                netns.enter_namespace(path)
            made = socket.socket(socket.AF_INET, kind, protocol)
            made.setblocking(False)
            return made

        opened = in_thread(make)
        assert isinstance(opened, socket.socket)
        return opened

    @contextlib.asynccontextmanager
    async def tcp_server(
        self, where: Attachment | Path | None, port: int, name: str, protocol: int = 0
    ) -> AsyncIterator[None]:
        """Serve: says its name and its client's address, then echoes lines until the end."""
        writers: set[asyncio.StreamWriter] = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            with contextlib.suppress(ConnectionError):
                writer.write(f"{name} {writer.get_extra_info('peername')[0]}\n".encode())
                while line := await reader.readline():
                    writer.write(line)
            writers.discard(writer)
            writer.close()

        listener = self.open_socket(where, socket.SOCK_STREAM, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))
        listener.listen(128)
        server = await asyncio.start_server(answer, sock=listener)
        try:
            yield
        finally:
            server.close()
            for writer in writers:
                writer.close()

    @contextlib.asynccontextmanager
    async def udp_server(
        self, where: Attachment | None, port: int, name: str
    ) -> AsyncIterator[None]:
        """Answer each datagram with the server's name and the client's address."""

        class Answering(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, _data: bytes, peer: tuple[str, int]) -> None:
                self.transport.sendto(f"{name} {peer[0]}\n".encode(), peer)

        opened = self.open_socket(where, socket.SOCK_DGRAM)
        opened.bind(("0.0.0.0", port))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Answering, sock=opened)
        try:
            yield
        finally:
            transport.close()
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def connection(
        self, where: Attachment | Path | None, address: str, port: int, protocol: int = 0
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect over TCP (or SCTP)."""
        opened = self.open_socket(where, socket.SOCK_STREAM, protocol)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                await asyncio.get_running_loop().sock_connect(opened, (address, port))
                reader, writer = await asyncio.open_connection(sock=opened)
        except BaseException:
            opened.close()
            raise
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(
        self, where: Attachment | Path | None, address: str, port: int, protocol: int = 0
    ) -> Answer:
        """Connect, read who answers and whom it sees."""
        begun = time.monotonic()
        async with self.connection(where, address, port, protocol) as (reader, _):
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                server, client = (await reader.readline()).decode().split()
        return Answer(server, client, time.monotonic() - begun)

    async def ask_udp(
        self,
        where: Attachment | Path | None,
        address: str,
        port: int,
        *,
        source_port: int = 0,
        seconds: float = 1.0,
    ) -> Answer:
        """Send one datagram, read who answers and whom it sees."""
        begun = time.monotonic()
        opened = self.open_socket(where, socket.SOCK_DGRAM)
        loop = asyncio.get_running_loop()
        try:
            opened.bind(("0.0.0.0", source_port))
            opened.connect((address, port))
            async with asyncio.timeout(seconds):
                await loop.sock_sendall(opened, b"?")
                server, client = (await loop.sock_recv(opened, 1000)).decode().split()
        finally:
            opened.close()
        return Answer(server, client, time.monotonic() - begun)


@pytest.fixture
def on_node(tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario on a fresh node."""
    libc = ctypes.CDLL(None, use_errno=True)

    async def play(scenario: Scenario) -> None:
        lab = Lab(tmp_path)
        try:
            async with asyncio.timeout(_SCENARIO_SECONDS_MAX):
                await scenario(lab)
        finally:
            await lab.close()

    def run(scenario: Scenario) -> None:
        if libc.unshare(_NEW_NETWORK_AND_MOUNTS) != 0:
            pytest.fail("this test needs root")
        assert libc.mount(b"none", b"/", None, _MS_PRIVATE_RECURSIVE, None) == 0
        asyncio.run(play(scenario))

    return lambda scenario: in_thread(lambda: run(scenario))
