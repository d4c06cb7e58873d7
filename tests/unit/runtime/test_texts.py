"""Files written for a container, and what its log, conmon and the kernel's files say."""

import datetime as dt
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import RuntimeFailedError
from proto.ids import ContainerID
from proto.logs import LogRecord
from worker.runtime import cgroups, conmon, logfile, network_files, procfs, rootfs, spec
from worker.runtime.api import ContainerConfig, ContainerLimits
from worker.runtime.conmon import Binaries
from worker.runtime.directory import ContainerDirectory
from worker.runtime.filters import ANNOTATION, FilterCache
from worker.runtime.users import Identity

ID = ContainerID("ab" * 32)


def config(**fields: object) -> ContainerConfig:
    """A config with the fields that matter."""
    return ContainerConfig(id=ID, argv=("run",), **fields)  # type: ignore[arg-type]  # a table


def test_hosts():
    """The usual names, the extra ones, and the container's own address with both names."""
    extra = ("10.0.0.9 db db.local", "fd00::9  six")
    own = config(hosts=extra, address="10.0.0.5/24", netns_path="/n")
    text = network_files.hosts(own, "web.example", "10.9.9.9 machine\n")
    assert text.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert text.splitlines()[6:] == [
        "10.0.0.9\tdb db.local",
        "fd00::9\tsix",
        "10.0.0.5\tweb.example web",
    ]
    shared = network_files.hosts(config(hosts=extra[:1]), "machine", "10.9.9.9 machine\n")
    assert shared == "10.9.9.9 machine\n10.0.0.9\tdb db.local\n"


HOST = """\
# comment
domain first.example
search a.example b.example
nameserver 127.0.0.53
nameserver 10.0.0.2
nameserver ::1
nameserver fe80::1%eth0
options edns0 trust-ad
"""


def test_resolver_of_the_host():
    """Without a wish the host's is taken, but no loopback server."""
    assert network_files.resolv_conf(config(), HOST) == (
        "nameserver 10.0.0.2\nnameserver fe80::1%eth0\n"
        "search a.example b.example\noptions edns0 trust-ad\n"
    )


def test_resolver_as_wished():
    """Each list replaces the host's; a single dot empties the search list."""
    wished = config(nameservers=("127.0.0.11",), search_domains=(".",), dns_options=("ndots:0",))
    assert network_files.resolv_conf(wished, HOST) == "nameserver 127.0.0.11\noptions ndots:0\n"


def test_stub_resolver():
    """Only a host with nothing but loopback servers has a stub."""
    assert network_files.has_only_loopback("nameserver 127.0.0.53\nnameserver ::1\n")
    assert not network_files.has_only_loopback(HOST)
    assert not network_files.has_only_loopback("")
    assert not network_files.is_loopback("nonsense")


def line(second: int, stream: str, tag: str, data: str) -> bytes:
    """One line of the log file."""
    return f"2026-11-24T03:53:{second:02}.000000007+00:00 {stream} {tag} {data}\n".encode()


BASE = int(dt.datetime(2026, 11, 24, 3, 53, tzinfo=dt.UTC).timestamp()) * 10**9 + 7


def merged(*lines: bytes) -> list[LogRecord]:
    """What a merger makes of the lines, with what is left in the end."""
    merger = logfile.Merger()
    pieces = [logfile.parse(text) for text in lines]
    records = [merger.feed(piece) for piece in pieces if piece]
    return [*(record for record in records if record), *merger.flush()]


