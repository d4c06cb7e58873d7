"""The program skopeo, which talks to registries for us.

It knows authentication, proxies, mirrors (`registries.conf`) and signature policies. Credentials go
to it in a file that only root can read, in a private directory, for the time of one call: arguments
and the environment can be seen by others. Its errors are turned into sentences here.

A call that moves no bytes for `STALLED_SECONDS` is ended: no time-out of skopeo's own bounds a
registry that takes connections and never answers. What may pass is tried again after a growing
pause; what skopeo had completed by then, it finds in its layout and leaves out.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from proto.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    ResourceExhaustedError,
    RuntimeFailedError,
    SwarmError,
    UnavailableError,
)
from worker.images import references
from worker.images.api import RegistryAuth
from worker.images.references import Reference

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

T = TypeVar("T")

STALLED_SECONDS = 60.0
"""How long a registry may be silent before a call is given up, and tried again."""

STALLED_BYTES_MIN = 16 * 1024
"""Less than this in `STALLED_SECONDS` counts as nothing."""

RETRY_PAUSES = (1.0, 2.0, 4.0)
"""Seconds before the second attempt of a call, and so on; there are no more attempts."""

_LOOK_SECONDS = 0.25
_OUTPUT_BYTES_MAX = 16 * 1024 * 1024
_LINE_BYTES_MAX = 1024 * 1024
_READ_BYTES = 64 * 1024
_MESSAGE = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')
# Ended by the kernel with the daemon: it must not write to a directory that the next daemon cleans.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


# skopeo writes small files beside the layers, too: the configuration, and a cache of its own.
_FILE_BYTES_MIN = 4 * 1024 * 1024
_CACHE = Path("/var/lib/containers/cache/blob-info-cache-v1.boltdb")


class _FailedError(Exception):
    """The program ended with an error."""


class _StalledError(Exception):
    """The program made no progress, and was ended."""


def write_authfile(directory: Path, domain: str, auth: RegistryAuth | None) -> Path:
    """Write the credentials for one registry, or a file without any.

    Without a file skopeo would look for root's own credentials, which are not the caller's.
    """
    entry: dict[str, str] = {}
    if auth is not None and auth.identity_token:
        entry["auth"] = _pair(auth.username or "<token>", auth.password)
        entry["identitytoken"] = auth.identity_token
    elif auth is not None and auth.username:
        entry["auth"] = _pair(auth.username, auth.password)
    path = directory / "auth.json"
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(msgspec.json.encode({"auths": {domain: entry} if entry else {}}))
    return path


class Registry:
    """One repository's registry, for the time of one pull or push.

    Args of the constructor: `directory` is private, on the store's file system, and removed by the
    caller, and with it the credentials.
    """

    def __init__(
        self,
        reference: Reference,
        directory: Path,
        auth: RegistryAuth | None,
        root: Path,
        on_retry: Callable[[str, float], None] = lambda _reason, _seconds: None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            reference: says which registry.
            directory: see above.
            auth: the caller's credentials.
            root: what a sentence names if the disk is full.
            on_retry: told why a call is tried again, and after how many seconds.
        """
        self._root = root
        self._on_retry = on_retry
        self._reference = reference
        self._directory = directory
        self._authfile = write_authfile(directory, reference.domain, auth)
        self._is_verified = not references.is_loopback(reference.domain)

    async def manifest(self, reference: Reference) -> bytes:
        """Fetch the bytes of a manifest or index."""
        return await self._inspect("--raw", reference)

    async def config(self, reference: Reference) -> bytes:
        """Fetch the bytes of the configuration of an image."""
        return await self._inspect("--raw", "--config", reference)

    async def fetch_blobs(self, reference: Reference, layout: Path, *, bytes_max: int) -> None:
        """Fetch the layers of one image into an OCI layout; those that it has are left out.

        The layout's manifest and configuration may be converted ones: only layers are of use.
        No file may become larger than `bytes_max`, the largest that the manifest names.

        Raises:
            InvalidError: the registry sends more than that.
        """
        await self._run(
            "copy",
            "--quiet",
            *self._unverified("--src-tls-verify"),
            "--dest-oci-accept-uncompressed-layers",
            f"docker://{reference.full()}",
            f"oci:{layout}:image",
            bytes_max=bytes_max,
        )

    async def push(self, source: Path, on_line: Callable[[str], None]) -> None:
        """Send an image that stands in a directory of the form `dir:`, byte by byte."""
        await self._run(
            "copy",
            "--preserve-digests",
            *self._unverified("--dest-tls-verify"),
            f"dir:{source}",
            f"docker://{self._reference.full()}",
            on_line=on_line,
        )

    async def _inspect(self, *arguments: str | Reference) -> bytes:
        words = [
            f"docker://{each.full()}" if isinstance(each, Reference) else each for each in arguments
        ]
        return await self._run("inspect", *self._unverified("--tls-verify"), *words)

    def _unverified(self, option: str) -> list[str]:
        """Return the option that lets loopback do without TLS.

        Elsewhere nothing is said: "true" would overrule what the machine's registries.conf allows.
        """
        return [] if self._is_verified else [f"{option}=false"]

    async def _run(
        self,
        command: str,
        *arguments: str,
        on_line: Callable[[str], None] | None = None,
        bytes_max: int = 0,
    ) -> bytes:
        words = [
            *_DIES_WITH_US,
            *(("prlimit", f"--fsize={_file_limit(bytes_max)}", "--") if bytes_max else ()),
            "skopeo",
            "--tmpdir",
            str(self._directory),
            command,
            "--authfile",
            str(self._authfile),
            *arguments,
        ]
        for pause in (*RETRY_PAUSES, None):
            try:
                return await _call(words, on_line)
            except _StalledError:
                error: SwarmError = UnavailableError(
                    f"the registry {self._reference.domain} sent nothing for {STALLED_SECONDS:g} s"
                )
                is_passing = True
            except _FailedError as failure:
                message = str(failure)
                is_push = on_line is not None
                error = translated(message, self._reference, self._root, is_push=is_push)
                is_passing = _is_passing(message)
            log.info(
                "registry_call_failed",
                command=command,
                reference=self._reference.familiar,
                error=error.message,
                retry_seconds=pause if is_passing else None,
            )
            if pause is None or not is_passing:
                raise error
            self._on_retry(error.message, pause)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def translated(
    message: str, reference: Reference, root: Path, *, is_push: bool = False
) -> SwarmError:
    """Turn skopeo's last line into the error that it means, in Docker's words where there are."""
    verb = "push" if is_push else "pull"
    message = _cause(message)
    return (
        _answer(message, reference, verb)
        or _failure(message, reference, root, verb)
        or RuntimeFailedError(f"cannot {verb} {reference.familiar}: {message}")
    )


