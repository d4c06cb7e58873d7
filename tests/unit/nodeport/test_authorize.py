"""Who may call what, and that every kind of handler is guarded."""

import asyncio
import importlib
import pkgutil
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import msgspec
import pytest

import proto.v1
from manager.ca.issue import issue_certificate, new_key_and_csr
from manager.ca.root import create_root
from manager.nodeport.authorize import (
    AUTHORIZED,
    _guarded,
    authorizing_interceptor,
    check_role,
)
from manager.nodeport.peer import host_of
from manager.nodeport.standing import check_candidate, check_row
from manager.store.tables import View
from manager.store.transaction import Transaction
from manager.store.watch import Watch
from proto.errors import (
    DeniedError,
    InvariantViolationError,
    NotImplementedYetError,
    NotLeaderError,
)
from proto.objects import Cluster, Node, NodeRole, NodeSpec, RemovedNode
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Identity

OF_WORKERS = {
    "/swarm.v1.Dispatcher/Session",
    "/swarm.v1.CA/Renew",
    "/swarm.v1.Logs/Publish",
}
BOTH = {MANAGER_ROLE, WORKER_ROLE}


def contract_modules():
    """Return every module that the contract's files were made into."""
    for found in pkgutil.iter_modules(proto.v1.__path__):
        if found.name.endswith("_pb2"):
            yield importlib.import_module(f"proto.v1.{found.name}")


