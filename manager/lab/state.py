"""What is remembered of a lab between commands: names, addresses, processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from disk.replace import replace_file
from manager.lab.processes import ProcessRef
from proto.errors import InvalidError, NotFoundError, UnavailableError

NAME_LENGTH_MAX = 16
HOSTS_MAX = 200
_NAME = re.compile(r"[a-z][a-z0-9-]*")


class HostState(msgspec.Struct, frozen=True):
    """One host; `init` is None while its power is cut."""

    name: str
    role: str
    address: str
    init: ProcessRef | None = None


class LabState(msgspec.Struct, frozen=True):
    """One lab; `daemon_options` are what every `swarmd` of it is started with."""

    name: str
    hosts: tuple[HostState, ...]
    switch: ProcessRef | None = None
    daemon_options: tuple[str, ...] = ()

    def host(self, name: str) -> HostState:
        """Find a host.

        Raises:
            NotFoundError: there is none of that name; the sentence lists those there are.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise NotFoundError("host", name, f"lab {self.name} has no host {name}; it has {names}")

    @property
    def is_alive(self) -> bool:
        """Tell whether anything of it runs."""
        inits = [host.init for host in self.hosts]
        return any(process is not None and process.is_alive for process in (self.switch, *inits))


def plan(name: str, managers: int, workers: int) -> LabState:
    """Name and number the hosts of a new lab: m1 … from 10.77.0.1, the workers w1 … behind them.

    Raises:
        InvalidError: the name or a number cannot be.
    """
    check_name(name)
    if managers < 1:
        raise InvalidError("a lab needs at least one manager (--managers)")
    if workers < 0 or managers + workers > HOSTS_MAX:
        raise InvalidError(f"a lab has at most {HOSTS_MAX} hosts, managers and workers together")
    names = [(f"m{number}", "manager") for number in range(1, managers + 1)]
    names += [(f"w{number}", "worker") for number in range(1, workers + 1)]
    return LabState(
        name,
        tuple(
            HostState(host, role, f"10.77.0.{number}")
            for number, (host, role) in enumerate(names, 1)
        ),
    )


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a lab.

    Raises:
        InvalidError: it cannot.
    """
    if not _NAME.fullmatch(name) or len(name) > NAME_LENGTH_MAX:
        raise InvalidError(
            f"{name!r} cannot name a lab: use lower-case letters, digits and -, beginning with a "
            f"letter, {NAME_LENGTH_MAX} at most"
        )


class LabFiles:
    """Where labs are kept: `run` is forgotten when the machine restarts, `data` is not."""

    def __init__(
        self, run: Path = Path("/run/swarm-lab"), data: Path = Path("/var/lib/swarm-lab")
    ) -> None:
        """Choose other directories than a machine's own only in tests."""
        self._run = run
        self._data = data

    def data(self, name: str) -> Path:
        """Return the directory of the hosts' disks and logs."""
        return self._data / name

    def names(self) -> list[str]:
        """List the labs of which anything is stored."""
        found = {
            path.name
            for top in (self._run, self._data)
            if top.is_dir()
            for path in top.iterdir()
            if path.is_dir()
        }
        return sorted(found)

    def load(self, name: str) -> LabState | None:
        """Read a lab's state, None if there is none that can be read."""
        try:
            return msgspec.json.decode((self._run / name / "lab.json").read_bytes(), type=LabState)
        except (FileNotFoundError, msgspec.DecodeError):
            # A state that was never written whole is one of a lab that never came up.
            return None

    def save(self, state: LabState) -> None:
        """Write a lab's state, whole or not at all."""
        path = self._run / state.name / "lab.json"
        replace_file(path, msgspec.json.format(msgspec.json.encode(state)), mode=0o644)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep other commands from changing the lab meanwhile.

        Raises:
            UnavailableError: another command is changing it now.
        """
        check_name(name)
        handle = self._lock(self._run / name)
        try:
            yield
        finally:
            os.close(handle)

    @staticmethod
    def _lock(directory: Path) -> int:
        while True:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(handle)
                raise UnavailableError(
                    f"another command is changing lab {directory.name} now; wait until it has ended"
                ) from error
            if _is_at(handle, directory):
                return handle
            os.close(handle)  # it was removed between the two

    def forget(self, name: str) -> None:
        """Remove the lab's state, and the directory of states after the last."""
        directory = self._run / name
        for path in directory.glob("*"):
            path.unlink()
        for path in (directory, self._run, self._data):
            with contextlib.suppress(OSError):  # not there, or others are in it
                path.rmdir()


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
