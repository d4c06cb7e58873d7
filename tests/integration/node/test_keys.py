"""Locking a manager at run time changes the key of what is on the disk."""


def test_autolock_at_run_time_rewrites_the_log_under_a_new_key(node):
    """No file that was readable without the unlock key is left, and all is there afterwards."""
    node.create("web", "--replicas", "2")
    before = node.wait_running("web", 2)
    raft = node.host.state / "raft"
    old = {path: path.stat().st_ino for path in raft.rglob("*.wal")}

    said = node.docker("swarm", "update", "--autolock=true").stdout

    kept = [path for path, inode in old.items() if path.exists() and path.stat().st_ino == inode]
    assert kept == []
    assert not list(raft.rglob("keys.kek*"))
    key = next(word for word in said.split() if word.startswith("SWMKEY-1-"))
    node.host.kill_daemon("KILL")
    node.start_daemon()
    node.docker("swarm", "unlock", stdin=key + "\n")
    assert before == node.wait_running("web", 2)
