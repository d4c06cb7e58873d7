"""What a node protects of the managers' ports, and what it does where it cannot."""

from manager.daemon.identity import Identity
from manager.daemon.protection import PortProtection, protected_of
from manager.nodeport.remotes import ManagerPeer
from manager.store.tables import View
from manager.store.transaction import Transaction
from overlay.firewall_rules import Protected
from proto.errors import RuntimeFailedError
from proto.objects import Node, NodeStatus

PEERS = (ManagerPeer("m2", "10.0.0.2:2378"), ManagerPeer("m3", "[fd00::3]:3001"))


def identity(role):
    """Make a node's identity."""
    return Identity(
        node_id="m1",
        cluster_id="c",
        role=role,
        advertise_addr="10.0.0.1:2377",
        listen_addr="0.0.0.0:2377",
        data_path_addr="",
    )


def test_a_manager_protects_its_ports_and_keeps_its_containers_from_others():
    """Every node that it knows is a member; the node port is the one after the API's."""
    addresses = frozenset(("10.0.0.7", "", "no address"))
    protected = protected_of(identity("manager"), PEERS, addresses, is_open_to_containers=False)

    assert protected == Protected(
        ports=(2377, 2378),
        members=("10.0.0.1", "10.0.0.2", "10.0.0.7", "fd00::3"),
        managers=(
            ("10.0.0.1", 2377),
            ("10.0.0.1", 2378),
            ("10.0.0.2", 2377),
            ("10.0.0.2", 2378),
            ("fd00::3", 3000),
            ("fd00::3", 3001),
        ),
    )


def test_a_worker_keeps_its_containers_from_managers():
    """Nobody listens on it, so there is nothing else to protect."""
    protected = protected_of(identity("worker"), PEERS, frozenset(), is_open_to_containers=True)

    assert protected.ports == ()
    assert protected.is_open_to_containers
    assert len(protected.managers) == 4


class Kernel:
    """A kernel that takes rules, or does not."""

    def __init__(self):
        self.protected = None
        self.error = None

    async def protect(self, protected):
        """Take them."""
        if self.error is not None:
            raise self.error
        self.protected = protected

    async def remove(self):
        """Forget them."""
        self.protected = None


async def test_a_kernel_without_such_rules_is_told_of():
    """The node works; `info` says what it lacks until the kernel has it."""
    kernel, protection = Kernel(), PortProtection()
    protection.use(kernel, is_open_to_containers=False)
    tx = Transaction(View.empty(), 1.0)
    tx.create(Node(id="w1", status=NodeStatus(addr="10.0.0.7")))

    kernel.error = RuntimeFailedError("nftables refused")
    await protection.protect(identity("manager"), PEERS, tx.to_view())
    assert "not limited" in protection.warning
    assert "nftables refused" in protection.warning

    kernel.error = None
    await protection.protect(identity("manager"), PEERS, tx.to_view())
    assert protection.warning == ""
    assert "10.0.0.7" in kernel.protected.members

    await protection.remove()
    assert kernel.protected is None
