"""Configurations and manifests are understood as they come, and written as others read them."""

from __future__ import annotations

import json

import pytest

from proto.errors import InvalidError, NotFoundError
from proto.objects import HealthConfig
from worker.images import manifests
from worker.images.api import ImageConfig
from worker.images.changes import apply_changes
from worker.images.config import (
    Platform,
    chain_ids,
    digest_of,
    host_platform,
    image_with_rootfs,
    parse_config,
    parse_platform,
    rfc3339,
    seconds_of,
)
from worker.images.manifests import Descriptor, PlatformField

LAYER = "sha256:" + "1" * 64
AMD64 = Platform("linux", "amd64")


def test_configuration_of_docker() -> None:
    """A configuration as Docker writes it, nulls and unknown fields included, is understood."""
    data = json.dumps(
        {
            "architecture": "arm64",
            "os": "linux",
            "variant": "v8",
            "created": "2024-02-03T04:05:06.789012345Z",
            "docker_version": "26",
            "container_config": {"Cmd": None},
            "config": {
                "Hostname": "", "Tty": False, "Cmd": ["nginx"], "Entrypoint": None,
                "Env": ["A=1"], "Volumes": {"/v": {}, "/u": None}, "ExposedPorts": {"80/tcp": {}},
                "WorkingDir": "/w", "User": "7", "Labels": None, "OnBuild": None,
                "StopSignal": "SIGQUIT", "Image": "x",
                "Healthcheck": {"Test": ["CMD-SHELL", "x"], "Interval": 5_000_000, "Retries": 2},
            },
            "rootfs": {"type": "layers", "diff_ids": [LAYER]},
            "history": [
                {"created": "2024-02-03T04:05:06+01:00", "created_by": "ADD"},
                {"created_by": "CMD", "empty_layer": True},
            ],
        }
    ).encode()  # fmt: skip
    parsed = parse_config(data, "it")
    assert parsed.id == digest_of(data)
    assert parsed.platform == Platform("linux", "arm64", "v8")
    assert parsed.created == pytest.approx(1706933106.789012)
    assert parsed.diff_ids == (LAYER,)
    assert parsed.config == ImageConfig(
        cmd=("nginx",), env=("A=1",), volumes=("/u", "/v"), exposed_ports=("80/tcp",),
        working_dir="/w", user="7", stop_signal="SIGQUIT",
        healthcheck=HealthConfig(test=("CMD-SHELL", "x"), interval_ns=5_000_000, retries=2),
    )  # fmt: skip
    assert [(e.created, e.created_by, e.empty_layer) for e in parsed.history] == [
        (1706929506.0, "ADD", False),
        (0.0, "CMD", True),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"rootfs": {"diff_ids": ["../../x"]}}',
        b'{"config": {"Cmd": 1}}',
    ],
)
def test_damaged_configurations(data: bytes) -> None:
    """What is no configuration is refused, and a layer's name can be nothing but a digest."""
    with pytest.raises(InvalidError, match="configuration of it"):
        parse_config(data, "it")


def test_written_configuration_is_read_back() -> None:
    """What an import writes is what it was told."""
    config = apply_changes(["CMD x", "ENV A=1", "VOLUME /v", "HEALTHCHECK --retries=3 CMD y"])
    data = image_with_rootfs(
        diff_id=LAYER, config=config, platform=AMD64, now=1706933106.5, message="note"
    )
    parsed = parse_config(data, "it")
    assert parsed.created == 1706933106.5
    assert (parsed.comment, parsed.history[0].comment) == ("note", "note")
    assert parsed.config.cmd == ("/bin/sh", "-c", "x")
    assert parsed.config.healthcheck == HealthConfig(test=("CMD-SHELL", "y"), retries=3)
    assert parsed.diff_ids == (LAYER,)
    raw = json.loads(data)
    assert raw["config"] == {
        "Env": ["A=1"],
        "Cmd": ["/bin/sh", "-c", "x"],
        "Volumes": {"/v": {}},
        "Healthcheck": {"Test": ["CMD-SHELL", "y"], "Retries": 3},
    }
    assert raw["rootfs"] == {"type": "layers", "diff_ids": [LAYER]}


def test_chain_ids() -> None:
    """A stack's name is the digest of the one below and its top layer."""
    second = "sha256:" + "2" * 64
    chain = digest_of(f"{LAYER} {second}".encode())
    assert chain_ids([LAYER, second]) == [LAYER, chain]
    assert chain_ids([]) == []


