"""What a container sees: its files, rights, limits and mounts."""

import asyncio
import platform
import resource
import stat
import sys
from pathlib import Path

import msgspec
import pytest

from proto.errors import RuntimeFailedError
from proto.logs import LogOptions
from worker.runtime import cgroups
from worker.runtime.api import ContainerLimits, ContainerMount

IS_VERSION_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
needs_controllers = pytest.mark.skipif(
    IS_VERSION_2 and "memory" not in Path("/sys/fs/cgroup/cgroup.controllers").read_text(),
    reason="the controllers belong to version 1 on this machine",
)
HAS_PIDS = cgroups.has_pids_limit(cgroups.detect())


async def test_identity_and_environment(run, config):
    """User, groups, home, host name, path and working directory are Docker's."""
    code, output = await run(
        config(
            'id; echo "$HOME $HOSTNAME $PATH $A"; pwd; stat -c %u:%a .; cat /etc/hostname',
            user="web",
            groups=("4000",),
            working_dir="/made/for/me",
            env=("A=1", "A=2"),
            hostname="box.example",
        )
    )
    assert code == 0
    assert output.splitlines() == [
        "uid=1000(web) gid=1000(web) groups=1000(web),2000(extra),4000",
        "/home/web box.example /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin 2",
        "/made/for/me",
        "0:755",
        "box.example",
    ]


async def test_network_files(run, config, netns):
    """Names and resolvers are those of the config; the host name is part of the ID."""
    wanted = config(
        "cat /etc/hosts /etc/resolv.conf; cat /etc/hostname",
        netns_path=netns,
        address="10.0.0.5/24",
        hosts=("10.0.0.9 db db.local",),
        nameservers=("127.0.0.11",),
        search_domains=("example",),
        dns_options=("ndots:0",),
    )
    _, output = await run(wanted)
    assert output.splitlines()[-6:] == [
        "10.0.0.9\tdb db.local",
        f"10.0.0.5\t{wanted.id[:12]}",
        "nameserver 127.0.0.11",
        "search example",
        "options ndots:0",
        wanted.id[:12],
    ]


async def test_rights(run, config):
    """The filter is on, capabilities are Docker's with the changes, and users have none."""
    script = "while read -r a b; do case $a in Cap*|NoNew*|Seccomp:) echo $a $b;; esac; done"
    script += " < /proc/self/status"
    _, output = await run(config(script))
    usual = dict(line.split(": ") for line in output.splitlines())
    assert usual == {
        "CapInh": "0000000000000000",
        "CapPrm": "00000000a80425fb",
        "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb",
        "CapAmb": "0000000000000000",
        "NoNewPrivs": "0",
        "Seccomp": "2",
    }
    _, output = await run(
        config(
            script,
            user="1000",
            capability_drop=("ALL",),
            capability_add=("net_bind_service",),
            no_new_privileges=True,
            seccomp="unconfined",
        )
    )
    changed = dict(line.split(": ") for line in output.splitlines())
    assert changed["CapEff"] == "0000000000000000"
    assert changed["CapBnd"] == "0000000000000400"
    assert changed["NoNewPrivs"] == "1"
    assert changed["Seccomp"] == "0"


async def test_filter_refuses(run, config):
    """A call outside the profile fails with its capability missing: mounting does."""
    code, output = await run(config("mount -t tmpfs none /data"))
    assert code != 0
    assert "ermitted" in output or "denied" in output


SOCKETS = """
import ctypes, errno, socket
ctypes.CDLL(None, use_errno=True)
call = ctypes.CDLL(None, use_errno=True).syscall
number = {"x86_64": 41, "aarch64": 198}[__import__("platform").machine()]
for family in (socket.AF_INET, 38, 40, 1 << 32 | 38, 1 << 32 | 40):
    found = call(ctypes.c_long(number), ctypes.c_ulong(family), ctypes.c_long(2), ctypes.c_long(0))
    print("open" if found >= 0 else errno.errorcode[ctypes.get_errno()])
"""


async def test_sockets_of_the_kernel_s_cryptography_and_of_the_hypervisor(run, config):
    """Are refused by a real filter, also with bits that the kernel does not look at."""
    code, output = await run(
        config(
            f"chroot /host {sys.executable} -c '{SOCKETS}'",
            mounts=(ContainerMount(type="bind", target="/host", source="/", read_only=True),),
        )
    )
    assert code == 0, output
    assert output.split() == ["open", "EAFNOSUPPORT", "EAFNOSUPPORT", "ENOSYS", "ENOSYS"]


