"""The keys of a manager: data keys in a ring, sealed by one key-encryption key.

The *ring* (`keys.ring`) holds the data-encryption keys (DEKs) of the log and the snapshots, and
other secrets of the node (its TLS key); it is sealed as a whole by the key-encryption key (KEK),
so that changing the KEK is one rename. Without autolock the KEK lies beside it (`keys.kek`, 0600);
with autolock only the operator and the replicated state have it, and nothing opens without.

Changing the KEK is done in steps of which each may be the last before a crash:

| before | after | steps |
|---|---|---|
| any | stored | write `keys.kek.next`; write the ring; rename `keys.kek.next` to `keys.kek` |
| any | autolock | write the ring; remove `keys.kek` and `keys.kek.next` |

The ring names its KEK by an identifier, so an opener knows which stored key, if any, is the one,
and finishes what was begun. Invariant: at every moment the KEK that opens the ring is either stored
or in the caller's hands (the old or the new one, both of which it has while it changes them).
"""

from __future__ import annotations

import hmac
import os
import struct
import threading
import zlib
from collections.abc import Collection
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from typing_extensions import override

from proto.errors import (
    ConflictError,
    CorruptError,
    InvalidError,
    LockedError,
    NotFoundError,
)
from raft.files import Files, Lock, RealFiles, disk_error, replace_file
from raft.kek import KEK_FILE_BYTES, KEY_BYTES, Kek, RandomBytes

__all__ = ["Kek", "KeyRing", "RandomBytes", "is_locked"]

SECRET_BYTES_MAX = 64 << 10
SECRETS_MAX = 64
RING_NAME = "keys.ring"
KEK_NAME = "keys.kek"
NEXT_KEK_NAME = "keys.kek.next"
LOCK_NAME = "keys.lock"

_ALGORITHM_AES_256_GCM = 1
_VERSION = 1
_NONCE_BYTES = 12
_RING_HEADER = struct.Struct(">4sBBH8s12sI")
_CRC = struct.Struct(">I")
_RING_MAGIC = b"SWMR"
_RING_BYTES_MAX = SECRETS_MAX * SECRET_BYTES_MAX * 2


class _Content(msgspec.Struct, frozen=True):
    """What the ring holds, inside the seal.

    What is *exposed* lay on this disk beside the key that opened the ring, until autolock was
    turned on: who copied the disk before can read it, so it is to be replaced. Data keys are
    exposed up to an id, other secrets by name.
    """

    current_id: int
    data_keys: dict[int, bytes]
    secrets: dict[str, bytes]
    exposed_id: int = 0
    exposed_names: tuple[str, ...] = ()

    @override
    def __repr__(self) -> str:
        return f"_Content(current_id={self.current_id}, hidden)"


