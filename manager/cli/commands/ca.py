"""`swarm ca`: shows the root certificate, or has another take its place."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from manager.cli.clusterspec import merged
from manager.cli.commands import common
from manager.cli.commands.cluster import CERT_EXPIRY, EXTERNAL_CA, put_cluster
from manager.cli.errors import CommandError
from manager.cli.flags import Flag, Flags
from manager.cli.program import Console, Spec
from proto.errors import InvalidError

TRUST_SECONDS_MAX = 10.0
"""So long after the end of the rotation, nodes are waited for that still say they trust both."""

_ONLY_ROTATING = ("ca-cert", "ca-key", "cert-expiry", "external-ca")


def _ca(console: Console, flags: Flags, _arguments: list[str]) -> None:
    cluster = console.engine.get("/swarm")
    if not flags.is_on("rotate"):
        for name in _ONLY_ROTATING:
            if name in flags:
                raise CommandError(f"`--{name}` flag requires the `--rotate` flag to update the CA")
        _print_root(console, cluster)
        return
    _check(flags)
    put_cluster(console, cluster, _rotated(cluster["Spec"], flags))
    if flags.is_on("detach"):
        return
    quiet = flags.is_on("quiet")
    if _wait(console, quiet=quiet) and not quiet:
        _print_root(console, console.engine.get("/swarm"))


def _check(flags: Flags) -> None:
    if "external-ca" in flags and "ca-cert" not in flags:
        raise CommandError(
            "rotating to an external CA requires the `--ca-cert` flag to specify the external "
            "CA's cert - to add an external CA with the current root CA certificate, use the "
            "`update` command instead"
        )
    if "ca-cert" in flags and not flags.has_any("external-ca", "ca-key"):
        raise CommandError(
            "the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be "
            "provided as well"
        )


def _rotated(spec: dict[str, Any], flags: Flags) -> dict[str, Any]:
    """Lay the wanted root over the cluster's spec; without one, ask for one that is made."""
    certificate, key = flags.text("ca-cert"), flags.text("ca-key")
    if "external-ca" in flags:
        named = [{**one, "CACert": certificate} for one in flags.many("external-ca")]
        flags = Flags({**flags, "external-ca": named})
    new = merged(spec, flags)
    authority = {**(new.get("CAConfig") or {}), "SigningCACert": certificate, "SigningCAKey": key}
    if not certificate and not key:
        authority["ForceRotate"] = authority.get("ForceRotate", 0) + 1
    return {**new, "CAConfig": authority}


def _wait(console: Console, *, quiet: bool) -> bool:
    """Watch until all nodes have changed; tell whether they have. An interrupt ends the watch."""
    from manager.cli.progress import ProgressDisplay  # noqa: PLC0415 -- only when attached
    from manager.cli.rootprogress import is_rotated, observe  # noqa: PLC0415 -- likewise

    display = ProgressDisplay(is_terminal=console.is_terminal)
    over_at: float | None = None
    try:
        while True:
            cluster, nodes = console.engine.get("/swarm"), console.engine.get("/nodes")
            step = observe(cluster, nodes)
            if not quiet:
                console.control("".join(map(display.show, step.lines)))
                console.flush()
            if step.is_done:
                return True
            if is_rotated(cluster, nodes):
                over_at = console.monotonic if over_at is None else over_at
                if console.monotonic - over_at >= TRUST_SECONDS_MAX:
                    console.warn("some nodes have not said yet that they trust the new root alone")
                    return True
            time.sleep(common.POLL_SECONDS)
    except KeyboardInterrupt:
        if not quiet:
            console.line("Operation continuing in background.")
            console.line("Use `swarm node ls` to check progress.")
        return False


def _print_root(console: Console, cluster: Any) -> None:
    root = str((cluster.get("TLSInfo") or {}).get("TrustRoot", "")).strip()
    if not root:
        raise CommandError("No CA information available")
    console.line(root)


_NOT_PEM = "file contents must be in PEM format"
_PEM = re.compile(r"^-----BEGIN ([A-Z0-9 ]+)-----\s[\s\S]+^-----END \1-----\s*$", re.MULTILINE)


def _pem_file(path: str) -> str:
    """Read the file that a flag names.

    Raises:
        InvalidError: it cannot be read, with the reason.
    """
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError as error:
        raise InvalidError(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InvalidError(_NOT_PEM) from error
    if _PEM.search(text) is None:
        raise InvalidError(_NOT_PEM)
    return text


CA = Spec(
    _ca,
    (
        Flag(
            "ca-cert",
            "pem-file",
            "Path to the PEM-formatted root CA certificate to use for the new cluster",
            "",
            _pem_file,
        ),
        Flag(
            "ca-key",
            "pem-file",
            "Path to the PEM-formatted root CA key to use for the new cluster",
            "",
            _pem_file,
        ),
        CERT_EXPIRY,
        Flag(
            "detach",
            "",
            "Exit immediately instead of waiting for the root rotation to converge",
            "d",
        ),
        EXTERNAL_CA,
        Flag("quiet", "", "Suppress progress output", "q"),
        Flag(
            "rotate",
            "",
            "Rotate the swarm CA - if no certificate or key are provided, new ones will be "
            "generated",
        ),
    ),
    "[OPTIONS]",
)
