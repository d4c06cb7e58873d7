"""An authority outside the cluster: asked over mutual TLS, in order, and not believed blindly."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from aiohttp import web

from manager.ca import external
from manager.ca.chain import check_chain
from manager.ca.external import check_external_cas
from manager.ca.issue import new_key_and_csr
from manager.ca.rotation import NewRoot, begin_rotation, prepare_rotation
from proto.errors import InvalidError, UnavailableError
from proto.objects import ClusterSpec, ExternalCA, root_certificates_pem

pytestmark = pytest.mark.integration
replace = msgspec.structs.replace


async def use(store, *authorities, **changes):
    """Name authorities in the cluster's settings; without its own key, unless told otherwise."""

    def change(tx):
        (row,) = tx.clusters
        spec = replace(row.spec, external_cas=authorities)
        tx.update(replace(row, **{"spec": spec, "root_ca_key_pem": "", **changes}))

    await store.update(change)
    (cluster,) = store.view().clusters
    return cluster


async def test_certificates_are_signed_outside(store, join, cfssl):
    """What is sent is what CFSSL reads, with the manager's own certificate; the key stays away."""
    await use(store, ExternalCA(url=cfssl.url))
    node = await join()
    identity = node.identity
    ((caller, body),) = cfssl.requests
    assert caller == "manager1"
    assert body["subject"] == {
        "CN": identity.node_id,
        "names": [{"OU": "swarm-worker", "O": "cluster1"}],
    }
    assert f"{identity.node_id}.swarm-worker.cluster1" in body["hosts"]
    assert sorted(body) == ["certificate_request", "hosts", "subject"]
    assert store.view().nodes.get(identity.node_id).certificate_until == identity.valid_until


async def test_it_is_asked_even_if_the_key_is_here(store, root, join, cfssl):
    """Who set an authority wants it to be asked."""
    await use(store, ExternalCA(url=cfssl.url), root_ca_key_pem=root.key_pem)
    await join()
    assert len(cfssl.requests) == 1


async def test_they_are_asked_in_order(store, join, cfssl, more_cfssl, root):
    """One that is away, one that refuses, one that signs; the fourth is not asked."""
    away = await more_cfssl(root, root.certificate_pem)
    await away.stop()
    refusing, fourth = [await more_cfssl(root, root.certificate_pem) for _ in range(2)]
    refusing.lie = lambda _: web.json_response(
        {"success": False, "result": None, "errors": [{"code": 1, "message": "policy"}]}
    )
    await use(store, *[ExternalCA(url=one.url) for one in (away, refusing, cfssl, fourth)])
    await join()
    assert [len(one.requests) for one in (refusing, cfssl, fourth)] == [1, 1, 0]


async def test_answers_are_checked(store, join, cfssl, tools):
    """Each lie is named, and no node comes of it."""
    other = tools.new_root()
    await use(store, ExternalCA(url=cfssl.url))

    def text(body):
        return lambda _: web.Response(body=body)

    for lie, sentence in (
        (lambda body: cfssl.signed(body, root=other), "not signed by the cluster's root"),
        (lambda body: cfssl.signed(body, role="swarm-manager"), "OU=swarm-manager"),
        (lambda body: cfssl.signed(body, node_id="x"), "CN=x"),
        (lambda body: cfssl.signed(body, cluster="x"), "O=x"),
        (lambda body: cfssl.signed(body, csr_pem=new_key_and_csr()[1]), "for another key"),
        (lambda body: cfssl.signed({**body, "profile": "CA"}), "exactly one"),
        (lambda _: "x", "not a certificate"),
        (text(b"<html>"), "no JSON"),
        (text(b"{}"), "refused: status 200"),
        (text(b" " * 300_000), "longer than"),
        (lambda _: web.Response(status=302, headers={"Location": "/x"}), "answered 302"),
    ):
        cfssl.lie = lie
        with pytest.raises(UnavailableError, match="no external authority signed") as caught:
            await join()
        assert sentence in caught.value.message, caught.value.message
        assert cfssl.url in caught.value.message
    assert len(store.view().nodes) == 0
    cfssl.lie = None
    await join()