class KeyRing:
    """The open ring of one manager. Its methods block for a sync; call them in any thread.

    Holds a lock on the directory until `close`, except when it was opened by `read`.

    Attributes:
        is_unfinished: the last step of a change failed: `finish_change` is to be repeated.
    """

    def __init__(
        self,
        directory: Path,
        files: Files,
        rng_bytes: RandomBytes,
        *,
        kek: Kek,
        content: _Content,
        is_stored: bool,
        lock: Lock | None,
    ) -> None:
        """Use `create`, `open` or `read`."""
        self._directory = directory
        self._files = files
        self._rng_bytes = rng_bytes
        self._kek = kek
        self._content = content
        self._is_stored = is_stored
        self._lock = lock
        # The log changes data keys in its own thread while the manager may change the KEK.
        self._mutex = threading.RLock()
        # A save failed, perhaps after its rename: the ring on the disk may be under either key.
        self._is_unsure = False
        # Files of a former KEK may be left.
        self.is_unfinished = False

    @classmethod
    def create(
        cls,
        directory: Path,
        rng_bytes: RandomBytes = os.urandom,
        kek: Kek | None = None,
        *,
        files: Files | None = None,
    ) -> KeyRing:
        """Make a ring with one data key, sealed by `kek` (autolock) or by a stored key.

        Raises:
            ConflictError: there is a ring already.
            InUseError: another process has the directory.
            ResourceExhaustedError: the disk is full.
        """
        files = files or RealFiles()
        lock = _lock(files, directory)
        try:
            _refuse_existing(files, directory)
            is_stored = kek is None
            kek = kek or Kek.generate(rng_bytes)
            content = _Content(current_id=1, data_keys={1: rng_bytes(KEY_BYTES)}, secrets={})
            ring = cls(
                directory,
                files,
                rng_bytes,
                kek=kek,
                content=content,
                is_stored=is_stored,
                lock=lock,
            )
            if is_stored:
                ring._replace(KEK_NAME, kek.encode_file())
            ring._save(kek, content)
        except BaseException:
            lock.close()
            raise
        return ring

    @classmethod
    def open(
        cls,
        directory: Path,
        kek: Kek | None = None,
        *,
        rng_bytes: RandomBytes = os.urandom,
        files: Files | None = None,
    ) -> KeyRing:
        """Open the ring and finish a change of the KEK that a crash interrupted.

        Args:
            directory: where `create` made it.
            kek: the operator's unlock key, if autolock is on.
            rng_bytes: for new keys and nonces.
            files: the disk.

        Raises:
            NotFoundError: there is no ring.
            LockedError: it is sealed by a key that is not stored, and none was given.
            InvalidError: the given key is not the one.
            CorruptError: a file is damaged.
            InUseError: another process has the directory.
        """
        files = files or RealFiles()
        if not files.exists(directory / RING_NAME):
            raise NotFoundError("key ring", str(directory))
        lock = _lock(files, directory)
        try:
            ring = cls._unseal(directory, kek, rng_bytes, files, lock)
            ring.sync()
            ring.finish_change()
        except BaseException:
            lock.close()
            raise
        return ring

    @classmethod
    def read(
        cls, directory: Path, kek: Kek | None = None, *, files: Files | None = None
    ) -> KeyRing:
        """Open the ring to look at it while its manager may run: no lock, nothing is changed.

        Raises:
            NotFoundError, LockedError, InvalidError, CorruptError: as `open`.
        """
        files = files or RealFiles()
        if not files.exists(directory / RING_NAME):
            raise NotFoundError("key ring", str(directory))
        return cls._unseal(directory, kek, os.urandom, files, None)

    @classmethod
    def _unseal(
        cls,
        directory: Path,
        kek: Kek | None,
        rng_bytes: RandomBytes,
        files: Files,
        lock: Lock | None,
    ) -> KeyRing:
        path = directory / RING_NAME
        header, sealed = _read_ring(files, path)
        kek_id = _ring_kek_id(header)
        if kek is not None and not hmac.compare_digest(kek.identifier, kek_id):
            raise InvalidError("swarm could not be unlocked: invalid key provided")
        try:
            stored = _stored_kek(files, directory, kek_id)
        except CorruptError:
            # Whoever brings the right key does not need the damaged file; it will be removed.
            if kek is None:
                raise
            stored = None
        used = kek or stored
        if used is None:
            raise LockedError
        nonce = header[-_NONCE_BYTES - 8 : -8]
        try:
            plain = used.cipher().decrypt(nonce, sealed, header)
        except InvalidTag:
            raise CorruptError(str(path), len(header), "the ring is not authentic") from None
        content = msgspec.msgpack.decode(plain, type=_Content)
        assert content.current_id in content.data_keys
        return cls(
            directory,
            files,
            rng_bytes,
            kek=used,
            content=content,
            is_stored=stored is not None,
            lock=lock,
        )

    @property
    def kek(self) -> Kek:
        """The key that seals the ring now."""
        return self._kek

    @property
    def is_autolocked(self) -> bool:
        """Whether the ring can be opened only with a key from outside."""
        return not self._is_stored

    @property
    def current_id(self) -> int:
        """The id of the data key for new files; ids only grow."""
        return self._content.current_id

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all data keys, ascending."""
        return tuple(sorted(self._content.data_keys))

    @property
    def is_data_key_exposed(self) -> bool:
        """Whether the current data key could be read before autolock was turned on: rotate it."""
        return self.is_autolocked and self.current_id <= self._content.exposed_id

    def is_exposed(self, name: str) -> bool:
        """Tell whether such a secret could be read before autolock was turned on: replace it."""
        return self.is_autolocked and name in self._content.exposed_names

    def data_key(self, key_id: int) -> bytes | None:
        """Return a data key; None if the ring does not hold it."""
        return self._content.data_keys.get(key_id)

    def add_data_key(self) -> int:
        """Make a new data key the current one, durably; the older ones stay for reading.

        Returns:
            Its id.
        """
        with self._mutex:
            key_id = self.current_id + 1
            keys = {**self._content.data_keys, key_id: self._rng_bytes(KEY_BYTES)}
            self._change(msgspec.structs.replace(self._content, current_id=key_id, data_keys=keys))
            return key_id

    def retain_data_keys(self, key_ids: Collection[int]) -> None:
        """Drop all data keys but these and the current one; files that need them must be gone."""
        with self._mutex:
            keys = {
                key_id: key
                for key_id, key in self._content.data_keys.items()
                if key_id in key_ids or key_id == self.current_id
            }
            if len(keys) != len(self._content.data_keys):
                self._change(msgspec.structs.replace(self._content, data_keys=keys))

    def seal(self, name: str, secret: bytes) -> None:
        """Keep another secret of the node in the ring, durably; replaces one of that name.

        Raises:
            InvalidError: it is larger than 64 KiB, or there are 64 already.
        """
        if len(secret) > SECRET_BYTES_MAX:
            raise InvalidError(f"secret {name} is larger than {SECRET_BYTES_MAX} bytes")
        with self._mutex:
            content = self._content
            secrets = {**content.secrets, name: bytes(secret)}
            if len(secrets) > SECRETS_MAX:
                raise InvalidError(f"the key ring of this node holds {SECRETS_MAX} secrets already")
            exposed = content.exposed_names
            if all(content.secrets.get(each) != secret for each in exposed):
                exposed = tuple(each for each in exposed if each != name)
            self._change(msgspec.structs.replace(content, secrets=secrets, exposed_names=exposed))

    def unseal(self, name: str) -> bytes:
        """Return such a secret.

        Raises:
            NotFoundError: there is none of that name.
        """
        try:
            return self._content.secrets[name]
        except KeyError:
            raise NotFoundError("sealed secret", name) from None

    def forget(self, name: str) -> None:
        """Remove such a secret, durably, if there is one."""
        with self._mutex:
            secrets = {key: value for key, value in self._content.secrets.items() if key != name}
            if len(secrets) != len(self._content.secrets):
                self._change(msgspec.structs.replace(self._content, secrets=secrets))

    def rotate_kek(self, new: Kek | None) -> None:
        """Seal the ring by another key: a given one (autolock on) or a new stored one (off).

        The caller must have made `new` durable elsewhere before, and keep the old one until this
        returned: after a crash in between, one of the two opens the ring. What was written under
        the old data keys stays readable for who copied the old ring and key: turning autolock on
        marks, in the same step, all that the ring holds as exposed. Whoever looks after the ring
        replaces it: `is_data_key_exposed` (`RaftNode.rotate_data_key`), `is_exposed`.

        Raises:
            ResourceExhaustedError: the disk is full; the old key is still the one, or, if only
                the last step failed, the new one is: `kek` tells.
        """
        with self._mutex:
            if self._is_unsure:
                self._save(self._kek, self._content)
            # An earlier change whose last step failed has its only stored key in `keys.kek.next`.
            self.finish_change()
            key = new or Kek.generate(self._rng_bytes)
            if new is None:
                self._replace(NEXT_KEK_NAME, key.encode_file())
            content = self._content
            if self._is_stored and new is not None:
                content = msgspec.structs.replace(
                    content,
                    exposed_id=content.current_id,
                    exposed_names=tuple(sorted(content.secrets)),
                )
            self._save(key, content)
            self._is_stored = new is None
            self.finish_change()

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @override
    def __repr__(self) -> str:
        return f"KeyRing({str(self._directory)!r}, ids={self.ids}, keys hidden)"

    def sync(self) -> None:
        """Make durable what was read: the process before may have died between rename and sync.

        Files are about to be written under these keys.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        try:
            self._files.sync_directory(self._directory)
        except OSError as error:
            raise disk_error(self._directory, error) from error

    def finish_change(self) -> None:
        """Bring the stored KEK in line with the ring, as `open` and `rotate_kek` do at their end.

        Raises:
            ResourceExhaustedError, UnavailableError: the disk failed.
        """
        stored, following = self._directory / KEK_NAME, self._directory / NEXT_KEK_NAME
        self.is_unfinished = True
        try:
            if not self._is_stored:
                stale = [path for path in (stored, following) if self._files.exists(path)]
                for path in stale:
                    self._files.remove(path)
                if stale:
                    self._files.sync_directory(self._directory)
            elif self._files.exists(following):
                if _content(self._files, following) == self._kek.encode_file():
                    self._files.rename(following, stored)
                else:
                    self._files.remove(following)
                self._files.sync_directory(self._directory)
        except OSError as error:
            raise disk_error(self._directory, error) from error
        self.is_unfinished = False

    def _change(self, content: _Content) -> None:
        self._save(self._kek, content)

    def _save(self, kek: Kek, content: _Content) -> None:
        """Write the ring; what is in memory changes only if that worked."""
        assert self._lock is not None, "a ring that was opened to look at it is not changed"
        nonce = self._rng_bytes(_NONCE_BYTES)
        plain = msgspec.msgpack.encode(content)
        sealed_bytes = len(plain) + 16
        header = _RING_HEADER.pack(
            _RING_MAGIC, _ALGORITHM_AES_256_GCM, _VERSION, 0, kek.identifier, nonce, sealed_bytes
        )
        header += _CRC.pack(zlib.crc32(header))
        self._is_unsure = True
        self._replace(RING_NAME, header + kek.cipher().encrypt(nonce, plain, header))
        self._is_unsure = False
        self._kek = kek
        self._content = content

    def _replace(self, name: str, data: bytes) -> None:
        try:
            replace_file(self._files, self._directory / name, data)
        except OSError as error:
            raise disk_error(self._directory, error) from error