def test_log_lines():
    """Whole lines, parts of both streams mixed, an empty end, and a line never ended."""
    assert merged(
        line(1, "stdout", "F", "whole"),
        line(2, "stdout", "P", "be"),
        line(3, "stderr", "P", "er"),
        line(4, "stdout", "P", "gi"),
        line(5, "stderr", "F", "ror"),
        line(6, "stdout", "F", "n"),
        line(7, "stdout", "P", "x"),
        line(8, "stdout", "F", ""),
        line(9, "stderr", "P", "no end "),
    ) == [
        LogRecord(BASE + 1 * 10**9, "stdout", b"whole\n"),
        LogRecord(BASE + 3 * 10**9, "stderr", b"error\n"),
        LogRecord(BASE + 2 * 10**9, "stdout", b"begin\n"),
        LogRecord(BASE + 7 * 10**9, "stdout", b"x\n"),
        LogRecord(BASE + 9 * 10**9, "stderr", b"no end "),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"2026-11-24T03:53:14.599484004+00:00 stdout F",
        b"2026-11-24T03:53:14.599484004+00:00 stdin F x\n",
        b"2026-11-24T03:53:14.599484004+00:00 stdout X x\n",
        b"2026-11-24 stdout F x\n",
        b"2026-99-24T03:53:14.599484004+00:00 stdout F x\n",
        b"2026-11-24T03:53:14.59948400x+00:00 stdout F x\n",
        b"\xff\xff stdout F x\n",
    ],
)
def test_damaged_line(text: bytes):
    """A line that conmon could not write whole is skipped."""
    assert logfile.parse(text) is None


@given(st.binary(max_size=60))
def test_any_line_is_survived(data: bytes):
    """No bytes in a log stop its reader."""
    piece = logfile.parse(b"2026-11-24T03:53:14.599484004+00:00 stdout F " + data)
    assert piece is not None
    assert piece.data == data
    logfile.parse(data)


def test_time_zone():
    """Times with an offset are the same moment."""
    assert logfile.time_ns("2026-11-24T05:53:00.000000007+02:00") == BASE


def test_line_without_end_is_given_in_parts():
    """A line that is longer than the limit does not fill the memory."""
    piece = logfile.Piece(1, "stdout", is_partial=True, data=bytes(logfile.LINE_BYTES_MAX))
    merger = logfile.Merger()
    record = merger.feed(piece)
    assert record is not None
    assert len(record.data) == logfile.LINE_BYTES_MAX
    assert merger.flush() == []


def test_counting_backwards():
    """Ended lines count once, parts belong to what follows them, an open end is a line."""
    scan = logfile.TailScan(2)
    for text, count in (
        (line(9, "stderr", "P", "open"), 1),
        (line(8, "stdout", "F", "end"), 2),
        (line(7, "stdout", "P", "of"), 2),
        (line(6, "stderr", "P", "still"), 2),
        (b"damaged\n", 2),
    ):
        scan.feed(text)
        assert scan.lines == count
        assert not scan.is_done
    scan.feed(line(5, "stdout", "F", "before"))
    assert scan.is_done


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("RTMIN", 34)],
)
def test_signals(text: str, number: int):
    """All spellings that Docker takes."""
    assert procfs.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "NOPE", "-9", "65", "SIGRTMIN+x", "TERM+1", "RTMAX+1"])
def test_no_signals(text: str):
    """What is no signal is refused by name."""
    with pytest.raises(ValueError, match=r"^invalid signal: "):
        procfs.parse_signal(text)


@pytest.mark.parametrize(
    ("program", "message", "sentence"),
    [
        (
            "nosuch",
            "executable file `nosuch` not found in $PATH: No such file or directory\n",
            'exec: "nosuch": executable file not found in $PATH',
        ),
        (
            "/bin/nosuch",
            "executable file `/bin/nosuch` not found in $PATH: No such file or directory\n",
            'exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory',
        ),
        (
            "nosuch",
            (
                'time="2026" level=error msg="runc create failed: unable to start container '
                'process: exec: \\"nosuch\\": executable file not found in $PATH"\n'
            ),
            'exec: "nosuch": executable file not found in $PATH',
        ),
        (
            "/etc",
            "open executable: Operation not permitted\n",
            'exec: "/etc": operation not permitted',
        ),
        (
            "x",
            "write `/var/x`: No space left on device\n",
            "the disk is full: write `/var/x`: No space left on device",
        ),
        (
            "x",
            "chdir: Permission denied",
            'cannot change to the working directory "/w": chdir: Permission denied',
        ),
        ("x", "first\nlast `y`: why\n", "last `y`: why"),
        ("x", "", "the container runtime failed without a message"),
    ],
)
def test_failures(program: str, message: str, sentence: str):
    """The last words of crun and runc become Docker's, or stay as they are."""
    wanted = ContainerConfig(id=ID, argv=(program,), working_dir="/w")
    assert conmon.failure(message, wanted).message == sentence


