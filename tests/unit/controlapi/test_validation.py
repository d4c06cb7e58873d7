"""Every rule for a service's spec, with its sentence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from manager.controlapi import Control
from manager.controlapi.validation import REPLICAS_MAX, SPEC_BYTES_MAX, check_service_spec
from proto.errors import InvalidError, NotImplementedYetError
from proto.objects import (
    ConfigReference,
    DNSConfig,
    Driver,
    EndpointMode,
    EndpointSpec,
    GenericResource,
    GlobalJobMode,
    GlobalMode,
    HealthConfig,
    Mount,
    NetworkAttachmentConfig,
    Placement,
    PortConfig,
    PortMode,
    Privileges,
    ReplicatedJobMode,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    SecretReference,
    ServiceSpec,
    Ulimit,
    UpdateConfig,
)

replace = msgspec.structs.replace
MIB = 1024 * 1024
HEX = "0123456789abcdef" * 4


def refused(spec: ServiceSpec, sentence: str, error: type[Exception] = InvalidError) -> None:
    """Expect a refusal with a sentence."""
    with pytest.raises(error, match=sentence):
        check_service_spec(spec)


@pytest.mark.parametrize("name", ["a", "web", "stack_web-1", "0", "A" * 63, "a-_-b"])
def test_names_that_are_good(make_spec: Any, name: str):
    """Letters, digits, '-' and '_' inside, up to 63."""
    check_service_spec(make_spec(name))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "name must be provided"),
        ("a" * 64, "name must be 63 characters or fewer"),
        ("-a", "must be valid as a DNS name component"),
        ("a-", "must be valid as a DNS name component"),
        ("a.b", "must be valid as a DNS name component"),
        ("a b", "must be valid as a DNS name component"),
        ("ä", "must be valid as a DNS name component"),
        ("a\n", "must be valid as a DNS name component"),
        ("٣", "must be valid as a DNS name component"),
    ],
)
def test_names_that_are_refused(make_spec: Any, name: str, sentence: str):
    """What cannot be part of a host name, with the rule."""
    refused(make_spec(name), sentence)


@pytest.mark.parametrize(
    "image",
    [
        "nginx",
        "library/nginx:1.27-alpine",
        "localhost:5000/a/b_c/d__e/f--g:T_1.x",
        "registry.example.com/a.b/c@sha256:" + HEX,
        "[::1]:5000/a:tag@sha256:" + HEX,
        "Host/a",
        f"{'a' * 255}:tag",
    ],
)
def test_images_that_are_good(make_spec: Any, image: str):
    """Host, path, tag and digest in their grammar."""
    check_service_spec(make_spec(image=image))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("", "an image reference must be provided"),
        ("Nginx", "invalid reference format.*lower case"),
        ("a//b", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a:b c", "invalid reference format"),
        ("a@sha256:12", "invalid reference format"),
        ("-a/b", "invalid reference format"),
        ("a" * 256, "must be 255 characters or fewer"),
        ("a" * 2000, "invalid reference format"),
        ("a\n", "invalid reference format"),
    ],
)
def test_images_that_are_refused(make_spec: Any, image: str, sentence: str):
    """What no registry could serve."""
    refused(make_spec(image=image), sentence)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (ReplicatedMode(replicas=-1), "the number of replicas is -1: it cannot be negative"),
        (ReplicatedMode(replicas=10**9), r"is 1000000000: a service can have at most 100000 tasks"),
        (ReplicatedJobMode(total_completions=-1), "the number of completions is -1"),
        (ReplicatedJobMode(max_concurrent=10**9), "the number of concurrent tasks is 1000000000"),
    ],
)
def test_numbers_of_tasks_are_bounded(make_spec: Any, mode: Any, sentence: str):
    """Never negative, never more than a manager is built for."""
    refused(replace(make_spec(), mode=mode), sentence)


def test_the_bounds_themselves_are_good(make_spec: Any):
    """No replicas, and as many as may be."""
    for replicas in (0, REPLICAS_MAX):
        check_service_spec(replace(make_spec(), mode=ReplicatedMode(replicas=replicas)))


def with_resources(spec: ServiceSpec, **values: Any) -> ServiceSpec:
    """Set the resources."""
    return replace(spec, task=replace(spec.task, resources=ResourceRequirements(**values)))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"limits": Resources(memory_bytes=4 * MIB - 1)}, "memory value 4194303 of a limit.*4MiB"),
        ({"reservations": Resources(memory_bytes=1)}, "memory value 1 of a reservation.*4MiB"),
        ({"limits": Resources(memory_bytes=-4)}, "memory value -4"),
        ({"limits": Resources(nano_cpus=999_999)}, r"cpu value 0\.000999999 of a.*at least 0\.001"),
        ({"reservations": Resources(nano_cpus=-1)}, r"cpu value -1e-09 of a reservation"),
        ({"limits": Resources(pids=-2)}, "pids limit is -2: give a number, -1 for no limit"),
        (
            {
                "limits": Resources(memory_bytes=8 * MIB),
                "reservations": Resources(memory_bytes=9 * MIB),
            },
            "memory reservation 9437184 is above the memory limit 8388608",
        ),
        (
            {
                "limits": Resources(nano_cpus=10**9),
                "reservations": Resources(nano_cpus=10**9 + 1),
            },
            "CPU reservation 1000000001 is above the CPU limit 1000000000",
        ),
        ({"swap_bytes": -2}, "swap is -2 bytes"),
        ({"swap_bytes": 1}, "a swap limit needs a memory limit"),
        ({"memory_swappiness": 101}, "memory swappiness is 101: it must be 0 to 100"),
    ],
)
def test_resources_that_are_refused(make_spec: Any, values: dict[str, Any], sentence: str):
    """Too small, negative, or reserved above the limit."""
    refused(with_resources(make_spec(), **values), sentence)


def test_resources_that_are_good(make_spec: Any):
    """The smallest amounts, and a reservation that equals the limit."""
    least = Resources(nano_cpus=1_000_000, memory_bytes=4 * MIB)
    check_service_spec(with_resources(make_spec(), limits=least, reservations=least))
    reserved = Resources(nano_cpus=10**10, memory_bytes=2**40)
    check_service_spec(with_resources(make_spec(), reservations=reserved))
    check_service_spec(with_resources(make_spec(), limits=least, swap_bytes=-1))
    check_service_spec(with_resources(make_spec(), limits=least, swap_bytes=1))
    check_service_spec(with_resources(make_spec(), swap_bytes=0, memory_swappiness=-1))
    check_service_spec(with_resources(make_spec(), memory_swappiness=100))


def mount(target: str = "/data", **more: Any) -> Mount:
    """Make a volume mount."""
    return Mount(target=target, **more)


@pytest.mark.parametrize(
    ("mounts", "sentence"),
    [
        ((mount("data"),), "invalid mount target, must be an absolute path: 'data'"),
        ((mount(""),), "invalid mount target, must be an absolute path: ''"),
        ((mount("/"),), "it cannot be the root directory"),
        ((mount("/a/.."),), "it cannot be the root directory"),
        ((mount("/data"), mount("/data")), "duplicate mount point: /data"),
        ((mount("/data"), mount("//data/./x/../")), "duplicate mount point: /data"),
        ((mount(type="bind", source="etc"),), "invalid mount source, must be an absolute path"),
        ((mount(type="bind"),), "invalid mount source, must be an absolute path: ''"),
        (
            (mount(type="bind", source="/etc", bind_propagation="up"),),
            "invalid bind propagation 'up'",
        ),
        ((mount(source="/etc"),), "invalid volume name '/etc'.*type=bind"),
        ((mount(source="a"),), "invalid volume name 'a'"),
        ((mount(source="aa", volume_subpath="../x"),), "must stay inside of the volume"),
        ((mount(source="aa", volume_subpath="/x"),), "must stay inside of the volume"),
        ((mount(type="tmpfs", source="aa"),), "a tmpfs mount has no source"),
        ((mount(type="tmpfs", tmpfs_size_bytes=-1),), "tmpfs at '/data' cannot be negative"),
        ((mount("/{{.Task.Nope}}"),), "expanding the template of a mount's target failed"),
        (
            (mount(source="v-{{.Task.Slot}}", volume_labels={"a": "{{.Nope}}"}),),
            "expanding the template of volume 'v-1' failed",
        ),
    ],
)
def test_mounts_that_are_refused(make_spec: Any, mounts: Any, sentence: str):
    """Relative, doubled, or of a kind that does not fit."""
    refused(make_spec(mounts=mounts), sentence)


def test_mounts_that_are_good(make_spec: Any):
    """One of each kind, with templates."""
    mounts = (
        mount("/a", type="bind", source="/srv/{{.Node.Hostname}}", bind_propagation="rslave"),
        mount("/b", source="data_{{.Task.Slot}}.x", volume_subpath="a/b"),
        mount("/c"),
        mount("/d{{.Service.Labels.missing}}", type="tmpfs", tmpfs_size_bytes=MIB),
        mount("/e", type="tmpfs"),
    )
    check_service_spec(make_spec(mounts=mounts))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"stop_grace_period_ns": -1}, "stop grace period is -1 ns: it cannot be negative"),
        ({"stop_signal": "SIGNOPE"}, "invalid stop signal 'SIGNOPE'"),
        ({"stop_signal": "65"}, "invalid stop signal '65'"),
        ({"stop_signal": "0"}, "invalid stop signal '0'"),
        ({"stop_signal": "00915"}, "invalid stop signal '00915'"),
        ({"env": ("=secret",)}, "invalid environment variable '': it needs a name"),
        ({"env": ("",)}, "invalid environment variable ''"),
        ({"env": ("A=a\0b",)}, "invalid environment variable 'A'"),
        ({"env": ("A={{.Nope}}",)}, "the template of environment variable 'A' failed"),
        ({"hostname": "{{if}}"}, "expanding the template of the hostname failed"),
        ({"dns_config": DNSConfig(nameservers=("dns",))}, "DNS server 'dns' is no IP address"),
        ({"ulimits": (Ulimit(soft=1, hard=1),)}, "a ulimit has no name"),
        ({"ulimits": (Ulimit(name="nofile", soft=-2),)}, "ulimit nofile cannot be negative"),
        (
            {"ulimits": (Ulimit(name="nofile", soft=2, hard=1),)},
            "ulimit nofile: the soft limit 2 is above the hard one 1",
        ),
        ({"oom_score_adj": 1001}, "OOM score adjustment is 1001"),
        ({"privileges": Privileges(seccomp_mode="off")}, "seccomp mode 'off' is not"),
        ({"privileges": Privileges(seccomp_mode="custom")}, "go together; give both"),
        ({"privileges": Privileges(seccomp_profile=b"{}")}, "go together; give both"),
        (
            {"healthcheck": HealthConfig(interval_ns=999_999)},
            "interval is 999999 ns.*less than 1ms",
        ),
        ({"healthcheck": HealthConfig(timeout_ns=1)}, "timeout is 1 ns.*less than 1ms"),
        ({"healthcheck": HealthConfig(start_period_ns=-5)}, "start period is -5 ns"),
        ({"healthcheck": HealthConfig(start_interval_ns=1)}, "start interval is 1 ns"),
        ({"healthcheck": HealthConfig(retries=-1)}, "retries are -1"),
        ({"healthcheck": HealthConfig(test=("true",))}, "unknown kind of health check 'true'"),
        ({"healthcheck": HealthConfig(test=("CMD",))}, "the health check CMD has no command"),
    ],
)
def test_container_settings_that_are_refused(make_spec: Any, fields: dict[str, Any], sentence: str):
    """Each rule of the container's own."""
    refused(make_spec(**fields), sentence)