def test_times() -> None:
    """Times are read and written; Go's zero time is none."""
    assert seconds_of("0001-01-01T00:00:00Z") == 0.0
    assert seconds_of("yesterday") == seconds_of(None) == seconds_of("2024-13-40T00:00:00Z") == 0.0
    assert seconds_of(rfc3339(1706933106.25)) == 1706933106.25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AMD64),
        ("linux/arm64", Platform("linux", "arm64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("arm64", Platform("linux", "arm64")),
        ("linux", AMD64),
        ("linux/x86_64", AMD64),
        ("aarch64", Platform("linux", "arm64", "v8")),
    ],
)
def test_platforms(text: str, expected: Platform) -> None:
    """A platform is read in each of its forms."""
    assert expected == parse_platform(text, AMD64)


def test_wrong_platforms() -> None:
    """What is no platform is refused."""
    for text in ("a/b/c/d", "linux/", "linux/a b"):
        with pytest.raises(InvalidError, match="invalid platform"):
            parse_platform(text, AMD64)
    assert host_platform("x86_64") == AMD64
    assert host_platform("loongarch64") == Platform("linux", "loongarch64")


def entry(digest: str, architecture: str, variant: str = "", os: str = "linux") -> Descriptor:
    """Make an index's entry."""
    return Descriptor(digest=digest, platform=PlatformField(architecture, os, variant))


def test_choice_of_platform() -> None:
    """The exact variant goes before an older one; attestations and other systems never do."""
    entries = [
        entry("attestation", "unknown", os="unknown"),
        entry("windows", "amd64", os="windows"),
        entry("v6", "arm", "v6"),
        entry("v5", "arm", "v5"),
        entry("v7", "arm", "v7"),
        entry("arm64", "arm64"),
        entry("amd64", "amd64"),
    ]
    for wanted, expected in [
        (AMD64, "amd64"),
        (Platform("linux", "arm64", "v8"), "arm64"),
        (Platform("linux", "arm", "v7"), "v7"),
        (Platform("linux", "arm", "v6"), "v6"),
    ]:
        assert expected == manifests.choose_platform(entries, wanted, "it").digest
    without_v7 = [each for each in entries if each.digest != "v7"]
    assert (
        manifests.choose_platform(without_v7, Platform("linux", "arm", "v7"), "it").digest == "v6"
    )
    with pytest.raises(NotFoundError, match="no matching manifest for linux/s390x in the manifest"):
        manifests.choose_platform(entries, Platform("linux", "s390x"), "it")
    alone = [Descriptor(digest="alone")]
    assert manifests.choose_platform(alone, AMD64, "it").digest == "alone"


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "schema version 1"),
        ({"schemaVersion": 2}, "names no configuration"),
        ({"schemaVersion": 2, "layers": [], "config": {"mediaType": "application/vnd.cncf.helm",
          "digest": LAYER}}, "is not a container image"),
        ({"schemaVersion": 2, "layers": [{"digest": "../../x"}], "config": {"digest": LAYER}},
         "not of sha256"),
        ([], "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_manifests(document: object, sentence: str) -> None:
    """What is no manifest of an image is refused; a digest can be nothing else."""
    with pytest.raises(InvalidError, match=sentence):
        manifests.image_manifest(
            manifests.parse_manifest(json.dumps(document).encode(), "it"), "it"
        )


def test_hostile_health_checks_and_dates() -> None:
    """Times are brought to what a service may have; no date is later than can be written."""
    raw = {
        "created": "9999-12-31T23:59:59.9-12:00",
        "history": [{"created": "9999-12-31T23:59:59-23:59"}],
        "config": {
            "Healthcheck": {
                "Test": ["CMD", "x"], "Interval": 1, "Timeout": -5, "Retries": -1,
                "StartPeriod": 2**62, "StartInterval": 1_000_001,
            }
        },
    }  # fmt: skip
    parsed = parse_config(json.dumps(raw).encode(), "web")
    check = parsed.config.healthcheck
    assert check is not None
    assert (check.interval_ns, check.timeout_ns, check.retries) == (1_000_000, 0, 0)
    assert (check.start_period_ns, check.start_interval_ns) == (2**62, 1_000_001)
    assert rfc3339(parsed.created).startswith("9999-12-31T23:59:59")
    assert rfc3339(parsed.history[0].created).startswith("9999-12-31T23:59:59")


@pytest.mark.parametrize(
    "data", [b'{"x":' + b"[" * 1_000_000, b'{"config":{"Volumes":' + b'{"":' * 500_000]
)
def test_nested_documents_are_refused(data: bytes) -> None:
    """However deep: with a sentence, and not the end of Python's stack."""
    with pytest.raises(InvalidError, match="cannot be read"):
        parse_config(data, "web")
    with pytest.raises(InvalidError, match="cannot be read"):
        manifests.parse_manifest(data, "web")
