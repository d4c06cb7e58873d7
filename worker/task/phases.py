"""What is being done with a task's container, and what may follow what. Pure.

phase        under way        leaves with        to
-----------  ---------------  -----------------  ------------------------------------------
NEW          -                Found              any of the below, see `_found`
IDLE         -                wished: run        PREPARING (Prepare)
                              wished: stop       REMOVING (Remove)
PREPARING    Prepare          PrepareDone        PREPARED
                              PrepareFailed      REMOVING (Remove), state REJECTED
                              wished: stop       CANCELLING (CancelPrepare)
CANCELLING   Prepare          its outcome        REMOVING (Remove), state SHUTDOWN
PREPARED     -                wished: run        STARTING (Start)
                              wished: stop       REMOVING (Remove), state SHUTDOWN
STARTING     Start            Started            PROBING, PUBLISHING, RUNNING or STOPPING
                              StartFailed        REMOVING (Remove), state FAILED
PROBING      process, checks  a check succeeds   PUBLISHING or RUNNING
                              wished: stop       WITHDRAWING (Withdraw) or STOPPING (Kill)
PUBLISHING   process, ports   Published          RUNNING
                              wished: stop       WITHDRAWING (Withdraw)
RUNNING      process          wished: stop       WITHDRAWING (Withdraw) or STOPPING (Kill)
WITHDRAWING  process, ports   Withdrawn          STOPPING (Kill)
                              Exited             RELEASING
STOPPING     process          timer              STOPPING (Kill with SIGKILL)
RELEASING    ports            Withdrawn          DETACHING (Detach)
DETACHING    Detach           Detached           ENDED or REMOVING
ENDED        -                Unassigned         REMOVING (Remove)
REMOVING     Remove           Removed            ENDED or GONE (Forget)
                              RemoveFailed       REMOVING, again after a pause
GONE         -                -
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """What is being done with the task's container; see the module's table."""

    NEW = "new"
    IDLE = "idle"
    PREPARING = "preparing"
    CANCELLING = "cancelling"
    PREPARED = "prepared"
    STARTING = "starting"
    PROBING = "probing"
    PUBLISHING = "publishing"
    RUNNING = "running"
    WITHDRAWING = "withdrawing"
    STOPPING = "stopping"
    RELEASING = "releasing"
    DETACHING = "detaching"
    ENDED = "ended"
    REMOVING = "removing"
    GONE = "gone"


_P = Phase
# The module's table as data; `_enter` refuses everything else.
PHASES_AFTER: dict[Phase, frozenset[Phase]] = {
    _P.NEW: frozenset(
        {
            _P.IDLE,
            _P.PREPARED,
            _P.PROBING,
            _P.PUBLISHING,
            _P.RUNNING,
            _P.STOPPING,
            _P.DETACHING,
            _P.REMOVING,
        }
    ),
    _P.IDLE: frozenset({_P.PREPARING, _P.REMOVING}),
    _P.PREPARING: frozenset({_P.PREPARED, _P.CANCELLING, _P.REMOVING}),
    _P.CANCELLING: frozenset({_P.REMOVING}),
    _P.PREPARED: frozenset({_P.STARTING, _P.REMOVING}),
    _P.STARTING: frozenset({_P.PROBING, _P.PUBLISHING, _P.RUNNING, _P.STOPPING, _P.REMOVING}),
    _P.PROBING: frozenset(
        {_P.PUBLISHING, _P.RUNNING, _P.WITHDRAWING, _P.STOPPING, _P.RELEASING, _P.DETACHING}
    ),
    _P.PUBLISHING: frozenset({_P.RUNNING, _P.WITHDRAWING, _P.RELEASING}),
    _P.RUNNING: frozenset({_P.WITHDRAWING, _P.STOPPING, _P.RELEASING, _P.DETACHING}),
    _P.WITHDRAWING: frozenset({_P.STOPPING, _P.RELEASING}),
    _P.STOPPING: frozenset({_P.DETACHING}),
    _P.RELEASING: frozenset({_P.DETACHING}),
    _P.DETACHING: frozenset({_P.ENDED, _P.REMOVING}),
    _P.ENDED: frozenset({_P.REMOVING}),
    _P.REMOVING: frozenset({_P.ENDED, _P.GONE}),
    _P.GONE: frozenset(),
}
PHASES_WITH_PROCESS = frozenset(
    {_P.PROBING, _P.PUBLISHING, _P.RUNNING, _P.WITHDRAWING, _P.STOPPING}
)
# An operation that makes or starts the container is under way.
PHASES_WITH_MAKING = frozenset({_P.PREPARING, _P.STARTING})
PHASES_HOLDING_PORTS = frozenset(
    {_P.STARTING, _P.PROBING, _P.PUBLISHING, _P.RUNNING, _P.WITHDRAWING, _P.RELEASING}
)
