"""A lab: hosts on a switch that live on after the command that made them.

What is remembered lies in /run/swarm-lab/NAME, the hosts' disks and logs are in
/var/lib/swarm-lab/NAME. Every process that holds a namespace bears the lab's name in its
environment, so that `down` also finds what a killed `up` had no time to note.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from manager.lab.cgroups import named, remove_cgroup
from manager.lab.formation import Member, form
from manager.lab.host import Host, path_inside
from manager.lab.processes import ProcessRef, marked, marks, wait_for
from manager.lab.state import LabFiles, LabState, check_name, plan
from manager.lab.switch import Switch
from proto.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from worker.files import tree

# The program, and the package that brings it.
_TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "tini": "tini",
    "conmon": "conmon",
    "skopeo": "skopeo",
}
_RUNTIMES = ("crun", "runc")


def check_machine(*, is_root: bool, find: Callable[[str], str | None]) -> None:
    """Say what this machine lacks for a lab.

    Raises:
        UnavailableError: the user is not root, or a program is missing.
    """
    if not is_root:
        raise UnavailableError("only root can make namespaces; run swarm lab as root (sudo)")
    if find("swarmd") is None:
        raise UnavailableError("swarmd is not installed beside swarm; install the whole package")
    absent = {package for tool, package in _TOOLS.items() if find(tool) is None}
    if all(find(tool) is None for tool in _RUNTIMES):
        absent.add(_RUNTIMES[0])
    if absent:
        packages = " ".join(sorted(absent))
        raise UnavailableError(
            f"programs are missing: apt-get install --no-install-recommends {packages}"
        )


class Lab:
    """One lab by name."""

    def __init__(self, name: str, files: LabFiles | None = None) -> None:
        """Name it; nothing is looked at yet."""
        check_name(name)
        self.name = name
        self._files = files or LabFiles()
        # Handles of processes that this program started, kept by host.
        self._own: dict[str, Host] = {}
        self._own_switch: Switch | None = None

    # ---------------------------------------------------------------- its parts

    @property
    def data(self) -> Path:
        """The directory of the hosts' disks and logs."""
        return self._files.data(self.name)

    @property
    def state(self) -> LabState:
        """What is remembered.

        Raises:
            NotFoundError: there is no such lab.
        """
        state = self._files.load(self.name)
        if state is None:
            raise NotFoundError("lab", self.name, no_such_lab(self.name, self._files.names()))
        return state

    @property
    def _mark(self) -> str:
        return f"{self.data}/"

    @property
    def _cgroup_prefix(self) -> str:
        # A dot is in no name, so that no lab's groups look like another's, or a lone host's.
        return f"swarm-lab.{self.name}."

    def switch(self, state: LabState | None = None) -> Switch:
        """Return the switch."""
        if self._own_switch is None:
            holder = (state or self.state).switch
            self._own_switch = Switch(holder, mark=f"{self._mark}switch", dies_with_us=False)
        return self._own_switch

    def host(self, name: str, state: LabState | None = None) -> Host:
        """Return a host.

        Raises:
            NotFoundError: there is no such lab, or no such host in it.
        """
        state = state or self.state
        kept = state.host(name)
        if name not in self._own:
            self._own[name] = Host(
                name,
                self.data / name,
                address=kept.address,
                switch=self.switch(state),
                init=kept.init,
                cgroup_parent=f"/{self._cgroup_prefix}{name}",
                hosts_file=self.data / "hosts",
                mark=f"{self._mark}{name}",
                dies_with_us=False,
            )
        return self._own[name]

    def running(self, name: str) -> Host:
        """Return a host that must run.

        Raises:
            NotFoundError: there is no such host.
            UnavailableError: its power is cut.
        """
        host = self.host(name)
        if not host.is_up:
            raise UnavailableError(
                f"host {name} is off; bring it back with: swarm lab start {name} --name {self.name}"
            )
        return host

    def members(self) -> list[Member]:
        """Return the hosts with their roles, managers first."""
        state = self.state
        return [Member(self.host(host.name, state), host.role) for host in state.hosts]

    @contextlib.contextmanager
    def changing(self) -> Iterator[LabState]:
        """Keep others from changing the lab, and yield what it is."""
        state = self.state
        with self._files.locked(self.name):
            state = self.state
            yield state

    # ---------------------------------------------------------------- up and down

    def up(
        self,
        managers: int,
        workers: int,
        *,
        is_formed: bool = True,
        spec: dict[str, object] | None = None,
        daemon_options: Sequence[str] = (),
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        """Make the lab; returns when its cluster is complete.

        Args:
            managers: hosts m1, m2, …
            workers: hosts w1, w2, …
            is_formed: whether to make a cluster; otherwise each daemon is in none.
            spec: of the cluster, as the Engine API has it.
            daemon_options: for every `swarmd`, also when one is started again.
            say: is told what was done.

        Raises:
            ConflictError: there is such a lab already.
            SwarmError: it did not come up; nothing of it is left.
        """
        state = msgspec.structs.replace(
            plan(self.name, managers, workers), daemon_options=tuple(daemon_options)
        )
        check_machine(is_root=os.geteuid() == 0, find=find_tool)
        with self._files.locked(self.name):
            known = self._files.load(self.name)
            if known is not None and known.is_alive:
                raise ConflictError(
                    f"lab {self.name} is up already, with {len(known.hosts)} hosts; end it with "
                    f"swarm lab down --name {self.name}, or give this one another --name"
                )
            self._remove()
            try:
                self._build(state, say)
                if is_formed:
                    form(self.members(), spec)
                    say(f"One swarm of {managers} managers and {workers} workers")
            except BaseException:
                self._remove()
                self._files.forget(self.name)
                raise

    def _build(self, state: LabState, say: Callable[[str], object]) -> None:
        self.data.mkdir(mode=0o755, parents=True)
        names = "".join(f"{host.address}\t{host.name}\n" for host in state.hosts)
        (self.data / "hosts").write_text(f"127.0.0.1\tlocalhost\n{names}")
        self._files.save(state)
        switch = self.switch(state)
        switch.start(self.data / "switch.log")
        hosts = [self.host(host.name, state) for host in state.hosts]
        for host in hosts:
            host.begin()
        for host in hosts:
            host.connect()
        self._note(state)
        say(f"{len(hosts)} hosts on a switch: {', '.join(host.name for host in hosts)}")
        for host in hosts:
            host.begin_daemon(*state.daemon_options)
        for host in hosts:
            host.wait_daemon()
        say(f"{len(hosts)} daemons")

    def _note(self, state: LabState) -> None:
        """Remember the processes that there are now."""
        self._files.save(
            msgspec.structs.replace(
                state,
                switch=self.switch(state).holder,
                hosts=tuple(
                    msgspec.structs.replace(host, init=self.host(host.name, state).init)
                    for host in state.hosts
                ),
            )
        )

    def down(self) -> None:
        """End everything of the lab and remove what it leaves.

        Raises:
            NotFoundError: there is nothing of such a lab.
        """
        if self.name not in known_names(self._files):
            raise NotFoundError("lab", self.name, no_such_lab(self.name, self._files.names()))
        with self._files.locked(self.name):
            self._remove()
            self._files.forget(self.name)

    def _remove(self) -> None:
        """Remove everything but the state's directory, whatever was there before."""
        state = self._files.load(self.name)
        processes = set(marked(self._mark))
        if state is not None:
            kept = (state.switch, *(host.init for host in state.hosts))
            processes |= {process for process in kept if process is not None}
        for process in processes:
            process.kill()
        for host in self._own.values():
            host.cut_power()
        if self._own_switch is not None:
            self._own_switch.stop()
        self._own.clear()
        self._own_switch = None
        wait_for(lambda: not _alive(processes), f"processes of lab {self.name} do not end")
        for cgroup in named(self._cgroup_prefix):
            wait_for(lambda path=cgroup: remove_cgroup(f"/{path}"), f"cgroup {cgroup} is in use")  # type: ignore[misc]
        if self.data.exists():
            tree.remove(self.data)

    # ---------------------------------------------------------------- trouble

    def kill(self, name: str) -> None:
        """Take a host's power: everything in it ends at once; its disk stays.

        Raises:
            UnavailableError: it is off already.
        """
        with self.changing() as state:
            host = self.running(name)
            host.cut_power()
            self._note(state)

    def kill_daemon(self, name: str, signal_name: str = "KILL") -> None:
        """End swarmd alone; the host's containers run on.

        Raises:
            UnavailableError: the host is off.
        """
        with self.changing():
            self.running(name).kill_daemon(signal_name)

    def start(self, name: str) -> None:
        """Bring a host back, or only its daemon if the host runs.

        Raises:
            ConflictError: both run.
        """
        with self.changing() as state:
            host = self.host(name)
            if not host.is_up:
                host.cut_power()  # in case it ended by itself
                host.begin()
                host.connect()
                self._note(state)
            elif host.daemon is not None:
                raise ConflictError(f"host {name} is up, and so is its daemon")
            host.start_daemon(*state.daemon_options)

    def cut(self, one: str, others: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Drop all traffic between a host and others, all others if none is named.

        Returns:
            The pairs that are cut now because of this.
        """
        with self.changing() as state:
            pairs = _pairs(state, one, others)
            self.switch(state).cut(pairs)
            return pairs

    def heal(self, one: str = "", others: Sequence[str] = ()) -> None:
        """Undo cuts: all, those of a host, or those between a host and others."""
        with self.changing() as state:
            self.switch(state).heal(_pairs(state, one, others) if one else None)


def _pairs(state: LabState, one: str, others: Sequence[str]) -> list[tuple[str, str]]:
    state.host(one)
    chosen = others or [host.name for host in state.hosts if host.name != one]
    for other in chosen:
        if state.host(other).name == one:
            raise InvalidError(f"{one} cannot be cut from itself")
    return [(one, other) for other in chosen]


def _alive(processes: set[ProcessRef]) -> list[ProcessRef]:
    return [process for process in processes if process.is_alive]


def no_such_lab(name: str, names: Sequence[str]) -> str:
    """Say that there is no such lab, and which there are."""
    others = f"there are {', '.join(names)}" if names else "make one with swarm lab up"
    return f"there is no lab {name}; {others}"


def known_names(files: LabFiles | None = None) -> list[str]:
    """List the labs of which anything is there: state, disks or processes."""
    files = files or LabFiles()
    prefix = f"{files.data('')}"
    of_processes = {Path(mark).parent.name for mark in marks(f"{prefix.rstrip('/')}/")}
    return sorted({*files.names(), *of_processes})


def choose(name: str, files: LabFiles | None = None) -> Lab:
    """Find the lab that a command means: the named one, or the only one.

    Raises:
        NotFoundError: there is none.
        InvalidError: there are several and none was named.
    """
    files = files or LabFiles()
    if name:
        return Lab(name, files)
    names = [name for name in files.names() if files.load(name) is not None]
    if not names:
        raise NotFoundError("lab", "", "there is no lab; make one with swarm lab up")
    if len(names) > 1:
        raise InvalidError(f"there are several labs, choose one with --name: {', '.join(names)}")
    return Lab(names[0], files)


def choose_any(name: str, files: LabFiles | None = None) -> Lab:
    """Find the lab that `down` means; one that crashed while it was made is one, too.

    Raises:
        NotFoundError: there is none.
        InvalidError: there are several and none was named.
    """
    names = [name] if name else known_names(files)
    if not names:
        raise NotFoundError("lab", "", "there is no lab; make one with swarm lab up")
    if len(names) > 1:
        raise InvalidError(
            f"there are several labs, choose one with --name or all with --all: {', '.join(names)}"
        )
    return Lab(names[0], files)


def labs(files: LabFiles | None = None) -> list[Lab]:
    """Return the labs that are remembered."""
    files = files or LabFiles()
    return [Lab(name, files) for name in files.names() if files.load(name) is not None]


def find_tool(name: str) -> str | None:
    """Find a program as the lab's hosts will."""
    return shutil.which(name, path=path_inside())
