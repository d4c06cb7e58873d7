"""What `python -m raft.inspect` tells a person."""

from __future__ import annotations

import io

import pytest

from raft.inspect import main
from raft.keys import Kek, KeyRing


def make(open_direct, directory, kek=None, *, is_installed=False):
    """Make a member's log: a snapshot, a record after it, and something secret in both."""
    keys = KeyRing.create(directory, kek=kek)
    log = open_direct(directory, keys)
    log.write(b"secret-1")
    log.save_snapshot(1, b"secret-state", is_installed=is_installed)
    log.write(b"secret-22")
    log.close()
    keys.close()


@pytest.mark.parametrize("is_installed", [False, True])
def test_inspect_prints_sizes_and_indexes_and_no_content(
    tmp_path, open_direct, capsys, is_installed
):
    """Segments, records, snapshots and the mark are listed; the content is not."""
    make(open_direct, tmp_path, is_installed=is_installed)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    origin = ", sent by a leader" if is_installed else ""
    told = "member 7, term 1, vote 7, commit 1"
    assert output.splitlines() == [
        "data keys 1, current 1; autolock off",
        f"snapshot {1:016x}.snap: state at entry 1, 1 chunks, 12 bytes; term 1{origin}",
        f"segment {2:016x}.wal: from entry 2, data key 1",
        "  record at byte 48, 40 bytes: member 7, term 1, vote 7, commit 0",
        f"  record at byte 88, 58 bytes: {told}; entries 2-2 of 9 bytes, term 1 from 2",
        "  2 records, 1 entries, 146 bytes",
        "synced mark: segment 2, byte 146",
    ]
    assert main([str(tmp_path), "--summary"]) == 0
    assert "record at" not in capsys.readouterr().out


async def test_inspect_names_the_group(tmp_path, real_keys, start_member, capsys):
    """A membership is the one entry whose content is told: who the managers are and where."""
    member = await start_member(tmp_path / "log", real_keys, is_new=True)
    await member.propose(b"secret")
    await member.close()
    assert main([str(tmp_path / "log"), "--keys", str(tmp_path / "keys")]) == 0
    output = capsys.readouterr().out
    number = member.raft.status()[0].member_id
    assert f"1 is a membership: {number} (voter, node n1 at n1:1); 0 removed" in output
    assert "secret" not in output


def test_inspect_names_damage(tmp_path, open_direct, capsys):
    """Damage is shown where it is, and the exit code says so; the file is left as it is."""
    make(open_direct, tmp_path)
    (path,) = (tmp_path / "wal").glob("*.wal")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert main([str(tmp_path)]) == 1
    assert f"DAMAGED at byte 88 of {path.name}: the file ends in a record" in (
        capsys.readouterr().out
    )
    assert path.read_bytes() == content[:-1]


def test_inspect_names_a_damaged_snapshot(tmp_path, open_direct, capsys):
    """The same for a snapshot, and the log is told all the same."""
    make(open_direct, tmp_path)
    (path,) = (tmp_path / "snapshots").glob("*.snap")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f" of {path.name}: " in output
    assert "2 records, 1 entries, 146 bytes" in output
    assert path.read_bytes() == content[:-1]


def test_inspect_needs_the_unlock_key(tmp_path, open_direct, capsys, monkeypatch):
    """With autolock it asks for the key by file or on standard input."""
    kek = Kek(bytes(range(32)))
    make(open_direct, tmp_path, kek)
    assert main([str(tmp_path)]) == 1
    assert "needs to be unlocked" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(kek.format() + "\n"))
    assert main([str(tmp_path), "--unlock-key-file", "-"]) == 0
    assert "autolock on" in capsys.readouterr().out