async def test_one_that_is_silent_is_given_up(store, join, cfssl, monkeypatch):
    """After its time-out, five seconds in production."""
    assert external.ANSWER_SECONDS_MAX == 5.0
    monkeypatch.setattr(external, "ANSWER_SECONDS_MAX", 0.2)
    cfssl.silence = asyncio.Event()
    await use(store, ExternalCA(url=cfssl.url))
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.2 s"):
        await join()
    cfssl.silence.set()


async def test_a_foreign_server_is_not_told_anything(store, join, more_cfssl, tools, root):
    """Its certificate has to be of the root that is named, or of the cluster's."""
    stranger = await more_cfssl(tools.new_root(), root.certificate_pem)
    await use(store, ExternalCA(url=stranger.url))
    with pytest.raises(UnavailableError, match="could not be asked"):
        await join()
    assert stranger.requests == []


async def test_a_rotation_to_a_root_outside(  # noqa: PLR0917 -- fixtures
    store, join, root, authority, more_cfssl, tools
):
    """The new root's key goes out of the cluster; the authority that has it signs from then on."""
    before = await join()
    new = tools.new_root()
    server = await more_cfssl(new, root.certificate_pem)
    named = ExternalCA(url=server.url, ca_cert=new.certificate_pem)
    cluster = await use(store, named, root_ca_key_pem=root.key_pem)
    wanted = NewRoot(certificate_pem=new.certificate_pem)
    prepared = await prepare_rotation(cluster, time.time(), wanted, None)
    changing = begin_rotation(cluster, time.time(), prepared)
    assert changing.root_rotation.key_pem == ""
    await use(store, named, root_rotation=changing.root_rotation, root_ca_key_pem=root.key_pem)
    chain, roots = await authority.renew(before.identity.node_id, new_key_and_csr()[1])
    assert len(server.requests) == 1
    check_chain(chain, before.source().roots_pem, "it")
    check_chain(chain, new.certificate_pem.encode(), "it")
    assert roots.decode() == root_certificates_pem(changing)


async def test_a_rotation_away_from_a_root_outside(store, join, cfssl, authority, manager):
    """The authority signs the new root, whose key the cluster then holds."""
    cluster = await use(store, ExternalCA(url=cfssl.url))
    before = await join()
    prepared = await prepare_rotation(cluster, time.time(), NewRoot(), manager)
    assert cfssl.requests[-1][1]["profile"] == "CA"
    changing = begin_rotation(cluster, time.time(), prepared)
    assert changing.root_rotation.key_pem
    await use(store, *changing.spec.external_cas, root_rotation=changing.root_rotation)
    count = len(cfssl.requests)
    chain, _ = await authority.renew(before.identity.node_id, new_key_and_csr()[1])
    assert len(cfssl.requests) == count
    check_chain(chain, before.source().roots_pem, "it")
    cfssl.lie = lambda _: prepared.certificate_pem
    with pytest.raises(UnavailableError, match="not signed by the cluster's root"):
        await prepare_rotation(cluster, time.time(), NewRoot(), manager)


@pytest.mark.parametrize(
    ("authority", "sentence"),
    [
        (ExternalCA(protocol="acme", url="https://ca"), "only cfssl"),
        (ExternalCA(url="http://ca"), "has to begin with https"),
        (ExternalCA(url=""), "has to begin with https"),
        (ExternalCA(url="https://ca", ca_cert="x"), "not a certificate"),
    ],
)
def test_settings_are_checked(authority, sentence):
    """An authority that could not be used is refused when it is named."""
    with pytest.raises(InvalidError, match=sentence):
        check_external_cas(ClusterSpec(external_cas=(authority,)))
    check_external_cas(ClusterSpec(external_cas=(ExternalCA(url="https://ca/sign"),)))
    with pytest.raises(InvalidError, match="at most 16"):
        check_external_cas(ClusterSpec(external_cas=(ExternalCA(url="https://ca"),) * 17))
