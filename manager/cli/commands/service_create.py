"""`swarm service create` and `swarm service update`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from manager.cli.commands import common, service_flags
from manager.cli.commands.service import fetch, put_service, roll_back
from manager.cli.errors import CommandError, DaemonError
from manager.cli.flags import Flags
from manager.cli.parse_values import merged_environment, read_env_file
from manager.cli.program import Console, Spec
from manager.cli.references import parse_reference
from manager.cli.servicespec import References, at, create_spec
from manager.cli.serviceupdate import NOT_AN_UPDATE, update_spec
from manager.cli.transport import filters, quoted
from proto.errors import InvalidError

NO_DIGEST_WARNING = """\
image {image} could not be accessed on a registry to record
its digest. Each node will access {image} independently,
possibly leading to different nodes running different
versions of the image.
"""


def _create(console: Console, flags: Flags, arguments: list[str]) -> None:
    image = _with_tag(arguments[0])
    from_files = merged_environment(*map(read_env_file, flags.many("env-file")))
    references = _references(console, flags, ())
    spec = create_spec(flags, image, arguments[1:], references, from_files)
    headers = _auth(flags, image)
    is_pinned = flags.is_on("no-resolve-image") or _pin(console, spec, image, headers)
    answer = console.engine.post("/services/create", spec, headers=headers)
    if not is_pinned:
        console.warn(NO_DIGEST_WARNING.format(image=image))
    common.print_warnings(console, answer)
    console.line(answer["ID"])
    if not flags.is_on("detach"):
        common.wait_for(console, answer["ID"], quiet=flags.is_on("quiet"))


def _update(console: Console, flags: Flags, arguments: list[str]) -> None:
    reference = arguments[0]
    if flags.is_on("rollback"):
        if set(flags) - NOT_AN_UPDATE:
            raise CommandError("other flags may not be combined with --rollback")
        roll_back(console, flags, reference)
        return
    service = fetch(console, reference)
    if "image" in flags:
        flags["image"] = _with_tag(flags["image"])
    references = _references(console, flags, flags.many("network-rm"))
    spec = update_spec(service["Spec"], flags, references)
    image = at(spec, "TaskTemplate", "ContainerSpec").get("Image", "")
    headers = _auth(flags, image)
    needs_pin = "image" in flags and not flags.is_on("no-resolve-image")
    is_pinned = not needs_pin or _pin(console, spec, image, headers)
    source = {} if headers else {"registryAuthFrom": "spec"}
    answer = put_service(console, service, spec, query=source, headers=headers)
    if not is_pinned:
        console.warn(NO_DIGEST_WARNING.format(image=image))
    common.print_warnings(console, answer)
    console.line(reference)
    if not flags.is_on("detach"):
        common.wait_for(console, reference, quiet=flags.is_on("quiet"))


def _with_tag(image: str) -> str:
    """Add `latest`; an image that is no reference goes as it is, for the manager to refuse."""
    try:
        reference = parse_reference(image)
    except InvalidError:
        return image
    return reference.tagged().familiar if reference.is_name_only else image


def _auth(flags: Flags, image: str) -> dict[str, str]:
    if not flags.is_on("with-registry-auth"):
        return {}
    from manager.cli.registry import auth_header  # noqa: PLC0415 -- only with the flag

    return {"X-Registry-Auth": auth_header(parse_reference(image))}


def _pin(console: Console, spec: Any, image: str, headers: dict[str, str]) -> bool:
    """Ask the registry (by way of the daemon) for the image's digest and platforms.

    Returns:
        Whether the spec names a digest, or an image that the manager will refuse anyway.
    """
    try:
        reference = parse_reference(image)
    except InvalidError:
        return True
    if reference.digest:
        return True
    try:
        found = console.engine.call(
            "GET", f"/distribution/{quoted(image)}/json", {}, headers=headers
        )
        digest = found["Descriptor"]["digest"]
    except (DaemonError, KeyError, TypeError):
        return False
    container = at(spec, "TaskTemplate", "ContainerSpec")
    container["Image"] = reference._replace(digest=digest).familiar
    platforms = [
        {"Architecture": platform.get("architecture", ""), "OS": platform.get("os", "")}
        for platform in found.get("Platforms") or []
    ]
    if platforms:
        at(spec, "TaskTemplate", "Placement")["Platforms"] = platforms
    return True


def _references(console: Console, flags: Flags, removed: Iterable[str]) -> References:
    """Resolve the names of networks, secrets and configs in the flags."""
    attached = [*flags.many("network"), *flags.many("network-add")]
    networks = dict.fromkeys([*(network.target for network in attached), *removed])
    return References(
        {
            name: console.engine.get(f"/networks/{quoted(name)}", {"scope": "swarm"})["Id"]
            for name in networks
        },
        _identifiers(console, "/secrets", [*flags.many("secret"), *flags.many("secret-add")]),
        _identifiers(console, "/configs", [*flags.many("config"), *flags.many("config-add")]),
    )


def _identifiers(console: Console, path: str, references: list[Any]) -> dict[str, str]:
    if not references:
        return {}
    names = dict.fromkeys(reference.source for reference in references)
    found = console.engine.get(path, {"filters": filters({"name": list(names)})})
    return {item["Spec"]["Name"]: item["ID"] for item in found}


CREATE = Spec(
    _create,
    service_flags.CREATE,
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    least=1,
    most=None,
    interspersed=False,
)
UPDATE = Spec(_update, service_flags.UPDATE, "[OPTIONS] SERVICE", least=1, most=1)
