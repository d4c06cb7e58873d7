"""A cluster whose certificates an authority outside signs."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from manager.ca.root import create_root

SERVER = Path(__file__).parents[1] / "ca" / "cfssl.py"
PORT = 8888


@pytest.fixture(scope="module")
def formed(make_cluster, rootfs):
    """Two managers and two workers that have the image."""
    cluster = make_cluster("t6o", 2, 2, is_formed=True)
    for name in ("m1", "m2", "w1", "w2"):
        cluster.docker(name, "import", str(rootfs), "bb:1")
    return cluster


@contextmanager
def authority(host, root, trusted_pem, directory):
    """Run an authority in a host's network; yield the file of who asked for whom."""
    paths = [directory / name for name in ("root.pem", "key.pem", "trusted.pem")]
    for path, text in zip(paths, (root.certificate_pem, root.key_pem, trusted_pem), strict=True):
        path.write_text(text)
    told = directory / "told"
    enter = ["nsenter", "-t", str(host.init_pid), "-n", "--"]
    command = [sys.executable, str(SERVER), *map(str, paths), host.address, str(PORT)]
    with (
        told.open("w") as output,
        subprocess.Popen(
            [*enter, *command],
            stdout=output,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        ) as server,
    ):
        try:
            yield told
            assert server.poll() is None, "the authority has ended"
        finally:
            server.terminate()


def test_all_certificates_come_from_outside(formed, eventually, tmp_path):
    """The root moves to an authority whose key no manager has; containers never learn of it."""
    create = ("service", "create", "-d", "--name", "kept", "--mode", "global")
    formed.docker("m1", *create, "bb:1", "sleep", "1000")
    eventually(lambda: len(formed.pids("m1")) == 4, what="four tasks run")
    before = formed.pids("m1")
    ids = {name: node["ID"] for name, node in formed.nodes("m1").items()}
    old_pem = formed.api("m1", "GET", "/swarm")["TLSInfo"]["TrustRoot"]
    root = create_root(time.time())
    host = formed.host("w2")
    with authority(host, root, old_pem + root.certificate_pem, tmp_path) as told:
        eventually(lambda: "listening" in told.read_text(), what="the authority listens")
        url = f"https://{host.address}:{PORT}/api/v1/cfssl/sign"
        outside = ("--external-ca", f"protocol=cfssl,url={url}")
        certificate = ("--ca-cert", str(tmp_path / "root.pem"))
        formed.docker("m2", "swarm", "ca", "--rotate", "--quiet", *certificate, *outside)

        def is_moved():
            cluster = formed.api("m1", "GET", "/swarm")
            nodes = formed.nodes("m1").values()
            roots = {node["Description"]["TLSInfo"].get("TrustRoot") for node in nodes}
            return not cluster.get("RootRotationInProgress") and roots == {root.certificate_pem}

        eventually(is_moved, what="all nodes have certificates from outside")
        asked = [line.split() for line in told.read_text().splitlines()[1:]]
        assert {subject for _, subject in asked} == set(ids.values())
        assert {caller for caller, _ in asked} <= {ids["m1"], ids["m2"]}
        assert formed.pids("m1") == before

        formed.docker("w1", "swarm", "leave")
        formed.join("w1", "m2", formed.tokens("m1")["Worker"])
        new = formed.api("w1", "GET", "/info")["Swarm"]["NodeID"]
        assert new not in ids.values()
        assert told.read_text().splitlines()[-1].split()[1] == new
    # Without it nobody new gets in, and the sentence names it; what is there goes on.
    formed.docker("w1", "swarm", "leave")
    said, _ = formed.join_refused("w1", "m1", formed.tokens("m1")["Worker"])
    assert f"{host.address}:{PORT}" in said, said
    assert formed.state("w1") == "inactive"
    kept = {key: pid for key, pid in before.items() if key[0] != ids["w1"]}
    assert kept.items() <= formed.pids("m1").items()