@pytest.mark.parametrize(
    ("reported", "sentence"),
    [
        (b"", "conmon ended before the container was created"),
        (b"garbage", "conmon ended before the container was created: garbage"),
        (b'{"data": -1, "message": "why \\n"}', "why"),
        (b'{"data": -1, "message": "w\xff"}', "w\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_reports(reported: bytes, sentence: str):
    """What conmon says instead of a PID."""
    with pytest.raises(RuntimeFailedError) as caught:
        conmon._pid_of(reported, config())
    assert caught.value.message == sentence
    assert conmon._pid_of(b'{"data": 42}', config()) == 42


def test_command_of_the_monitor():
    """A terminal and an open stdin are conmon's affair; so is that nothing is logged."""
    directory = ContainerDirectory(Path("/c/x"), Path("/run/crun/x"))
    binaries = Binaries("crun", "/usr/bin/crun", "/usr/bin/conmon")
    plain = conmon.command(binaries, config(), directory)
    assert "--runtime-arg=--root=/run/crun" in plain
    assert "k8s-file:/c/x/log" in plain
    assert "-t" not in plain
    assert "-i" not in plain
    both = conmon.command(binaries, config(tty=True, open_stdin=True), directory)
    assert both[len(plain) :] == ["-t", "-i", "--leave-stdin-open"]


def test_overlay_options():
    """The highest layer comes first, and what separates options is escaped."""
    assert rootfs.overlay_options(("/l/a", "/l/b:c,d"), Path("/c")) == (
        "lowerdir=/l/b\\:c\\,d:/l/a,upperdir=/c/upper,workdir=/c/work,index=off"
    )


def test_cgroup_versions(tmp_path: Path):
    """Version 2 has its controllers at the top; a tree without processes is none."""
    with pytest.raises(RuntimeFailedError, match="no cgroup hierarchy is mounted"):
        cgroups.detect(tmp_path)
    for name in ("memory", "pids", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu").symlink_to("pids")
    for name in ("memory", "pids"):
        (tmp_path / name / "cgroup.procs").write_text("")
    first = cgroups.detect(tmp_path)
    assert first == cgroups.Layout(
        1, (tmp_path / "memory", tmp_path / "pids"), has_swap_limit=False
    )
    (tmp_path / "memory/memory.memsw.limit_in_bytes").write_text("")
    assert cgroups.detect(tmp_path).has_swap_limit
    (tmp_path / "cgroup.controllers").write_text("")
    assert cgroups.detect(tmp_path) == cgroups.Layout(2, (tmp_path,), has_swap_limit=False)
    (tmp_path / "pids/memory.swap.max").write_text("")
    assert cgroups.detect(tmp_path).has_swap_limit


@pytest.mark.parametrize(
    ("limits", "version", "expected"),
    [
        (ContainerLimits(), 1, {"pids": {"limit": 4096}}),
        (ContainerLimits(nano_cpus=1, pids=-1), 1, {"cpu": {"period": 100000, "quota": 1000}}),
        (
            ContainerLimits(nano_cpus=2_500_000_000, pids=-1),
            2,
            {"cpu": {"period": 100000, "quota": 250000}},
        ),
        (
            ContainerLimits(memory_bytes=5, swap_bytes=-1, pids=7),
            1,
            {"memory": {"limit": 5, "swap": -1}, "pids": {"limit": 7}},
        ),
        (ContainerLimits(memory_swappiness=0, pids=-1), 1, {"memory": {"swappiness": 0}}),
        (ContainerLimits(memory_swappiness=0, pids=-1), 2, {}),
        (ContainerLimits(pids=-1), 2, {}),
        (ContainerLimits(pids=5), 2, {"pids": {"limit": 5}}),
    ],
)
def test_limits(limits: ContainerLimits, version: int, expected: dict[str, object]):
    """Only what is limited is written, and only what the version has."""
    facts = spec.HostFacts(cgroup_version=2 if version == 2 else 1)
    found = spec.resources(limits, facts)
    assert {name: value for name, value in found.items() if name != "devices"} == expected


def test_a_node_may_give_its_containers_no_limit_of_processes():
    """By the daemon's option; what a service asks for counts all the same."""
    facts = spec.HostFacts(cgroup_version=2, pids_default=0)
    assert "pids" not in spec.resources(ContainerLimits(), facts)
    assert spec.resources(ContainerLimits(pids=9), facts)["pids"] == {"limit": 9}


def test_open_files_are_not_the_daemon_s():
    """A container has the usual limits, whatever the daemon's are; a service changes them."""
    facts = spec.HostFacts(cgroup_version=2)
    usual = {"type": "RLIMIT_NOFILE", "soft": 1_024, "hard": 524_288}
    few = spec.HostFacts(cgroup_version=2, files_max=900)
    core = {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}

    assert spec.process(config(), facts, Identity())["rlimits"] == [usual]
    assert spec.process(config(), few, Identity())["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 900, "hard": 900}
    ]
    more = config(ulimits=(("core", 0, 0),))
    assert spec.process(more, facts, Identity())["rlimits"] == [usual, core]
    other = config(ulimits=(("nofile", 5, 6),))
    assert spec.process(other, facts, Identity())["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}
    ]


def test_swap_that_cannot_be_limited():
    """A machine without a swap limit runs the container without it."""
    facts = spec.HostFacts(cgroup_version=1, has_swap_limit=False)
    found = spec.resources(ContainerLimits(memory_bytes=5, swap_bytes=9), facts)
    assert found["memory"] == {"limit": 5}


def test_environment():
    """Defaults, changes, removal, and the home directory unless the image has one."""
    facts = spec.HostFacts(cgroup_version=1, hostname="machine")
    identity = Identity(home="/home/x")
    assert spec.environment(config(), facts, identity) == (
        f"PATH={spec.DEFAULT_PATH}",
        "HOSTNAME=machine",
        "HOME=/home/x",
    )
    changed = config(env=("HOME=/h", "A=b=c", "PATH", "A=d"), tty=True, netns_path="/n")
    assert spec.environment(changed, facts, identity) == (
        f"HOSTNAME={ID[:12]}",
        "TERM=xterm",
        "HOME=/h",
        "A=d",
    )


def test_filters_are_learnt(tmp_path: Path):
    """Only whole filters, only crun's, and not more than the limit."""
    profile = msgspec.Raw(b'{"a":1}')
    cache = FilterCache("crun")
    cache.learn(profile, tmp_path)
    (tmp_path / "seccomp.bpf").write_bytes(b"1234567")
    cache.learn(profile, tmp_path)
    cache.learn(None, tmp_path)
    assert cache.annotations(profile) == {}
    (tmp_path / "seccomp.bpf").write_bytes(b"12345678")
    cache.learn(profile, tmp_path)
    assert cache.annotations(profile) == {ANNOTATION: "MTIzNDU2Nzg="}
    assert cache.annotations(None) == {}
    for number in range(40):
        cache.learn(msgspec.Raw(b"%d" % number), tmp_path)
    assert cache.annotations(profile) == {}
    other = FilterCache("runc")
    other.learn(profile, tmp_path)
    assert other.annotations(profile) == {}
