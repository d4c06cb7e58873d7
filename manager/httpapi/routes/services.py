"""/services, but for their logs."""

from __future__ import annotations

import random

import msgspec
from aiohttp import web

from manager.httpapi.backend import Control
from manager.httpapi.convert.common import Json
from manager.httpapi.convert.service import ServiceStatus, service_spec_of, service_to_json
from manager.httpapi.filters import SERVICE_FILTERS, parse_filters, select_services
from manager.httpapi.names import new_name
from manager.httpapi.repeats import is_gone, settle_removal, settle_update
from manager.httpapi.requests import (
    RNG,
    attempt_of,
    backend_of,
    flag,
    json_body,
    json_response,
    registry_auth,
    version_of,
)
from proto.errors import InvalidError, NameConflictError, NotFoundError, SequenceConflictError
from proto.ids import ServiceID
from proto.objects import Service, ServiceSpec

NAME_ATTEMPTS_MAX = 10

_CREDENTIALS_WARNING = (
    "the registry credentials were not stored with the service: "
    "a node that has not the image pulls it with its own"
)


def _status_of(control: Control, service: Service) -> ServiceStatus:
    counts = control.service_status(service)
    return ServiceStatus(
        running_tasks=counts.running_tasks,
        desired_tasks=counts.desired_tasks,
        completed_tasks=counts.completed_tasks,
    )


async def list_all(request: web.Request) -> web.StreamResponse:
    """List services, with counts of their tasks if asked."""
    control = backend_of(request).control()
    filters = parse_filters(request.query.get("filters", ""), SERVICE_FILTERS)
    with_status = flag(request, "status")
    return json_response(
        [
            service_to_json(service, status=_status_of(control, service) if with_status else None)
            for service in select_services(control.services(), filters)
        ]
    )


async def inspect(request: web.Request) -> web.StreamResponse:
    """Describe a service."""
    service = backend_of(request).control().service(request.match_info["id"])
    return json_response(service_to_json(service, insert_defaults=flag(request, "insertDefaults")))


async def create(request: web.Request) -> web.StreamResponse:
    """Create a service."""
    control = backend_of(request).control()
    spec = service_spec_of(await json_body(request))
    warnings = _warnings(request)
    object_id = attempt_of(request).object_id
    if spec.name:
        service_id = await control.create_service(spec, service_id=object_id)
    else:
        service_id = await _created_with_a_name(control, spec, request.app[RNG], object_id)
    answer: Json = {"ID": service_id}
    if warnings:
        answer["Warnings"] = warnings
    return json_response(answer, 201)


async def _created_with_a_name(
    control: Control, spec: ServiceSpec, rng: random.Random, object_id: str
) -> ServiceID:
    """Create a service under a name that is drawn, and drawn again while it is taken."""
    attempt = 1
    while True:
        name = new_name(rng, is_numbered=attempt > 1)
        try:
            return await control.create_service(
                msgspec.structs.replace(spec, name=name), service_id=object_id
            )
        except NameConflictError:
            if attempt == NAME_ATTEMPTS_MAX:
                raise
            attempt += 1


async def update(request: web.Request) -> web.StreamResponse:
    """Change a service's spec, or with `rollback=previous` go back to the one before."""
    control = backend_of(request).control()
    reference = request.match_info["id"]
    version = version_of(request, "service")
    rollback = request.query.get("rollback", "")
    if rollback not in {"", "previous"}:
        raise InvalidError(f"unrecognized rollback option {rollback!r}: the only one is previous")
    if rollback:
        await control.update_service(reference, version, ServiceSpec(), rollback=True)
        return json_response({"Warnings": None})
    spec = service_spec_of(await json_body(request))
    warnings = _warnings(request)
    try:
        await control.update_service(reference, version, spec)
    except SequenceConflictError as error:
        if not attempt_of(request).is_repeat:
            raise
        found = control.service(reference)
        settle_update(
            error,
            given=version,
            committed=found.version,
            is_wanted=found.spec == spec,
        )
    return json_response({"Warnings": warnings or None})


def _warnings(request: web.Request) -> list[str]:
    return [] if registry_auth(request) is None else [_CREDENTIALS_WARNING]


async def remove(request: web.Request) -> web.StreamResponse:
    """Remove a service."""
    control = backend_of(request).control()
    reference = request.match_info["id"]
    try:
        await control.remove_service(reference)
    except NotFoundError:
        if not attempt_of(request).is_repeat:
            raise
        settle_removal(is_committed=is_gone(control.service, reference))
    return web.Response()


ROUTES = (
    ("GET", "/services", list_all),
    ("POST", "/services/create", create),
    ("GET", "/services/{id}", inspect),
    ("POST", "/services/{id}/update", update),
    ("DELETE", "/services/{id}", remove),
)
