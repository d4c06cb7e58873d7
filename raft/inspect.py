"""Show a person what a log directory holds: `python -m raft.inspect DIRECTORY`.

Prints segments, records and snapshots with their sizes and indexes, never their content, and says
where something does not check. Looks only: takes no lock, cuts nothing, and may run beside the
daemon (the last record may then be seen half written). Exit code 0 if all checks, 1 if not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from proto.errors import CorruptError, SwarmError
from raft import format as layout
from raft import snapshot as snapshots
from raft.core import Entries, decode_membership
from raft.files import Files, RealFiles
from raft.keys import Kek, KeyRing
from raft.segments import SYNCED_NAME, read_batches, read_segment_header, segment_names
from raft.storage import SNAPSHOTS_NAME, WAL_NAME
from raft.stored import describe_snapshot


class Inspection:
    """One look at a directory; `lines` yields the text, `is_good` is its verdict afterwards."""

    def __init__(self, directory: Path, keys: KeyRing, files: Files) -> None:
        """Prepare; reads nothing."""
        self._directory = directory
        self._keys = keys
        self._files = files
        self.is_good = True

    def lines(self, *, with_records: bool) -> Iterator[str]:
        """Yield the report, line by line."""
        autolock = "on" if self._keys.is_autolocked else "off"
        yield (
            f"data keys {', '.join(map(str, self._keys.ids))}, "
            f"current {self._keys.current_id}; autolock {autolock}"
        )
        place = self._directory / SNAPSHOTS_NAME
        for name in snapshots.snapshot_names(self._files, place):
            yield self._snapshot_line(place / name)
        place = self._directory / WAL_NAME
        for name in segment_names(self._files, place):
            yield from self._segment_lines(place / name, with_records=with_records)
        yield self._synced_line(place / SYNCED_NAME)

    def _damage(self, path: Path, error: CorruptError | layout.DamagedError) -> str:
        self.is_good = False
        return f"  DAMAGED at byte {error.offset} of {path.name}: {error.reason}"

    def _snapshot_line(self, path: Path) -> str:
        chunks, size, about = 0, 0, b""
        try:
            for plain, is_about in snapshots.read_frames(self._files, path, self._keys):
                if is_about:
                    about = plain
                else:
                    chunks += 1
                    size += len(plain)
            told = describe_snapshot(str(path), about)
        except CorruptError as error:
            return f"snapshot {path.name}:\n{self._damage(path, error)}"
        index = int(path.stem, 16)
        return (
            f"snapshot {path.name}: state at entry {index}, {chunks} chunks, {size} bytes; "
            f"term {told.snapshot.term}{', sent by a leader' if told.is_installed else ''}"
        )

    def _segment_lines(self, path: Path, *, with_records: bool) -> Iterator[str]:
        try:
            header = read_segment_header(self._files, path)
        except CorruptError as error:
            yield f"segment {path.name}:"
            yield self._damage(path, error)
            return
        yield f"segment {path.name}: from entry {header.index}, data key {header.key_id}"
        records, entries, end = 0, 0, layout.FILE_HEADER_BYTES
        try:
            for batch in read_batches(self._files, path, self._keys):
                records += 1
                runs = _runs(batch)
                entries += sum(len(run.data) for run in runs)
                end = batch.end
                if with_records:
                    place = f"  record at byte {batch.offset}, {batch.end - batch.offset} bytes"
                    yield f"{place}: {_told(batch, runs)}"
        except (CorruptError, layout.DamagedError) as error:
            yield self._damage(path, error)
        yield f"  {records} records, {entries} entries, {end} bytes"

    def _synced_line(self, path: Path) -> str:
        if not self._files.exists(path):
            return "synced mark: none"
        with self._files.read(path) as stream:
            synced = layout.decode_synced(stream.read(layout.SYNCED_BYTES + 1))
        if synced is None:
            self.is_good = False
            return "synced mark: damaged (not needed; written anew at the next start)"
        return f"synced mark: segment {synced.number}, byte {synced.offset}"


def _runs(batch: layout.Batch) -> list[Entries]:
    """Return the entries of a record."""
    return [step.entries for step in batch.states.steps if step.entries is not None]


def _told(batch: layout.Batch, runs: list[Entries]) -> str:
    """Say what a record holds, but not its content."""
    last = batch.states.steps[-1].hard_state
    member = f"member {batch.states.member_id}, term {last.term}"
    parts = [f"{member}, vote {last.vote or 'none'}, commit {last.commit}"]
    for run in runs:
        sizes = ", ".join(str(len(data)) for data in run.data)
        terms = "".join(f", term {term} from {first}" for first, term in run.terms)
        parts.append(f"entries {run.first}-{run.last} of {sizes} bytes{terms}")
        parts += [
            f"{index} is a membership: {_group(run.data[index - run.first])}"
            for index in run.changes
        ]
    return "; ".join(parts)


def _group(data: bytes) -> str:
    membership = decode_membership(data)
    members = ", ".join(
        f"{member.id} ({'voter' if member.is_voter else 'learner'}, node "
        f"{member.node_id or '?'} at {member.address or '?'})"
        for member in membership.members
    )
    return f"{members}; {len(membership.removed)} removed"


def _unlock_key(path: str | None) -> Kek | None:
    if path is None:
        return None
    return Kek.parse(sys.stdin.readline() if path == "-" else Path(path).read_text("ascii"))


def main(arguments: list[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m raft.inspect", description=__doc__)
    parser.add_argument("directory", type=Path, help="the log's directory")
    parser.add_argument("--keys", type=Path, help="where the key ring is (the same directory)")
    parser.add_argument("--unlock-key-file", help='with autolock: a file with the key, or "-"')
    parser.add_argument("--summary", action="store_true", help="no line for each record")
    options = parser.parse_args(arguments)
    try:
        kek = _unlock_key(options.unlock_key_file)
        keys = KeyRing.read(options.keys or options.directory, kek)
        inspection = Inspection(options.directory, keys, RealFiles())
        for line in inspection.lines(with_records=not options.summary):
            sys.stdout.write(line + "\n")
    except SwarmError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0 if inspection.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