def test_values_of_the_environment_are_not_told(make_spec: Any):
    """A refusal names the variable, never its value."""
    for entry in ("=hush", "A=hush\0"):
        with pytest.raises(InvalidError) as caught:
            check_service_spec(make_spec(env=(entry,)))
        assert "hush" not in str(caught.value)


def test_container_settings_that_are_good(make_spec: Any):
    """Health checks are accepted; zero means the default; signals by name and number."""
    health = HealthConfig(
        test=("CMD-SHELL", "true"), interval_ns=1_000_000, timeout_ns=1_000_000, retries=3
    )
    unlimited = Ulimit(name="core", soft=-1, hard=-1)
    for stop_signal in ("", "SIGTERM", "usr1", "1", "64", "SIGRTMIN+3", "RTMAX-1"):
        check_service_spec(
            make_spec(
                healthcheck=health,
                stop_signal=stop_signal,
                stop_grace_period_ns=0,
                env=("A", "B=", "C=={{.Task.Name}}"),
                ulimits=(
                    unlimited,
                    Ulimit(name="nofile", soft=1, hard=-1),
                    Ulimit(name="nproc", soft=5, hard=5),
                ),
                privileges=Privileges(seccomp_mode="custom", seccomp_profile=b"{}"),
            )
        )
    check_service_spec(make_spec(healthcheck=HealthConfig(test=("NONE",))))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"restart": RestartPolicy(delay_ns=-1)}, "restart delay is -1"),
        ({"restart": RestartPolicy(window_ns=-1)}, "restart window is -1"),
        ({"restart": RestartPolicy(max_attempts=-1)}, "restart attempts is -1"),
        ({"placement": Placement(max_replicas_per_node=-1)}, "replicas per node is -1"),
        ({"placement": Placement(constraints=("node.role=worker",))}, "has no operator"),
        ({"placement": Placement(spread_preferences=("",))}, "a placement preference is empty"),
        ({"force_update": -1}, "force update counter is -1"),
    ],
)
def test_task_settings_that_are_refused(make_spec: Any, fields: dict[str, Any], sentence: str):
    """Restart policy and placement."""
    spec = make_spec()
    refused(replace(spec, task=replace(spec.task, **fields)), sentence)


