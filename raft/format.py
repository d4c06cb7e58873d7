"""The bytes of segments, records, snapshots and the synced mark. Pure: no file is touched here.

A file of the log starts with a header that names the algorithm, the version and the data key; the
file's own AES key is derived from the data key, the header and a random salt in it. Hence a nonce
may be a plain counter: a file is written by one process once, front to back, and a place that was
cut away is never written again in the same file (`raft.wal` starts a new one). Each record or
frame is bound to its place by that counter, so that none can be moved, repeated or left out.

`DESIGN.md` draws the layouts. Invariants: whatever decodes was authentic; a header's own checksum
tells a damaged length from a record that ends too early; `is_torn_tail` decides, in doubt, for
damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from raft.core.values import Entries, HardState, RaftID

ALGORITHM_AES_256_GCM = 1
VERSION = 1
MAGIC_SEGMENT = b"SWML"
MAGIC_SNAPSHOT = b"SWMS"
MAGIC_SYNCED = b"SWMW"
SALT_BYTES = 16
TAG_BYTES = 16
KIND_STATES = 2
FRAME_CHUNK = 1
FRAME_FINAL = 2
FRAME_ABOUT = 3
# The smallest unit that a disk writes as a whole; a torn write loses whole ones.
SECTOR_BYTES = 512
_FRAME_KINDS = frozenset((FRAME_CHUNK, FRAME_FINAL, FRAME_ABOUT))
RECORD_BYTES_MAX = 16 << 20
FRAME_BYTES_MAX = 64 << 20

# magic, algorithm, version, reserved, key id, number or index, first index, salt; then the CRC.
_FILE_HEADER = struct.Struct(">4sBBHIQQ16s")
# algorithm, version, key id, length of the sealed part; then the CRC.
_RECORD_HEADER = struct.Struct(">BBII")
_CRC = struct.Struct(">I")
_NONCE = struct.Struct(">IQ")
_SEQUENCE = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")
# kind, length of the sealed part; then the CRC.
_FRAME_HEADER = struct.Struct(">BI")
_TOTALS = struct.Struct(">QQ")
_SYNCED = struct.Struct(">4sQQ")

FILE_HEADER_BYTES = _FILE_HEADER.size + _CRC.size
RECORD_HEADER_BYTES = _RECORD_HEADER.size + _CRC.size
FRAME_HEADER_BYTES = _FRAME_HEADER.size + _CRC.size
SYNCED_BYTES = _SYNCED.size + _CRC.size
RECORD_OVERHEAD_BYTES = RECORD_HEADER_BYTES + TAG_BYTES


class DamagedError(Exception):
    """Bytes that do not decode; the shell adds the file and makes a `CorruptError` of it.

    Attributes:
        offset: where in the file the damaged part starts.
        reason: half a sentence.
        is_authentic: the bytes are as they were written, but this program cannot read them.
    """

    def __init__(self, offset: int, reason: str, *, is_authentic: bool = False) -> None:
        """Keep all."""
        super().__init__(f"byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason
        self.is_authentic = is_authentic


class FileHeader(msgspec.Struct, frozen=True):
    """The first bytes of a segment or snapshot.

    Attributes:
        magic: segment or snapshot.
        key_id: which data key of the ring.
        number: a segment's ascending number; 0 in a snapshot.
        index: a segment's first entry; the last entry that a snapshot contains.
        salt: random, makes the file's key its own.
    """

    magic: bytes
    key_id: int
    number: int
    index: int
    salt: bytes


class State(msgspec.Struct, frozen=True, array_like=True):
    """What a member stored in one step.

    Attributes:
        hard_state: as of then.
        entries: to append, after cutting whatever is stored at or after their first; None without.
    """

    hard_state: HardState
    entries: Entries | None = None


class States(msgspec.Struct, frozen=True, array_like=True):
    """What a member stored with one sync: steps in their order.

    Attributes:
        member_id: whose they are.
        steps: at least one.
    """

    member_id: RaftID
    steps: list[State]


_KIND_STATES = bytes((KIND_STATES,))
_STATES_ENCODER = msgspec.msgpack.Encoder()
_STATES_DECODER = msgspec.msgpack.Decoder(States)


class Batch(msgspec.Struct, frozen=True):
    """A decoded record.

    Attributes:
        offset: where in the file it starts.
        end: where it ends.
        states: what it holds.
    """

    offset: int
    end: int
    states: States


class Synced(msgspec.Struct, frozen=True):
    """A place in the log before which everything was synced."""

    number: int
    offset: int


def _with_crc(body: bytes) -> bytes:
    return body + _CRC.pack(zlib.crc32(body))


def _has_good_crc(data: bytes) -> bool:
    return data[-_CRC.size :] == _CRC.pack(zlib.crc32(data[: -_CRC.size]))


def encode_file_header(header: FileHeader) -> bytes:
    """Return the first bytes of a file."""
    assert len(header.salt) == SALT_BYTES
    return _with_crc(
        _FILE_HEADER.pack(
            header.magic,
            ALGORITHM_AES_256_GCM,
            VERSION,
            0,
            header.key_id,
            header.number,
            header.index,
            header.salt,
        )
    )


def decode_file_header(data: bytes, magic: bytes) -> FileHeader:
    """Read the first bytes of a file.

    Raises:
        DamagedError: they are not a header of that kind.
    """
    if len(data) < FILE_HEADER_BYTES:
        raise DamagedError(0, "the file is shorter than its header")
    if not _has_good_crc(data):
        raise DamagedError(0, "the file header's checksum does not match")
    found, algorithm, version, _reserved, key_id, number, index, salt = _FILE_HEADER.unpack(
        data[: _FILE_HEADER.size]
    )
    if found != magic:
        raise DamagedError(0, f"it is not a {magic!r} file")
    if (algorithm, version) != (ALGORITHM_AES_256_GCM, VERSION):
        raise DamagedError(0, f"format {algorithm}.{version} is not known to this program")
    return FileHeader(magic=magic, key_id=key_id, number=number, index=index, salt=salt)


def file_cipher(data_key: bytes, header: FileHeader) -> AESGCM:
    """Derive the key of one file; any changed byte of the header makes it another key."""
    info = b"swarm raft file 1 " + encode_file_header(header)
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=header.salt, info=info).derive(data_key))


def pack_states(states: States) -> bytes:
    """Return the content of a record, to be sealed by `encode_states`."""
    return _KIND_STATES + _STATES_ENCODER.encode(states)


def encode_states(cipher: AESGCM, key_id: int, sequence: int, packed: bytes) -> tuple[bytes, bytes]:
    """Seal what `pack_states` returned as the record with this number in its file.

    Returns:
        The header and the sealed part, to be written one after the other.
    """
    length = len(packed) + TAG_BYTES
    assert length <= RECORD_BYTES_MAX
    header = _with_crc(_RECORD_HEADER.pack(ALGORITHM_AES_256_GCM, VERSION, key_id, length))
    sealed = cipher.encrypt(_NONCE.pack(0, sequence), packed, header + _SEQUENCE.pack(sequence))
    assert len(sealed) == length
    return header, sealed


def _record_length(header: bytes, key_id: int) -> int | None:
    """Return the length of the sealed part, or None if this is no header of a record."""
    if len(header) < RECORD_HEADER_BYTES or not _has_good_crc(header):
        return None
    algorithm, version, found_key_id, length = _RECORD_HEADER.unpack(header[: _RECORD_HEADER.size])
    if (algorithm, version, found_key_id) != (ALGORITHM_AES_256_GCM, VERSION, key_id):
        return None
    return int(length) if TAG_BYTES <= length <= RECORD_BYTES_MAX else None


def _decode_batch(plain: bytes, offset: int, end: int) -> Batch:
    """Take an authentic record apart; what does not fit was written by another version."""
    unknown = DamagedError(
        offset, "the record is of a kind not known to this program", is_authentic=True
    )
    if plain[:1] != _KIND_STATES:
        raise unknown
    try:
        states = _STATES_DECODER.decode(memoryview(plain)[1:])
    except msgspec.DecodeError:
        raise unknown from None
    if not states.steps:
        raise unknown
    return Batch(offset=offset, end=end, states=states)


def read_batches(stream: BinaryIO, cipher: AESGCM, key_id: int) -> Iterator[Batch]:
    """Yield the records of a segment whose header was read already, in order.

    Raises:
        DamagedError: the record at this offset is not whole or not authentic; everything yielded
            before it was.
    """
    offset = FILE_HEADER_BYTES
    sequence = 0
    while header := stream.read(RECORD_HEADER_BYTES):
        if len(header) < RECORD_HEADER_BYTES:
            raise DamagedError(offset, "the file ends in a record's header")
        length = _record_length(header, key_id)
        if length is None:
            raise DamagedError(offset, "a record's header is wrong")
        sealed = stream.read(length)
        if len(sealed) < length:
            raise DamagedError(offset, "the file ends in a record")
        try:
            plain = cipher.decrypt(
                _NONCE.pack(0, sequence), sealed, header + _SEQUENCE.pack(sequence)
            )
        except InvalidTag:
            raise DamagedError(offset, "a record is not authentic") from None
        end = offset + RECORD_HEADER_BYTES + length
        yield _decode_batch(plain, offset, end)
        offset = end
        sequence += 1


def is_torn_tail(tail: bytes, offset: int, synced: int, key_id: int) -> bool:
    """Tell a write that the last crash interrupted from damage.

    At most one record is under way at any time, always the last, and the next is begun only after
    it was synced. A crash leaves of it any of its sectors; the others are missing or read as zeros
    (new blocks of a file never show old content). So it is torn only if it lies behind the synced
    mark, nothing was written behind it, and it is either too short or has a sector of zeros.
    Everything else was whole once: damage.

    Args:
        tail: the segment from the first bad record on.
        offset: where in the file that is.
        synced: everything before this offset is known to have been synced.
        key_id: the data key of the segment.
    """
    if offset < synced:
        return False
    if len(tail) < RECORD_HEADER_BYTES:
        return True
    length = _record_length(tail[:RECORD_HEADER_BYTES], key_id)
    if length is not None:
        end = RECORD_HEADER_BYTES + length
        return len(tail) < end or (len(tail) == end and _has_zero_sector(tail, offset, len(tail)))
    return _has_zero_sector(tail, offset, RECORD_HEADER_BYTES) and not _has_header(tail, key_id)


def _has_zero_sector(tail: bytes, offset: int, until: int) -> bool:
    """Whether a sector that touches the first `until` bytes has, in this tail, only zeros."""
    start = 0
    while start < until:
        stop = start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES
        if not any(tail[start:stop]):
            return True
        start = stop
    return False


def _has_header(tail: bytes, key_id: int) -> bool:
    """Whether some later place looks like a record; by chance that is one in 2**80."""
    mark = _RECORD_HEADER.pack(ALGORITHM_AES_256_GCM, VERSION, key_id, 0)[: -_LENGTH.size]
    place = tail.find(mark)
    while place >= 0:
        if _record_length(tail[place : place + RECORD_HEADER_BYTES], key_id) is not None:
            return True
        place = tail.find(mark, place + 1)
    return False


def encode_about_frame(cipher: AESGCM, about: bytes) -> bytes:
    """Seal what describes a snapshot as its first frame, number 0; chunks follow from 1."""
    return _encode_frame(cipher, 0, FRAME_ABOUT, about)


def encode_frame(cipher: AESGCM, sequence: int, chunk: bytes) -> bytes:
    """Seal a chunk of a snapshot as the frame with this number."""
    return _encode_frame(cipher, sequence, FRAME_CHUNK, chunk)


def encode_final_frame(cipher: AESGCM, sequence: int, content_bytes: int) -> bytes:
    """Seal the end of a snapshot: how many frames, with how many bytes of chunks, came before."""
    return _encode_frame(cipher, sequence, FRAME_FINAL, _TOTALS.pack(sequence, content_bytes))


def _encode_frame(cipher: AESGCM, sequence: int, kind: int, plain: bytes) -> bytes:
    length = len(plain) + TAG_BYTES
    assert length <= FRAME_BYTES_MAX
    header = _with_crc(_FRAME_HEADER.pack(kind, length))
    nonce = _NONCE.pack(0, sequence)
    return header + cipher.encrypt(nonce, plain, header + _SEQUENCE.pack(sequence))


def _frame_header(header: bytes, offset: int) -> tuple[int, int]:
    """Return the kind and the length of the sealed part."""
    if len(header) < FRAME_HEADER_BYTES:
        raise DamagedError(offset, "the snapshot ends without its final mark")
    kind, length = _FRAME_HEADER.unpack(header[: _FRAME_HEADER.size])
    if not _has_good_crc(header):
        raise DamagedError(offset, "a chunk's header is wrong")
    if kind not in _FRAME_KINDS or not TAG_BYTES <= length <= FRAME_BYTES_MAX:
        raise DamagedError(offset, "a chunk is of a kind not known to this program")
    return kind, length


def read_frames(stream: BinaryIO, cipher: AESGCM) -> Iterator[bytes]:
    """Yield the chunks of a snapshot whose header was read already, in order.

    Raises:
        DamagedError: as `read_all_frames`.
    """
    return (plain for plain, is_about in read_all_frames(stream, cipher) if not is_about)


def read_all_frames(stream: BinaryIO, cipher: AESGCM) -> Iterator[tuple[bytes, bool]]:
    """Yield the frames of a snapshot whose header was read already, in order.

    Yields:
        A chunk and False, or, at most once and first, what describes the snapshot and True.

    Raises:
        DamagedError: a frame is not authentic, not in its place, or the end is missing. Those
            yielded before were authentic, but only the iterator's end says that they are all.
    """
    offset = FILE_HEADER_BYTES
    sequence = 0
    content_bytes = 0
    while True:
        header = stream.read(FRAME_HEADER_BYTES)
        kind, length = _frame_header(header, offset)
        sealed = stream.read(length)
        if len(sealed) < length:
            raise DamagedError(offset, "the snapshot ends in a chunk")
        try:
            nonce = _NONCE.pack(0, sequence)
            plain = cipher.decrypt(nonce, sealed, header + _SEQUENCE.pack(sequence))
        except InvalidTag:
            raise DamagedError(offset, "a chunk is not authentic") from None
        offset += FRAME_HEADER_BYTES + length
        if kind == FRAME_FINAL:
            break
        yield plain, kind == FRAME_ABOUT
        sequence += 1
        if kind == FRAME_CHUNK:
            content_bytes += len(plain)
    if plain != _TOTALS.pack(sequence, content_bytes):
        raise DamagedError(offset, "the final mark does not fit the chunks")
    if stream.read(1):
        raise DamagedError(offset, "something follows the final mark")


def encode_synced(synced: Synced) -> bytes:
    """Return the content of the file that holds the synced mark."""
    return _with_crc(_SYNCED.pack(MAGIC_SYNCED, synced.number, synced.offset))


def decode_synced(data: bytes) -> Synced | None:
    """Read a synced mark; None if it is damaged (it is then as good as absent)."""
    if len(data) != SYNCED_BYTES or not _has_good_crc(data):
        return None
    magic, number, offset = _SYNCED.unpack(data[: _SYNCED.size])
    return Synced(number=number, offset=offset) if magic == MAGIC_SYNCED else None
