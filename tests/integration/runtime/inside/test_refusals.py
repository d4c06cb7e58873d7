"""What the world refuses is told in one sentence, and nothing is left of the attempt.

That nothing is left is checked by the fixtures of each test.
"""

import shutil
from pathlib import Path

import msgspec
import pytest

from proto.errors import RuntimeFailedError
from proto.logs import LogOptions
from worker.runtime import syscalls
from worker.runtime.api import ContainerMount
from worker.runtime.conmon import Binaries
from worker.runtime.oci import OciRuntime
from worker.runtime.probe import probe

VERSION_2 = Path("/sys/fs/cgroup/cgroup.controllers")
HAS_PIDS = not VERSION_2.exists() or "pids" in VERSION_2.read_text()


async def refusal(runtime, config):
    """The sentence with which a creation fails."""
    with pytest.raises(RuntimeFailedError) as caught:
        await runtime.create(config)
    assert await runtime.list_containers() == []
    return caught.value.message


async def test_program_missing(runtime, config):
    """Docker's words for a program that is not in the image."""
    assert (
        await refusal(runtime, config(argv=("nosuch", "-x")))
        == 'exec: "nosuch": executable file not found in $PATH'
    )
    assert (
        await refusal(runtime, config(argv=("/bin/nosuch",)))
        == 'exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory'
    )


async def test_program_not_executable(runtime, config):
    """A file without the right to execute it."""
    assert (
        await refusal(runtime, config(argv=("/not-executable",)))
        == 'exec: "/not-executable": permission denied'
    )


async def test_nothing_to_run(runtime, config):
    """An empty command line."""
    nothing = msgspec.structs.replace(config("true"), argv=())
    assert await refusal(runtime, nothing) == "no command specified"


async def test_user_missing(runtime, config):
    """Docker's words for a user, group or number that cannot be."""
    assert (
        await refusal(runtime, config("true", user="nobody"))
        == "unable to find user nobody: no matching entries in passwd file"
    )
    assert (
        await refusal(runtime, config("true", user="web:wheel"))
        == "unable to find group wheel: no matching entries in group file"
    )


async def test_working_directory_is_a_file(runtime, config):
    """A working directory that exists as something else."""
    assert (
        await refusal(runtime, config("true", working_dir="/etc/passwd"))
        == "Cannot mkdir: /etc/passwd is not a directory"
    )


async def test_source_of_bind_missing(runtime, config):
    """Docker's words for a bind whose source is not there."""
    mount = ContainerMount(type="bind", target="/x", source="/no/such")
    assert (
        await refusal(runtime, config("true", mounts=(mount,)))
        == 'invalid mount config for type "bind": bind source path does not exist: /no/such'
    )


async def test_layer_missing(runtime, config, layer):
    """An image whose unpacked layer is gone, at any place."""
    for layers in ((str(layer), "/no/such"), ("/no/such", str(layer))):
        assert (
            await refusal(runtime, config("true", layers=layers))
            == "the image's layer /no/such is missing; remove the image and pull it again"
        )
    assert "no layers" in await refusal(runtime, config("true", layers=()))


async def test_bad_values(runtime, config):
    """What the runtime itself refuses is told in its words."""
    assert "invalid capability: NOPE" in await refusal(
        runtime, config("true", capability_add=("NOPE",))
    )
    assert "kernel.nope" in await refusal(runtime, config("true", sysctls={"kernel.nope": "1"}))
    assert "seccomp profile cannot be read" in await refusal(
        runtime, config("true", seccomp="custom", seccomp_profile=b"{")
    )


async def test_no_network_namespace(runtime, config):
    """A network namespace that does not exist."""
    assert "/no/netns" in await refusal(runtime, config("true", netns_path="/no/netns"))


async def test_full_disk(place, config, binaries, cgroup_parent):
    """A disk that is full when the bundle is written."""
    place.mkdir(parents=True)
    syscalls.mount("small", str(place), "tmpfs", 0, "size=64k")
    runtime = OciRuntime(place / "containers", place / "run", binaries, cgroup_parent=cgroup_parent)
    try:
        with pytest.raises(OSError, match="No space left"):
            (place / "ballast").write_bytes(b"x" * (1 << 20))
        message = await refusal(runtime, config("true"))
        assert message.startswith("the disk is full")
    finally:
        await runtime.close()
        syscalls.unmount(str(place))


async def test_not_an_executable_format(runtime, config, tmp_path, layer):
    """A file that the kernel cannot execute: told at the start, or by the exit code."""
    high = tmp_path / "high"
    high.mkdir()
    (high / "garbage").write_bytes(b"\0\1\2\3")
    (high / "garbage").chmod(0o755)
    wanted = config(argv=("/garbage",), layers=(str(layer), str(high)))
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    assert (await runtime.wait(wanted.id)).exit_code != 0


async def test_no_init_program(runtime, config, monkeypatch):
    """An init that is not installed."""
    facts = runtime._facts
    monkeypatch.setattr(runtime, "_facts", type(facts)(cgroup_version=facts.cgroup_version))
    assert "apt-get install tini" in await refusal(runtime, config("true", init=True))


async def test_no_monitor(place, config, binaries, cgroup_parent):
    """A conmon that cannot be run."""
    broken = Binaries(binaries.name, binaries.runtime, "/no/conmon")
    runtime = OciRuntime(place / "containers", place / "run", broken, cgroup_parent=cgroup_parent)
    assert "cannot run /no/conmon" in await refusal(runtime, config("true"))
    await runtime.close()


async def test_logs_of_none(runtime, config):
    """A container without a log has none to read."""
    from worker.runtime.api import LogConfig  # noqa: PLC0415 -- used here alone

    wanted = config("echo lost", log=LogConfig(driver="none"))
    await runtime.create(wanted)
    await runtime.start(wanted.id)
    await runtime.wait(wanted.id)
    with pytest.raises(RuntimeFailedError, match="does not support reading"):
        [record async for record in runtime.logs(wanted.id, LogOptions())]


@pytest.mark.skipif(not HAS_PIDS, reason="no limit of processes can be set on this machine")
async def test_probe_chooses(place, binaries, cgroup_parent):
    """The first that works is chosen, with the reason why not another."""
    place.mkdir(parents=True)
    found, why = await probe(
        place, candidates=("no-such-runtime", binaries.name), cgroup_parent=cgroup_parent
    )
    assert found.runtime == binaries.runtime
    assert why.works
    assert "no-such-runtime is not installed (apt-get install no-such-runtime)" in why.reason
    assert list(place.iterdir()) == []


async def test_probe_finds_nothing(place, monkeypatch, cgroup_parent):
    """Without a runtime or without conmon the sentence names the remedy."""
    with pytest.raises(RuntimeFailedError, match="apt-get install no-such"):
        await probe(place, candidates=("no-such",), cgroup_parent=cgroup_parent)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(RuntimeFailedError, match="apt-get install conmon"):
        await probe(place, cgroup_parent=cgroup_parent)