def _answer(message: str, reference: Reference, verb: str) -> SwarmError | None:
    """Recognise what a registry answered."""
    name, text = reference.familiar, message.lower()
    if any(word in text for word in ("manifest unknown", "name unknown", "name_unknown")):
        return NotFoundError(
            "image", name, f"manifest for {name} not found: manifest unknown: manifest unknown"
        )
    if any(word in text for word in _DENIALS):
        start = next(at for word in _DENIALS if (at := text.find(word)) >= 0)
        return DeniedError(
            f"{verb} access denied for {reference.familiar_name}, repository does not exist or may "
            f"require 'docker login': {message[start:]}"
        )
    if "toomanyrequests" in text or "too many requests" in text:
        return UnavailableError(
            f"the registry {reference.domain} refuses more requests for now: {_reason(message)}"
        )
    return None


def _failure(message: str, reference: Reference, root: Path, verb: str) -> SwarmError | None:
    """Recognise what failed on this machine or on the way."""
    text = message.lower()
    if _TOO_LARGE in text:
        return InvalidError(
            f"the registry {reference.domain} sends more for {reference.familiar} than its "
            "manifest says"
        )
    if "no space left" in text or "disk quota" in text:
        return ResourceExhaustedError(
            f"cannot {verb} {reference.familiar}: no space left on device, {root} is full; "
            "remove images that are not needed (docker image prune)"
        )
    return _failure_on_the_way(message, reference.domain)


def _failure_on_the_way(message: str, domain: str) -> SwarmError | None:
    text = message.lower()
    if "http response to https" in text:
        return UnavailableError(
            f"the registry {domain} does not speak TLS: if that is meant, allow it in "
            f'/etc/containers/registries.conf with [[registry]], location = "{domain}", '
            "insecure = true"
        )
    if "x509" in text or "tls:" in text:
        return UnavailableError(
            f"cannot trust the registry {domain}: {_reason(message)}; put its certificate "
            f"authority into /etc/containers/certs.d/{domain}/ca.crt"
        )
    if (status := _SERVER_FAULT.search(message)) is not None:
        return UnavailableError(f"the registry {domain} answered {status[1]} {status[2]}".strip())
    if text.endswith("eof") or any(word in text for word in _UNREACHABLE):
        return UnavailableError(f"cannot reach the registry {domain}: {_reason(message)}")
    return None


_DENIALS = ("unauthorized", "denied", "authentication required")
_UNREACHABLE = (
    "connection refused",
    "no such host",
    "i/o timeout",
    "network is unreachable",
    "no route to host",
    "connection reset",
    "server misbehaving",
    "context deadline exceeded",
)


