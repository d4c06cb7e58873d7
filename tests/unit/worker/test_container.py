"""What a container becomes of its spec, its image and its node: Docker's rules, one by one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from proto.errors import InvalidError
from proto.ids import ImageID, NodeID, container_id_of
from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    Driver,
    GlobalMode,
    HealthConfig,
    Mount,
    Platform,
    ResourceRequirements,
    Resources,
)
from worker.api import Assignment
from worker.container import (
    NodeFacts,
    Templates,
    VolumePath,
    argv_of,
    container_config,
    container_mount,
    env_of,
    labels_of,
    limits_of,
    log_of,
    planned_mounts,
    prepared_from,
    prepared_label,
    prepared_of,
    slot_name,
    task_name,
)
from worker.images.api import Image, ImageConfig
from worker.runtime.api import ContainerMount, LogConfig

Make = Callable[..., Assignment]
NODE = NodeFacts(
    id=NodeID("node1"), hostname="host1", platform=Platform(os="linux", architecture="amd64")
)


# Docker's table of ENTRYPOINT and CMD: image entrypoint, image cmd, command, args -> argv.
@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "argv"),
    [
        (("e",), ("c",), (), (), ("e", "c")),
        ((), ("c", "d"), (), (), ("c", "d")),
        (("e",), (), (), (), ("e",)),
        (("e",), ("c",), (), ("a", "b"), ("e", "a", "b")),
        ((), ("c",), (), ("a",), ("a",)),
        (("e",), ("c",), ("x",), (), ("x",)),
        (("e",), ("c",), ("x", "y"), ("a",), ("x", "y", "a")),
        (("e",), ("c",), ("",), ("a",), ("a",)),
    ],
)
def test_argv(entrypoint, cmd, command, args, argv) -> None:
    """A command replaces ENTRYPOINT and drops CMD; arguments replace CMD."""
    image = ImageConfig(entrypoint=entrypoint, cmd=cmd)
    assert argv == argv_of(ContainerSpec(image="web", command=command, args=args), image)


@pytest.mark.parametrize("command", [(), ("",)])
def test_nothing_to_run(command) -> None:
    """Without any command the task is refused with a sentence that names the image."""
    with pytest.raises(InvalidError, match="no command specified: image web"):
        argv_of(ContainerSpec(image="web", command=command), ImageConfig())


def test_env_merges_in_place(assigned: Make) -> None:
    """The spec's variables win, keep the image's order, and may remove one."""
    spec = ContainerSpec(env=("B=2", "NEW={{.Node.Hostname}}-{{.Task.Slot}}", "PATH"))
    image = ImageConfig(env=("PATH=/bin", "A=1", "B=image"))
    env = env_of(spec, image, Templates(assigned(), NODE))
    assert env == ("PATH", "A=1", "B=2", "NEW=host1-1")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.Service.ID}}/{{.Service.Name}}", "s1/s1"),
        ('{{index .Service.Labels "tier"}}', "front"),
        ("{{.Node.ID}} {{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "node1 linux/amd64"),
        ("{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}", "t1 s1.1.t1 1"),
        ("plain", "plain"),
    ],
)
def test_templates(assigned: Make, template: str, expected: str) -> None:
    """All fields that SwarmKit offers are there."""
    one = assigned()
    one = msgspec.structs.replace(
        one, spec=msgspec.structs.replace(one.spec, labels={"tier": "front"})
    )
    assert Templates(one, NODE).expand(template) == expected


@pytest.mark.parametrize("template", ["{{.Nope}}", "{{.Task.Secret}}", "{{"])
def test_bad_template_is_refused(assigned: Make, template: str) -> None:
    """An unknown field is an error of the spec, not an empty string."""
    with pytest.raises(InvalidError):
        Templates(assigned(), NODE).expand(template)


def test_slot_of_a_global_service_is_its_node(assigned: Make) -> None:
    """A global service's task is named by its node."""
    one = assigned()
    one = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, mode=GlobalMode()))
    assert slot_name(one) == "node1"
    assert task_name(one) == "s1.node1.t1"