SOCKETCALL = """
import ctypes, mmap, struct
area = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | 0x40, prot=7)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
code = bytes.fromhex("53 b866000000 bb01000000 89f9 cd80 5b c3")
area[0:len(code)] = code
call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint)(address)
for family in (2, 38, 40):
    area[256:268] = struct.pack("III", family, 5 if family == 38 else 1, 0)
    print(call(address + 256))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="is written for this machine")
async def test_the_call_of_old_programs_for_sockets_is_no_way_round(run, config):
    """What a program of 32 bits asks for in its memory no filter sees, so it may not ask so."""
    code, output = await run(
        config(
            f"chroot /host {sys.executable} -c '{SOCKETCALL}'",
            mounts=(ContainerMount(type="bind", target="/host", source="/", read_only=True),),
        )
    )
    assert code == 0, output
    assert output.split() == ["-1", "-1", "-1"]


async def test_open_files_are_not_those_of_the_daemon(run, config):
    """Whoever started the daemon, a container has the usual limits, or what may be allowed."""
    _, output = await run(config("ulimit -Sn; ulimit -Hn"))
    soft, hard = map(int, output.split())
    assert soft == 1_024
    assert hard in {524_288, resource.getrlimit(resource.RLIMIT_NOFILE)[1]}


async def test_learnt_filter_is_the_same(runtime, config, place):
    """The second container of a kind gets the filter compiled for the first, and is as confined."""
    documents = []
    for seccomp in ("default", "default", "unconfined"):
        wanted = config("swapoff /etc/passwd 2>&1", seccomp=seccomp, capability_add=("SYS_ADMIN",))
        await runtime.create(wanted)
        directory = place / "containers" / wanted.id
        documents.append(msgspec.json.decode((directory / "config.json").read_bytes()))
        await runtime.start(wanted.id)
        await runtime.wait(wanted.id)
        lines = [record.data async for record in runtime.logs(wanted.id, LogOptions())]
        reason = b"Invalid argument" if seccomp == "unconfined" else b"not permitted"
        assert reason in lines[-1]
    is_learnt = ["annotations" in document for document in documents]
    assert is_learnt == [False, runtime._binaries.name == "crun", False]


async def test_mounts(run, config, tmp_path):
    """Binds, a read-only one, a tmpfs with size and mode, and nested targets in any order."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    missing = tmp_path / "not/yet"
    _, output = await run(
        config(
            "cat /x/in/file; echo; touch /x/in/new && echo wrote; touch /ro/new 2>/dev/null"
            " || echo refused; stat -c %a /t; while read -r _ m t o _; do"
            " case $m in /t) echo $t $o;; esac; done < /proc/mounts; touch /made/here",
            mounts=(
                ContainerMount(type="bind", target="/x/in", source=str(outside)),
                ContainerMount(type="tmpfs", target="/x"),
                ContainerMount(type="bind", target="/ro", source=str(outside), read_only=True),
                ContainerMount(
                    type="tmpfs", target="/t", tmpfs_size_bytes=1 << 20, tmpfs_mode=0o700
                ),
                ContainerMount(
                    type="bind", target="/made", source=str(missing), create_source=True
                ),
            ),
        )
    )
    assert output.splitlines() == [
        "outside",
        "wrote",
        "refused",
        "700",
        "tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=700",
    ]
    assert (missing / "here").exists()


async def test_first_content_of_a_volume(run, config, tmp_path):
    """A new volume gets the image's files, owners and mode; a used one is left as it is."""
    volume, record = tmp_path / "volume", tmp_path / "record"
    volume.mkdir()
    record.mkdir()
    mount = ContainerMount(type="bind", target="/data", source=str(volume), fill_record=str(record))
    _, output = await run(config("cat /data/first; echo changed > /data/first", mounts=(mount,)))
    assert output == "from the image"
    status = (volume / "first").stat()
    assert (status.st_uid, stat.S_IMODE(volume.stat().st_mode)) == (1000, 0o750)
    _, output = await run(config("cat /data/first", mounts=(mount,)))
    assert output == "changed\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record", "swarm", "volume"]
    assert list(record.iterdir()) == []


async def test_nothing_written_to_a_volume_is_lost(runtime, config, until_said, tmp_path):
    """A container empties its volume, then others start with it: both see the same directory."""
    volume, record = tmp_path / "volume", tmp_path / "record"
    volume.mkdir()
    record.mkdir()
    mount = ContainerMount(type="bind", target="/data", source=str(volume), fill_record=str(record))
    first = config(
        "cd /data; rm -r first; echo emptied; while ! test -e /data/go; do sleep 0.05; done;"
        " echo late > /data/late; echo written; sleep 60",
        mounts=(mount,),
    )
    await runtime.create(first)
    await runtime.start(first.id)
    await until_said(first.id, "emptied")
    second = config("touch /data/go; sleep 60", mounts=(mount,))
    await runtime.create(second)
    await runtime.start(second.id)
    await until_said(first.id, "written")
    assert (volume / "late").read_text() == "late\n"
    assert (volume / "first").read_text() == "from the image"


