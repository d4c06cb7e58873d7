"""A deterministic simulator of a Raft group; see `README.md`."""
