"""A node's place in its cluster: taken up from the disk, changed with its role, given up again.

Above `parts`, what a node is made of. `changes` joins and leaves on a user's word; `node` is what
the Engine API calls.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import structlog
from typing_extensions import override

from manager.ca.credentials import NodeCredentials
from manager.daemon.addresses import (
    LISTEN_DEFAULT,
    resolve_advertise,
    split_port,
)
from manager.daemon.identity import Identity, write_identity
from manager.daemon.machine import (
    address_towards,
    machine_addresses,
)
from manager.daemon.manager import Manager
from manager.daemon.membership import (
    Admission,
    Membership,
    node_port_address,
)
from manager.daemon.moving import has_moved, is_answering, moved
from manager.daemon.parts import Parts
from manager.daemon.remembered import (
    RememberedMember,
    read_remembered,
    to_raft,
    write_remembered,
)
from manager.httpapi.tls import throwaway_credentials
from manager.nodeport.remotes import ManagerPeer, Remotes
from proto.errors import (
    ConflictError,
    InvalidError,
    LockedError,
    SwarmError,
    UnavailableError,
    reason_of,
)
from proto.ids import NodeID
from raft.core import NOBODY
from raft.files import disk_error
from raft.keys import Kek
from raft.transport.identity import MANAGER_ROLE
from worker.files import tree

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# How long to wait before a state that could not be taken up is tried again: it doubles.
REOPEN_SECONDS = 2.0
REOPEN_SECONDS_MAX = 60.0
ROLE_RETRY_SECONDS = 1.0
ROLE_RETRY_SECONDS_MAX = 8.0


class Place(Parts):
    """See the module."""

    async def _take_up(self, identity: Identity, kek: Kek | None) -> None:
        """Begin to work as what the disk says that this node is.

        Raises:
            LockedError: the keys are sealed and no key was given.
            InvalidError: the key is not the one.
            SwarmError: what is stored cannot be used.
        """
        remembered = read_remembered(self._config.managers_file)
        self._remotes.add(
            ManagerPeer(member.node_id, member.address)
            for member in remembered
            if member.node_id != identity.node_id
        )
        is_moved = self.serve_tls is not None and has_moved(identity, machine_addresses())
        if identity.role == "worker":
            if is_moved:
                identity = self._move(identity)
            if self._credentials is None:
                opened = await asyncio.to_thread(
                    NodeCredentials.open, self._config.certificates_dir, None, files=self._files
                )
                self._use(identity, opened)
            self._ensure_client()
        else:
            membership = await Membership.open(
                self._config.raft_dir,
                kek,
                node_id=identity.node_id,
                address=node_port_address(identity.advertise_addr),
                peers=to_raft(remembered),
                clock=self._clock,
                rng=self._rng,
                settings=self._settings,
                files=self._files,
            )
            # The key is the right one: what fails from here on can be tried again with it.
            self._is_locked, self._kek = False, kek
            try:
                # Those of an attempt before this one are kept: two that write the same files would
                # not agree.
                credentials = self._credentials
                if credentials is None:
                    credentials = await asyncio.to_thread(
                        membership.open_credentials, self._config.certificates_dir, self._files
                    )
                if is_moved:
                    await self._refuse_copy(identity, credentials)
                    identity = self._move(identity)
                await self._begin_manager(identity, membership, credentials)
            except BaseException:
                await self._abandon(membership)
                raise
        self._is_locked = False
        self._forgotten_id, self._error = NOBODY, ""

    @property
    def _is_taken_up(self) -> bool:
        """Whether this node works as what its identity says."""
        if self._identity is None:
            return False
        works_as = self._client if self._identity.role == "worker" else self._manager
        return works_as is not None

    async def _try_to_take_up(self, identity: Identity, kek: Kek | None) -> None:
        """Take up, or show the reason and go on trying in the background.

        Raises:
            SwarmError: as `_take_up`.
        """
        try:
            await self._take_up(identity, kek)
        except LockedError:
            raise
        except SwarmError as error:
            if not self._is_locked:
                self._error = error.message
                log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- one line
                self._begin(self._keep_taking_up(kek), "opening")
                if self._credentials is not None and self._remotes.peers():
                    # The other managers may want this one to be something else by now.
                    self._ensure_client()
            raise

    async def _keep_taking_up(self, kek: Kek | None, pause: float = REOPEN_SECONDS) -> None:
        """Take up what could not be, until it is done or somebody else changes the place."""
        while True:
            await asyncio.sleep(pause)
            if await self._is_reopened(kek):
                return
            pause = min(pause * 2, REOPEN_SECONDS_MAX)

    @staticmethod
    async def _refuse_copy(identity: Identity, credentials: NodeCredentials) -> None:
        """Refuse to be a manager that answers elsewhere: two with one log would undo each other.

        Raises:
            ConflictError: with what to do.
        """
        if await is_answering(identity, credentials.source()):
            raise ConflictError(
                f"node {identity.node_id} answers at {identity.advertise_addr}: this state "
                "directory was copied from it; stop swarmd here, remove the directory, and join "
                "anew"
            )

    def _move(self, identity: Identity) -> Identity:
        """Be reached at the address that this machine has now, if it is clear which."""
        ways = (address_towards(peer.address) for peer in self._remotes.peers())
        host = next((way for way in ways if way), "")
        if not host:
            try:
                chosen = resolve_advertise("", LISTEN_DEFAULT, machine_addresses())
            except InvalidError as error:
                log.warning("address_lost", address=identity.advertise_addr, error=error.message)
                return identity
            host = split_port(chosen, "address")[0]
        new = moved(identity, host)
        self._write_identity(new)
        log.warning("address_changed", old=identity.advertise_addr, new=new.advertise_addr)
        return new

    async def _tell_address(self) -> None:
        """Let the managers know where this one is now; tried until they do."""
        while True:
            await asyncio.sleep(ROLE_RETRY_SECONDS)  # what was told when joining may yet arrive
            identity, manager = self._identity, self._manager
            if identity is None or manager is None:
                return
            address = node_port_address(identity.advertise_addr)
            if manager.knows_address(identity.node_id, address, identity.advertise_addr):
                return
            try:
                if manager.store.term:
                    await manager.admit(identity.node_id, address, identity.advertise_addr)
                else:
                    await self._ask_to_be_admitted(identity)
            except SwarmError as error:
                log.warning("address_not_told", error=error.message)

    async def _ask_to_be_admitted(self, identity: Identity) -> Admission:
        from manager.daemon.asking import join_group  # noqa: PLC0415 -- grpc only when it is needed

        return await join_group(
            self._leader_client(),
            address=node_port_address(identity.advertise_addr),
            api_address=identity.advertise_addr,
        )

    async def _serve_locked(self, identity: Identity) -> None:
        """Tell those who want to join that this manager is locked: its own key is sealed."""
        if self.serve_tls is None:
            return
        credentials = throwaway_credentials(self._clock.wall())
        await self.protection.protect(*self._to_protect())
        try:
            self._listener = await self.serve_tls(identity.listen_addr, lambda: credentials)
        except SwarmError as error:
            log.warning("api_not_served", error=error.message)

    async def _stop_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    async def _abandon(self, membership: Membership) -> None:
        """Close a membership that could not be taken up."""
        if self._manager is not None:
            await self._stop_manager()
            return
        with contextlib.suppress(SwarmError):  # the first error is the one to show
            await membership.close()

    @override
    def _has_role(self, wanted: str) -> bool:
        identity, manager = self._identity, self._manager
        if identity is None or identity.role != wanted or not self._is_taken_up:
            return False
        # Whoever was demoted and promoted again before it noticed is none of the group any more.
        return manager is None or not manager.raft.is_removed

    @override
    async def _change_role(self) -> None:
        pause = ROLE_RETRY_SECONDS
        while True:
            async with self._changing:
                identity, credentials, wanted = self._identity, self._credentials, self._wanted_role
                if identity is None or credentials is None or self._has_role(wanted):
                    self._role_problem = ""
                    return
                try:
                    await self._step_towards(wanted, identity, credentials)
                except (SwarmError, OSError) as error:
                    self._role_problem = (
                        f"this node is to be a {wanted} of the swarm and does not work as one yet: "
                        f"{error}; it is tried again"
                    )
                    log.warning("role_not_taken", wanted=wanted, error=reason_of(error))
                else:
                    log.info("role_taken", role=wanted)
                    continue
            # No longer than it takes to see that the change was taken back.
            await asyncio.sleep(pause)
            pause = min(pause * 2, ROLE_RETRY_SECONDS_MAX)

    async def _step_towards(
        self, wanted: str, identity: Identity, credentials: NodeCredentials
    ) -> None:
        """Do the next thing by which this node becomes what is wanted; each may be repeated."""
        if self._forgotten_id != NOBODY and wanted == "manager":
            await self._join_again(identity, credentials)
            return
        is_expelled = self._manager is not None and self._manager.raft.is_removed
        if identity.role == "manager" and (
            wanted == "worker" or self._is_leaving_group or is_expelled
        ):
            # Once begun it is brought to its end, also when it is taken back: the group has let
            # this node go, so that it has to join it anew.
            await self._become_worker(identity, credentials)
        elif identity.role == wanted:
            # What was written last time, and what could not be begun.
            await self._take_up(identity, self._kek)
        else:
            await self._become_manager(identity, credentials)

    async def _become_manager(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Get a manager's certificate, join the group as a learner, and begin to serve."""
        assert self._renewer is not None
        await self._renewer.renew_now()
        if credentials.identity.role != MANAGER_ROLE:
            raise UnavailableError("the authority does not issue a manager's certificate yet")
        await self._join_group(identity, credentials)

    async def _join_again(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Join anew, if the group has let go of the member that forgot what it had confirmed.

        Raises:
            UnavailableError: it has not; with what to do.
        """
        admission = await self._ask_to_be_admitted(identity)
        if admission.member_id == self._forgotten_id:
            raise UnavailableError(self._error)
        await self._join_group(identity, credentials)
        self._forgotten_id, self._error = NOBODY, ""

    async def _join_group(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Join the managers' group with a manager's certificate.

        The identity is written before anything is acknowledged to the leader: a log that was
        begun must never be forgotten by the same member.
        """
        address = node_port_address(identity.advertise_addr)
        admission = await self._ask_to_be_admitted(identity)
        self._clear_state()
        membership = await Membership.join(
            self._config.raft_dir,
            admission,
            node_id=identity.node_id,
            address=address,
            clock=self._clock,
            rng=self._rng,
            settings=self._settings,
            files=self._files,
        )
        try:
            self._write_members(admission)
            self._kek = Kek.parse(admission.unlock_key) if admission.unlock_key else None
            identity = msgspec.structs.replace(identity, role="manager")
            self._write_identity(identity)
            # After the identity: a worker could not open a sealed key, a manager seals a clear one.
            await asyncio.to_thread(credentials.seal, membership.tls_key)
            await self._begin_manager(identity, membership, credentials)
        except BaseException:
            await self._abandon(membership)
            raise

    def _write_members(self, admission: Admission) -> None:
        write_remembered(
            self._config.managers_file,
            [
                RememberedMember(
                    node_id=NodeID(member.node_id),
                    address=member.address,
                    member_id=member.id,
                    is_voter=member.is_voter,
                )
                for member in admission.members
            ],
        )

    async def _become_worker(self, identity: Identity, credentials: NodeCredentials) -> None:
        """Stop to be a manager, which the group has let go of already."""
        self._is_leaving_group = True
        self._ensure_client()
        await self._stop_manager()
        self._forgotten_id, self._error = NOBODY, ""
        await asyncio.to_thread(credentials.seal, None)
        self._write_identity(msgspec.structs.replace(identity, role="worker"))
        self._is_leaving_group, self._kek = False, None
        self._clear_state()
        assert self._renewer is not None
        await self._renewer.renew_now()

    def _write_identity(self, identity: Identity) -> None:
        """Be this from now on, on the disk first."""
        write_identity(self._config.identity_file, identity)
        self._identity = identity

    async def _begin_manager(
        self, identity: Identity, membership: Membership, credentials: NodeCredentials
    ) -> None:
        """Begin to work as a manager with an open membership.

        Raises:
            UnavailableError: an address cannot be listened on.
        """
        if self._credentials is None:
            self._use(identity, credentials)
        manager = Manager(
            membership,
            credentials,
            identity,
            self._remotes,
            switch=self._dispatcher,
            hurry_renewal=self._hurry_renewal,
            follow=self._ensure_client,
            trust=self._trust,
            learn=self._remember,
            clock=self._clock,
            rng=self._rng,
        )
        self._manager = manager
        if self.serve_tls is not None:
            await self._stop_listener()  # that of a locked manager
            await self.protection.protect(*self._to_protect())
            self._listener = await self.serve_tls(identity.listen_addr, credentials.source)
        self._remember(manager.peers())
        await self._renew_ended()
        await manager.start()
        if identity.is_forced:
            if manager.is_alone:
                await manager.forget_others()
            identity = msgspec.structs.replace(identity, is_forced=False)
            self._write_identity(identity)
        self._watchdog = asyncio.create_task(self._reopen_when_broken(manager))
        if self.serve_tls is not None:
            self._begin(self._tell_address(), "address")

    async def _renew_ended(self) -> None:
        """Have a certificate that others take, before anybody is shown it.

        Raises:
            UnavailableError: it is not valid now and no other is to be had, with what to do.
        """
        problem = self._certificate_problem()
        if not problem:
            return
        log.warning("certificate_not_valid", reason=problem)
        assert self._renewer is not None
        try:
            await self._renewer.renew_if(lambda: bool(self._certificate_problem()))
        except SwarmError as error:
            raise UnavailableError(f"{problem} ({error.message})") from error

    async def _reopen_when_broken(self, manager: Manager) -> None:
        """Open the state anew after a fault that left it unknown what is stored.

        Not if the log lacks what this member had confirmed: it could undo what was promised. Its
        agent goes on with the leader, which lets it know when it is demoted.
        """
        began = self._clock.monotonic()
        await manager.store.broken.wait()
        log.error("membership_broken", reason=manager.raft.failure)
        async with self._changing:
            if self._manager is not manager:
                return
            kek = manager.membership.unlock_key()
            await self._stop_manager(is_watchdog=True)
            if manager.raft.failure:
                self._error = manager.raft.failure
            if manager.raft.has_forgotten:
                self._forgotten_id = manager.raft.member_id
                self._ensure_client()
                return
        # What breaks again and again is opened less and less often.
        has_lasted = self._clock.monotonic() - began > REOPEN_SECONDS_MAX
        pause = REOPEN_SECONDS if has_lasted else min(self._pause * 2, REOPEN_SECONDS_MAX)
        self._pause = pause
        self._begin(self._keep_taking_up(kek, pause), "opening")

    async def _is_reopened(self, kek: Kek | None) -> bool:
        """Try once; whoever wants to stop or leave meanwhile gets the turn between two attempts."""
        async with self._changing:
            if self._identity is None or self._is_locked or self._is_taken_up:
                return True
            try:
                await self._take_up(self._identity, kek)
            except SwarmError as error:
                self._error = error.message
                log.error("swarm_not_opened", error=error.message)  # noqa: TRY400 -- one line
                return False
            return True

    async def _stop_manager(self, *, is_watchdog: bool = False) -> None:
        if self._watchdog is not None and not is_watchdog:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
        self._watchdog = None
        await self._stop_listener()
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                await manager.close()
            except SwarmError as error:
                # The disk fails; what was acknowledged had reached it before.
                log.warning("membership_not_closed", error=error.message)

    async def _forget(self) -> None:
        """Be in no swarm: nothing of it stays in memory or on the disk."""
        await self._stop_client()
        await self._drop_credentials()
        await self.protection.remove()
        self._identity = None
        self._remotes = Remotes()
        self._is_locked = False
        self._kek = None
        self._error = self._role_problem = self._wanted_role = ""
        self._forgotten_id = NOBODY
        self._is_leaving_group = False
        self._clear_all()

    def _clear_state(self) -> None:
        """Drop the manager's state; volumes and images are the node's and stay.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        try:
            tree.remove(self._config.raft_dir)
        except OSError as error:
            raise disk_error(self._config.raft_dir, error) from error

    def _clear_all(self) -> None:
        """Drop all that a membership leaves, the manager's state and the certificate."""
        self._clear_state()
        NodeCredentials.remove(self._config.certificates_dir, files=self._files)
        self._config.managers_file.unlink(missing_ok=True)
