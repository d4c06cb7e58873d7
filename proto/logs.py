"""What tasks print, and how a manager asks a node for it."""

from __future__ import annotations

from typing import Literal

import msgspec

from proto.ids import NodeID, TaskID


class LogRecord(msgspec.Struct, frozen=True, array_like=True):
    """One line of output; `data` keeps its line end if it had one; `time_ns` since epoch."""

    time_ns: int
    stream: Literal["stdout", "stderr"]
    data: bytes


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines: `tail` -1 means all; `since_ns`/`until_ns` 0 means unbounded."""

    follow: bool = False
    tail: int = -1
    since_ns: int = 0
    until_ns: int = 0
    stdout: bool = True
    stderr: bool = True


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A manager's wish for the output of one task, which the task's node sends it.

    Attributes:
        id: drawn for this one; the node shows it, so it is not to be guessed.
        task_id: whose output.
        options: which lines.
        manager_id: who wants it, and gets it.
        address: the node port of that manager.
    """

    id: str
    task_id: TaskID
    options: LogOptions
    manager_id: NodeID
    address: str