CONTRACT = {
    f"/{service.full_name}/{method.name}": method
    for module in contract_modules()
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
OF_MANAGERS = sorted(set(CONTRACT) - OF_WORKERS)


def test_every_rpc_of_the_contract_is_in_the_table():
    """No service of the node port is forgotten, and the table has no other."""
    assert set(CONTRACT) == set(AUTHORIZED)


@pytest.mark.parametrize("method", sorted(AUTHORIZED))
@pytest.mark.parametrize("role", [MANAGER_ROLE, WORKER_ROLE, "swarm-ca", ""])
def test_roles(method, role):
    """Workers reach what they need; everything else is between managers."""
    is_allowed = role == MANAGER_ROLE or (role == WORKER_ROLE and method in OF_WORKERS)
    identity = Identity("n1", role, "c1", 100.0)
    if is_allowed:
        check_role(identity, method, "c1", 50.0)
    else:
        with pytest.raises(DeniedError, match="node n1 has the role"):
            check_role(identity, method, "c1", 50.0)
    with pytest.raises(DeniedError, match="belongs to cluster c1, this is c2"):
        check_role(identity, method, "c2", 50.0)
    with pytest.raises(DeniedError, match=r"expired|has the role"):
        check_role(identity, method, "c1", 100.0)


def test_an_unknown_rpc_is_not_served():
    """Not even to a manager."""
    with pytest.raises(NotImplementedYetError):
        check_role(Identity("n1", MANAGER_ROLE, "c1", 100.0), "/swarm.v1.CA/Other", "c1", 50.0)


MANAGER, WORKER = NodeRole.MANAGER, NodeRole.WORKER
ROW = {"demoted": WORKER, "removed": None, "expired": MANAGER, "member": MANAGER}
SECONDS_NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def root():
    """Give an authority."""
    return create_root(SECONDS_NOW)


@pytest.fixture
def call(root):
    """Call an RPC through the gate with a manager's certificate; return what became of it."""

    async def make(method, node_id, *, store, seconds=3600.0, knows_members=True):
        _, csr = new_key_and_csr()
        certificate = issue_certificate(
            root.certificate_pem,
            root.key_pem,
            csr,
            node_id=node_id,
            role=MANAGER_ROLE,
            cluster_id="c1",
            expiry_seconds=3600.0,
            now=SECONDS_NOW + seconds - 3600.0,
        )
        return await through_the_gate(method, certificate, store, knows_members=knows_members)

    return make


class EndedError(Exception):
    """What `abort` raises."""


class Calling:
    """A call's context."""

    def __init__(self, certificate):
        self._certificate = certificate
        self.details = None

    def auth_context(self):
        """Show the certificate."""
        return {"x509_pem_cert": [self._certificate]}

    def peer(self):
        """Have an address."""
        return "ipv4:10.0.0.1:1"

    async def abort(self, code, details, _trailing):
        """End the call."""
        self.details = (code, details)
        raise EndedError


async def through_the_gate(method, certificate, store, *, knows_members=True, serve=None):
    """Send a call through the interceptor; return "served", or what it was ended with."""
    served = []

    async def behaviour(_request, _context):
        if serve is not None:
            await serve()
        served.append(True)

    contract = CONTRACT[method]
    is_both = contract.client_streaming, contract.server_streaming
    make, kind = {
        (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
        (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
        (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
        (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
    }[is_both]

    async def continuation(_details):
        return make(behaviour)

    gate = authorizing_interceptor(
        "c1", lambda: store, store.clock, knows_members=lambda: knows_members
    )
    store.gate = gate
    handler = await gate.intercept_service(continuation, SimpleNamespace(method=method))
    context = Calling(certificate)
    try:
        await getattr(handler, kind)(None, context)
    except EndedError:
        return context.details
    assert served
    return "served"


class FakeStore:
    """A store as the gate sees it, whose rows the test changes."""

    def __init__(self, term=1):
        self.term = term
        self.clock = SimpleNamespace(wall=lambda: SECONDS_NOW, monotonic=lambda: 0.0)
        self._view = View.empty()
        self._watches = []

    def view(self):
        """Return the rows."""
        return self._view

    async def newest(self):
        """Return the rows as the leader has them."""
        return self._view

    def change(self, fn):
        """Change rows, and tell those who watch."""
        tx = Transaction(self._view, 1.0)
        fn(tx)
        self._view = tx.to_view()
        for watch in self._watches:
            watch.publish(tx.to_changes())

    def watch(self, *kinds):
        """Watch rows."""
        return Watch(
            kinds, committed=self.view, enter=self._watches.append, leave=self._watches.remove
        )


@pytest.fixture
def store():
    """Give a cluster with a node of each kind."""
    store = FakeStore()

    def fill(tx):
        tx.create(Cluster(id="c1", removed_nodes=(RemovedNode(id="removed"),)))
        for name, role in ROW.items():
            if role is not None:
                tx.create(Node(id=name, spec=NodeSpec(role=role), role=role))

    store.change(fill)
    return store


@pytest.mark.parametrize("term", [1, 0], ids=["leader", "follower"])
@pytest.mark.parametrize("method", OF_MANAGERS)
async def test_no_rpc_of_managers_is_served_to_who_is_none(call, store, method, term):
    """A manager's certificate that is older than a demotion, a removal, or its own end."""
    store.term = term
    assert await call(method, "member", store=store) == "served"
    for node_id, seconds, reason in (
        ("demoted", 3600.0, "demoted is no manager of this cluster, or no longer one"),
        ("removed", 3600.0, "removed was removed from this cluster"),
        ("expired", -1.0, "the certificate of node expired has expired"),
    ):
        outcome = await call(method, node_id, store=store, seconds=seconds)
        assert outcome != "served"
        assert reason in outcome[1]


@pytest.mark.parametrize("method", sorted(OF_WORKERS))
async def test_no_rpc_of_workers_is_served_to_who_is_not_in_the_cluster(call, store, method):
    """A demoted manager is a worker, and gets its new certificate by the old one."""
    assert await call(method, "demoted", store=store) == "served"
    removed = await call(method, "removed", store=store)
    assert "removed was removed from this cluster" in removed[1]
    expired = await call(method, "expired", store=store, seconds=-1.0)
    assert "has expired" in expired[1]


@pytest.mark.parametrize("method", ["/swarm.v1.Raft/Messages", "/swarm.v1.Raft/Snapshot"])
async def test_rows_that_are_older_than_the_members_do_not_cut_the_log_off(call, store, method):
    """Only the log tells a manager of the newest rows: the members alone count until it has."""
    store.term = 0
    assert await call(method, "demoted", store=store, knows_members=False) == "served"
    assert await call(method, "stranger", store=store, knows_members=False) == "served"
    stranger = await call(method, "stranger", store=store, knows_members=True)
    assert "stranger is not in this cluster" in stranger[1]


def set_role(tx, node_id, role):
    """Give a node another role."""
    tx.update(msgspec.structs.replace(tx.nodes.get(node_id), role=role))


STREAMS = sorted(
    name for name, one in CONTRACT.items() if one.client_streaming or one.server_streaming
)


@pytest.mark.parametrize("method", STREAMS)
@pytest.mark.parametrize("change", ["demoted", "removed", "expired"])
async def test_an_open_stream_ends_when_its_caller_is_no_more_what_it_was(store, method, change):
    """Not only new calls are refused."""
    opened = asyncio.Event()

    async def forever():
        opened.set()
        await asyncio.Event().wait()

    now = [SECONDS_NOW]
    store.clock = SimpleNamespace(wall=lambda: now[0], monotonic=lambda: now[0])
    _, csr = new_key_and_csr()
    made = create_root(SECONDS_NOW)
    certificate = issue_certificate(
        made.certificate_pem,
        made.key_pem,
        csr,
        node_id="member",
        role=MANAGER_ROLE,
        cluster_id="c1",
        expiry_seconds=3600.0,
        now=SECONDS_NOW,
    )
    calling = asyncio.create_task(through_the_gate(method, certificate, store, serve=forever))
    await opened.wait()
    following = asyncio.create_task(store.gate.run())
    await asyncio.sleep(0)
    match change:
        case "demoted":
            store.change(lambda tx: set_role(tx, "member", WORKER))
        case "removed":
            store.change(lambda tx: tx.delete(Node, "member"))
        case _:
            now[0] += 3600.0
            store.change(lambda tx: set_role(tx, "demoted", MANAGER))
    is_cut = not (change == "demoted" and method in OF_WORKERS)
    done, _ = await asyncio.wait([calling], timeout=5.0 if is_cut else 0.05)
    following.cancel()
    if not is_cut:
        assert not done
        calling.cancel()
        return
    assert "served" not in calling.result()


@pytest.mark.parametrize("what", ["row", "role"])
@pytest.mark.parametrize(
    ("newest", "expected"), [("as it is", None), ("same", "refused"), ("unknown", "elsewhere")]
)
async def test_a_node_is_told_what_it_is_not_only_by_who_is_proven_to_lead(
    call, store, what, newest, expected
):
    """A leader that was cut off has not been told of a node that joined, or was promoted, since."""
    node_id = "demoted" if what == "role" else "new"
    known = Transaction(store.view(), 2.0)
    if what == "role":
        set_role(known, node_id, MANAGER)
    else:
        known.create(Node(id=node_id, role=MANAGER))

    async def read():
        if newest == "unknown":
            raise NotLeaderError("b:1")
        return known.to_view() if newest == "as it is" else store.view()

    store.newest = read
    outcome = await call("/swarm.v1.Managers/Join", node_id, store=store)
    code = {
        None: "served",
        "refused": grpc.StatusCode.PERMISSION_DENIED,
        "elsewhere": grpc.StatusCode.UNAVAILABLE,
    }[expected]
    assert code in (outcome, outcome[0])
    store.term = 0
    outcome = await call("/swarm.v1.Managers/Join", node_id, store=store)
    if what == "role":
        assert outcome[0] is grpc.StatusCode.UNAVAILABLE
        assert "as far as this manager was told" in outcome[1]
    else:
        assert outcome == "served"


def test_who_is_being_demoted_does_not_come_in_again():
    """It counts as a manager until it has left the group, and no longer than that."""
    tx = Transaction(View.empty(), 1.0)
    tx.create(Cluster(id="c1"))
    tx.create(Node(id="leaving", spec=NodeSpec(role=WORKER), role=MANAGER))
    tx.create(Node(id="coming", spec=NodeSpec(role=MANAGER), role=WORKER))
    tx.create(Node(id="manager", spec=NodeSpec(role=MANAGER), role=MANAGER))
    view = tx.to_view()
    check_candidate(view, "manager")
    check_row(view, "leaving", as_manager=True, is_newest=True)
    with pytest.raises(DeniedError, match="leaving is being demoted"):
        check_candidate(view, "leaving")
    with pytest.raises(DeniedError, match="coming is no manager of this cluster"):
        check_candidate(view, "coming")
    with pytest.raises(DeniedError, match="stranger is not in this cluster"):
        check_candidate(view, "stranger")


def test_a_server_with_an_rpc_that_is_not_in_the_table_does_not_start():
    """Whoever adds an RPC has to say who may call it."""
    guard = authorizing_interceptor("c1", lambda: None, None)
    guard.check_methods(AUTHORIZED)
    with pytest.raises(InvariantViolationError, match=r"nobody said who may call /swarm\.v1\.X/Y"):
        guard.check_methods([*AUTHORIZED, "/swarm.v1.X/Y"])


class RefusedError(Exception):
    """What ends a call."""


@asynccontextmanager
async def refuse(_context):
    """Let nobody in."""
    raise RefusedError
    yield


@asynccontextmanager
async def admit(context):
    """Let everybody in."""
    context.append("admitted")
    yield


async def unary(_request, context):
    """Answer once."""
    context.append("served")
    return "answer"


async def streaming(_request, context):
    """Answer in a stream, as a generator."""
    context.append("served")
    yield "answer"


async def writing(_request, context):
    """Answer in a stream, with `write`."""
    context.append("served")


@pytest.mark.parametrize(
    ("make", "kind", "behaviour"),
    [
        (grpc.unary_unary_rpc_method_handler, "unary_unary", unary),
        (grpc.stream_unary_rpc_method_handler, "stream_unary", unary),
        (grpc.unary_stream_rpc_method_handler, "unary_stream", streaming),
        (grpc.unary_stream_rpc_method_handler, "unary_stream", writing),
        (grpc.stream_stream_rpc_method_handler, "stream_stream", streaming),
        (grpc.stream_stream_rpc_method_handler, "stream_stream", writing),
    ],
)
async def test_every_kind_of_handler_is_guarded(make, kind, behaviour):
    """Nothing of a service runs before the caller was admitted; the kind stays what it was."""
    handler = make(behaviour, request_deserializer=bytes, response_serializer=str)

    async def call(check):
        seen = []
        guarded = _guarded(handler, check)
        assert (guarded.request_streaming, guarded.response_streaming) == (
            handler.request_streaming,
            handler.response_streaming,
        )
        assert (guarded.request_deserializer, guarded.response_serializer) == (bytes, str)
        result = getattr(guarded, kind)("request", seen)
        try:
            if hasattr(result, "__aiter__"):
                assert [response async for response in result] == ["answer"]
            else:
                await result
        except RefusedError:
            seen.append("refused")
        return seen

    assert await call(admit) == ["admitted", "served"]
    assert await call(refuse) == ["refused"]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:1234", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:1234", "2001:db8::1"),
        ("ipv6:[::ffff:10.0.0.1]:1234", "10.0.0.1"),
        ("unix:/run/x.sock", ""),
        ("", ""),
    ],
)
def test_the_callers_address(peer, host):
    """A node's address is the one that it called from, without port and brackets."""
    assert host_of(peer) == host
