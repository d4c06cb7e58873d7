"""Finds a user's credentials for a registry, as `docker login` keeps them.

They are in `~/.docker/config.json` (or `$DOCKER_CONFIG`), or with a helper program that the file
names. What is found goes only into the header of a request, never into a message.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from manager.cli.errors import CommandError
from manager.cli.references import DEFAULT_REGISTRY, Reference

HUB_KEY = "https://index.docker.io/v1/"
HELPER_SECONDS_MAX = 30


def auth_header(reference: Reference) -> str:
    """Encode the credentials for an image's registry; without any, an empty object.

    Raises:
        CommandError: the file or the helper cannot be read.
    """
    key = HUB_KEY if reference.registry == DEFAULT_REGISTRY else reference.registry
    found = _credentials(_configuration(), key)
    return base64.urlsafe_b64encode(json.dumps(found).encode()).decode()


def _configuration() -> dict[str, Any]:
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        loaded = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CommandError(f"loading config file {path}: {error}") from error
    return loaded if isinstance(loaded, dict) else {}


def _credentials(configuration: dict[str, Any], key: str) -> dict[str, str]:
    helper = (configuration.get("credHelpers") or {}).get(key) or configuration.get("credsStore")
    if helper:
        return _from_helper(str(helper), key)
    entry = (configuration.get("auths") or {}).get(key) or {}
    found = {"serveraddress": key} if entry else {}
    if entry.get("identitytoken"):
        found["identitytoken"] = entry["identitytoken"]
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        except ValueError:
            raise CommandError(f"the saved credentials for {key} are not base64") from None
        found |= {"username": user, "password": password.rstrip("\0")}
    return found


def _from_helper(helper: str, key: str) -> dict[str, str]:
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            timeout=HELPER_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"cannot run the credential helper {program}: {error}") from None
    if done.returncode != 0:
        return {}  # a helper's way to say that it has none for this registry
    try:
        answer = json.loads(done.stdout)
        if answer["Username"] == "<token>":
            return {"identitytoken": answer["Secret"], "serveraddress": key}
        return {
            "username": answer["Username"],
            "password": answer["Secret"],
            "serveraddress": key,
        }
    except (ValueError, KeyError):
        raise CommandError(f"the credential helper {program} did not answer in JSON") from None
