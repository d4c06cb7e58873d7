"""The program skopeo, which talks to registries for us.

It knows authentication, proxies, mirrors (`registries.conf`) and signature policies. Credentials go
to it in a file that only root can read, in a private directory, for the time of one call: arguments
and the environment can be seen by others. Its errors are turned into sentences here.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path

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

_OUTPUT_BYTES_MAX = 16 * 1024 * 1024
_LINE_BYTES_MAX = 1024 * 1024
_READ_BYTES = 64 * 1024
_MESSAGE = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')
# Ended by the kernel with the daemon: it must not write to a directory that the next daemon cleans.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


class _FailedError(Exception):
    """The program ended with an error."""


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
        self, reference: Reference, directory: Path, auth: RegistryAuth | None, root: Path
    ) -> None:
        """Prepare; nothing is sent yet. `root` is what a sentence names if the disk is full."""
        self._root = root
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

    async def fetch_blobs(self, reference: Reference, layout: Path) -> None:
        """Fetch the layers of one image into an OCI layout; those that it has are left out.

        The layout's manifest and configuration may be converted ones: only layers are of use.
        """
        await self._run(
            "copy",
            "--quiet",
            f"--src-tls-verify={self._verify()}",
            "--dest-oci-accept-uncompressed-layers",
            f"docker://{reference.full()}",
            f"oci:{layout}:image",
        )

    async def push(self, source: Path, on_line: Callable[[str], None]) -> None:
        """Send an image that stands in a directory of the form `dir:`, byte by byte."""
        await self._run(
            "copy",
            "--preserve-digests",
            f"--dest-tls-verify={self._verify()}",
            f"dir:{source}",
            f"docker://{self._reference.full()}",
            on_line=on_line,
        )

    async def _inspect(self, *arguments: str | Reference) -> bytes:
        words = [
            f"docker://{each.full()}" if isinstance(each, Reference) else each for each in arguments
        ]
        return await self._run("inspect", f"--tls-verify={self._verify()}", *words)

    def _verify(self) -> str:
        return "true" if self._is_verified else "false"

    async def _run(
        self, command: str, *arguments: str, on_line: Callable[[str], None] | None = None
    ) -> bytes:
        words = [
            *_DIES_WITH_US,
            "skopeo",
            "--tmpdir",
            str(self._directory),
            command,
            "--authfile",
            str(self._authfile),
            *arguments,
        ]
        try:
            return await _call(words, on_line)
        except _FailedError as error:
            log.info(
                "registry_call_failed",
                command=command,
                reference=self._reference.familiar,
                error=str(error),
            )
            raise translated(
                str(error), self._reference, self._root, is_push=on_line is not None
            ) from error


def translated(
    message: str, reference: Reference, root: Path, *, is_push: bool = False
) -> SwarmError:
    """Turn skopeo's last line into the error that it means, in Docker's words where there are."""
    verb = "push" if is_push else "pull"
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
    """Recognise what failed on the way or on this machine."""
    domain, text = reference.domain, message.lower()
    if "no space left" in text or "disk quota" in text:
        return ResourceExhaustedError(
            f"cannot {verb} {reference.familiar}: no space left on device, {root} is full; "
            "remove images that are not needed (docker image prune)"
        )
    if "x509" in text or "http response to https" in text or "tls:" in text:
        return UnavailableError(
            f"cannot trust the registry {domain}: {_reason(message)}; put its certificate "
            f"authority into /etc/containers/certs.d/{domain}/ca.crt"
        )
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


def _reason(message: str) -> str:
    return message.rpartition(": ")[2]


def _pair(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


async def _call(words: Sequence[str], on_line: Callable[[str], None] | None) -> bytes:
    """Run a program to its end; kill it when cancelled."""
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
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors = await asyncio.gather(
            _read(process.stdout, on_line), _read(process.stderr, None)
        )
        code = await process.wait()
    except BaseException:
        if process.returncode is None:
            process.kill()
        await asyncio.shield(process.wait())
        raise
    if code != 0:
        raise _FailedError(_last_message(errors.decode(errors="replace")) or f"exit code {code}")
    return output


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
