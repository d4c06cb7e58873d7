"""The AppArmor profile of containers, where the kernel has AppArmor.

It repeats what namespaces, read-only mounts and masked paths do already, for the case that one of
them fails, and adds what they cannot: no mount of any kind, signals and tracing among the
containers' own processes only, and no sockets of two families, whichever system call asks for them.
`profile_text` is pure; `load_default` gives it to the kernel once, at the daemon's start.

Source: what Docker's default profile allows (moby `profiles/apparmor`); apparmor.d(5).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import structlog

from proto.errors import reason_of

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

PROFILE = "swarm-default"
PARSER = "apparmor_parser"
PARSER_SECONDS_MAX = 30.0
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_INTERFACE = Path("/sys/kernel/security/apparmor")
# The language of version 3: in a later one `network` does not cover unix sockets any more.
_ABI = Path("/etc/apparmor.d/abi/3.0")

_DENIED_FAMILIES = ("alg", "vsock")
_UNREADABLE = (
    "/proc/kcore",
    "/proc/sysrq-trigger",
    "/sys/devices/virtual/powercap/**",
    "/sys/firmware/**",
    "/sys/kernel/security/**",
)
# Directories of processes are named by numbers, all others by words.
_UNWRITABLE = ("/proc/*", "/proc/[a-z]*/**")
_WRITABLE_OF_SYS = ("fs", "cgroup")


def profile_text(*, has_abi: bool = True) -> str:
    """Write the profile; `has_abi` says whether the parser knows the language's version 3."""
    own = f'peer="{PROFILE}"'
    rules = [
        *("capability", "file", "network", "umount", "deny mount"),
        *(f"deny network {family}" for family in _DENIED_FAMILIES),
        # Who stops a container: the daemon, its monitor, the runtime, where that has a profile.
        *(f"signal (receive) peer={peer}" for peer in ("unconfined", "crun", "runc")),
        f"signal (send,receive) {own}",
        f"ptrace (trace,tracedby,read,readby) {own}",
        *(f"deny {path} rwklx" for path in _UNREADABLE),
        *(f"deny {path} w" for path in _UNWRITABLE),
        *(f"deny {path}/** wklx" for path in _all_but("/sys", _WRITABLE_OF_SYS)),
    ]
    head = "abi <abi/3.0>,\n\n" if has_abi else ""
    body = "".join(f"  {rule},\n" for rule in rules)
    return f'{head}profile "{PROFILE}" flags=(attach_disconnected,mediate_deleted) {{\n{body}}}\n'


def _all_but(root: str, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield patterns that together fit all directories below `root` but one and what is in it.

    The language has no "all but": a name is another one if it differs in some letter or is longer.
    """
    for part in parts:
        for at, letter in enumerate(part):
            yield f"{root}/{part[:at]}[^{letter}]*"
        yield f"{root}/{part}?*"
        root = f"{root}/{part}"


def load_default() -> str:
    """Give the profile to the kernel, and return its name; "" where there is no AppArmor."""
    try:
        is_enabled = _ENABLED.read_text().strip() == "Y" and _INTERFACE.is_dir()
    except OSError:
        is_enabled = False
    if not is_enabled:
        return ""
    parser = shutil.which(PARSER)
    if parser is None:
        log.warning("apparmor_not_used", reason=f"{PARSER} is missing", remedy="install apparmor")
        return ""
    try:
        subprocess.run(
            [parser, "--skip-cache", "--replace"],
            input=profile_text(has_abi=_ABI.exists()),
            text=True,
            capture_output=True,
            check=True,
            timeout=PARSER_SECONDS_MAX,
        )
    except subprocess.CalledProcessError as error:
        log.warning("apparmor_not_used", reason=error.stderr.strip()[-500:])
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("apparmor_not_used", reason=reason_of(error))
    else:
        return PROFILE
    return ""