def _lock(files: Files, directory: Path) -> Lock:
    try:
        files.make_directory(directory)
        return files.lock(directory / LOCK_NAME)
    except OSError as error:
        raise disk_error(directory, error) from error


def _refuse_existing(files: Files, directory: Path) -> None:
    if files.exists(directory / RING_NAME):
        raise ConflictError(f"{directory} holds a key ring already")


def _read_ring(files: Files, path: Path) -> tuple[bytes, bytes]:
    """Return the header and the sealed part of a ring file, as far as that is checked openly."""
    with files.read(path) as stream:
        data = stream.read(_RING_BYTES_MAX)
    size = _RING_HEADER.size + _CRC.size
    header = data[:size]
    if len(header) < size or header[-4:] != _CRC.pack(zlib.crc32(header[:-4])):
        raise CorruptError(str(path), 0, "the key ring's header checksum does not match")
    magic, algorithm, version, _, _, _, sealed_bytes = _RING_HEADER.unpack(header[:-4])
    if (magic, algorithm, version) != (_RING_MAGIC, _ALGORITHM_AES_256_GCM, _VERSION):
        raise CorruptError(str(path), 0, "it is not a key ring known to this program")
    if len(data) != size + sealed_bytes:
        raise CorruptError(str(path), size, "the key ring has not the length that it names")
    return header, data[size:]


