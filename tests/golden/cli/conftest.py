"""A small Engine on a unix socket that answers from the fixtures and keeps what it was asked."""

from __future__ import annotations

import io
import json
import re
import shutil
import socketserver
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from manager.cli import main
from proto.clock import SystemClock

FIXTURES = Path(__file__).parent / "fixtures"


class Request(NamedTuple):
    """One request as it arrived; `path` without the version."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.body)


class Reply(NamedTuple):
    """One answer; `body` is JSON unless it is bytes."""

    body: object = None
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 -- never changed


def load(name: str) -> Any:
    """Read a fixture."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def error(status: int, message: str) -> Reply:
    """Make the Engine's error answer."""
    return Reply({"message": message}, status)


def one_of(items: list[Any], kind: str) -> Callable[[Request], Reply]:
    """Answer `/kind/{reference}` by ID, ID prefix, name or `self`."""

    def answer(request: Request) -> Reply:
        reference = request.path.split("/")[2]
        for item in items:
            names = {item["ID"], item.get("Spec", {}).get("Name"), item.get("Name")}
            names.add(item.get("Description", {}).get("Hostname"))
            if reference in names or item["ID"].startswith(reference):
                return Reply(item)
        return error(404, f"{kind} {reference} not found")

    return answer


def filtered(items: list[Any], *keys: str) -> Callable[[Request], Reply]:
    """Answer a list, with the Engine's `id`, `name` and other filters."""

    def fits(item: Any, key: str, values: list[str]) -> bool:
        found = {
            "id": item["ID"],
            "name": item.get("Spec", {}).get("Name", item.get("Name", "")),
            "service": item.get("ServiceID", ""),
            "node": item.get("NodeID", ""),
        }[key]
        return any(found.startswith(value) for value in values)

    def answer(request: Request) -> Reply:
        filters = json.loads(request.query.get("filters", "{}"))
        return Reply(
            [
                item
                for item in items
                if all(
                    fits(item, key, list(value)) for key, value in filters.items() if key in keys
                )
            ]
        )

    return answer


