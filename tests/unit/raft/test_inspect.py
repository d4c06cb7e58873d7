"""What `python -m raft.inspect` tells a person."""

from __future__ import annotations

import io

from raft.inspect import main
from raft.keys import Kek, KeyRing
from raft.single import SingleLog


async def make(directory, chunks, kek=None):
    """Make a log with a snapshot, two records and something secret in all of them."""
    keys = KeyRing.create(directory, kek=kek)
    log = SingleLog.open(directory, keys)
    await log.propose(b"secret-1")
    await log.save_snapshot(1, chunks(b"secret-state"))
    await log.propose(b"secret-22")
    await log.close()
    keys.close()


async def test_inspect_prints_sizes_and_indexes_and_no_content(tmp_path, chunks, capsys):
    """Segments, records, snapshots and the mark are listed; the content is not."""
    await make(tmp_path, chunks)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert output.splitlines() == [
        "data keys 1, current 1; autolock off",
        f"snapshot {1:016x}.snap: state at entry 1, 1 chunks, 12 bytes",
        f"segment {2:016x}.wal: from entry 2, data key 1",
        "  record at byte 48, 52 bytes: entries 2-2 of 9 bytes",
        "  1 records, 1 entries, 100 bytes",
        "synced mark: segment 2, byte 100",
    ]
    assert main([str(tmp_path), "--summary"]) == 0
    assert "record at" not in capsys.readouterr().out


async def test_inspect_names_damage(tmp_path, chunks, capsys):
    """Damage is shown where it is, and the exit code says so; the file is left as it is."""
    await make(tmp_path, chunks)
    (path,) = (tmp_path / "wal").glob("*.wal")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert main([str(tmp_path)]) == 1
    assert f"DAMAGED at byte 48 of {path.name}: the file ends in a record" in (
        capsys.readouterr().out
    )
    assert path.read_bytes() == content[:-1]


async def test_inspect_needs_the_unlock_key(tmp_path, chunks, capsys, monkeypatch):
    """With autolock it asks for the key by file or on standard input."""
    kek = Kek(bytes(range(32)))
    await make(tmp_path, chunks, kek)
    assert main([str(tmp_path)]) == 1
    assert "needs to be unlocked" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(kek.format() + "\n"))
    assert main([str(tmp_path), "--unlock-key-file", "-"]) == 0
    assert "autolock on" in capsys.readouterr().out
