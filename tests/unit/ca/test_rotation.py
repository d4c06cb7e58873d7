"""Replacing the root: what may become one, who is told to renew, and when the old one goes."""

from __future__ import annotations

import asyncio
import datetime as dt
import random

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from manager.ca.chain import check_chain, load_certificates
from manager.ca.issue import new_key_and_csr, signer_of
from manager.ca.rootchange import (
    BATCH_NODES_MAX,
    BATCH_SECONDS,
    Batches,
    NewRoot,
    begin_rotation,
    cross_sign,
    finish_rotation,
    is_finished,
    is_rotation_wanted,
    pending_nodes,
    progress,
)
from manager.ca.rotation import RootRotator, prepare_rotation
from manager.ca.tokens import is_same_token, parse_join_token
from proto.errors import DeniedError, InvalidError
from proto.ids import NodeID
from proto.objects import (
    ExternalCA,
    Node,
    NodeAvailability,
    NodeState,
    NodeStatus,
    RootRotation,
    TLSInfo,
    root_certificates_pem,
)

replace = msgspec.structs.replace
NOW = 1_800_000_000.0
YEAR = 365 * 86_400.0


def make_root(key=None, *, ca=True, length=None, sign_certs=True, years=5.0, begin=0.0, by=None):
    """Make a root as a user may bring one, good or bad."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Our own")])
    moment = dt.datetime.fromtimestamp(NOW + begin, tz=dt.UTC)
    signer = by or key
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment)
        .not_valid_after(moment + dt.timedelta(seconds=years * YEAR))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=length), critical=True)
    )
    if not sign_certs:
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        built = built.add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
    is_edwards = isinstance(signer, ed25519.Ed25519PrivateKey)
    certificate = built.sign(signer, None if is_edwards else hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return NewRoot(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key_pem=key_pem.decode(),
    )


def one(pem):
    """Read one certificate."""
    (certificate,) = load_certificates(pem.encode(), "it")
    return certificate


async def join(authority, store):
    """Let a node in; return its credentials."""
    (cluster,) = store.view().clusters
    return await authority.issue_for_join(
        cluster.join_tokens.worker,
        new_key_and_csr()[1],
        hostname="host",
        availability=NodeAvailability.ACTIVE,
        address="",
    )


async def until(condition):
    """Wait for a condition."""
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110 -- what is waited for tells nobody
            await asyncio.sleep(0)


async def rotate(store, new=None, now=NOW):
    """Begin a rotation in the store."""

    def begin(tx):
        (row,) = tx.clusters
        tx.update(begin_rotation(row, now, new or NewRoot()))

    await store.update(begin)
    (cluster,) = store.view().clusters
    return cluster


def test_a_forced_rotation_makes_a_root_that_the_old_one_vouches_for(cluster):
    """Both are trusted, the new one signs, and its certificates lead to the old one too."""
    spec = replace(cluster.spec, ca_force_rotate=4)
    changing = begin_rotation(replace(cluster, spec=spec), NOW)
    rotation = changing.root_rotation
    assert rotation.certificate_pem != cluster.root_ca_certificate_pem
    assert changing.root_ca_certificate_pem == cluster.root_ca_certificate_pem
    assert changing.join_tokens == cluster.join_tokens
    assert changing.last_forced_rotation == 4
    assert signer_of(changing).key_pem == rotation.key_pem
    signed = one(rotation.cross_signed_pem)
    new, old = one(rotation.certificate_pem), one(cluster.root_ca_certificate_pem)
    assert (signed.subject, signed.issuer) == (new.subject, old.subject)
    check_chain(rotation.cross_signed_pem.encode(), root_certificates_pem(cluster).encode(), "it")
    assert signed.not_valid_after_utc == min(new.not_valid_after_utc, old.not_valid_after_utc)
    assert "PRIVATE" not in repr((changing, rotation, NewRoot(key_pem=rotation.key_pem)))


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65_537, 2_048)],
    ids=["P-384", "RSA"],
)
async def test_a_users_own_root_is_taken(store, authority, key):
    """ECDSA of another curve and RSA as well: nodes get certificates by it, which lead back too."""
    own = make_root(key)
    before = await join(authority, store)
    changing = await rotate(store, own)
    assert changing.root_rotation.key_pem == own.key_pem
    joined = await join(authority, store)
    for roots in (before.roots_pem, own.certificate_pem.encode()):
        check_chain(joined.certificate_pem, roots, "it")


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (NewRoot(key_pem="x"), "certificate has to be given as well"),
        (NewRoot(certificate_pem="x", key_pem="x"), "not a certificate in PEM"),
        (
            NewRoot(certificate_pem=make_root().certificate_pem, key_pem=make_root().key_pem),
            "does not belong to the new root",
        ),
        (
            NewRoot(certificate_pem=make_root().certificate_pem * 2, key_pem="x"),
            "has to be one certificate, these are 2",
        ),
        (
            NewRoot(certificate_pem=make_root().certificate_pem, key_pem="x"),
            "is not an unencrypted",
        ),
        (make_root(ca=False), "may not sign"),
        (make_root(sign_certs=False), "may not sign"),
        (make_root(length=0), "path length 0"),
        (make_root(years=0.9), "a year at least"),
        (make_root(begin=86_400), "not valid yet"),
        (make_root(by=ec.generate_private_key(ec.SECP256R1())), "not signed by its own key"),
        (make_root(ed25519.Ed25519PrivateKey.generate()), "neither an ECDSA nor an RSA"),
        (make_root(rsa.generate_private_key(65_537, 1_024)), "an RSA key of 2048"),
        (NewRoot(certificate_pem=make_root().certificate_pem), "no external authority that has it"),
    ],
    ids=range(14),
)
def test_what_cannot_be_a_root_is_refused(cluster, new, sentence):
    """Each with its sentence, none with a key in it."""
    with pytest.raises(InvalidError, match=sentence) as caught:
        begin_rotation(cluster, NOW, new)
    assert not new.key_pem[30:60] or new.key_pem[30:60] not in str(caught.value)


def test_the_present_root_gives_up_a_rotation(cluster, root):
    """And without a key, which nobody else has, it is refused."""
    changing = begin_rotation(cluster, NOW)
    present = NewRoot(certificate_pem=root.certificate_pem, key_pem=root.key_pem)
    assert begin_rotation(changing, NOW, present) == cluster
    with pytest.raises(InvalidError, match="no external authority"):
        begin_rotation(changing, NOW, NewRoot(certificate_pem=root.certificate_pem))


def test_another_rotation_takes_the_place_of_the_first(cluster):
    """It begins from the old root again."""
    first = begin_rotation(cluster, NOW)
    second = begin_rotation(first, NOW)
    assert second.root_rotation.certificate_pem != first.root_rotation.certificate_pem
    assert first.root_rotation.certificate_pem not in root_certificates_pem(second)
    check_chain(
        second.root_rotation.cross_signed_pem.encode(),
        cluster.root_ca_certificate_pem.encode(),
        "it",
    )


def test_the_same_new_root_again_changes_only_its_key(cluster):
    """With an external authority for it the key may go; the cross-signed certificate stays."""
    own = make_root()
    changing = begin_rotation(cluster, NOW, own)
    assert begin_rotation(changing, NOW, own) == changing
    authority = ExternalCA(url="https://ca/sign", ca_cert=own.certificate_pem)
    outside = replace(changing, spec=replace(changing.spec, external_cas=(authority,)))
    kept = begin_rotation(outside, NOW, NewRoot(certificate_pem=own.certificate_pem))
    assert kept.root_rotation == replace(changing.root_rotation, key_pem="")


def test_authorities_that_name_no_root_meant_the_present_one(cluster):
    """Otherwise they would be asked for the new root's certificates later."""
    spec = replace(cluster.spec, external_cas=(ExternalCA(url="https://ca/sign"),))
    changing = begin_rotation(replace(cluster, spec=spec), NOW)
    (authority,) = changing.spec.external_cas
    assert authority.ca_cert == cluster.root_ca_certificate_pem


