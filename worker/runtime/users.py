"""Who the container's process is: `user[:group]` looked up in the image's own files.

`resolve` is pure and takes the texts of /etc/passwd and /etc/group; `read_in_root` reads such a
file without ever leaving the container's root, whatever links the image holds.

Source: moby/sys `user/user.go` (GetExecUser, GetAdditionalGroups); the sentences are Docker's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

import msgspec

from proto.errors import InvalidError
from proto.text import QUOTED_CHARACTERS_MAX, printable
from worker.files import beneath

# An /etc/passwd larger than this is no list of users.
FILE_BYTES_MAX = 4 << 20
# No such file, a link to itself, something that is no directory on the way.
_ABSENT = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR})
_ID_MAX = (1 << 31) - 1
# More digits than any number has that is used here; Python refuses to read thousands of them.
_DIGITS_MAX = 20


class Identity(msgspec.Struct, frozen=True):
    """User and groups of a process, and the user's home directory."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


class _User(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int
    home: str


class _Group(msgspec.Struct, frozen=True):
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(user: str, groups: Sequence[str], passwd: str, group: str) -> Identity:
    """Find `user` ("", `name`, `uid`, either with `:group`) and the additional `groups`.

    The first matching line wins. A number need not be in the files; a name must be.

    Raises:
        InvalidError: a name is not in its file, or a number is out of range.
    """
    user_name, _, group_name = user.partition(":")
    found = _find_user(user_name or "0", passwd)
    if found is None:
        found = _User("", _number(user_name or "0", "user", "passwd"), 0, "/")
    gid = found.gid
    additional: list[int] = []
    if group_name:
        gid = _find_group(group_name, group)
    elif found.name:
        additional = [entry.gid for entry in _groups(group) if found.name in entry.members]
    additional.extend(_find_group(name, group) for name in groups)
    # The primary group is repeated among the others: a set-group-ID program must not be able to
    # leave a group that the files deny something to (CVE-2022-36109).
    return Identity(found.uid, gid, tuple(dict.fromkeys([gid, *additional])), found.home or "/")


def _find_user(name: str, passwd: str) -> _User | None:
    number = int(name) if _is_id(name) else None
    for line in passwd.splitlines():
        match line.strip().split(":"):
            case [login, _, uid, gid, *rest] if _is_id(uid) and _is_id(gid):
                if int(uid) == number if number is not None else login == name:
                    return _User(login, int(uid), int(gid), rest[1] if rest[1:] else "")
            case _:
                continue
    return None


def _find_group(name: str, group: str) -> int:
    number = int(name) if _is_id(name) else None
    for entry in _groups(group):
        if entry.gid == number if number is not None else entry.name == name:
            return entry.gid
    return _number(name, "group", "group")


def _groups(group: str) -> Iterator[_Group]:
    for line in group.splitlines():
        match line.strip().split(":"):
            case [name, _, gid, *rest] if _is_id(gid):
                yield _Group(name, int(gid), tuple(rest[0].split(",")) if rest else ())
            case _:
                continue


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_id(text: str) -> bool:
    """Whether a field is a number that the kernel takes for a user or group."""
    return _is_number(text) and len(text) <= _DIGITS_MAX and int(text) <= _ID_MAX


def _number(name: str, kind: str, file: str) -> int:
    shown = printable(name, QUOTED_CHARACTERS_MAX)
    if not _is_number(name):
        raise InvalidError(f"unable to find {kind} {shown}: no matching entries in {file} file")
    if len(name) > _DIGITS_MAX or int(name) > _ID_MAX:
        raise InvalidError(
            f"unable to find {kind} {shown}: uids and gids must be in range 0-{_ID_MAX}"
        )
    return int(name)


def read_in_root(root_fd: int, path: str) -> str:
    """Read a small regular file of the container; "" if it has none.

    Links are followed inside the root only. A FIFO or device with that name counts as absent and
    is never opened, so that an image can neither make the daemon wait nor have it start something.
    """
    try:
        descriptor = beneath.open_regular(root_fd, path)
    except OSError as error:
        if error.errno in _ABSENT:
            return ""
        raise
    if descriptor is None:
        return ""
    try:
        return os.read(descriptor, FILE_BYTES_MAX).decode(errors="replace")
    finally:
        os.close(descriptor)
