"""The operations on the cluster's objects that users may do. The thin shell over the store.

Each operation checks what it can before the transaction and, within it, what depends on the
present state; what is then written is computed by the pure functions of `services`, `ports` and
`validation`. A refusal that rests on the present state is raised in the transaction only, so that
it waits until that state is committed (`Store.update`). Reads see the committed state. Who may call
is not decided here.
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from manager.ca.external_rules import check_external_cas
from manager.ca.rotation import (
    NewRoot,
    begin_rotation,
    check_can_sign,
    is_rotation_wanted,
    prepare_rotation,
)
from manager.ca.tokens import new_join_token
from manager.controlapi import references
from manager.controlapi import services as plans
from manager.controlapi.support import refuse_unsupported, refuse_unsupported_cluster
from manager.controlapi.validation import (
    check_cluster_spec,
    check_node_spec,
    check_service_spec,
)
from manager.store import Store, Transaction, View
from proto.clock import Clock
from proto.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    SequenceConflictError,
    UnavailableError,
)
from proto.ids import ServiceID, new_id
from proto.objects import (
    Cluster,
    ClusterSpec,
    JoinTokens,
    Node,
    NodeRole,
    NodeSpec,
    NodeState,
    Object,
    RemovedNode,
    Service,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    spec_version_id,
)
from raft.keys import Kek
from raft.transport.identity import CredentialsSource


class Control:
    """The control API of a manager. References are a full ID, a name, or a unique beginning."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rng: random.Random,
        *,
        credentials: CredentialsSource | None = None,
    ) -> None:
        """Work on `store`; `rng` draws IDs and secrets, hence a `SystemRandom` in production.

        `credentials` are this manager's own, shown to a certificate authority outside the cluster.
        """
        self._store = store
        self._clock = clock
        self._rng = rng
        self._credentials = credentials

    # --- the cluster ------------------------------------------------------------------------

    def cluster(self) -> Cluster:
        """Return the cluster's row.

        Raises:
            UnavailableError: there is none yet.
        """
        return _cluster(self._store.view())

    async def update_cluster(
        self,
        version: int,
        spec: ClusterSpec,
        *,
        rotate_worker_token: bool = False,
        rotate_manager_token: bool = False,
        rotate_unlock_key: bool = False,
        new_root: NewRoot = NewRoot(),  # noqa: B008 -- frozen
    ) -> None:
        """Change the cluster's settings, and draw new secrets where asked.

        Turning autolock on draws an unlock key; turning it off drops the key. A spec that forces
        another rotation, or a `new_root`, begins one of the root certificate.

        Raises:
            InvalidError: a setting breaks a rule, the name would change, or the new root cannot be
                one.
            NotImplementedYetError: a setting asks for what this version cannot do.
            SequenceConflictError: `version` is not the row's.
            UnavailableError: no authority outside signed the new root.
        """
        check_cluster_spec(spec)
        refuse_unsupported_cluster(spec)
        check_external_cas(spec)
        new_root = await self._prepared(version, spec, new_root)

        def change(tx: Transaction) -> None:
            cluster = _cluster(tx)
            _check_version("cluster", cluster, version)
            if spec.name != cluster.spec.name:
                raise InvalidError(f"the cluster's name is {cluster.spec.name}: it cannot change")
            tokens = self._tokens(cluster, worker=rotate_worker_token, manager=rotate_manager_token)
            key = cluster.unlock_key if spec.auto_lock_managers else ""
            if spec.auto_lock_managers and (rotate_unlock_key or not key):
                key = Kek.generate(self._rng.randbytes).format()
            changed = msgspec.structs.replace(
                cluster, spec=spec, join_tokens=tokens, unlock_key=key
            )
            if is_rotation_wanted(changed, new_root):
                changed = begin_rotation(changed, tx.now, new_root)
            elif spec.external_cas != cluster.spec.external_cas:
                check_can_sign(changed)
            tx.update(changed)

        await self._store.update(change)

    async def _prepared(self, version: int, spec: ClusterSpec, new_root: NewRoot) -> NewRoot:
        """Have a new root signed outside where the cluster's own key is there, not here."""
        cluster = _cluster(await self._store.newest())
        _check_version("cluster", cluster, version)
        wanted = msgspec.structs.replace(cluster, spec=spec)
        if not is_rotation_wanted(wanted, new_root):
            return new_root
        credentials = None if self._credentials is None else self._credentials()
        return await prepare_rotation(wanted, self._clock.wall(), new_root, credentials)

    def _tokens(self, cluster: Cluster, *, worker: bool, manager: bool) -> JoinTokens:
        """Draw the tokens that are to be rotated."""
        tokens, certificate = cluster.join_tokens, cluster.root_ca_certificate_pem
        return JoinTokens(
            worker=new_join_token(certificate, self._rng) if worker else tokens.worker,
            manager=new_join_token(certificate, self._rng) if manager else tokens.manager,
        )

    # --- nodes ------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """Return all nodes, in the order of their IDs."""
        return sorted(self._store.view().nodes, key=lambda node: node.id)

    def node(self, ref: str) -> Node:
        """Return one node; raises `NotFoundError`, or `InvalidError` if several fit."""
        return references.find_node(self._store.view(), ref)

    async def update_node(self, ref: str, version: int, spec: NodeSpec) -> None:
        """Change a node's name, labels, availability or wanted role.

        The role that a node's certificates say follows later, by the role manager.

        Raises:
            NotFoundError: there is no such node.
            InvalidError: the spec breaks a rule, or several nodes fit.
            ConflictError: it would demote the last manager.
            SequenceConflictError: `version` is not the node's.
        """
        check_node_spec(spec)

        def change(tx: Transaction) -> None:
            node = references.find_node(tx, ref)
            _check_version("node", node, version)
            if node.spec.role is NodeRole.MANAGER and spec.role is NodeRole.WORKER:
                _refuse_last_demotion(tx)
            tx.update(msgspec.structs.replace(node, spec=spec))

        await self._store.update(change)

    async def remove_node(self, ref: str, *, force: bool) -> None:
        """Remove a node; its tasks are then replaced.

        While a certificate of it may be valid, the cluster remembers that it was removed.

        Raises:
            NotFoundError: there is no such node.
            ConflictError: it is a manager, or it is up and `force` is not given.
        """

        def change(tx: Transaction) -> None:
            node = references.find_node(tx, ref)
            if self._is_manager(node):
                raise ConflictError(
                    f"node {node.id} is a cluster manager and is a member of the raft cluster. "
                    "It must be demoted to worker before removal"
                )
            if node.status.state is NodeState.READY and not force:
                raise ConflictError(
                    f"node {node.id} is not down and can't be removed; stop it first, or use force"
                )
            tx.delete(Node, node.id)
            cluster = _cluster(tx)
            removed = with_removed(cluster, node, now=tx.now)
            tx.update(msgspec.structs.replace(cluster, removed_nodes=removed))

        await self._store.update(change)

    def _is_manager(self, node: Node) -> bool:
        """Tell whether a node must not be removed because it is a manager, or is to be one.

        The roles alone: what was noted of it as a manager may be from before it was demoted.
        """
        return NodeRole.MANAGER in {node.role, node.spec.role}

    # --- services ---------------------------------------------------------------------------

    def services(self) -> list[Service]:
        """Return all services, in the order of their names."""
        return sorted(self._store.view().services, key=lambda service: service.spec.name)

    def service(self, ref: str) -> Service:
        """Return one service; raises `NotFoundError`, or `InvalidError` if several fit."""
        return references.find_service(self._store.view(), ref)

    async def create_service(self, spec: ServiceSpec, *, service_id: str = "") -> ServiceID:
        """Create a service, with its published ports and the first version of its spec.

        Args:
            spec: the wanted service.
            service_id: drawn by the caller, so that a second attempt, after one whose outcome is
                not known, finds the service that the first one made; "" draws it here.

        Raises:
            InvalidError: the spec breaks a rule.
            NameConflictError: the name is taken.
            InUseError: a published port is.
            NotImplementedYetError: it asks for what this version cannot do.
        """
        check_service_spec(spec)
        refuse_unsupported(spec)
        new = ServiceID(service_id or new_id(self._rng))

        def change(tx: Transaction) -> None:
            if service_id and new in tx.services:
                return  # an earlier attempt has made it
            service = plans.created(tx, new, spec, version=tx.version)
            tx.create(service)
            tx.create(plans.spec_version_of(service))

        await self._store.update(change)
        return new

    async def update_service(
        self,
        ref: str,
        version: int,
        spec: ServiceSpec,
        *,
        rollback: Literal["", "previous"] | bool = "",
    ) -> None:
        """Change a service's spec, or with `rollback` go back to the one before and ignore `spec`.

        Tasks are replaced only if their template or a published port changed: only then does the
        service get a new spec version.

        Raises:
            NotFoundError: there is no such service.
            InvalidError: the spec breaks a rule, several services fit, or an unknown `rollback`.
            ConflictError: there is no spec to go back to.
            InUseError: another service has a published port.
            NotImplementedYetError: the name or the mode would change, or the spec asks for what
                this version cannot do.
            SequenceConflictError: `version` is not the service's.
        """
        if rollback not in {"", "previous", True, False}:
            raise InvalidError(
                f"unrecognized rollback option {rollback!r}: the only one is previous"
            )

        def change(tx: Transaction) -> None:
            service = references.find_service(tx, ref)
            if not rollback:
                self._check_update(service, spec)
            _check_version("service", service, version)
            if rollback:
                updated = plans.rolled_back(tx, service, now=tx.now)
            else:
                updated = plans.updated(tx, service, spec, version=tx.version)
            tx.update(updated)
            if spec_version_id(updated.id, updated.spec_version) not in tx.spec_versions:
                tx.create(plans.spec_version_of(updated))

        await self._store.update(change)

    def _check_update(self, service: Service, spec: ServiceSpec) -> None:
        """Refuse a rename or change of mode first: that says more than what a new mode lacks."""
        plans.refuse_identity_change(service.spec, spec)
        check_service_spec(spec)
        refuse_unsupported(spec)

    async def remove_service(self, ref: str) -> None:
        """Remove a service; its tasks are then shut down and its spec versions pruned.

        Raises:
            NotFoundError: there is no such service.
        """
        await self._store.update(lambda tx: tx.delete(Service, references.find_service(tx, ref).id))

    def service_status(self, service: Service) -> plans.ServiceStatus:
        """Count a service's tasks."""
        return plans.status_of(self._store.view(), service)

    # --- tasks ------------------------------------------------------------------------------

    def tasks(self) -> list[Task]:
        """Return all tasks, in the order of their IDs."""
        return sorted(self._store.view().tasks, key=lambda task: task.id)

    def tasks_of(self, service_id: ServiceID) -> list[Task]:
        """Return the tasks of a service, in the order of their IDs."""
        tasks = self._store.view().tasks.find("service_id", service_id)
        return sorted(tasks, key=lambda task: task.id)

    def task(self, ref: str) -> Task:
        """Return one task; raises `NotFoundError`, or `InvalidError` if several fit."""
        return references.find_task(self._store.view(), ref)

    def task_name(self, task: Task) -> str:
        """Return `<service>.<slot>.<task id>`, with the node's ID for a service of mode global."""
        return references.task_name(self._store.view(), task)

    def spec_of(self, task: Task) -> ServiceSpec:
        """Return the version of the spec that a task was made from.

        Raises:
            NotFoundError: it was pruned, together with the task.
        """
        row_id = spec_version_id(task.service_id, task.spec_version)
        row: ServiceSpecVersion | None = self._store.view().spec_versions.get(row_id)
        if row is None:
            raise NotFoundError("spec version", row_id)
        return row.spec


def _cluster(view: View) -> Cluster:
    for cluster in view.clusters:
        return cluster
    raise UnavailableError("this manager holds no cluster yet; begin one with: swarm init")


def _check_version(noun: str, row: Object, version: int) -> None:
    if row.version != version:
        raise SequenceConflictError(noun, row.id, version, row.version)


def _refuse_last_demotion(view: View) -> None:
    """Count wanted roles: of two managers, two demotions in a row must not both pass."""
    managers = sum(other.spec.role is NodeRole.MANAGER for other in view.nodes)
    if managers <= 1:
        raise ConflictError(
            "attempting to demote the last manager of the swarm: promote another node first"
        )


def with_removed(cluster: Cluster, node: Node, *, now: float) -> tuple[RemovedNode, ...]:
    """Return the removed nodes with one more, without those whose certificates have ended. Pure.

    A node without a certificate may be getting one at this moment: it is kept for the longest that
    such a one could last.
    """
    longest = now + cluster.spec.node_cert_expiry_ns / 1e9
    kept = tuple(
        one for one in cluster.removed_nodes if one.certificate_until > now and one.id != node.id
    )
    return (*kept, RemovedNode(id=node.id, certificate_until=node.certificate_until or longest))
