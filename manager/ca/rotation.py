"""The replacement of the root certificate, as the leader drives it. The shell of `rootchange`.

`RootRotator` tells nodes to renew and ends the rotation; it is run anew for each leadership and
keeps nothing that the next leader would miss. `prepare_rotation` is for whoever begins one: it has
the new root signed outside, where the old root's key is not here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from manager.ca.chain import check_key, load_signing_key
from manager.ca.external import cross_sign_externally
from manager.ca.root import create_root
from manager.ca.rootchange import (
    RETRY_SECONDS,
    Batches,
    NewRoot,
    begin_rotation,
    check_can_sign,
    check_root,
    finish_rotation,
    is_finished,
    is_rotation_wanted,
    pending_nodes,
    progress,
)
from manager.store import Store, Transaction, View, Watch
from proto.clock import Clock
from proto.errors import InvalidError, SwarmError
from proto.ids import NodeID
from proto.objects import Cluster, Node
from raft.transport.identity import Credentials

__all__ = [
    "NewRoot",
    "RootRotator",
    "begin_rotation",
    "check_can_sign",
    "is_rotation_wanted",
    "prepare_rotation",
    "progress",
]

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


class RootRotator:
    """Drives a rotation of the root while this manager leads."""

    def __init__(self, store: Store, clock: Clock, *, rng: random.Random | None = None) -> None:
        """Work on `store`; `rng` draws join tokens, from the system if not given."""
        self._store = store
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._batch: frozenset[NodeID] = frozenset()
        self._subscribers: list[Callable[[], None]] = []

    def must_renew(self, node: Node) -> bool:
        """Tell whether the node is to renew its certificate now: 30 are at a time."""
        return node.id in self._batch

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call this whenever `must_renew` may have another answer for some node."""
        self._subscribers.append(changed)

    async def run(self) -> None:
        """Work until cancelled, or until the store is closed."""
        batches = Batches()
        try:
            async with self._store.watch(Node, Cluster) as watch:
                is_open = True
                while is_open:
                    batches = self._tell(batches)
                    await self._finish()
                    is_open = await self._wait(watch)
        finally:
            self._set_batch(())

    def _tell(self, batches: Batches) -> Batches:
        """Choose who is to renew; without a rotation nobody, and nothing is remembered."""
        view = self._store.view()
        cluster = _rotating(view)
        if cluster is None:
            self._set_batch(())
            return Batches()
        pending = pending_nodes(cluster, view.nodes)
        self._set_batch(batches.choose(pending, self._clock.monotonic()))
        return batches

    async def _finish(self) -> None:
        """Drop the old root if nobody needs it; a failure is tried again."""
        view = self._store.view()
        cluster = _rotating(view)
        if cluster is None or not is_finished(cluster, view.nodes):
            return

        def finish(tx: Transaction) -> bool:
            # The head may have a node, or another rotation, that the committed state has not.
            for row in tx.clusters:
                if is_finished(row, tx.nodes):
                    tx.update(finish_rotation(row, self._rng))
                    return True
            return False

        try:
            finished = await self._store.update_without_barrier(finish)
        except SwarmError as error:
            log.warning("root_rotation_not_finished", error=error.message)
            return
        if finished:
            log.info("root_rotation_finished", nodes=len(view.nodes))

    async def _wait(self, watch: Watch) -> bool:
        """Wait for a change; during a rotation no longer than until the next look.

        Returns:
            Whether there is anything more to come.
        """
        seconds = None if _rotating(self._store.view()) is None else RETRY_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await anext(watch)
        except TimeoutError:
            return True
        except StopAsyncIteration:
            return False
        watch.drain()
        return True

    def _set_batch(self, batch: tuple[NodeID, ...]) -> None:
        if self._batch == frozenset(batch):
            return
        if batch:
            log.info("nodes_told_to_renew", count=len(batch))
        self._batch = frozenset(batch)
        for changed in self._subscribers:
            changed()


def _rotating(view: View) -> Cluster | None:
    for cluster in view.clusters:
        return cluster if cluster.root_rotation is not None else None
    return None


async def prepare_rotation(
    cluster: Cluster, now: float, new: NewRoot, credentials: Credentials | None
) -> NewRoot:
    """Have what `begin_rotation` needs made outside, before the transaction.

    Nothing is to be done while the cluster holds the key of its root.

    Args:
        cluster: the row, with its new spec.
        now: seconds since the epoch.
        new: the wanted root; empty for one that is made.
        credentials: this manager's own, shown to the authority outside.

    Raises:
        InvalidError: it cannot be done, with the reason.
        UnavailableError: no authority outside signed.
    """
    if cluster.root_ca_key_pem or (new.key_pem and not new.certificate_pem):
        return new
    if new.certificate_pem:
        certificate = check_root(new.certificate_pem, now)
        known = [cluster.root_ca_certificate_pem]
        if cluster.root_rotation is not None:
            known.append(cluster.root_rotation.certificate_pem)
        if any(x509.load_pem_x509_certificate(pem.encode()) == certificate for pem in known):
            return new
        if not new.key_pem:
            raise InvalidError(
                "one external authority cannot take the place of another: the key of the new root "
                "has to be given (--ca-key), at least until the rotation is finished"
            )
        check_key(certificate, new.key_pem.encode(), "the new root certificate")
    else:
        made = create_root(now)
        new = NewRoot(certificate_pem=made.certificate_pem, key_pem=made.key_pem)
        certificate = check_root(new.certificate_pem, now)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(certificate.subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(load_signing_key(new.key_pem.encode(), "the new root's key"), hashes.SHA256())
    )
    signed = await cross_sign_externally(
        cluster,
        certificate,
        request.public_bytes(serialization.Encoding.PEM),
        credentials=credentials,
        now=now,
    )
    return msgspec.structs.replace(new, cross_signed_pem=signed)
