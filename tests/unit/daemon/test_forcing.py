"""What may be asked for beside a forced new cluster."""

import msgspec
import pytest

from manager.daemon.addresses import InterfaceAddress
from manager.daemon.forcing import forced_identity, refuse_beside_force
from manager.daemon.identity import Identity
from manager.httpapi.backend import InitRequest
from proto.errors import InvalidError
from proto.objects import ClusterSpec, NodeAvailability

MACHINE = [InterfaceAddress("eth0", "10.0.0.5"), InterfaceAddress("eth1", "10.1.0.5")]
OLD = Identity(
    node_id="n1",
    cluster_id="c1",
    role="manager",
    advertise_addr="10.0.0.5:2377",
    listen_addr="0.0.0.0:2377",
    data_path_addr="10.0.0.5",
    is_own_address=True,
)


def request(**changes):
    """Make what a client sends when nothing more was asked for, with changes."""
    unsaid = {"listen_addr": "0.0.0.0:2377", "subnet_size": 24, "force_new_cluster": True}
    return InitRequest(**{**unsaid, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"advertise_addr": "eth1"}, {"advertise_addr": "10.1.0.5:2377"}),
        ({"advertise_addr": "192.0.2.1:99"}, {"advertise_addr": "192.0.2.1:99"}),
        (
            {"listen_addr": "10.1.0.5:99"},
            {"listen_addr": "10.1.0.5:99", "advertise_addr": "10.1.0.5:99"},
        ),
        (
            {"listen_addr": "0.0.0.0:99"},
            {"listen_addr": "0.0.0.0:99", "advertise_addr": "10.0.0.5:99"},
        ),
        ({"data_path_addr": "eth1"}, {"data_path_addr": "10.1.0.5"}),
    ],
)
def test_addresses_are_those_that_are_given(changes, expected):
    """All else stays, the listen address too where clients send their default."""
    found = forced_identity(OLD, request(**changes), MACHINE)
    assert found.is_forced
    assert found.is_own_address is found.advertise_addr.startswith("10.")
    kept = msgspec.structs.replace(found, is_forced=False, is_own_address=True)
    assert kept == msgspec.structs.replace(OLD, **expected)


def test_what_is_stored_already_is_refused_by_name():
    """Nothing that was asked for is ignored."""
    refuse_beside_force(request(auto_lock=True, spec=ClusterSpec(auto_lock_managers=True)))
    spec = ClusterSpec(
        task_history_retention_limit=7, node_cert_expiry_ns=3_600 * 10**9, labels={"a": "b"}
    )
    with pytest.raises(InvalidError) as caught:
        refuse_beside_force(
            request(
                default_addr_pool=("10.5.0.0/16",),
                subnet_size=26,
                availability=NodeAvailability.DRAIN,
                spec=spec,
            )
        )
    for name in (
        "--default-addr-pool",
        "--default-addr-pool-mask-length",
        "--availability",
        "--task-history-limit",
        "--cert-expiry",
        "labels of the cluster",
    ):
        assert name in caught.value.message


@pytest.mark.parametrize("name", sorted(ClusterSpec.__struct_fields__))
def test_no_setting_of_the_cluster_is_forgotten(name):
    """Whatever a client sets, it is done or named."""
    values = {
        "name": "other",
        "labels": {"a": "b"},
        "external_cas": (object(),),
        "task_log_driver": object(),
    }
    value = values.get(name, 77)
    spec = msgspec.structs.replace(ClusterSpec(), **{name: value})
    if name == "auto_lock_managers":
        refuse_beside_force(request(spec=spec))
        return
    with pytest.raises(InvalidError, match="does not take"):
        refuse_beside_force(request(spec=spec))