def test_labels(assigned: Make) -> None:
    """Docker's labels are there and cannot be forged; the prepared facts can be read back."""
    spec = ContainerSpec(image="web", labels={"a": "spec", "com.docker.swarm.task.id": "forged"})
    image = ImageConfig(labels={"a": "image", "b": "image"}, stop_signal="SIGQUIT")
    prepared = prepared_of(spec, image, image_id=ImageID("sha256:1"), address="172.18.0.9")
    labels = labels_of(assigned(container=spec), image, NODE, prepared)
    assert {key: value for key, value in labels.items() if not key.startswith("swarm.")} == {
        "a": "spec",
        "b": "image",
        "com.docker.swarm.node.id": "node1",
        "com.docker.swarm.service.id": "s1",
        "com.docker.swarm.service.name": "s1",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "s1.1.t1",
    }
    assert prepared_from(labels, "172.18.0.9") == prepared
    assert "172.18" not in prepared_label(prepared)
    assert prepared_from({}, "") is None


def test_stop_signal_and_grace() -> None:
    """The spec's signal wins over the image's, SIGTERM and 10 s are the defaults."""
    image = ImageConfig(stop_signal="SIGQUIT")
    none = prepared_of(ContainerSpec(), ImageConfig(), image_id=ImageID(""))
    assert (none.stop_signal, none.grace_seconds) == ("SIGTERM", 10.0)
    assert prepared_of(ContainerSpec(), image, image_id=ImageID("")).stop_signal == "SIGQUIT"
    spec = ContainerSpec(stop_signal="USR1", stop_grace_period_ns=0)
    both = prepared_of(spec, image, image_id=ImageID(""))
    assert (both.stop_signal, both.grace_seconds) == ("USR1", 0.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, ("CMD", "image")),
        (HealthConfig(interval_ns=NANOSECONDS), ("CMD", "image")),
        (HealthConfig(test=("CMD-SHELL", "spec")), ("CMD-SHELL", "spec")),
        (HealthConfig(test=("NONE",)), None),
    ],
)
def test_healthcheck_is_merged(spec, expected) -> None:
    """What the spec leaves out comes from the image; NONE switches it off."""
    image = ImageConfig(healthcheck=HealthConfig(test=("CMD", "image"), retries=7))
    prepared = prepared_of(ContainerSpec(healthcheck=spec), image, image_id=ImageID(""))
    if expected is None:
        assert prepared.healthcheck is None
    else:
        assert prepared.healthcheck is not None
        assert prepared.healthcheck.test == expected
        assert prepared.healthcheck.retries == 7


@pytest.mark.parametrize(("asked", "together"), [(None, None), (-1, -1), (0, 100), (50, 150)])
def test_swap_counts_together_with_memory(asked, together) -> None:
    """Swap is asked beside memory, the runtime limits both together; -1 stays unlimited."""
    resources = ResourceRequirements(limits=Resources(memory_bytes=100), swap_bytes=asked)
    assert limits_of(resources).swap_bytes == together


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (None, LogConfig()),
        (Driver(name="none"), LogConfig(driver="none")),
        (Driver(options={"tag": "x"}), LogConfig()),
        (
            Driver(name="json-file", options={"max-size": "10m", "max-file": "3"}),
            LogConfig(max_bytes=10_000_000, files_max=3),
        ),
        (Driver(name="json-file", options={"max-size": "1.5kB"}), LogConfig(max_bytes=1500)),
        (Driver(name="json-file", options={"max-size": "-1"}), LogConfig()),
    ],
)
def test_log_options(driver, expected) -> None:
    """Sizes are decimal, as Docker reads them."""
    assert log_of(driver) == expected


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (Driver(name="syslog"), 'logging driver "syslog" is not available'),
        (Driver(options={"max-sise": "1m"}), "unknown log opt 'max-sise'"),
        (Driver(options={"max-size": "big"}), "'big' is not a size"),
        (Driver(options={"max-size": "0"}), "'0' is not a size"),
        (Driver(options={"max-size": "1m", "max-file": "0"}), "is not a number from 1 on"),
        (Driver(options={"max-file": "3"}), "without max-size"),
    ],
)
def test_bad_log_options(driver, sentence) -> None:
    """A driver or option that this node lacks is refused with a sentence that names it."""
    with pytest.raises(InvalidError, match=sentence):
        log_of(driver)