@pytest.mark.parametrize("word", ["update", "rollback"])
@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (UpdateConfig(parallelism=-1), "{} parallelism is -1"),
        (UpdateConfig(delay_ns=-1), "{} delay is -1"),
        (UpdateConfig(monitor_ns=-1), "{} monitor time is -1"),
        (UpdateConfig(max_failure_ratio=1.5), r"{} failure ratio is 1\.5: it must be from 0 to 1"),
        (UpdateConfig(max_failure_ratio=float("-inf")), "{} failure ratio is -inf"),
    ],
)
def test_update_settings_that_are_refused(
    make_spec: Any, word: str, config: UpdateConfig, sentence: str
):
    """For updates and rollbacks alike; NaN is no ratio either."""
    refused(replace(make_spec(), **{word: config}), sentence.format(word))
    nan = replace(make_spec(), **{word: UpdateConfig(max_failure_ratio=float("nan"))})
    refused(nan, "read back changed")


def test_a_rollback_is_never_rolled_back(make_spec: Any):
    """Its failure action is pause or continue."""
    config = UpdateConfig(failure_action="rollback")
    check_service_spec(replace(make_spec(), update=config))
    refused(replace(make_spec(), rollback=config), "a rollback cannot be rolled back")


def port(target: int, published: int = 0, **more: Any) -> PortConfig:
    """Make a published port."""
    return PortConfig(target_port=target, published_port=published, **more)


