"""A certificate authority outside the cluster, which speaks CFSSL's protocol over mutual TLS.

`POST <url>` with `{"certificate_request", "subject", "hosts"}` is answered by `{"success",
"result": {"certificate"}}`. Authorities are asked in their order until one signs; what they answer
is checked before it is believed: their mistakes would otherwise cut nodes off.

Source of the protocol: CFSSL doc/api/endpoint_authsign.txt and endpoint_sign.txt; of the fields
that Swarm's managers send: swarmkit ca/external.go.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
import structlog
from cryptography import x509

from manager.ca.chain import (
    extension_of,
    is_authority,
    is_issued_by,
    load_certificates,
    public_key_der,
    to_pem,
)
from manager.ca.external_rules import authorities_for, check_external_cas
from manager.ca.issue import Signer, load_csr
from manager.ca.tls import client_context
from proto.errors import DeniedError, InvalidError, UnavailableError
from proto.ids import NodeID
from proto.objects import Cluster, ExternalCA, root_certificates_pem
from raft.transport.identity import Credentials, read_identity, subject_alternative_names

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# Source: swarmkit ca/external.go (the time-out of a request).
ANSWER_SECONDS_MAX = 5.0
ANSWER_BYTES_MAX = 256 * 1024
# Source: swarmkit ca/external.go (ExternalCrossSignProfile).
CROSS_SIGN_PROFILE = "CA"


__all__ = ["check_external_cas", "cross_sign_externally", "sign_externally"]


class _Result(msgspec.Struct):
    certificate: str = ""


class _Message(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    """CFSSL's answer."""

    success: bool = False
    result: _Result | None = None
    errors: list[_Message] | None = None


async def sign_externally(
    cluster: Cluster,
    signer: Signer,
    csr_pem: bytes,
    *,
    node_id: NodeID,
    role: str,
    credentials: Credentials | None,
    now: float,
) -> bytes | None:
    """Have a node's certificate signed outside, if the cluster has an authority there.

    Args:
        cluster: the cluster's row.
        signer: whose root has to be the issuer.
        csr_pem: the request.
        node_id: the common name.
        role: the organizational unit.
        credentials: this manager's own, shown to the authority.
        now: seconds since the epoch.

    Returns:
        The certificate with its intermediate ones; None if no external authority signs for it.

    Raises:
        UnavailableError: none of them signed, with the reason of each.
    """
    authorities = authorities_for(cluster, signer.certificate_pem)
    if not authorities:
        return None
    names = subject_alternative_names(node_id, role, cluster.id)
    body = {
        "certificate_request": csr_pem.decode("ascii"),
        "subject": {"CN": node_id, "names": [{"OU": role, "O": cluster.id}]},
        "hosts": list(names),
    }

    def check(certificate: x509.Certificate) -> None:
        identity = read_identity(to_pem(certificate).encode())
        if (identity.node_id, identity.role, identity.cluster_id) != (node_id, role, cluster.id):
            raise InvalidError(
                f"it issued to CN={identity.node_id} OU={identity.role} O={identity.cluster_id} "
                f"what was asked for CN={node_id} OU={role} O={cluster.id}"
            )
        _check_issued(certificate, signer.certificate_pem, load_csr(csr_pem).public_key(), now)
        _check_node(certificate, names)

    certificate = await _ask_all(cluster, authorities, body, credentials, check)
    return (to_pem(certificate) + signer.intermediates_pem).encode()