def test_without_the_old_key_the_new_root_must_be_signed_already(cluster, root):
    """By the present root, for this new root; anything else is refused."""
    outside = replace(cluster, root_ca_key_pem="")
    own = make_root()
    with pytest.raises(InvalidError, match="signed by the external authority first"):
        begin_rotation(outside, NOW, own)
    signed = cross_sign(root.certificate_pem, root.key_pem, own.certificate_pem, NOW)
    changing = begin_rotation(outside, NOW, replace(own, cross_signed_pem=signed))
    assert changing.root_rotation.cross_signed_pem == signed
    other = make_root()
    for wrong in (
        cross_sign(root.certificate_pem, root.key_pem, other.certificate_pem, NOW),
        cross_sign(other.certificate_pem, other.key_pem, own.certificate_pem, NOW),
    ):
        with pytest.raises(InvalidError, match="try again"):
            begin_rotation(outside, NOW, replace(own, cross_signed_pem=wrong))


async def test_nothing_is_prepared_where_the_key_is_here(cluster):
    """And what nobody could do outside is refused before anybody is asked."""
    assert await prepare_rotation(cluster, NOW, NewRoot(), None) == NewRoot()
    outside = replace(cluster, root_ca_key_pem="")
    with pytest.raises(InvalidError, match="no external authority is set"):
        await prepare_rotation(outside, NOW, NewRoot(), None)
    with pytest.raises(InvalidError, match="cannot take the place of another"):
        await prepare_rotation(
            outside, NOW, NewRoot(certificate_pem=make_root().certificate_pem), None
        )
    present = NewRoot(certificate_pem=cluster.root_ca_certificate_pem)
    assert await prepare_rotation(outside, NOW, present, None) == present