def test_mounts_are_planned(assigned: Make) -> None:
    """Templates are expanded; the image's volumes that no mount covers become anonymous."""
    mounts = (
        Mount(type="volume", source="data-{{.Task.Slot}}", target="/data", volume_no_copy=True),
        Mount(type="volume", target="/scratch"),
        Mount(type="bind", source="/srv", target="/srv", read_only=True),
        Mount(type="tmpfs", target="/tmp", tmpfs_size_bytes=4096),
    )
    one = assigned(container=ContainerSpec(image="web", mounts=mounts))
    image = ImageConfig(volumes=("/data", "/var/lib/db"))
    planned = planned_mounts(one, image, Templates(one, NODE))
    assert [p.mount.target for p in planned] == ["/data", "/scratch", "/srv", "/tmp", "/var/lib/db"]
    named, scratch, srv, tmp, image_volume = planned
    assert named.volume.name == "data-1"
    assert not named.volume.is_copied_up
    for anonymous in (scratch, image_volume):
        assert anonymous.volume.is_anonymous
        assert len(anonymous.volume.name) == 64
    assert scratch.volume.name != image_volume.volume.name
    assert planned == planned_mounts(one, image, Templates(one, NODE))
    volume = VolumePath(path="/v", record="/r")
    assert container_mount(named, volume).fill_record == ""
    assert container_mount(scratch, volume) == ContainerMount(
        type="bind", source="/v", target="/scratch", fill_record="/r"
    )
    assert container_mount(srv, None).read_only
    assert container_mount(tmp, None).tmpfs_size_bytes == 4096


@pytest.mark.parametrize(
    ("mounts", "sentence"),
    [
        ((Mount(target="data"),), "invalid mount target"),
        ((Mount(type="bind", source="srv", target="/srv"),), "invalid mount source"),
        ((Mount(target="/a"), Mount(type="tmpfs", target="/a")), "duplicate mount point: /a"),
    ],
)
def test_bad_mounts(assigned: Make, mounts, sentence) -> None:
    """A mount that cannot be is refused in Docker's words."""
    one = assigned(container=ContainerSpec(image="web", mounts=mounts))
    with pytest.raises(InvalidError, match=sentence):
        planned_mounts(one, ImageConfig(), Templates(one, NODE))


def test_whole_configuration(assigned: Make) -> None:
    """Spec, image and node end up where the runtime looks for them."""
    spec = ContainerSpec(image="web", hostname="{{.Node.Hostname}}-{{.Task.Slot}}", user="7")
    image = Image(
        id=ImageID("sha256:1"),
        config=ImageConfig(entrypoint=("/web",), working_dir="/srv", user="www"),
        layer_dirs=("/l1", "/l2"),
    )
    one = assigned(container=spec)
    prepared = prepared_of(spec, image.config, image_id=image.id, address="172.18.0.2")
    config = container_config(one, image, NODE, prepared, netns_path="/run/n", mounts=())
    assert config.id == container_id_of(one.task.id)
    assert config.name == "s1.1.t1"
    assert config.hostname == "host1-1"
    assert (config.user, config.working_dir) == ("7", "/srv")
    assert config.layers == ("/l1", "/l2")
    assert (config.netns_path, config.address) == ("/run/n", "172.18.0.2")


@pytest.mark.parametrize(
    "mount",
    [
        Mount(type="volume", target="/proc"),
        Mount(type="volume", target="/x/../proc/self"),
        Mount(type="tmpfs", target="//proc/sys"),
        Mount(type="bind", source="/srv", target="/proc"),
        Mount(type="bind", source="/srv", target="/proc/1/root"),
        Mount(type="volume", target="/"),
        Mount(type="volume", target="/x/.."),
        Mount(type="volume", target="n" * 100_000),
    ],
)
def test_forbidden_targets(assigned: Make, mount: Mount) -> None:
    """Neither a spec nor an image's VOLUME hides the root or what the kernel tells."""
    one = assigned(container=ContainerSpec(image="web", mounts=(mount,)))
    with pytest.raises(InvalidError, match="invalid mount target") as caught:
        planned_mounts(one, ImageConfig(), Templates(one, NODE))
    assert len(caught.value.message) < 500
    plain = assigned(container=ContainerSpec(image="web"))
    with pytest.raises(InvalidError, match="invalid mount target"):
        planned_mounts(plain, ImageConfig(volumes=(mount.target,)), Templates(plain, NODE))


def test_allowed_targets(assigned: Make) -> None:
    """The host's /proc at its own place, and the files that tools replace, as with runc."""
    mounts = (
        Mount(type="bind", source="/proc", target="/proc"),
        Mount(type="bind", source="/var/lib/lxcfs/proc/meminfo", target="/proc/meminfo"),
        Mount(type="bind", source="/proc", target="/host/proc"),
        Mount(type="volume", target="/processes"),
    )
    one = assigned(container=ContainerSpec(image="web", mounts=mounts))
    assert len(planned_mounts(one, ImageConfig(), Templates(one, NODE))) == 4
