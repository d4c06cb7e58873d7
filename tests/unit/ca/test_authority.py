"""Who gets a certificate, with which role, and what the store keeps of it."""

from __future__ import annotations

import random

import msgspec
import pytest

from manager.ca.authority import CertificateAuthority
from manager.ca.issue import is_issuer_named, issuer_names, new_key_and_csr
from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from proto.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotLeaderError,
    UnavailableError,
)
from proto.ids import NodeID
from proto.objects import Cluster, JoinTokens, Node, NodeAvailability, NodeRole, NodeState
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, read_identity

replace = msgspec.structs.replace
NOW = 1_800_000_000.0


async def join(authority, token, **changes):
    """Join with a new key."""
    values = {
        "hostname": "host1",
        "availability": NodeAvailability.ACTIVE,
        "address": "10.0.0.7:2377",
        **changes,
    }
    csr_pem = values.pop("csr_pem", None) or new_key_and_csr()[1]
    return await authority.issue_for_join(token, csr_pem, **values)


async def change_cluster(store, **changes):
    """Change the cluster's row."""

    def change(tx):
        (row,) = tx.clusters
        tx.update(replace(row, **changes))

    await store.update(change)


@pytest.mark.parametrize(
    ("name", "role", "said"),
    [
        ("worker", NodeRole.WORKER, WORKER_ROLE),
        ("manager", NodeRole.MANAGER, MANAGER_ROLE),
    ],
)
async def test_a_token_lets_a_node_in(  # noqa: PLR0917 -- fixtures
    authority, store, cluster, name, role, said
):
    """The node's row is there when it gets its certificate, with the token's role."""
    joined = await join(
        authority, getattr(cluster.join_tokens, name), availability=NodeAvailability.PAUSE
    )
    identity = read_identity(joined.certificate_pem)
    assert (identity.node_id, identity.role, identity.cluster_id) == (
        joined.node_id,
        said,
        cluster.id,
    )
    assert (joined.role, joined.roots_pem.decode()) == (
        said,
        cluster.root_ca_certificate_pem,
    )
    node = store.view().nodes.get(joined.node_id)
    assert (node.role, node.spec.role, node.spec.availability) == (
        role,
        role,
        NodeAvailability.PAUSE,
    )
    assert (node.description.hostname, node.status.addr) == ("host1", "10.0.0.7")
    assert node.status.state is NodeState.UNKNOWN
    assert node.certificate_until == identity.valid_until == NOW + 90 * 86_400
    assert is_issuer_named(node.tls_info, issuer_names(cluster.root_ca_certificate_pem))


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.7", "10.0.0.7"), ("[fd00::7]:2377", "fd00::7"), ("fd00::7", "fd00::7"), ("", "")],
)
async def test_an_address_may_have_a_port(authority, store, cluster, address, host):
    """Only the host is kept."""
    joined = await join(authority, cluster.join_tokens.worker, address=address)
    assert store.view().nodes.get(joined.node_id).status.addr == host


async def test_wrong_tokens_are_refused(authority, store, cluster, root):
    """Each with its sentence, none repeating the token; no row is left."""
    rotated = cluster.join_tokens.worker
    tokens = JoinTokens(
        worker=new_join_token(root.certificate_pem, random.Random(99)),
        manager=cluster.join_tokens.manager,
    )
    await change_cluster(store, join_tokens=tokens)
    foreign = new_join_token(create_root(NOW).certificate_pem, random.Random(1))
    for token, kind, sentence in (
        (rotated, DeniedError, "not valid for cluster cluster1, perhaps not any more"),
        (foreign, DeniedError, "names another root certificate"),
        (rotated[:-1], InvalidError, "invalid join token"),
        ("", InvalidError, "invalid join token"),
    ):
        with pytest.raises(kind, match=sentence) as caught:
            await join(authority, token)
        assert not token or token not in str(caught.value)
    assert len(store.view().nodes) == 0
    await join(authority, tokens.worker)


async def test_a_cluster_without_tokens_lets_nobody_in(authority, store, cluster):
    """An empty stored token matches nothing."""
    await change_cluster(store, join_tokens=JoinTokens())
    with pytest.raises(DeniedError):
        await join(authority, cluster.join_tokens.worker)


async def test_malformed_requests_leave_nothing(authority, store, cluster):
    """A bad request or hostname is refused before anything is written."""
    for change in ({"csr_pem": b"x"}, {"hostname": "a" * 254}, {"hostname": "a\n"}):
        with pytest.raises(InvalidError):
            await join(authority, cluster.join_tokens.worker, **change)
    assert len(store.view().nodes) == 0


async def test_others_than_the_leader_refuse_with_its_address(follower, clock, cluster):
    """The caller learns whom to ask."""
    authority = CertificateAuthority(follower, clock, random.Random(1))
    for attempt in (
        join(authority, cluster.join_tokens.worker),
        authority.renew(NodeID("node1"), new_key_and_csr()[1]),
    ):
        with pytest.raises(NotLeaderError) as caught:
            await attempt
        assert caught.value.leader_address == "10.0.0.1:2378"


