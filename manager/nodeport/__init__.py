"""The node port (2378): who may call what, how errors travel, and how managers are found."""
