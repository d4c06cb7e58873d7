"""Compiled seccomp filters, learnt from crun and given back to it.

Compiling the default profile takes crun 35 ms of processor time, more than all else of a creation,
and Debian's crun is built without its cache. It leaves the result in its state directory, and
takes such a result instead of compiling (annotation `run.oci.seccomp_bpf_data`). The profile
itself stays in the config, so a crun that does not know the annotation is merely slower.

Source: crun.1, "run.oci.seccomp_bpf_data"; crun `src/libcrun/seccomp.c`.
"""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec

ANNOTATION = "run.oci.seccomp_bpf_data"
_FILE = "seccomp.bpf"
# One for each set of capabilities and each custom profile in use; some 20 KiB each.
_FILTERS_MAX = 32
_INSTRUCTION_BYTES = 8


class FilterCache:
    """Filters by their profile, for one runtime program; lives as long as the daemon."""

    def __init__(self, runtime_name: str) -> None:
        """Keep nothing for runtimes other than crun."""
        self._is_in_use = runtime_name == "crun"
        self._filters: dict[bytes, str] = {}

    def annotations(self, profile: msgspec.Raw | None) -> dict[str, str]:
        """Return what to add to the config so that the profile need not be compiled."""
        known = None if profile is None else self._filters.get(bytes(profile))
        return {} if known is None else {ANNOTATION: known}

    def learn(self, profile: msgspec.Raw | None, state_directory: Path) -> None:
        """Keep what crun compiled for a container that it has just created."""
        if not self._is_in_use or profile is None or bytes(profile) in self._filters:
            return
        try:
            compiled = (state_directory / _FILE).read_bytes()
        except FileNotFoundError:
            return
        if not compiled or len(compiled) % _INSTRUCTION_BYTES:
            return
        if len(self._filters) >= _FILTERS_MAX:
            del self._filters[next(iter(self._filters))]
        self._filters[bytes(profile)] = base64.b64encode(compiled).decode()