class FakeEngine(socketserver.ThreadingUnixStreamServer):
    """The server; `routes` may be changed by a test."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str) -> None:
        """Listen and answer in a thread."""
        super().__init__(path, Handler)
        self.path = path
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.services = load("services")
        self.nodes = load("nodes")
        self.tasks = load("tasks")
        self.info = load("info")
        self.swarm = load("swarm")
        self.routes: dict[str, Callable[[Request], Reply]] = self._routes()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def _routes(self) -> dict[str, Callable[[Request], Reply]]:
        def fixed(body: object, status: int = 200) -> Callable[[Request], Reply]:
            return lambda _request: Reply(body, status)

        secrets, configs, networks = load("secrets"), load("configs"), load("networks")
        return {
            "HEAD /_ping": lambda _request: Reply(b"", headers={"Api-Version": "1.50"}),
            "GET /_ping": lambda _request: Reply(b"OK", headers={"Api-Version": "1.50"}),
            "GET /version": fixed(load("version")),
            "GET /info": lambda _request: Reply(self.info),
            "GET /swarm": lambda _request: Reply(self.swarm),
            "GET /swarm/unlockkey": fixed({"UnlockKey": "SWMKEY-1-abcdefghijklmnop"}),
            "POST /swarm/init": fixed(self.nodes[0]["ID"]),
            "POST /swarm/(join|leave|update|unlock)": fixed(None),
            "GET /services": filtered(self.services, "id", "name"),
            "GET /services/[^/]+": one_of(self.services, "service"),
            "POST /services/create": fixed({"ID": self.services[0]["ID"]}, 201),
            "POST /services/[^/]+/update": fixed({}),
            "DELETE /services/[^/]+": self._removed(self.services, "service"),
            "GET /nodes": filtered(self.nodes, "id", "name"),
            "GET /nodes/self": lambda _request: Reply(self.nodes[0]),
            "GET /nodes/[^/]+": one_of(self.nodes, "node"),
            "POST /nodes/[^/]+/update": fixed(None),
            "DELETE /nodes/[^/]+": self._removed(self.nodes, "node"),
            "GET /tasks": filtered(self.tasks, "service", "node", "id"),
            "GET /tasks/[^/]+": one_of(self.tasks, "task"),
            "GET /secrets": filtered(secrets, "name"),
            "GET /configs": filtered(configs, "name"),
            "GET /networks/[^/]+": one_of(
                [{**network, "ID": network["Id"]} for network in networks], "network"
            ),
            "GET /distribution/.*": lambda _request: error(404, "no registry"),
            "GET /images/json": fixed(load("images")),
            "GET /images/.*/json": fixed(load("image")),
            "GET /images/.*/history": fixed(load("history")),
            "POST /images/.*/tag": fixed(None, 201),
        }

    @staticmethod
    def _removed(items: list[Any], kind: str) -> Callable[[Request], Reply]:
        find = one_of(items, kind)

        def answer(request: Request) -> Reply:
            found = find(request)
            return found if found.status != 200 else Reply(None)

        return answer

    def handle_error(self, *_arguments: object) -> None:
        """Keep what went wrong for the end of the test: printed, it would be taken for output."""
        self.errors.append(traceback.format_exc())

    def answer(self, request: Request) -> Reply:
        """Find the route; a test's exact route wins over a pattern."""
        self.requests.append(request)
        wanted = f"{request.method} {request.path}"
        if wanted in self.routes:
            return self.routes[wanted](request)
        for pattern, route in self.routes.items():
            if re.fullmatch(pattern, wanted):
                return route(request)
        return error(404, f"page not found: {wanted}")

    def posted(self, path: str) -> Request:
        """Give the last POST to a path (a pattern)."""
        found = [
            request
            for request in self.requests
            if request.method == "POST" and re.fullmatch(path, request.path)
        ]
        assert found, f"no POST to {path} among {[r[:2] for r in self.requests]}"
        return found[-1]


class Handler(BaseHTTPRequestHandler):
    """Reads a request whole and writes the answer of the engine."""

    protocol_version = "HTTP/1.1"
    server: FakeEngine

    def address_string(self) -> str:
        """A unix socket's peer has no address."""
        return "unix"

    def log_message(self, *_args: object) -> None:
        """Stay silent."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_any(self) -> None:
        """Answer one request."""
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = re.sub(r"^/v\d+\.\d+", "", parts.path)
        request = Request(self.command, path, query, dict(self.headers), self._body())
        reply = self.server.answer(request)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        if reply.body is None:
            body = b""
        self.send_response(reply.status)
        kind = "application/octet-stream" if isinstance(reply.body, bytes) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for key, value in reply.headers.items():
            self.send_header(key, value)
        self.end_headers()
        # An empty write would race with a client that has its whole answer and closes.
        if self.command != "HEAD" and body:
            self.wfile.write(body)

    do_GET = do_POST = do_DELETE = do_HEAD = do_PUT = handle_any  # noqa: N815 -- http.server's names


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """A fake Engine on a socket of its own."""
    folder = tempfile.mkdtemp(prefix="swarm-cli-")
    server = FakeEngine(f"{folder}/docker.sock")
    yield server
    server.shutdown()
    server.server_close()
    shutil.rmtree(folder)
    assert server.errors == []


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


NOW = 1_787_220_420.0
"""2026-08-20 10:07:00 UTC, shortly after the fixtures' events."""


@pytest.fixture
def swarm(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Run `swarm` in this process against the fake Engine, at a fixed time in UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")

    def run_command(*arguments: str, stdin: str = "", now: float = NOW) -> Result:
        monkeypatch.setattr(SystemClock, "wall", lambda _self: now)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        code = main.run(["-H", f"unix://{engine.path}", *arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command