async def test_many_containers_fill_one_volume_once(runtime, config, until_said, tmp_path):
    """Twelve begin at once with a new volume: none is refused, and what each writes is there."""
    volume, record = tmp_path / "volume", tmp_path / "record"
    volume.mkdir()
    record.mkdir()
    mount = ContainerMount(type="bind", target="/data", source=str(volume), fill_record=str(record))
    wanted = [
        config(f"echo {n} > /data/mine-{n}; cat /data/first; echo; sleep 60", mounts=(mount,))
        for n in range(12)
    ]

    async def go(one) -> None:
        await runtime.create(one)
        await runtime.start(one.id)
        await until_said(one.id, "from the image")

    await asyncio.gather(*(go(one) for one in wanted))
    for n in range(12):
        assert (volume / f"mine-{n}").read_text() == f"{n}\n"
    assert list(record.iterdir()) == []


@pytest.fixture
def volume(tmp_path):
    """A volume with a directory, a file, and links: inside, out, and to where there is nothing."""
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    (volume / "sub").mkdir(parents=True)
    (volume / "sub/file").write_text("inside\n")
    (volume / "in").symlink_to("sub")
    (volume / "out").symlink_to(outside)
    (volume / "up").symlink_to("../outside")
    outside.mkdir()
    (outside / "file").write_text("secret\n")
    return volume


def part_of(volume: Path, subpath: str, **fields) -> ContainerMount:
    """A mount of a part of a volume."""
    return ContainerMount(
        type="bind", target="/part", source=str(volume), subpath=subpath, **fields
    )


async def test_part_of_a_volume(run, config, volume):
    """A directory, a file, and what links inside lead to; a part to be made is made."""
    for subpath, path in (("sub", "/part/file"), ("sub/file", "/part"), ("in", "/part/file")):
        _, output = await run(config(f"cat {path}", mounts=(part_of(volume, subpath),)))
        assert output == "inside\n"
    made = part_of(volume, "made/here", create_source=True)
    await run(config("echo new > /part/file", mounts=(made,)))
    assert (volume / "made/here/file").read_text() == "new\n"


@pytest.mark.parametrize(
    ("subpath", "sentence"),
    [
        ("out", "leads outside of the volume"),
        ("up", "leads outside of the volume"),
        ("../outside", "leads outside of the volume"),
        ("none", "does not exist"),
        ("sub/file/none", "does not exist"),
    ],
)
async def test_part_outside_of_a_volume(runtime, config, volume, subpath, sentence):
    """It is refused, whether it is there or not, and nothing is left of the attempt."""
    for create_source in (False, True) if sentence != "does not exist" else (False,):
        mount = part_of(volume, subpath, create_source=create_source)
        with pytest.raises(RuntimeFailedError, match=sentence):
            await runtime.create(config("true", mounts=(mount,)))
    assert [path.name for path in (volume.parent / "outside").iterdir()] == ["file"]


STEPS = ["mount", "content", "binds", "files", "bundle", "created", "unpinned"]


@pytest.mark.parametrize("step", STEPS)
async def test_exchanged_part_of_a_volume(runtime, config, volume, until_said, step):
    """Exchanged for a link to the outside at any moment: the container never has the outside."""

    def exchange(done: str) -> None:
        if done == step:
            (volume / "sub").rename(volume / "before")
            (volume / "sub").symlink_to(volume.parent / "outside")

    runtime.after_step = exchange
    wanted = config("cat /part/file; echo x > /part/written", mounts=(part_of(volume, "sub"),))
    if step in {"mount", "content"}:
        with pytest.raises(RuntimeFailedError, match="leads outside of the volume"):
            await runtime.create(wanted)
    else:
        await runtime.create(wanted)
        await runtime.start(wanted.id)
        await until_said(wanted.id, "inside")
        await runtime.wait(wanted.id)
        assert (volume / "before/written").exists()
    assert [path.name for path in (volume.parent / "outside").iterdir()] == ["file"]


async def test_read_only_root(run, config):
    """Nothing of the root can be written, /dev/shm can."""
    _, output = await run(
        config(
            "for f in /a /etc/hosts /dev/shm/a; do"
            " (echo x > $f) 2>/dev/null && echo yes $f || echo no $f; done",
            read_only=True,
        )
    )
    assert output.splitlines() == ["no /a", "no /etc/hosts", "yes /dev/shm/a"]


