"""The way to the daemon, and what a user is told when it fails."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manager.cli import main
from manager.cli.errors import CommandError, DaemonError
from manager.cli.transport import Engine, decoded, filters

Answer = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve connections on a unix socket, each by the next function."""
    folder = tempfile.mkdtemp(prefix="swarm-cli-")
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(*answers: Answer) -> str:
        path = f"{folder}/s.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listeners.append(listener)

        def accept() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    answer(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        threads.append(thread)
        return f"unix://{path}"

    yield start
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    for listener in listeners:
        listener.close()
    shutil.rmtree(folder)


def head(connection: socket.socket) -> bytes:
    """Read a request's head."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(4096)
        if not piece:
            break
        data += piece
    return data


def replying(*bodies: bytes, status: str = "200 OK") -> Answer:
    """Answer requests on one connection, then close it."""

    def answer(connection: socket.socket) -> None:
        for body in bodies:
            head(connection)
            connection.sendall(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )

    return answer


def test_requests_share_a_connection(serve: Callable[..., str]) -> None:
    """One connection is enough for several requests."""
    engine = Engine(serve(replying(b"[1]", b"[2]")))
    assert engine.get("/a") == [1]
    assert engine.get("/b") == [2]
    engine.close()


def test_an_idle_connection_that_was_closed_is_made_again(serve: Callable[..., str]) -> None:
    """A read is repeated when the daemon had closed the connection."""
    engine = Engine(serve(replying(b"[1]"), replying(b"[2]")))
    assert engine.get("/a") == [1]
    assert engine.get("/b") == [2]
    engine.close()


def test_a_write_is_not_repeated(serve: Callable[..., str]) -> None:
    """Whether a write was taken is not known, so the user is told."""
    engine = Engine(serve(replying(b"[1]")))
    engine.get("/a")
    with pytest.raises(CommandError, match="broke"):
        engine.post("/b", {})
    engine.close()


def test_errors_of_the_daemon_have_its_sentence(serve: Callable[..., str]) -> None:
    """JSON or text, the sentence is the daemon's."""
    engine = Engine(serve(replying(b'{"message":"no such thing"}', status="404 Not Found")))
    with pytest.raises(DaemonError) as caught:
        engine.get("/a")
    assert caught.value.message == "Error response from daemon: no such thing"
    assert caught.value.is_not_found
    engine.close()
    with pytest.raises(DaemonError, match="Error response from daemon: plain"):
        decoded(500, b"plain\n")
    with pytest.raises(DaemonError, match="HTTP status 502"):
        decoded(502, b"")
    with pytest.raises(CommandError, match="is not JSON"):
        decoded(200, b"<html>")


def test_a_stream_that_breaks_is_told(serve: Callable[..., str]) -> None:
    """What arrived is given, then the user is told."""

    def broken(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")

    stream = Engine(serve(broken)).stream("GET", "/logs", {})
    assert next(stream) == b"abc"
    with pytest.raises(CommandError, match=r"the connection to the swarm daemon at unix:.* broke"):
        next(stream)


def test_an_upload_that_is_refused_early_gives_the_reason(serve: Callable[..., str]) -> None:
    """The daemon may answer before it has read all of a long upload."""

    def refusing(connection: socket.socket) -> None:
        head(connection)
        body = b'{"message":"no space left"}'
        connection.sendall(
            b"HTTP/1.1 507 Full\r\nConnection: close\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        connection.shutdown(socket.SHUT_RD)

    engine = Engine(serve(refusing))
    with Path("/dev/zero").open("rb") as endless, pytest.raises(DaemonError, match="no space left"):
        list(engine.stream("POST", "/images/load", {}, upload=endless))


def test_a_daemon_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names the socket and the remedy."""
    code = main.run(["-H", "unix:///nope/docker.sock", "service", "ls"])
    assert code == 1
    expected = (
        "Cannot connect to the swarm daemon at unix:///nope/docker.sock. Is swarmd running?\n"
    )
    assert capsys.readouterr().err == expected


def test_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    """A stale socket is like none."""
    path = str(tmp_path / "s")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    with pytest.raises(CommandError, match=r"Is swarmd running\?"):
        Engine(f"unix://{path}").get("/a")


def test_permission_names_the_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who may not is told which group may."""
    path = tmp_path / "s"
    path.touch()
    group = path.group()

    def refused(_self: socket.socket, _path: str) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "connect", refused)
    with pytest.raises(CommandError) as caught:
        Engine(f"unix://{path}").get("/a")
    message = caught.value.message
    assert message.startswith("permission denied while trying to connect to the swarm daemon")
    assert "sudo" in message if group == "root" else group in message


def test_hosts_are_chosen_by_flag_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """-H, SWARM_HOST, DOCKER_HOST, the default."""
    monkeypatch.delenv("SWARM_HOST", raising=False)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert main.Console().engine.host == "unix:///run/swarm/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///d")
    assert main.Console().engine.host == "unix:///d"
    monkeypatch.setenv("SWARM_HOST", "unix:///s")
    assert main.Console().engine.host == "unix:///s"
    assert main.Console("unix:///f").engine.host == "unix:///f"


def test_a_host_that_is_none_is_refused() -> None:
    """What cannot be an address says so."""
    with pytest.raises(CommandError, match="unable to parse docker host `ftp://x`"):
        Engine("ftp://x").get("/a")


def test_filters_are_sets() -> None:
    """The form that the Engine API has used since 1.22."""
    assert filters({"id": ["a", "b"], "name": []}) == '{"id":{"a":true,"b":true}}'
    assert filters({}) is None


def test_a_bug_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong, a user reads one sentence."""

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.delenv("SWARM_DEBUG", raising=False)
    monkeypatch.setattr(Engine, "get", broken)
    assert main.run(["service", "ls"]) == 1
    shown = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oops" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("SWARM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.run(["service", "ls"])


def test_an_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends with the shell's code and no words but the end of the line."""

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "get", interrupted)
    assert main.run(["service", "ls"]) == main.INTERRUPTED_EXIT_CODE
    assert capsys.readouterr().err.strip() == ""


def test_every_command_exists() -> None:
    """Each entry of the table names a module and a declaration."""
    root = main.program()
    context = main.click.Context(root, info_name="swarm", obj=main.Console("unix:///x"))
    for name in main.TABLES["swarm"]:
        command = root.get_command(context, name)
        assert command is not None
        if isinstance(command, main.LazyGroup):
            for inner in main.TABLES[name]:
                assert command.get_command(context, inner) is not None


def test_commands_import_little(tmp_path: Path) -> None:
    """The start of a list command loads neither the template engine nor heavy libraries."""
    code = (
        "import sys; from manager.cli import main; main.run(['service', 'ls']);"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in "
        "('msgspec', 'rich', 'aiohttp', 'asyncio', 'structlog', 'shlex')"
        "or m.startswith('proto.')))"
    )
    import subprocess  # noqa: PLC0415 -- only here
    import sys  # noqa: PLC0415 -- only here

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "SWARM_HOST": f"unix://{tmp_path}/none"},
        check=True,
        timeout=30,
    )
    assert done.stdout.splitlines()[-1] == "['proto.clock', 'proto.errors', 'proto.text']"
