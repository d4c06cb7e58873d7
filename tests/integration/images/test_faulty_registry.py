"""Pulls from a registry behind a faulty server: tried again, given up, never begun anew."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import random
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proto.errors import InvalidError, UnavailableError
from worker.images import skopeo as skopeo_module
from worker.images.api import Progress
from worker.images.store import ImageStore

pytestmark = pytest.mark.integration

Fault = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]
ENDLESS_BYTES = 400 * 1024 * 1024


def status(code: int) -> Fault:
    """Answer with an error."""

    def answer(handler: http.server.BaseHTTPRequestHandler, _body: bytes) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def cut(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    """Send the half of it and close."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def reset(handler: http.server.BaseHTTPRequestHandler, _body: bytes) -> None:
    """Reset the connection instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def endless(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    """Send more and more."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body)
    try:
        for _ in range(ENDLESS_BYTES // len(NOISE)):
            handler.wfile.write(NOISE)
            handler.server.sent += len(NOISE)  # type: ignore[attr-defined]
    except OSError:
        pass
    handler.close_connection = True


NOISE = random.Random(1).randbytes(1 << 20)


class Front(http.server.ThreadingHTTPServer):
    """Passes requests on to a registry, unless a fault is planned for the path."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.faults: list[tuple[str, Fault]] = []
        self.gone = threading.Event()
        self.seen: list[str] = []
        self.sent = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server_address[1]}"

    def plan(self, path: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests of paths that contain this fail."""
        self.faults += [(path, fault)] * times

    def fault_of(self, path: str) -> Fault | None:
        """Take the fault that is planned for a path."""
        for planned in self.faults:
            if planned[0] in path:
                self.faults.remove(planned)
                return planned[1]
        return None

    def stall(self, handler: http.server.BaseHTTPRequestHandler, _body: bytes) -> None:
        """Take the request and never answer."""
        self.gone.wait(120)
        handler.close_connection = True

    def stall_half_way(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        """Send the half and then nothing."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        self.gone.wait(120)
        handler.close_connection = True


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Front
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Pass it on, or fail."""
        self.server.seen.append(f"{self.command} {self.path}")
        request = urllib.request.Request(
            f"http://{self.server.upstream}{self.path}",
            headers={
                name: ", ".join(self.headers.get_all(name, []))
                for name in self.headers
                if name.lower() != "host"
            },
            method=self.command,
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                code, headers, body = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            code, headers, body = error.code, error.headers, error.read()
        fault = self.server.fault_of(self.path) if self.command == "GET" else None
        if fault is not None:
            fault(self, body)
            return
        self.send_response(code)
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 -- the base class names it

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def front(registry: Any) -> Iterator[Front]:
    """A faulty server before a real registry."""
    server = Front(registry.address)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.gone.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def image(registry: Any, front: Front, tmp_path: Any, tools: Any) -> tuple[str, str, list[str]]:
    """An image of two layers behind the faulty server: its name, its ID, its blobs."""
    layers = [
        tools.busybox_layer(),
        tools.tar(tools.Entry("noise", random.Random(2).randbytes(3_000_000))),
    ]
    image_id = tools.oci_layout(tmp_path / "oci", layers, name="web:1")
    name = f"{registry.address}/web:1"
    tools.skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path / 'oci'}", f"docker://{name}")
    manifest = tools.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    blobs = [layer["digest"] for layer in json.loads(manifest)["layers"]]
    return f"{front.address}/web:1", image_id, blobs


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skopeo_module, "RETRY_PAUSES", (0.05, 0.1, 0.2))


def fetched(front: Front, digest: str) -> int:
    """Count the downloads of a blob."""
    return sum(line.startswith("GET") and digest in line for line in front.seen)


@pytest.mark.parametrize(
    "fault", [status(503), status(500), cut, reset], ids=["503", "500", "cut", "reset"]
)
@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
async def test_what_passes_is_tried_again(
    store: ImageStore, front: Front, image: Any, fault: Fault, where: str
) -> None:
    """A server fault, a cut and a reset cost an attempt, not the pull."""
    name, image_id, _ = image
    front.plan(where, fault, 2)
    said: list[Progress] = []
    assert (await store.pull(name, progress=said.append)).id == image_id
    assert front.faults == []
    assert [one for one in said if one.status.startswith("Retrying in")] != []


async def test_it_is_not_tried_for_ever(store: ImageStore, front: Front, image: Any) -> None:
    """After a few attempts the pull fails, with the cause and without what the tool calls it."""
    name, _, _ = image
    front.plan("/manifests/", status(503), 100)
    with pytest.raises(UnavailableError) as caught:
        await store.pull(name)
    sentence = f"the registry {front.address} answered 503 Service Unavailable"
    assert sentence == caught.value.message
    assert 100 - len(front.faults) == len(skopeo_module.RETRY_PAUSES) + 1


@pytest.mark.parametrize("kind", ["manifest", "layer"])
async def test_a_registry_that_is_silent_is_given_up(
    store: ImageStore, front: Front, image: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No progress for too long ends an attempt; the next one may succeed."""
    monkeypatch.setattr(skopeo_module, "STALLED_SECONDS", 1.0)
    name, image_id, blobs = image
    if kind == "manifest":
        front.plan("/manifests/", front.stall)
    else:
        front.plan(blobs[1], front.stall_half_way)
    said: list[Progress] = []
    assert (await store.pull(name, progress=said.append)).id == image_id
    reasons = [one.status for one in said if one.status.startswith("Retrying")]
    assert len(reasons) == 1
    assert f"the registry {front.address} sent nothing for" in reasons[0]
    if kind == "layer":
        assert fetched(front, blobs[0]) == 1, "the layer that was complete is not fetched again"


@pytest.mark.parametrize("end", ["fault", "cancelled"])
async def test_an_interrupted_pull_keeps_what_is_complete(
    store: ImageStore, front: Front, image: Any, end: str, root: Any
) -> None:
    """The next attempt fetches only what is missing; nothing is left afterwards."""
    name, image_id, (first, second) = image
    front.plan(second, status(404) if end == "fault" else front.stall_half_way, 4)
    pull = asyncio.create_task(store.pull(name))
    if end == "cancelled":
        async with asyncio.timeout(60):
            while not any((root / "kept").iterdir()):  # noqa: ASYNC110 -- files tell nobody
                await asyncio.sleep(0.05)
        pull.cancel()
    await asyncio.gather(pull, return_exceptions=True)
    assert not store.images()
    assert fetched(front, first) == 1
    front.faults.clear()
    assert (await store.pull(name)).id == image_id
    assert fetched(front, first) == 1
    assert list((root / "kept").iterdir()) == []


async def test_pruning_drops_what_was_kept(
    store: ImageStore, front: Front, image: Any, root: Any
) -> None:
    """Layers of pulls that were given up go with a prune, which says how much that freed."""
    name, _, (first, second) = image
    front.plan(second, status(404), 4)
    await asyncio.gather(store.pull(name), return_exceptions=True)
    (kept,) = (root / "kept").iterdir()
    size = kept.stat().st_size
    assert first.endswith(kept.name)
    assert await store.prune() == ([], size)
    assert list((root / "kept").iterdir()) == []


async def test_a_damaged_kept_layer_is_fetched_anew(
    store: ImageStore, front: Front, image: Any, root: Any
) -> None:
    """After a power loss a file may hold nothing: one attempt says so, the next fetches it."""
    name, image_id, (first, second) = image
    front.plan(second, status(404), 4)
    await asyncio.gather(store.pull(name), return_exceptions=True)
    (kept,) = (root / "kept").iterdir()
    kept.write_bytes(bytes(kept.stat().st_size))
    front.faults.clear()
    with pytest.raises(InvalidError):
        await store.pull(name)
    assert (await store.pull(name)).id == image_id
    assert fetched(front, first) == 2


async def test_a_layer_that_never_ends_is_stopped(
    store: ImageStore, front: Front, image: Any, root: Any
) -> None:
    """No more than the manifest's largest layer is taken, and nothing of it stays."""
    name, _, (_, second) = image
    front.plan(second, endless, 10)
    with pytest.raises(InvalidError, match=r"sends more for .* than its manifest says"):
        await store.pull(name)
    assert front.sent < 64 * 1024 * 1024
    assert list((root / "tmp").iterdir()) == []


async def test_a_stalled_registry_holds_no_other(
    store: ImageStore, front: Front, image: Any, registry: Any
) -> None:
    """A pull that shares its layers with one that hangs, from elsewhere, goes on."""
    name, image_id, blobs = image
    front.plan(blobs[0], front.stall, 100)
    front.plan(blobs[1], front.stall, 100)
    hung = asyncio.create_task(store.pull(name))
    async with asyncio.timeout(60):
        while not fetched(front, blobs[1]):  # noqa: ASYNC110 -- another thread
            await asyncio.sleep(0.05)
        assert (await store.pull(f"{registry.address}/web:1")).id == image_id
    hung.cancel()
    await asyncio.gather(hung, return_exceptions=True)


async def test_a_push_to_a_registry_that_is_silent_is_given_up(
    store: ImageStore, image: Any, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again and then fails, while a pull from another registry goes on."""
    monkeypatch.setattr(skopeo_module, "STALLED_SECONDS", 1.0)
    _, image_id, _ = image
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert (await store.pull(f"{registry.address}/web:1")).id == image_id
        await store.tag(f"{registry.address}/web:1", f"{silent_address}/web:1")
        said: list[Progress] = []
        hung = asyncio.create_task(store.push(f"{silent_address}/web:1", progress=said.append))
        assert (await store.pull(f"{registry.address}/web:1")).id == image_id
        with pytest.raises(UnavailableError) as caught:
            await hung
    assert f"the registry {silent_address} sent nothing for 1 s" == caught.value.message
    retries = [one for one in said if one.status.startswith("Retrying in")]
    assert len(skopeo_module.RETRY_PAUSES) == len(retries)


async def test_a_hung_program_is_ended(store: ImageStore, monkeypatch: Any, tmp_path: Any) -> None:
    """A skopeo that is stopped moves nothing, and is killed like a silent registry's."""
    monkeypatch.setattr(skopeo_module, "STALLED_SECONDS", 0.5)
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "skopeo").write_text("#!/bin/sh\nkill -STOP $$\n")
    (fake / "skopeo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    with pytest.raises(UnavailableError, match=r"sent nothing for 0\.5 s"):
        await store.pull("127.0.0.1:1/web")
