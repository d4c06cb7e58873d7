"""Joining over the API port: what a machine gets, and why it does not."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from manager.ca.issue import new_key_and_csr
from manager.ca.root import create_root
from manager.ca.tokens import new_join_token
from manager.httpapi.app import make_app
from manager.httpapi.backend import Joined
from manager.httpapi.joinclient import fetch_certificate
from manager.httpapi.server import serve_tls
from manager.httpapi.tls import throwaway_credentials
from proto.errors import DeniedError, InvalidError, SwarmError, UnavailableError
from proto.ids import NodeID
from proto.objects import Cluster, NodeAvailability, NodeRole
from raft.transport.identity import WORKER_ROLE, read_identity

if TYPE_CHECKING:
    from tests.integration.httpapi.conftest import Managers

pytestmark = pytest.mark.integration


def cluster_of(managers: Managers) -> Cluster:
    """Return the cluster's row."""
    (cluster,) = managers.store.view().clusters
    return cluster


async def join(managers: Managers, address: str, token: str, **more: Any) -> Joined:
    """Ask to join."""
    del managers
    _, csr_pem = new_key_and_csr()
    asked = {
        "hostname": "host9",
        "availability": NodeAvailability.DRAIN,
        "address": "10.0.0.9",
        "now": time.time(),
        **more,
    }
    return await fetch_certificate(address, token, csr_pem, **asked)


async def refusal(managers: Managers, address: str, token: str, **more: Any) -> SwarmError:
    """Ask to join and be refused within 5 s, with nothing written and the token not shown."""
    before = managers.store.view().version
    started = time.monotonic()
    with pytest.raises(SwarmError) as caught:
        await join(managers, address, token, **more)
    assert time.monotonic() - started < 5.5
    assert managers.store.view().version == before
    secret = token.rpartition("-")[2]
    assert not secret or secret not in caught.value.message
    return caught.value


@pytest.mark.parametrize("asked", ["m1", "m2"])
@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_a_token_makes_a_node(managers: Managers, asked: str, role: str) -> None:
    """Of the token's role, on the leader or through a follower."""
    token = getattr(cluster_of(managers).join_tokens, role)
    joined = await join(managers, managers.all[asked].address, token)
    assert joined.role is (NodeRole.MANAGER if role == "manager" else NodeRole.WORKER)
    identity = read_identity(joined.certificate_pem)
    assert (identity.node_id, identity.role) == (joined.node_id, f"swarm-{role}")
    assert joined.roots_pem.decode() == managers.pki.root.certificate_pem
    assert joined.api_managers[0].addr == managers.all["m1"].address
    node = managers.store.view().nodes.get(joined.node_id)
    assert node is not None
    assert (node.description.hostname, node.status.addr) == ("host9", "10.0.0.9")
    assert node.spec.availability is NodeAvailability.DRAIN


async def test_a_token_that_is_none_is_refused_before_anything_is_asked(
    managers: Managers,
) -> None:
    """Truncated, empty, another word: without a connection."""
    token = cluster_of(managers).join_tokens.worker
    for text in (token[:-1], "", "SWMTKN-1-x", token.replace("-", "_")):
        error = await refusal(managers, "192.0.2.1:2377", text)
        assert isinstance(error, InvalidError)
        assert "invalid join token" in error.message


async def test_a_rotated_token_is_refused(managers: Managers) -> None:
    """By the leader and through a follower; the sentence has the remedy."""
    cluster = cluster_of(managers)
    old = cluster.join_tokens.worker
    await (
        managers.all["m1"]
        .control()
        .update_cluster(cluster.version, cluster.spec, rotate_worker_token=True)
    )
    for name in ("m1", "m3"):
        error = await refusal(managers, managers.all[name].address, old)
        assert isinstance(error, DeniedError)
        assert "swarm join-token worker" in error.message


async def test_another_cluster_s_token_is_refused_before_it_is_shown(managers: Managers) -> None:
    """The digest is not that of the root: the secret never leaves this machine."""
    other = new_join_token(create_root(time.time()).certificate_pem, random.Random(3))
    error = await refusal(managers, managers.all["m1"].address, other)
    assert isinstance(error, DeniedError)
    assert "remote CA does not match fingerprint" in error.message