def test_an_update_wants_a_rotation_or_not(cluster):
    """A counter that differs, or a root that is named."""
    assert not is_rotation_wanted(cluster)
    forced = replace(cluster, spec=replace(cluster.spec, ca_force_rotate=1))
    assert is_rotation_wanted(forced)
    assert not is_rotation_wanted(begin_rotation(forced, NOW))
    assert is_rotation_wanted(cluster, NewRoot(certificate_pem="x"))


async def test_the_old_root_goes_when_all_have_shown_the_new(store, authority, clock):
    """Not before: an answer is not yet a certificate. Then tokens are new, and one root is left."""
    first, second = [await join(authority, store) for _ in range(2)]
    (before,) = store.view().clusters
    assert progress(store.view()) == (2, 2)
    changing = await rotate(store)
    assert progress(store.view()) == (0, 2)
    rotator = RootRotator(store, clock, rng=random.Random(1))
    told = []
    rotator.subscribe(lambda: told.append(1))
    running = asyncio.create_task(rotator.run())
    await until(lambda: told)
    assert all(rotator.must_renew(node) for node in store.view().nodes)
    issued = []
    for joined in (first, second):
        chain, roots = await authority.renew(joined.node_id, new_key_and_csr()[1])
        assert roots.decode() == root_certificates_pem(changing)
        issued.append(chain)
        for _ in range(20):
            await asyncio.sleep(0)
    assert progress(store.view()) == (0, 2)
    await authority.renew(first.node_id, issued[0])
    assert progress(store.view()) == (1, 2)
    await authority.renew(second.node_id, issued[1])
    await until(lambda: next(iter(store.view().clusters)).root_rotation is None)
    running.cancel()
    await asyncio.wait([running])
    (after,) = store.view().clusters
    assert after.root_ca_certificate_pem == changing.root_rotation.certificate_pem
    assert after.root_ca_key_pem == changing.root_rotation.key_pem
    assert root_certificates_pem(after) == after.root_ca_certificate_pem
    for name in ("worker", "manager"):
        token = getattr(after.join_tokens, name)
        assert not is_same_token(token, getattr(before.join_tokens, name))
        assert parse_join_token(token).is_of(after.root_ca_certificate_pem)
    assert not any(rotator.must_renew(node) for node in store.view().nodes)
    with pytest.raises(DeniedError, match="before the root certificate was rotated"):
        await authority.issue_for_join(
            before.join_tokens.worker,
            new_key_and_csr()[1],
            hostname="host",
            availability=NodeAvailability.ACTIVE,
            address="",
        )
    await join(authority, store)


