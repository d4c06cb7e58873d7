"""Runtimes: `oci` runs real containers by crun or runc under conmon, `sim` pretends."""