@pytest.mark.parametrize(
    ("ports", "sentence"),
    [
        ((port(0),), "target port 0 must be from 1 to 65535"),
        ((port(65536),), "target port 65536"),
        ((port(80, -1),), "published port -1"),
        ((port(80, 65536),), "published port 65536"),
        ((port(80, 80), port(81, 80)), "duplicate published ports provided: 80/tcp"),
        (
            (port(80, 80), port(81, 80, publish_mode=PortMode.HOST)),
            "duplicate published ports provided: 80/tcp",
        ),
    ],
)
def test_ports_that_are_refused(make_spec: Any, ports: Any, sentence: str):
    """Out of range, or published twice."""
    refused(make_spec(ports=ports), sentence)


def test_ports_that_are_good(make_spec: Any):
    """One number for each protocol, any number of open ones."""
    ports = (port(80, 80), port(80, 80, protocol="udp"), port(81), port(81))
    check_service_spec(make_spec(ports=ports))


def test_ingress_ports_need_a_vip(make_spec: Any):
    """With DNS round robin only host ports work."""
    for mode in PortMode:
        endpoint = EndpointSpec(mode=EndpointMode.DNSRR, ports=(port(80, publish_mode=mode),))
        spec = replace(make_spec(), endpoint=endpoint)
        if mode is PortMode.HOST:
            check_service_spec(spec)
        else:
            refused(spec, "port published with ingress mode can't be used with dnsrr mode")