async def test_renewal_follows_role_and_expiry(authority, store, clock, cluster):
    """The next certificate is for `Node.role` and as long as the cluster's setting says."""
    joined = await join(authority, cluster.join_tokens.worker)
    node = store.view().nodes.get(joined.node_id)
    await store.update(lambda tx: tx.update(replace(node, role=NodeRole.MANAGER)))
    await change_cluster(
        store, spec=replace(cluster.spec, node_cert_expiry_ns=7_200 * 1_000_000_000)
    )
    clock.now += 1_000.0
    certificate_pem, roots_pem = await authority.renew(joined.node_id, new_key_and_csr()[1])
    identity = read_identity(certificate_pem)
    assert (identity.node_id, identity.role) == (joined.node_id, MANAGER_ROLE)
    assert identity.valid_until == clock.now + 7_200
    assert roots_pem == joined.roots_pem
    assert store.view().nodes.get(joined.node_id).certificate_until == identity.valid_until


async def test_a_removed_node_gets_nothing(authority, store, cluster):
    """Neither by a request nor by showing what it has."""
    joined = await join(authority, cluster.join_tokens.worker)
    await store.update(lambda tx: tx.delete(Node, joined.node_id))
    for text in (new_key_and_csr()[1], joined.certificate_pem):
        with pytest.raises(DeniedError, match=f"node {joined.node_id} is not, or no longer"):
            await authority.renew(joined.node_id, text)


async def test_a_node_shows_its_own_newest_certificate(authority, cluster, clock):
    """That of another node, of another root, or an older one is refused."""
    first, second = [await join(authority, cluster.join_tokens.worker) for _ in range(2)]
    assert await authority.renew(first.node_id, first.certificate_pem) == (b"", first.roots_pem)
    with pytest.raises(DeniedError, match="the certificate of another node"):
        await authority.renew(first.node_id, second.certificate_pem)
    clock.now += 60.0
    newer, _ = await authority.renew(first.node_id, new_key_and_csr()[1])
    with pytest.raises(ConflictError, match="a newer certificate was issued"):
        await authority.renew(first.node_id, first.certificate_pem)
    await authority.renew(first.node_id, newer)


async def test_a_cluster_without_a_key_says_so(authority, store, cluster):
    """Without key and external authority nothing can be issued."""
    await change_cluster(store, root_ca_key_pem="")
    with pytest.raises(UnavailableError, match="swarm ca --external-ca"):
        await join(authority, cluster.join_tokens.worker)


async def test_a_certificate_of_who_signs_no_longer_is_not_given_out(  # noqa: PLR0917 -- fixtures
    authority, store, cluster, root, other_root, monkeypatch
):
    """What was signed while the root was replaced is thrown away and signed anew."""
    calls = []
    sign = CertificateAuthority._sign

    async def slow(self, row: Cluster, *args, **kwargs):
        certificate = await sign(self, row, *args, **kwargs)
        if not calls:
            await change_cluster(
                store,
                root_ca_certificate_pem=other_root.certificate_pem,
                root_ca_key_pem=other_root.key_pem,
            )
        calls.append(1)
        return certificate

    monkeypatch.setattr(CertificateAuthority, "_sign", slow)
    joined = await join(authority, cluster.join_tokens.worker)
    assert len(calls) == 2
    assert joined.roots_pem.decode() == other_root.certificate_pem
    node = store.view().nodes.get(joined.node_id)
    assert is_issuer_named(node.tls_info, issuer_names(other_root.certificate_pem))
    assert not is_issuer_named(node.tls_info, issuer_names(root.certificate_pem))


async def test_a_manager_issues_a_certificate_for_itself(store, clock):
    """By its own store, without a leader, for a day at most; nothing of it is kept."""

    def fill(tx):
        tx.create(Node(id=NodeID("m1"), role=NodeRole.MANAGER))
        tx.create(Node(id=NodeID("w1"), role=NodeRole.WORKER))

    await store.update(fill)
    store.follow()
    authority = CertificateAuthority(store, clock, random.Random(1))
    before = store.view()
    certificate_pem, roots_pem = await authority.issue_for_itself(
        NodeID("m1"), new_key_and_csr()[1]
    )
    identity = read_identity(certificate_pem)
    assert (identity.node_id, identity.role) == ("m1", MANAGER_ROLE)
    assert NOW < identity.valid_until <= NOW + 24 * 3_600
    assert roots_pem.decode() == next(iter(before.clusters)).root_ca_certificate_pem
    assert store.view() is before
    for node_id, reason in (("w1", "is no manager any more"), ("other", "not, or no longer")):
        with pytest.raises(DeniedError, match=reason):
            await authority.issue_for_itself(NodeID(node_id), new_key_and_csr()[1])
