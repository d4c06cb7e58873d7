"""skopeo's errors become sentences, and credentials go where only root reads."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from proto.errors import (
    DeniedError,
    NotFoundError,
    ResourceExhaustedError,
    RuntimeFailedError,
    SwarmError,
    UnavailableError,
)
from worker.images.api import RegistryAuth
from worker.images.references import parse_tagged
from worker.images.skopeo import translated, write_authfile

WEB = parse_tagged("host:5000/web:1")


@pytest.mark.parametrize(
    ("message", "kind", "sentence"),
    [
        (
            "reading manifest 1 in host:5000/web: manifest unknown: manifest unknown",
            NotFoundError,
            "manifest for host:5000/web:1 not found: manifest unknown: manifest unknown",
        ),
        (
            "reading manifest 1 in host:5000/web: name unknown: repository not known",
            NotFoundError,
            "manifest for host:5000/web:1 not found: manifest unknown: manifest unknown",
        ),
        (
            "reading manifest 1: requested access to the resource is denied",
            DeniedError,
            ("pull access denied for host:5000/web, repository does not exist or may require "
            "'docker login': denied"),
        ),
        (
            "reading manifest 1: unauthorized: authentication required",
            DeniedError,
            ("pull access denied for host:5000/web, repository does not exist or may require "
            "'docker login': unauthorized: authentication required"),
        ),
        (
            "pinging: dial tcp 1.2.3.4:5000: connect: connection refused",
            UnavailableError,
            "cannot reach the registry host:5000: connection refused",
        ),
        (
            "pinging: dial tcp: lookup host on 127.0.0.53:53: no such host",
            UnavailableError,
            "cannot reach the registry host:5000: no such host",
        ),
        ('Get "https://host:5000/v2/": EOF', UnavailableError,
         "cannot reach the registry host:5000: EOF"),
        (
            "pinging: x509: certificate signed by unknown authority",
            UnavailableError,
            ("cannot trust the registry host:5000: certificate signed by unknown authority; "
             "put its certificate authority into /etc/containers/certs.d/host:5000/ca.crt"),
        ),
        (
            "toomanyrequests: You have reached your pull rate limit",
            UnavailableError,
            ("the registry host:5000 refuses more requests for now: You have reached your pull "
             "rate limit"),
        ),
        (
            "writing blob: write /x: no space left on device",
            ResourceExhaustedError,
            ("cannot pull host:5000/web:1: no space left on device, /images is full; "
                "remove images that are not needed (docker image prune)"),
        ),
        ("something new", RuntimeFailedError, "cannot pull host:5000/web:1: something new"),
    ],
)  # fmt: skip
def test_errors(message: str, kind: type[SwarmError], sentence: str) -> None:
    """Each failure has its class, and a sentence with the registry or image in it."""
    error = translated(message, WEB, Path("/images"))
    assert type(error) is kind
    assert sentence == error.message


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        (None, {}),
        (RegistryAuth(), {}),
        (RegistryAuth(username="u", password="p"), {"host:5000": {"auth": "dTpw"}}),
        (
            RegistryAuth(identity_token="t"),
            {"host:5000": {"auth": "PHRva2VuPjo=", "identitytoken": "t"}},
        ),
    ],
    ids=["none", "empty", "password", "token"],
)
def test_authfile(
    tmp_path: Path, auth: RegistryAuth | None, expected: dict[str, dict[str, str]]
) -> None:
    """The file holds the one registry's credentials, and nobody else reads it."""
    path = write_authfile(tmp_path, "host:5000", auth)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"auths": expected}


def test_credentials_are_not_shown() -> None:
    """No credential is in the text of the object."""
    shown = repr(RegistryAuth(username="user", password="word", identity_token="token"))
    assert not [secret for secret in ("user", "word", "token") if secret in shown]