async def test_who_cannot_prove_the_root_does_not_get_the_token(managers: Managers) -> None:
    """A man in the middle hands on the true root, and has no certificate of it."""
    fake = throwaway_credentials(time.time())
    manager = managers.all["m1"]
    listener = await serve_tls(make_app(manager, peers=manager), "127.0.0.1:0", lambda: fake)
    error = await refusal(managers, listener.address, cluster_of(managers).join_tokens.worker)
    await listener.close()
    assert isinstance(error, UnavailableError)
    assert "could not prove that it is a manager" in error.message


async def test_a_worker_cannot_pass_for_a_manager(managers: Managers) -> None:
    """Its certificate is of the right root and has another role."""
    manager = managers.all["m1"]
    worker = managers.pki.credentials("w1", WORKER_ROLE)
    listener = await serve_tls(make_app(manager, peers=manager), "127.0.0.1:0", lambda: worker)
    error = await refusal(managers, listener.address, cluster_of(managers).join_tokens.worker)
    await listener.close()
    assert "could not prove that it is a manager" in error.message


async def test_where_nobody_listens_the_address_is_named(managers: Managers) -> None:
    """A worker, a machine without a daemon: refused; on this machine it says that too."""
    token = cluster_of(managers).join_tokens.worker
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        error = await refusal(managers, address, token)
    assert isinstance(error, UnavailableError)
    assert address in error.message
    assert "this node itself" in error.message


async def test_who_never_answers_is_named(managers: Managers) -> None:
    """Accepts and says nothing."""
    token = cluster_of(managers).join_tokens.worker
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        error = await refusal(managers, address, token)
    assert address in error.message
    assert "did not answer" in error.message


async def test_who_speaks_something_else_is_named(managers: Managers) -> None:
    """Plain text where TLS should be."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    address = f"{host}:{port}"
    error = await refusal(managers, address, cluster_of(managers).join_tokens.worker)
    server.close()
    await server.wait_closed()
    assert isinstance(error, UnavailableError)
    assert address in error.message


@pytest.mark.parametrize(
    ("hours", "sentence"), [(-2.0, "120 minutes behind"), (3.0, "180 minutes ahead of")]
)
async def test_a_wrong_clock_is_named(managers: Managers, hours: float, sentence: str) -> None:
    """By how much, and against whom."""
    address = managers.all["m1"].address
    token = cluster_of(managers).join_tokens.worker
    error = await refusal(managers, address, token, now=time.time() + hours * 3600)
    assert sentence in error.message
    assert address in error.message


async def test_a_locked_manager_says_that_it_is(managers: Managers) -> None:
    """With what it can serve while its key is sealed."""
    manager = managers.all["m1"]
    token = cluster_of(managers).join_tokens.worker
    manager.is_locked = True
    fake = throwaway_credentials(time.time())
    listener = await serve_tls(make_app(manager, peers=manager), "127.0.0.1:0", lambda: fake)
    error = await refusal(managers, listener.address, token)
    await listener.close()
    assert isinstance(error, UnavailableError)
    assert "needs to be unlocked" in error.message


async def test_without_a_quorum_nobody_joins(managers: Managers) -> None:
    """How many managers are reachable, and nothing is left of the attempt."""
    managers.lead(None)
    managers.all["m2"].reachable = 1
    token = cluster_of(managers).join_tokens.worker
    error = await refusal(managers, managers.all["m2"].address, token)
    assert isinstance(error, UnavailableError)
    assert "1 of 3 managers reachable" in error.message


async def test_the_token_is_nowhere_in_the_log(
    managers: Managers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither when it is good nor when the request is not."""
    token = cluster_of(managers).join_tokens.manager
    await join(managers, managers.all["m2"].address, token)
    bad = {"Token": token, "Csr": "nonsense", "Hostname": "h"}
    for body in (bad, {"Token": [token]}, {**bad, "Availability": token}):
        answer = await managers.ask_tls(
            "m2", "/join/v1/certificate", None, method="POST", body=body
        )
        assert answer.status == 400
    assert token not in "".join(capsys.readouterr())


async def test_a_stranger_s_large_body_is_refused(managers: Managers) -> None:
    """Nobody needs more than a few KiB to join."""
    body = {"Token": "x" * 100_000}
    answer = await managers.ask_tls("m2", "/join/v1/certificate", None, method="POST", body=body)
    assert (answer.status, "larger than" in answer.message) == (400, True)
    assert NodeID("w1") in managers.store.view().nodes