_SERVER_FAULT = re.compile(
    r"(?:HTTP (?:status|code)|status code(?: from registry)?):? \(?(5\d\d) ?\(?([A-Za-z ]*)",
    re.IGNORECASE,
)
_PASSING = ("connection reset", "broken pipe", "http2: server sent goaway", "handshake timeout")
_TOO_LARGE = "file too large"
# What skopeo was doing stands before what happened, and the first words are often wrong.
_DOINGS = re.compile(
    r'Error parsing image name "[^"]*": |'
    r"(?:initializing|trying to reuse|creating|opening) (?:source|blob|destination)[^:]*:\S*?: |"
    r"pinging container registry \S+: |"
    r"(?:Error )?reading (?:manifest|blob|config)[^:]* (?:in|for) \S+: |"
    r"(?:Error )?reading (?:manifest|blob|config)[^:]*: |"
    r"Error fetching blob: |"
    r"(?:copying system image from manifest list|writing blob|happened during read): "
)


def _cause(message: str) -> str:
    """Strip what skopeo says that it was doing."""
    while match := _DOINGS.match(message):
        message = message[match.end() :]
    return message


def _is_passing(message: str) -> bool:
    """Tell whether the same call may succeed in a moment."""
    text = message.lower()
    return (
        _SERVER_FAULT.search(message) is not None
        or text.endswith("eof")
        or any(word in text for word in _PASSING)
    )


def _file_limit(bytes_max: int) -> int:
    """Return how large a file skopeo may write, who keeps a cache of its own, too."""
    try:
        cache = _CACHE.stat().st_size + _FILE_BYTES_MIN
    except OSError:
        cache = 0
    return max(bytes_max, _FILE_BYTES_MIN, cache)


def _reason(message: str) -> str:
    return message.rpartition(": ")[2]


def _pair(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


async def _call(words: Sequence[str], on_line: Callable[[str], None] | None) -> bytes:
    """Run a program to its end; kill it when cancelled, or when it makes no progress.

    Raises:
        _FailedError: it ended with an error.
        _StalledError: it moved no bytes for too long.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
        )
    except FileNotFoundError as error:
        raise RuntimeFailedError(
            f"the program {error.filename} is missing; install skopeo and util-linux"
        ) from error
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.gather(_read(process.stdout, on_line), _read(process.stderr, None))
    stalling = asyncio.ensure_future(_stalled(process.pid))
    try:
        output, errors = await _unless(stalling, reading)
        code = await process.wait()
    except BaseException:
        reading.cancel()
        if process.returncode is None:
            process.kill()
        await asyncio.shield(process.wait())
        raise
    finally:
        stalling.cancel()
        await asyncio.gather(reading, stalling, return_exceptions=True)
    if b"SIGXFSZ" in errors:
        raise _FailedError(_TOO_LARGE)
    if code != 0:
        raise _FailedError(_last_message(errors.decode(errors="replace")) or f"exit code {code}")
    return output


async def _unless(stalling: asyncio.Future[None], work: asyncio.Future[T]) -> T:
    """Return what `work` returns.

    Raises:
        _StalledError: the other was done first.
    """
    await asyncio.wait((stalling, work), return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        raise _StalledError
    return work.result()


async def _stalled(pid: int) -> None:
    """Return when a process has read and written nothing, sockets included, for too long."""
    loop = asyncio.get_running_loop()
    counted, since = _bytes_moved(pid), loop.time()
    while loop.time() - since < STALLED_SECONDS:
        await asyncio.sleep(min(_LOOK_SECONDS, STALLED_SECONDS / 4))
        now = _bytes_moved(pid)
        if now >= counted + STALLED_BYTES_MIN:
            counted, since = now, loop.time()


def _bytes_moved(pid: int) -> int:
    """Return what a process has read and written so far; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(": ", 1) for line in lines)
    return int(fields["rchar"]) + int(fields["wchar"])


async def _read(stream: asyncio.StreamReader, on_line: Callable[[str], None] | None) -> bytes:
    """Collect an output, or hand its lines over."""
    collected = bytearray()
    if on_line is not None:
        async for line in stream:
            on_line(line.decode(errors="replace").rstrip())
    while data := await stream.read(_READ_BYTES):
        collected += data
        if len(collected) > _OUTPUT_BYTES_MAX:
            raise InvalidError(
                f"the registry sent a document of more than {_OUTPUT_BYTES_MAX} bytes"
            )
    return bytes(collected)


def _last_message(errors: str) -> str:
    messages = _MESSAGE.findall(errors)
    if not messages:
        lines = errors.strip().splitlines()
        return lines[-1] if lines else ""
    return str(messages[-1]).replace('\\"', '"').replace("\\\\", "\\")
