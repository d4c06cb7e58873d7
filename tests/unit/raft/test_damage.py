"""Damage is found wherever it is, and told from a write that a crash interrupted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from proto.errors import CorruptError
from raft import format as layout
from raft.segments import SYNCED_NAME

ENTRIES = [b"first", b"second entry", b"third"]


def flips(content: bytes) -> Iterator[bytes]:
    """Yield the content with each byte changed in turn: one bit, all bits, and to zero."""
    rng = random.Random(len(content))
    for place, value in enumerate(content):
        for other in {value ^ 1 << rng.randrange(8), value ^ 0xFF, 0} - {value}:
            yield content[:place] + bytes([other]) + content[place + 1 :]


def assert_refused(node, path) -> None:
    """Opening names the file and where; nothing on the disk is changed by it."""
    before = {each: node.files.content(each) for each in node.files.paths()}
    with pytest.raises(CorruptError) as caught:
        node.direct()
    assert caught.value.path == str(path)
    assert 0 <= caught.value.offset <= len(before[path])
    assert {each: node.files.content(each) for each in node.files.paths()} == before


def size_up_to(node, index: int, end: int) -> int:
    """Return how large an entry is whose record, the first in its file, ends there."""
    overhead = node.record_bytes(index, bytes(end)) - end
    size = end - layout.FILE_HEADER_BYTES - overhead
    assert layout.FILE_HEADER_BYTES + node.record_bytes(index, bytes(size)) == end
    return size


def test_every_flipped_byte_of_a_segment_is_refused(node):
    """Header, length, cipher text, tag, also of the last record: all had been synced."""
    node.written(ENTRIES)
    (path,) = node.segments()
    for content in flips(node.files.content(path)):
        node.files.put(path, content)
        assert_refused(node, path)


def test_every_flipped_byte_without_the_synced_mark_is_refused(node):
    """The bytes alone tell it: a torn write leaves whole sectors of zeros, rot does not.

    The mark is what a power loss may take away. (These records lie within one sector, so that no
    single byte makes up a sector's share of one: see the next test for that.)
    """
    node.written(ENTRIES)
    (path,) = node.segments()
    content = node.files.content(path)
    assert len(content) < layout.SECTOR_BYTES
    node.files.remove(node.wal / SYNCED_NAME)
    for changed in flips(content):
        node.files.put(path, changed)
        assert_refused(node, path)


def test_a_lone_byte_in_a_sector_is_decided_by_the_mark(node):
    """A record whose last byte is alone in a sector and reads 0: torn or rotten? The mark knows."""
    node.written([bytes(size_up_to(node, 1, 2 * layout.SECTOR_BYTES + 1))])
    (path,) = node.segments()
    content = node.files.content(path)
    assert len(content) == 2 * layout.SECTOR_BYTES + 1
    node.files.put(path, content[:-1] + b"\0")
    assert_refused(node, path)
    node.files.remove(node.wal / SYNCED_NAME)
    assert node.restored() == ([], [])


def test_every_cut_of_synced_bytes_is_refused(node):
    """A file that lost its end, even exactly one record, is damaged: the mark says so."""
    node.written(ENTRIES)
    (path,) = node.segments()
    content = node.files.content(path)
    for size in range(len(content)):
        node.files.put(path, content[:size])
        assert_refused(node, path)


def test_a_torn_tail_is_cut_at_every_byte(node):
    """Wherever a crash stopped the last write, the entries before are there, and work goes on."""
    log = node.direct()
    for data in ENTRIES[:2]:
        log.write(data)
    (path,) = node.segments()
    mark = node.files.content(node.wal / SYNCED_NAME)
    end = len(node.files.content(path))
    log.write(ENTRIES[2])
    log.close()
    content = node.files.content(path)
    for size in range(end, len(content)):
        # What the crash left: the mark is from before the last write, the file ends within it.
        node.files.put(path, content[:size])
        node.files.put(node.wal / SYNCED_NAME, mark)
        log = node.direct()
        assert log.read() == ([], ENTRIES[:2])
        assert len(node.files.content(path)) == end
        assert log.write(b"goes on") == 3
        log.close()
        assert node.restored() == ([], [*ENTRIES[:2], b"goes on"])
        node.files.remove(node.segments()[-1])


def test_lost_sectors_of_the_last_write_are_cut(node):
    """Any sector of an interrupted write may be missing and read as zeros, in any combination."""
    log = node.direct()
    log.write(b"kept")
    (path,) = node.segments()
    start = len(node.files.content(path))
    mark = node.files.content(node.wal / SYNCED_NAME)
    log.write(random.Random(3).randbytes(5 * layout.SECTOR_BYTES))
    log.close()
    content = node.files.content(path)
    bounds = [start, *range(512, len(content), 512), len(content)]
    for lost in range(1, 1 << (len(bounds) - 1)):
        torn = bytearray(content)
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            if lost >> number & 1:
                torn[low:high] = bytes(high - low)
        node.files.put(path, bytes(torn))
        node.files.put(node.wal / SYNCED_NAME, mark)
        log = node.direct()
        assert log.read() == ([], [b"kept"])
        log.close()


@pytest.mark.parametrize("size", [0, 12, 13, 14, 15, 200, 511, 512, 5000])
def test_a_tail_of_zeros_is_cut(node, size):
    """Some file systems grow the file first: zeros of any length after the last record."""
    node.written(ENTRIES)
    (path,) = node.segments()
    content = node.files.content(path)
    node.files.put(path, content + bytes(size))
    if size:
        assert node.restored()[1] == ENTRIES
    assert node.files.content(path) == content


def test_a_lost_sector_with_a_record_behind_it_is_damage(node):
    """What has a successor had been synced: not even without the mark is it cut."""
    node.written([bytes(2000), bytes(2000), bytes(2000)])
    (path,) = node.segments()
    content = node.files.content(path)
    node.files.remove(node.wal / SYNCED_NAME)
    for start in range(512, 4096, 512):
        node.files.put(path, content[:start] + bytes(512) + content[start + 512 :])
        assert_refused(node, path)


def test_a_lost_header_with_a_record_behind_it_is_damage(node):
    """Its length is gone too; the header of a later record is found by its look."""
    first = bytes(size_up_to(node, 1, 2 * layout.SECTOR_BYTES))
    node.written([first, bytes(600), bytes(2000)])
    (path,) = node.segments()
    content = node.files.content(path)
    node.files.remove(node.wal / SYNCED_NAME)
    # The second record starts with a sector, which is lost; the third is in the next but one.
    third = 1024 + node.record_bytes(2, bytes(600))
    assert third > 1536
    node.files.put(path, content[:1024] + bytes(512) + content[1536:])
    assert_refused(node, path)
    # Without a successor the same zeros are what a crash leaves.
    node.files.put(path, content[:1024] + bytes(512) + content[1536:third])
    assert node.restored()[1] == [first]


def test_damage_before_the_last_segment_is_never_cut(node):
    """A short or zeroed tail of an older segment is damage, mark or no mark."""
    for data in ENTRIES:
        node.written([data])
    path = node.segments()[1]
    content = node.files.content(path)
    node.files.remove(node.wal / SYNCED_NAME)
    for size in range(len(content)):
        for changed in (content[:size], content[:size] + bytes(len(content) - size)):
            if changed != content:
                node.files.put(path, changed)
                with pytest.raises(CorruptError):
                    node.direct()
    node.files.put(path, content)
    assert node.restored()[1] == ENTRIES


def test_missing_segments_are_refused(node):
    """The first, a middle or the last one: each is named."""
    for data in ENTRIES:
        node.written([data])
    for path in node.segments():
        content = node.files.content(path)
        node.files.remove(path)
        with pytest.raises(CorruptError, match=r"missing|starts at entry"):
            node.direct()
        node.files.put(path, content)
    assert node.restored()[1] == ENTRIES


def test_a_record_that_leaves_out_an_entry_is_refused(node):
    """Authentic or not: a log with a gap is none."""
    log = node.direct()
    log.write(b"1")
    log.storage.write([log.step(3, b"3")])
    log.close()
    (path,) = node.segments()
    with pytest.raises(CorruptError, match=r"entry 2 is missing"):
        node.direct()
    assert_refused(node, path)


def test_a_missing_segment_is_refused_though_an_own_snapshot_has_it(node):
    """Only a leader's snapshot lets a segment begin elsewhere; behind an own one it is a loss."""
    for data in ENTRIES:
        node.written([data])
    log = node.direct()
    log.add_snapshot(2, b"state")
    log.close()
    _, path, last = node.segments()
    content = node.files.content(path)
    node.files.remove(path)
    with pytest.raises(CorruptError, match="starts at entry 3, not at 2"):
        node.direct()
    assert_refused(node, last)
    node.files.put(path, content)
    assert node.restored() == ([b"state"], ENTRIES[2:])


def test_a_log_that_ends_before_an_own_snapshot_is_refused(node):
    """What it contains had been synced before it was made, whatever became of the mark."""
    log = node.direct()
    for data in ENTRIES:
        log.write(data)
    log.add_snapshot(3, b"state")
    log.close()
    (path,) = node.segments()
    content = node.files.content(path)
    node.files.remove(node.wal / SYNCED_NAME)
    node.files.put(path, content[: -node.record_bytes(3, ENTRIES[2])])
    with pytest.raises(CorruptError, match="entries up to 3 are missing"):
        node.direct()
    assert_refused(node, path)
    node.files.put(path, content)
    assert node.restored() == ([b"state"], [])


def test_a_snapshot_without_any_segment_is_refused(node):
    """The log goes on behind a snapshot, so there is always one."""
    log = node.direct()
    log.write(b"1")
    log.save_snapshot(1, b"state")
    log.close()
    for path in node.segments():
        node.files.remove(path)
    node.files.remove(node.wal / SYNCED_NAME)
    with pytest.raises(CorruptError, match="all segments are missing"):
        node.direct()


def test_exchanged_repeated_and_foreign_records_are_refused(node):
    """A record is bound to its place and its file, not only to the key."""
    node.written([b"aaaa", b"bbbb"])
    node.written([b"cccc"])
    one, two = node.segments()
    content, other = node.files.content(one), node.files.content(two)
    head, size = layout.FILE_HEADER_BYTES, node.record_bytes(1, b"aaaa")
    first, second = content[head : head + size], content[head + size :]
    assert len(first) == len(second) == len(other) - head
    for changed in (
        content[:head] + second + first,
        content[:head] + first + first,
        content[:head] + first,
        content[:head] + first + second + second,
        content[:head] + first + other[head:],
        other,
    ):
        node.files.put(one, changed)
        with pytest.raises(CorruptError):
            node.direct()
    node.files.put(one, content)
    assert node.restored()[1] == [b"aaaa", b"bbbb", b"cccc"]


def test_every_flipped_byte_of_a_snapshot_is_refused(node):
    """Nothing of a damaged snapshot is handed out, nor is an older one taken for it."""
    log = node.direct()
    log.write(b"1")
    log.save_snapshot(1, b"chunk one", b"", b"chunk three")
    log.close()
    (name,) = node.files.names(node.snapshots)
    path = node.snapshots / name
    content = node.files.content(path)
    for changed in flips(content):
        node.files.put(path, changed)
        assert_refused(node, path)
    for size in range(len(content)):
        node.files.put(path, content[:size])
        assert_refused(node, path)
    node.files.put(path, content + b"\0")
    assert_refused(node, path)


def test_moved_and_missing_chunks_are_refused(node):
    """Chunks of one length can be neither exchanged, repeated nor left out."""
    log = node.direct()
    log.write(b"1")
    log.save_snapshot(1, b"aaaa", b"bbbb", b"cccc")
    log.close()
    (name,) = node.files.names(node.snapshots)
    path = node.snapshots / name
    content = node.files.content(path)
    # Header, description, chunks of one size, final mark with two numbers.
    size = layout.FRAME_HEADER_BYTES + 4 + layout.TAG_BYTES
    end_size = layout.FRAME_HEADER_BYTES + 16 + layout.TAG_BYTES
    start = len(content) - end_size - 3 * size
    head, about = content[: layout.FILE_HEADER_BYTES], content[layout.FILE_HEADER_BYTES : start]
    one, two, three = (content[start + n * size : start + (n + 1) * size] for n in range(3))
    end = content[-end_size:]
    assert head + about + one + two + three + end == content
    for frames in (
        [about, two, one, three],
        [about, one, one, three],
        [about, one, two],
        [about, one, two, three, three],
        [one, two, three],
        [one, about, two, three],
        [about, about, one, two, three],
    ):
        node.files.put(path, head + b"".join(frames) + end)
        assert_refused(node, path)


def test_damage_of_the_synced_mark_is_harmless(node):
    """The mark only helps: damaged or gone, everything is restored and it is written anew."""
    node.written(ENTRIES)
    path = node.wal / SYNCED_NAME
    good = node.files.content(path)
    for changed in [*flips(good), *(good[:size] for size in range(len(good)))]:
        node.files.put(path, changed)
        assert node.restored()[1] == ENTRIES
        assert node.files.content(path) == good
    node.files.remove(path)
    assert node.restored()[1] == ENTRIES


def test_damage_that_appears_after_opening_is_not_applied(node):
    """The readers check again: what changed meanwhile raises in the middle, it is not yielded."""
    log = node.direct()
    log.write(b"1")
    log.save_snapshot(1, b"chunk one", b"chunk two")
    log.write(b"2")
    path = log.storage.snapshot.path
    content = node.files.content(path)
    end_size = layout.FRAME_HEADER_BYTES + 16 + layout.TAG_BYTES
    place = len(content) - end_size - 1
    node.files.put(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    chunks = log.storage.read_snapshot()
    assert next(chunks) == b"chunk one"
    with pytest.raises(CorruptError, match="not authentic"):
        next(chunks)
    node.files.put(path, content)
    # The same for the log, which is read again only after a fault of the disk.
    (segment,) = node.segments()
    content = node.files.content(segment)
    node.files.put(segment, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptError, match="not authentic"):
        log.storage.reopen()
    node.files.put(segment, content)
    again = log.storage.reopen()
    assert again.stored.entries.data == [b"2"]
    again.close()


@pytest.mark.parametrize(
    "alien",
    [
        lambda packed: bytes([layout.KIND_STATES + 1]) + packed[1:],
        lambda packed: bytes([layout.KIND_STATES - 1]) + packed[1:],
        lambda packed: packed[:1] + b"\xc1" + packed[2:],
    ],
    ids=["later kind", "earlier kind", "no msgpack"],
)
def test_a_record_of_another_version_is_refused_and_never_cut(node, monkeypatch, alien):
    """An authentic record that this program cannot read is not taken for a torn one."""
    pack = layout.pack_states
    monkeypatch.setattr(layout, "pack_states", lambda states: alien(pack(states)))
    size = size_up_to(node, 1, 2 * layout.SECTOR_BYTES + 1)
    # Until chance makes the byte that is alone in its sector zero, as a lost sector would be.
    for _ in range(10_000):
        node.written([bytes(size)])
        (path,) = node.segments()
        if node.files.content(path).endswith(b"\0"):
            break
        node.files.remove(path)
        node.files.remove(node.wal / SYNCED_NAME)
    monkeypatch.undo()
    assert node.files.content(path).endswith(b"\0")
    node.files.remove(node.wal / SYNCED_NAME)
    assert_refused(node, path)


@pytest.mark.parametrize("about", [b"", b"\xc1", b"\x90"])
def test_a_snapshot_without_a_known_description_is_refused(node, monkeypatch, about):
    """An authentic description that this program cannot read is not taken for an empty one."""
    log = node.direct()
    log.write(b"1")
    good = layout.encode_about_frame
    monkeypatch.setattr(layout, "encode_about_frame", lambda cipher, _: good(cipher, about))
    log.save_snapshot(1, b"state")
    log.close()
    (name,) = node.files.names(node.snapshots)
    assert_refused(node, node.snapshots / name)


def test_a_snapshot_beside_a_log_that_names_nobody_is_refused(node):
    """Without the record that a snapshot leaves nobody is made up as the log's owner."""
    log = node.direct()
    log.write(b"1")
    log.save_snapshot(1, b"state")
    log.close()
    (path,) = node.segments()
    node.files.put(path, node.files.content(path)[: layout.FILE_HEADER_BYTES])
    node.files.remove(node.wal / SYNCED_NAME)
    with pytest.raises(CorruptError, match="whose log it is"):
        node.direct()
    # Again each time: nothing was made of it meanwhile.
    with pytest.raises(CorruptError, match="whose log it is"):
        node.direct()