def test_specs_are_bounded_and_storable(make_spec: Any):
    """Too many bytes, numbers beyond 64 bits and broken text are refused, with the name."""
    refused(
        make_spec(args=("x" * SPEC_BYTES_MAX,)),
        f"'web' takes 4.* bytes, the limit is {SPEC_BYTES_MAX}",
    )
    refused(replace(make_spec(), mode=ReplicatedMode(replicas=2**70)), "cannot be stored")
    refused(make_spec(args=("\ud800",)), "cannot be stored")
    refused(make_spec("\ud800"), "cannot be stored")


def unsupported() -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]]:
    """List fields of the service, the task and the container, and what is said."""
    generic = Resources(generic=(GenericResource(kind="gpu", value="1"),))
    privileges = "privileges"
    return [
        ({"mode": ReplicatedJobMode()}, {}, {}, "mode replicated-job"),
        ({"mode": GlobalJobMode()}, {}, {}, "mode global-job"),
        ({}, {"runtime": "plugin"}, {}, "runtime plugin"),
        ({}, {"networks": (NetworkAttachmentConfig(target="net1"),)}, {}, r"networks \(net1\)"),
        ({}, {"resources": ResourceRequirements(reservations=generic)}, {}, "generic resources"),
        ({}, {"resources": ResourceRequirements(limits=generic)}, {}, "generic resources"),
        ({}, {"log_driver": Driver(name="syslog")}, {}, "log driver syslog"),
        ({}, {}, {"secrets": (SecretReference(secret_name="s1"),)}, r"secrets \(s1\)"),
        ({}, {}, {"configs": (ConfigReference(config_name="c1"),)}, r"configs \(c1\)"),
        ({}, {}, {"isolation": "hyperv"}, "isolation hyperv"),
        ({}, {}, {privileges: Privileges(selinux_type="x")}, "an SELinux context"),
        ({}, {}, {privileges: Privileges(apparmor_mode="mine")}, "AppArmor mode mine"),
        (
            {},
            {},
            {"mounts": (Mount(target="/a", volume_driver=Driver(name="nfs")),)},
            "volume driver nfs",
        ),
    ]


@pytest.mark.parametrize("case", unsupported())
async def test_what_cannot_be_served_yet_is_refused(
    control: Control, make_spec: Any, case: tuple[Any, Any, Any, str]
):
    """At create and at update, by name; nothing is stored."""
    service, task, container, sentence = case
    good = make_spec("web")
    spec = make_spec("web", **container)
    spec = replace(spec, task=replace(spec.task, **task), **service)
    with pytest.raises(NotImplementedYetError, match=f"service web asks for .*{sentence}"):
        await control.create_service(spec)
    assert control.services() == []
    await control.create_service(good)
    before = control.service("web")
    with pytest.raises(NotImplementedYetError, match=sentence if not service else "mode change"):
        await control.update_service("web", before.version, spec)
    assert control.service("web") == before


async def test_all_unsupported_wishes_are_told_at_once(control: Control, make_spec: Any):
    """The user need not find them one by one."""
    spec = make_spec("web", secrets=(SecretReference(secret_name="s1"),), isolation="hyperv")
    sentence = r"mode global-job, secrets \(s1\), isolation hyperv .*; leave it out"
    with pytest.raises(NotImplementedYetError, match=sentence):
        await control.create_service(replace(spec, mode=GlobalJobMode()))


async def test_what_this_version_does_is_accepted(control: Control, make_spec: Any):
    """Mode global, health checks, log drivers, local volumes and default profiles are stored."""
    spec = make_spec(
        "web",
        healthcheck=HealthConfig(test=("CMD", "true")),
        isolation="default",
        mounts=(Mount(target="/a", source="vol", volume_driver=Driver(name="local")),),
        privileges=Privileges(apparmor_mode="disabled", selinux_disable=True),
    )
    spec = replace(spec, mode=GlobalMode(), task=replace(spec.task, log_driver=Driver(name="none")))
    await control.create_service(spec)
    assert control.service("web").spec == spec


def test_a_relative_working_directory_is_refused(make_spec: Any):
    """Docker's sentence; every container would fail otherwise or be somewhere unexpected."""
    spec = make_spec()
    container = replace(spec.task.container, dir="rel")
    refused(replace(spec, task=replace(spec.task, container=container)), "absolute path")