async def test_layers_and_writable_layer(run, config, layer, tmp_path):
    """Higher layers win, and what a container writes is its own."""
    high = tmp_path / "high"
    (high / "data").mkdir(parents=True)
    (high / "data/first").write_text("higher\n")
    layers = (str(layer), str(high))
    for _ in range(2):
        _, output = await run(config("cat /data/first; echo x > /data/first", layers=layers))
        assert output == "higher\n"


async def test_very_many_layers(run, config, layer, tmp_path):
    """Layers whose names do not fit the kernel's page are mounted all the same."""
    names = [str(layer)]
    for number in range(60):
        directory = tmp_path / f"{'long' * 20}-{number}"
        directory.mkdir()
        (directory / f"file{number}").write_text("")
        names.append(str(directory))
    _, output = await run(config("echo /file*", layers=tuple(names)))
    assert len(output.split()) == 60


async def test_init(run, config):
    """With init the first process is a small one that passes the exit code on."""
    code, output = await run(config("head -c 17 /proc/1/cmdline; exit 3", init=True))
    assert (code, output) == (3, "/sbin/docker-init")


async def test_terminal(run, config):
    """With a terminal output is one stream with the terminal's line ends."""
    _, output = await run(config("test -t 1 && echo $TERM; echo err >&2", tty=True))
    assert output == "xterm\r\nerr\r\n"


async def test_limits_without_controllers(run, config, netns):
    """ulimits, the OOM score and sysctls arrive."""
    code, output = await run(
        config(
            "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj"
            " /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax",
            ulimits=(("nofile", 100, 200),),
            oom_score_adj=300,
            sysctls={"kernel.msgmax": "9000"},
            netns_path=netns,
        )
    )
    assert (code, output.split()) == (0, ["100", "200", "300", "0", "9000"])


@needs_controllers
async def test_limits(runtime, config, cgroup_parent):
    """CPU, memory and process limits are in the cgroup's files."""
    wanted = config(
        "sleep 60",
        limits=ContainerLimits(
            nano_cpus=1_500_000_000,
            memory_bytes=64 << 20,
            memory_reservation_bytes=32 << 20,
            pids=33,
        ),
    )
    await runtime.create(wanted)
    relative = f"{cgroup_parent.strip('/')}/{wanted.id}"
    files = (
        {
            "cpu.max": "150000 100000",
            "memory.max": str(64 << 20),
            "memory.low": str(32 << 20),
            "pids.max": "33",
        }
        if IS_VERSION_2
        else {
            "cpu/cpu.cfs_quota_us": "150000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(64 << 20),
            "memory/memory.soft_limit_in_bytes": str(32 << 20),
            "pids/pids.max": "33",
        }
    )
    for name, value in files.items():
        controller, _, file = name.rpartition("/")
        path = Path("/sys/fs/cgroup", controller, relative, file)
        assert path.read_text().strip() == value


@pytest.mark.skipif(not HAS_PIDS, reason="the controller belongs to version 1 on this machine")
@pytest.mark.parametrize(("pids", "written"), [(0, "4096"), (-1, "max")])
async def test_processes_are_limited_by_default(runtime, config, cgroup_parent, pids, written):
    """By the node's own limit, which -1 lifts."""
    wanted = config("sleep 60", limits=ContainerLimits(pids=pids))
    await runtime.create(wanted)
    relative = f"{cgroup_parent.strip('/')}/{wanted.id}/pids.max"
    folder = "" if IS_VERSION_2 else "pids"
    assert Path("/sys/fs/cgroup", folder, relative).read_text().strip() == written


@needs_controllers
async def test_out_of_memory(runtime, config):
    """A container that the kernel killed for memory says so, also to the next daemon."""
    wanted = config(
        "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done",
        limits=ContainerLimits(memory_bytes=8 << 20, swap_bytes=8 << 20),
    )
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    async with asyncio.timeout(20):
        ended = await runtime.wait(wanted.id)
    assert (ended.exit_code, ended.oom_killed) == (137, True)
    (state,) = await runtime.list_containers()
    assert state.exit == ended


async def test_devices(run, config):
    """The usual devices are there and work; any other cannot be opened."""
    _, output = await run(
        config(
            "for d in null zero full random urandom tty ptmx; do test -c /dev/$d || echo no $d;"
            " done; test $(head -c 3 /dev/zero | wc -c) = 3 && echo zero;"
            " echo x > /dev/null && echo null"
        )
    )
    assert output.splitlines() == ["zero", "null"]


def test_seen_cgroups():
    """The layout is told from the mounts."""
    layout = cgroups.detect()
    assert layout.version == (2 if IS_VERSION_2 else 1)
    assert layout.roots