async def cross_sign_externally(
    cluster: Cluster,
    root: x509.Certificate,
    csr_pem: bytes,
    *,
    credentials: Credentials | None,
    now: float,
) -> str:
    """Have a new root signed by the present one, whose key is outside.

    Args:
        cluster: the cluster's row.
        root: the new root.
        csr_pem: a request for its subject, signed by its key.
        credentials: this manager's own.
        now: seconds since the epoch.

    Raises:
        InvalidError: there is no external authority for the present root.
        UnavailableError: none of them signed, with the reason of each.
    """
    authorities = authorities_for(cluster, cluster.root_ca_certificate_pem)
    if not authorities:
        raise InvalidError(
            "the cluster does not hold the key of its root certificate and no external authority "
            "is set for it, so nobody can sign the new one; set one with: swarm ca --external-ca"
        )
    body = {
        "certificate_request": csr_pem.decode("ascii"),
        "profile": CROSS_SIGN_PROFILE,
    }

    def check(certificate: x509.Certificate) -> None:
        _check_issued(certificate, cluster.root_ca_certificate_pem, root.public_key(), now)
        if certificate.subject != root.subject:
            raise InvalidError("it changed the name of the new root certificate")
        if not is_authority(certificate):
            raise InvalidError("what it issued for the new root certificate may not sign others")

    return to_pem(await _ask_all(cluster, authorities, body, credentials, check))


def _check_issued(certificate: x509.Certificate, issuer_pem: str, key: object, now: float) -> None:
    (issuer,) = load_certificates(issuer_pem.encode(), "the root certificate")
    if not is_issued_by(certificate, issuer):
        raise InvalidError("what it issued was not signed by the cluster's root certificate")
    if public_key_der(certificate.public_key()) != public_key_der(key):
        raise InvalidError("what it issued is for another key than was asked for")
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    if not begin <= now < end:
        raise InvalidError("what it issued is not valid now: its clock and ours differ")


def _check_node(certificate: x509.Certificate, names: Sequence[str]) -> None:
    if is_authority(certificate):
        raise InvalidError("what it issued for a node may sign others")
    extension = extension_of(certificate, x509.SubjectAlternativeName)
    found = [] if extension is None else extension.get_values_for_type(x509.DNSName)
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidError(f"what it issued lacks the names {', '.join(missing)}")


async def _ask_all(
    cluster: Cluster,
    authorities: Sequence[ExternalCA],
    body: Mapping[str, Any],
    credentials: Credentials | None,
    check: Callable[[x509.Certificate], None],
) -> x509.Certificate:
    """Ask one after the other; return the first good answer."""
    reasons = []
    for authority in authorities:
        try:
            certificate = await _ask(cluster, authority, body, credentials)
            check(certificate)
        except (DeniedError, InvalidError, UnavailableError) as error:
            reasons.append(f"{authority.url}: {error.message}")
            log.warning("external_authority_failed", url=authority.url, error=error.message)
            continue
        return certificate
    raise UnavailableError(f"no external authority signed ({'; '.join(reasons)})")


async def _ask(
    cluster: Cluster,
    authority: ExternalCA,
    body: Mapping[str, Any],
    credentials: Credentials | None,
) -> x509.Certificate:
    trusted = authority.ca_cert or root_certificates_pem(cluster)
    context = client_context(trusted, credentials)
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.post(
                authority.url,
                data=msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
                ssl=context,
                allow_redirects=False,
            ) as response,
        ):
            data, status = await _bounded(response.content), response.status
    except TimeoutError:
        raise UnavailableError(f"it did not answer within {ANSWER_SECONDS_MAX:g} s") from None
    except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
        raise UnavailableError(f"it could not be asked: {error}") from error
    if data is None:
        raise UnavailableError(f"its answer is longer than {ANSWER_BYTES_MAX} bytes")
    try:
        answer = msgspec.json.decode(data, type=_Answer)
    except msgspec.MsgspecError:
        raise UnavailableError(f"it answered {status} and no JSON of CFSSL's form") from None
    if not answer.success or answer.result is None or not answer.result.certificate:
        said = "; ".join(one.message for one in answer.errors or ()) or f"status {status}"
        raise UnavailableError(f"it refused: {said}")
    found = load_certificates(answer.result.certificate.encode(), "what it answered")
    return found[0]


async def _bounded(stream: aiohttp.StreamReader) -> bytes | None:
    """Read an answer; None if it is longer than any has to be."""
    data = b""
    async for chunk in stream.iter_any():
        data += chunk
        if len(data) > ANSWER_BYTES_MAX:
            return None
    return data
