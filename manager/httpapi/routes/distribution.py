"""/distribution: what a registry says of an image, which clients ask to pin a digest.

An image that this node holds and that never came from a registry is answered at once: no registry
knows it, so asking one would only delay `service create`. The client then goes on with a warning.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from manager.httpapi.convert.common import Json, compact
from manager.httpapi.requests import backend_of, json_response, registry_auth
from proto.errors import NotFoundError, UnavailableError
from proto.json_text import JsonError, decode_json
from worker.images.references import Reference, parse_tagged
from worker.images.skopeo import Registry

# A client waits for this before it creates a service.
REGISTRY_SECONDS_MAX = 5.0

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


async def inspect(request: web.Request) -> web.StreamResponse:
    """Ask the registry for an image's digest and platforms."""
    reference = parse_tagged(request.match_info["name"])
    _refuse_local(request, reference)
    auth = registry_auth(request)
    try:
        async with asyncio.timeout(REGISTRY_SECONDS_MAX):
            with tempfile.TemporaryDirectory(prefix="swarm-registry-") as directory:
                scratch = Path(directory)
                registry = Registry(reference, scratch, auth, scratch)
                manifest = await registry.manifest(reference)
                platforms = _platforms_of_index(manifest)
                if platforms is None:
                    platforms = _platforms_of_config(await registry.config(reference))
    except TimeoutError:
        raise UnavailableError(
            f"the registry {reference.domain} did not answer within {REGISTRY_SECONDS_MAX:.0f} s"
        ) from None
    return json_response(distribution_to_json(manifest, platforms))


def _refuse_local(request: web.Request, reference: Reference) -> None:
    try:
        image = backend_of(request).images.resolve(reference.familiar)
    except NotFoundError:
        return
    if not any(d.startswith(f"{reference.familiar_name}@") for d in image.repo_digests):
        raise NotFoundError(
            "image",
            reference.familiar,
            f"{reference.familiar} is an image of this node only: it never came from a registry",
        )


def _document(data: bytes) -> dict[str, Any]:
    try:
        return decode_json(data, dict[str, Any])
    except JsonError as error:
        raise UnavailableError(f"the registry sent a document that {error}") from None


def _platforms_of_index(manifest: bytes) -> list[Json] | None:
    """List the platforms of an index; None if it is the manifest of one image."""
    document = _document(manifest)
    if "manifests" not in document:
        return None
    platforms = [entry.get("platform", {}) for entry in document["manifests"]]
    return [
        _platform_to_json(platform)
        for platform in platforms
        # Attestations stand in the index as images for no platform.
        if platform.get("os", "unknown") != "unknown"
    ]


def _platforms_of_config(config: bytes) -> list[Json]:
    return [_platform_to_json(_document(config))]


def _platform_to_json(document: dict[str, Any]) -> Json:
    names = ("architecture", "os", "os.version", "variant")
    return compact({name: document.get(name) for name in names})


def distribution_to_json(manifest: bytes, platforms: list[Json]) -> Json:
    """Write what a registry holds under a name."""
    document = _document(manifest)
    media_type = document.get("mediaType", "")
    if not media_type:
        media_type = _INDEX_TYPE if "manifests" in document else _MANIFEST_TYPE
    return {
        "Descriptor": {
            "mediaType": media_type,
            "digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}",
            "size": len(manifest),
        },
        "Platforms": platforms,
    }


ROUTES = (("GET", "/distribution/{name:.+}/json", inspect),)
