"""The replicated log: an encrypted write-ahead log and snapshots, with one member for now."""
