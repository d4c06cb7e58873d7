"""What a lab is named, remembered and refused."""

import os

import pytest

from manager.lab.formation import Member, missing
from manager.lab.host import Host
from manager.lab.lab import Lab, check_machine, choose, choose_any
from manager.lab.processes import ProcessRef
from manager.lab.state import LabFiles, plan
from proto.errors import InvalidError, NotFoundError, RuntimeFailedError, UnavailableError


@pytest.fixture
def files(tmp_path):
    """Directories of labs that nobody else uses."""
    return LabFiles(run=tmp_path / "run", data=tmp_path / "data")


def test_hosts_are_named_and_numbered():
    """Managers come first, from 10.77.0.1; workers follow."""
    planned = [(host.name, host.role, host.address) for host in plan("lab", 2, 2).hosts]
    assert planned == [
        ("m1", "manager", "10.77.0.1"),
        ("m2", "manager", "10.77.0.2"),
        ("w1", "worker", "10.77.0.3"),
        ("w2", "worker", "10.77.0.4"),
    ]


@pytest.mark.parametrize(
    ("name", "managers", "workers", "said"),
    [
        ("lab", 0, 2, "at least one manager"),
        ("lab", 1, 200, "at most 200 hosts"),
        ("Lab", 1, 0, "cannot name a lab"),
        ("../x", 1, 0, "cannot name a lab"),
        ("", 1, 0, "cannot name a lab"),
        ("a" * 17, 1, 0, "16 at most"),
    ],
)
def test_impossible_labs_are_refused(name, managers, workers, said):
    """The sentence says what is wrong."""
    with pytest.raises(InvalidError, match=said):
        plan(name, managers, workers)


def test_an_unknown_host_is_named_with_the_known():
    """Who mistypes sees what there is."""
    with pytest.raises(NotFoundError, match="lab x has no host m9; it has m1, w1"):
        plan("x", 1, 1).host("m9")


def test_what_is_remembered_comes_back(files):
    """A lab's state survives the command that wrote it; a half-written one is none."""
    state = plan("lab", 1, 0)
    with files.locked("lab"):
        files.save(state)
    assert files.load("lab") == state
    assert files.names() == ["lab"]
    (path,) = (files.data("").parent / "run/lab").glob("*.json")
    path.write_bytes(path.read_bytes()[:20])
    assert files.load("lab") is None


def test_two_commands_do_not_change_one_lab(files):
    """The second is told to wait; afterwards it may."""
    with (
        files.locked("lab"),
        pytest.raises(UnavailableError, match="another command is changing lab lab"),
        files.locked("lab"),
    ):
        pass
    with files.locked("lab"):
        pass


def test_nothing_is_left_of_a_forgotten_lab(files):
    """The directories go with the last lab."""
    with files.locked("lab"):
        files.save(plan("lab", 1, 0))
        files.forget("lab")
    assert not (files.data("").parent / "run").exists()


def test_the_only_lab_needs_no_name(files):
    """With several, one has to be chosen; without any, one has to be made."""
    with pytest.raises(NotFoundError, match="make one with swarm lab up"):
        choose("", files)
    for name in ("one", "two"):
        with files.locked(name):
            files.save(plan(name, 1, 0))
        if name == "one":
            assert choose("", files).name == "one"
    for chosen in (choose, choose_any):
        with pytest.raises(InvalidError, match="one, two"):
            chosen("", files)
    assert choose("two", files).name == "two"


def test_an_unknown_lab_is_named_with_the_known(files):
    """Every command on it says which there are."""
    with files.locked("one"):
        files.save(plan("one", 1, 0))
    for act in (
        lambda lab: lab.kill("m1"),
        lambda lab: lab.cut("m1"),
        lambda lab: lab.start("m1"),
        lambda lab: lab.host("m1"),
        lambda lab: lab.down(),
    ):
        with pytest.raises(NotFoundError, match="there is no lab none; there are one"):
            act(Lab("none", files))
    assert files.names() == ["one"]


def test_a_host_without_power_says_how_it_comes_back(files):
    """Nothing can be run in it."""
    with files.locked("lab"):
        files.save(plan("lab", 1, 0))
    with pytest.raises(UnavailableError, match=r"host m1 is off; .*swarm lab start m1 --name lab"):
        Lab("lab", files).running("m1")


def test_what_the_machine_lacks_is_named():
    """Root first, then the packages."""
    with pytest.raises(UnavailableError, match="only root"):
        check_machine(is_root=False, find=lambda _: "/bin/x")
    with pytest.raises(UnavailableError, match=r"install .* crun nftables$"):
        check_machine(
            is_root=True, find=lambda name: None if name in {"nft", "crun", "runc"} else name
        )
    check_machine(is_root=True, find=lambda name: None if name == "crun" else name)


def test_a_reused_number_is_another_process():
    """A process is known by its start, too."""
    me = ProcessRef.of(os.getpid())
    assert me.is_alive
    assert not ProcessRef(me.pid, me.started - 1).is_alive
    ProcessRef(me.pid, me.started - 1).kill()  # else this test would not end well


def test_an_ended_process_is_no_reference():
    """Who is gone cannot be taken note of."""
    with pytest.raises(RuntimeFailedError, match="has ended"):
        ProcessRef.of(2**22 + 1)


def test_who_is_missing_in_a_cluster(tmp_path):
    """Each member that is not what it shall be is named with what it is."""
    members = [Member(Host(f"m{n}", tmp_path), "manager") for n in (1, 2, 3, 4)]
    members += [Member(Host(f"w{n}", tmp_path), "worker") for n in (1, 2)]

    def node(name, state="ready", **more):
        return {"Description": {"Hostname": name}, "Status": {"State": state}, **more}

    nodes = [
        node("m1", ManagerStatus={"Reachability": "reachable"}),
        node("m2", ManagerStatus={"Reachability": "unreachable"}),
        node("m3"),
        node("w1"),
        node("w2", state="down"),
    ]
    assert missing(members, nodes) == [
        "m2 is unreachable",
        "m3 is no manager",
        "m4 is no node",
        "w2 is down",
    ]
