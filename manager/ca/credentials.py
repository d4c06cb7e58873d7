"""What this node shows and whom it trusts: on disk, in memory, and told to whoever needs to know.

The shell over `pair_files` (how the files are switched) and `sealing` (how the key is sealed).
Key, certificate and roots fit each other at every moment, on disk and in memory: what does not is
refused before anything is written. Dates are not looked at, since a node whose certificate has
ended must still be able to say so.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from typing_extensions import override

from manager.ca.chain import check_chain, check_key, load_certificates, load_signing_key
from manager.ca.pair_files import (
    CERTIFICATE_NAME,
    KEY_NAME,
    PairFiles,
    read_files,
    remove_files,
    settle,
    write_next,
)
from manager.ca.sealing import is_sealed, seal_key, unseal_key
from proto.errors import (
    CorruptError,
    InvalidError,
    ResourceExhaustedError,
    SwarmError,
    UnavailableError,
)
from raft.files import Files, RealFiles
from raft.kek import Kek
from raft.transport.identity import Credentials, Identity, read_identity

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

_NODE = "the node's certificate"


class NodeCredentials:
    """The credentials of this node. Changes block for the disk; call them in any thread."""

    def __init__(
        self, directory: Path, files: Files, credentials: Credentials, kek: Kek | None
    ) -> None:
        """Use `save_new` or `open`."""
        self._directory = directory
        self._files = files
        self._credentials = credentials
        self._identity = read_identity(credentials.certificate_pem)
        self._valid_from = _begin_of(credentials.certificate_pem)
        self._kek = kek
        # Renewal, a change of roots and one of the unlock key come from different tasks.
        self._mutex = threading.Lock()
        self._subscribers: list[tuple[Callable[[], None], asyncio.AbstractEventLoop | None]] = []

    @classmethod
    def save_new(
        cls,
        directory: Path,
        *,
        certificate_pem: bytes,
        key_pem: bytes,
        roots_pem: bytes,
        kek: Kek | None,
        files: Files | None = None,
    ) -> NodeCredentials:
        """Store a first certificate, in place of whatever is there.

        Args:
            directory: made if it is missing.
            certificate_pem: the certificate, then intermediate ones.
            key_pem: its key, clear.
            roots_pem: whom to trust.
            kek: seals the key on disk; None stores it clear.
            files: the disk.

        Raises:
            InvalidError: the three do not fit each other.
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        credentials = Credentials(
            certificate_pem=certificate_pem, key_pem=key_pem, roots_pem=roots_pem
        )
        check_fit(credentials)
        made = cls(directory, files or RealFiles(), credentials, kek)
        with made._mutex:
            made._save(credentials, kek)
        return made

    @classmethod
    def open(
        cls,
        directory: Path,
        kek: Kek | None,
        *,
        other_kek: Kek | None = None,
        files: Files | None = None,
    ) -> NodeCredentials:
        """Open what was stored, and finish a switch that a crash interrupted.

        Args:
            directory: where it lies.
            kek: the unlock key, if autolock is on; not needed for a key that lies there clear.
            other_kek: another that may be the one: the unlock key was being changed.
            files: the disk.

        Raises:
            NotFoundError: there is no certificate.
            LockedError: the key is sealed and no unlock key was given.
            InvalidError: the given unlock key is not the one.
            CorruptError: a file is missing, damaged, or does not fit the others.
        """
        files = files or RealFiles()
        stored = read_files(files, directory)
        key_pem, used = stored.key, None
        if is_sealed(stored.key):
            keks = [one for one in (kek, other_kek) if one is not None]
            key_pem, used = unseal_key(stored.key, keks, str(directory / KEY_NAME))
        credentials = Credentials(
            certificate_pem=stored.certificate, key_pem=key_pem, roots_pem=stored.roots
        )
        name = KEY_NAME
        try:
            load_signing_key(key_pem, "the file")
            name = CERTIFICATE_NAME
            check_fit(credentials)
        except InvalidError as error:
            raise CorruptError(str(directory / name), 0, error.message) from error
        return cls(directory, files, credentials, used)

    def source(self) -> Credentials:
        """Return what to show now; from any thread, at once."""
        return self._credentials

    @property
    def identity(self) -> Identity:
        """Who the certificate says this node is."""
        return self._identity

    @property
    def valid_from(self) -> float:
        """When the certificate begins, seconds since the epoch."""
        return self._valid_from

    def is_valid_at(self, now: float) -> bool:
        """Tell whether the certificate's dates are those of a moment, seconds since the epoch."""
        return self._valid_from <= now < self._identity.valid_until

    @property
    def is_sealed(self) -> bool:
        """Whether the key on disk needs an unlock key."""
        return self._kek is not None

    def is_sealed_by(self, kek: Kek) -> bool:
        """Tell whether this key opens what is on disk."""
        return self._kek is not None and self._kek == kek

    def replace(self, *, certificate_pem: bytes, key_pem: bytes, roots_pem: bytes) -> None:
        """Switch to a renewed certificate, on disk and then in memory; subscribers are called.

        Raises:
            InvalidError: the three do not fit each other, or are another node's.
            ResourceExhaustedError, UnavailableError: the disk failed; the old ones stay.
        """
        self._change(
            lambda _: Credentials(
                certificate_pem=certificate_pem, key_pem=key_pem, roots_pem=roots_pem
            )
        )

    def set_roots(self, roots_pem: bytes) -> None:
        """Trust these from now on; nothing happens if they are the ones.

        Raises:
            InvalidError: they do not vouch for this node's own certificate, which would cut it
                off, or are none.
            ResourceExhaustedError, UnavailableError: the disk failed; the old ones stay.
        """
        if roots_pem != self._credentials.roots_pem:
            self._change(lambda now: msgspec.structs.replace(now, roots_pem=roots_pem))

    def seal(self, kek: Kek | None) -> None:
        """Seal the key on disk by another unlock key, or store it clear.

        A crash leaves it sealed by the old or by the new one: `open` takes both.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed, and the key may lie there
                as before; repeat it.
        """
        with self._mutex:
            settled = self._save(self._credentials, kek)
        if settled is not None:
            raise settled

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call this after each change of what is shown or trusted.

        It is called in the event loop in which it was subscribed, else where the change was made.
        """
        self._subscribers.append((changed, _running_loop()))

    @staticmethod
    def remove(directory: Path, *, files: Files | None = None) -> None:
        """Remove all that `save_new` wrote; nothing if there is none.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        remove_files(files or RealFiles(), directory)

    def _change(self, changed: Callable[[Credentials], Credentials]) -> None:
        with self._mutex:
            credentials = changed(self._credentials)
            check_fit(credentials)
            identity = read_identity(credentials.certificate_pem)
            if (identity.node_id, identity.cluster_id) != (
                self._identity.node_id,
                self._identity.cluster_id,
            ):
                raise InvalidError(
                    f"the certificate is that of node {identity.node_id} of cluster "
                    f"{identity.cluster_id}, this is node {self._identity.node_id} of cluster "
                    f"{self._identity.cluster_id}"
                )
            self._save(credentials, self._kek)
            self._credentials, self._identity = credentials, identity
            self._valid_from = _begin_of(credentials.certificate_pem)
        self._tell()

    def _save(self, credentials: Credentials, kek: Kek | None) -> SwarmError | None:
        """Write all three; on return it is durable, and `kek` is what seals the key.

        Returns:
            What kept the files from being brought in line, if anything did.
        """
        key = credentials.key_pem if kek is None else seal_key(credentials.key_pem, kek)
        content = PairFiles(
            certificate=credentials.certificate_pem, key=key, roots=credentials.roots_pem
        )
        write_next(self._files, self._directory, content)
        self._kek = kek
        try:
            settle(self._files, self._directory, content)
        except (ResourceExhaustedError, UnavailableError) as error:
            # What was written first is durable and is what will be opened; whoever opens it or
            # saves next does the rest.
            log.warning("certificate_files_not_settled", error=error.message)
            return error
        return None

    def _tell(self) -> None:
        current = _running_loop()
        for changed, loop in self._subscribers:
            if loop is None or loop is current:
                changed()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(changed)

    @override
    def __repr__(self) -> str:
        """Name the node, show no key."""
        return f"NodeCredentials({self._identity.node_id!r}, hidden)"


def _begin_of(certificate_pem: bytes) -> float:
    leaf = load_certificates(certificate_pem, _NODE)[0]
    return leaf.not_valid_before_utc.timestamp()


def check_fit(credentials: Credentials) -> None:
    """Refuse a certificate that its key or its roots do not fit.

    Raises:
        InvalidError: with what does not.
    """
    leaf = load_certificates(credentials.certificate_pem, _NODE)[0]
    check_key(leaf, credentials.key_pem, _NODE)
    check_chain(credentials.certificate_pem, credentials.roots_pem, _NODE)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
