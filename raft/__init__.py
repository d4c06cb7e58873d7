"""The replicated log: consensus, an encrypted write-ahead log and snapshots."""