def _ring_kek_id(header: bytes) -> bytes:
    identifier = _RING_HEADER.unpack(header[:-4])[4]
    assert isinstance(identifier, bytes)
    return identifier


def _content(files: Files, path: Path) -> bytes:
    with files.read(path) as stream:
        return stream.read(KEK_FILE_BYTES + 1)


def _stored_kek(files: Files, directory: Path, kek_id: bytes) -> Kek | None:
    """Return the stored KEK that fits the ring, if one does.

    Raises:
        CorruptError: none fits, but one is damaged and may have been the one.
    """
    damage: CorruptError | None = None
    for name in (KEK_NAME, NEXT_KEK_NAME):
        path = directory / name
        if not files.exists(path):
            continue
        try:
            kek = Kek.decode_file(path, _content(files, path))
        except CorruptError as error:
            damage = error
            continue
        if hmac.compare_digest(kek.identifier, kek_id):
            return kek
    if damage is not None:
        raise damage
    return None


def is_locked(directory: Path, files: Files | None = None) -> bool:
    """Tell whether the ring there needs an unlock key.

    Raises:
        NotFoundError: there is no ring.
        CorruptError: a file is damaged.
    """
    files = files or RealFiles()
    path = directory / RING_NAME
    if not files.exists(path):
        raise NotFoundError("key ring", str(directory))
    header, _ = _read_ring(files, path)
    return _stored_kek(files, directory, _ring_kek_id(header)) is None
