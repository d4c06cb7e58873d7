"""One member of the negative control: PySyncObj with the lists and their clients' protocol.

The library gets every help that its settings offer: a journal and a dump on disk, one thread that
ticks it, and no code of ours between it and its files or sockets. Reads go through its log, since
it has no other linearizable ones.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable

import config as member_config
from checker import ACKED, REFUSED, UNKNOWN
from state import Lists
from wire import Answer, Reply, Request, serve_in_threads

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports modules that Python is about to drop
    from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

NEVER = 10**9
SURELY_NOT = {FAIL_REASON.QUEUE_FULL, FAIL_REASON.MISSING_LEADER, FAIL_REASON.REQUEST_DENIED}
TICK_SECONDS = 0.05


class Store(SyncObj):
    """The lists, replicated."""

    def __init__(self, config: member_config.MemberConfig) -> None:
        compaction = config.snapshot_entries or NEVER
        others = [address for address in config.addresses if address != config.address]
        settings = SyncObjConf(
            autoTick=False,
            journalFile=os.path.join(config.directory, "journal"),  # noqa: PTH118 -- wants str
            fullDumpFile=os.path.join(config.directory, "dump"),  # noqa: PTH118 -- the same
            logCompactionMinEntries=compaction,
            logCompactionMinTime=NEVER,
            appendEntriesUseBatch=config.batching,
            connectionRetryTime=0.2,
        )
        super().__init__(config.address, others, settings)
        # Attributes that are set after this call are what its dumps hold.
        self.content = Lists()

    @replicated
    def append(self, key: str, value: int, _padding: bytes) -> None:
        """Append everywhere."""
        self.content.append(key, value)

    @replicated
    def read(self, key: str) -> tuple[int, int]:
        """Read at one place in the log."""
        return self.content.read(key)


class Member:
    """Translates between clients and the store."""

    def __init__(self, config: member_config.MemberConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._padding = config.padding()

    def handle(self, request: Request, answer: Answer) -> None:
        """Answer a request, now or when the library calls back."""
        match request.op:
            case "append":
                done = self._called_back(request, answer)
                self._store.append(request.key, request.value, self._padding, callback=done)
            case "read":
                self._store.read(request.key, callback=self._called_back(request, answer))
            case "dump":
                answer(Reply(request.id, ACKED, lists=self._store.content.lists))
            case "status":
                answer(self._status(request))
            case _:
                answer(Reply(request.id, REFUSED, f"{request.op} is not known"))

    def _called_back(
        self, request: Request, answer: Answer
    ) -> Callable[[tuple[int, int] | None, int], None]:
        def called_back(result: tuple[int, int] | None, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                length, digest = result or (0, 0)
                reply = Reply(request.id, ACKED, length=length, digest=digest)
            else:
                outcome = REFUSED if reason in SURELY_NOT else UNKNOWN
                reply = Reply(request.id, outcome, f"reason {reason}")
            answer(reply)

        return called_back

    def _status(self, request: Request) -> Reply:
        leader = self._store._getLeader()
        address = "" if leader is None else leader.id
        known = address in self._config.addresses
        return Reply(
            request.id,
            ACKED,
            leader=self._config.addresses.index(address) if known else -1,
            is_leader=self._store._isLeader(),
            applied=self._store.raftLastApplied,
            term=self._store.raftCurrentTerm,
        )


def tick(store: Store) -> None:
    """Be its thread, as its own would be, but begun only when the state is there."""
    while True:
        try:
            store.doTick(TICK_SECONDS)
        except Exception:
            # Its own thread does just this.
            logging.getLogger("member").exception("tick failed")
            threading.Event().wait(TICK_SECONDS)


def main() -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.ERROR)
    config = member_config.load()
    store = Store(config)
    member = Member(config, store)
    threading.Thread(target=tick, args=(store,), daemon=True).start()
    serve_in_threads(config.socket, member.handle)


if __name__ == "__main__":
    main()