async def test_a_node_that_is_done_stays_so_when_it_renews_again(store, authority):
    """Otherwise, told to renew again and again, it would never rest while another is down."""
    first, _ = [await join(authority, store) for _ in range(2)]
    await rotate(store)
    chain, _ = await authority.renew(first.node_id, new_key_and_csr()[1])
    assert store.view().nodes.get(first.node_id).tls_info is None
    await authority.renew(first.node_id, chain)
    assert progress(store.view()) == (1, 2)
    await authority.renew(first.node_id, new_key_and_csr()[1])
    assert progress(store.view()) == (1, 2)
    await rotate(store)
    await authority.renew(first.node_id, new_key_and_csr()[1])
    assert progress(store.view()) == (0, 2)


async def test_a_node_that_is_down_holds_it_up_until_it_is_removed(store, authority, clock):
    """Its removal ends the rotation."""
    joined = await join(authority, store)
    down = NodeStatus(state=NodeState.DOWN)
    row = store.view().nodes.get(joined.node_id)
    await store.update(lambda tx: tx.update(replace(row, status=down)))
    await rotate(store)
    running = asyncio.create_task(RootRotator(store, clock).run())
    for _ in range(20):
        await asyncio.sleep(0)
    (cluster,) = store.view().clusters
    assert [node.id for node in pending_nodes(cluster, store.view().nodes)] == [joined.node_id]
    await store.update(lambda tx: tx.delete(Node, joined.node_id))
    await until(lambda: next(iter(store.view().clusters)).root_rotation is None)
    running.cancel()


async def test_the_rotator_ends_with_the_store(store, clock):
    """It neither hangs nor fails."""
    running = asyncio.create_task(RootRotator(store, clock).run())
    await asyncio.sleep(0)
    await store.close()
    await asyncio.wait_for(running, 5.0)


def nodes(count, state=NodeState.READY, start=0):
    """Make nodes that have not renewed."""
    return [
        Node(id=NodeID(f"n{index:03}"), status=NodeStatus(state=state))
        for index in range(start, start + count)
    ]


def test_30_are_told_at_a_time_and_those_that_are_up_first():
    """The next come as others are done."""
    batches = Batches()
    pending = [*nodes(10, NodeState.DOWN), *nodes(40, start=10)]
    first = batches.choose(pending, 0.0)
    assert list(first) == [f"n{index:03}" for index in range(10, 40)]
    rest = [node for node in pending if node.id not in first[:5]]
    second = batches.choose(rest, 1.0)
    assert set(second) - set(first) == {f"n{index:03}" for index in range(40, 45)}
    batches.check()


def test_those_that_cannot_renew_give_way():
    """30 nodes that do not renew do not keep the 31st from it; later they have another turn."""
    batches = Batches()
    pending = nodes(BATCH_NODES_MAX + 1)
    assert "n030" not in batches.choose(pending, 0.0)
    assert "n030" not in batches.choose(pending, BATCH_SECONDS - 1)
    assert "n030" in batches.choose(pending, BATCH_SECONDS)
    stuck = [node for node in pending if node.id != "n030"]
    assert len(batches.choose(stuck, BATCH_SECONDS + 1)) == BATCH_NODES_MAX
    assert batches.choose([], BATCH_SECONDS + 2) == ()


def test_only_the_new_issuer_counts(cluster):
    """Neither its name alone nor its key alone does."""
    changing = begin_rotation(cluster, NOW)
    made = make_root()
    node = Node(id=NodeID("n1"), tls_info=TLSInfo(issuer_subject="x", issuer_public_key="y"))
    assert not is_finished(changing, [node])
    assert not is_finished(changing, [replace(node, tls_info=None)])
    assert is_finished(changing, [])
    assert not is_finished(cluster, [])
    rotation = RootRotation(certificate_pem=made.certificate_pem, key_pem=made.key_pem)
    finished = finish_rotation(replace(cluster, root_rotation=rotation), random.Random(1))
    assert finished.root_ca_certificate_pem == made.certificate_pem
    assert finished.root_rotation is None
