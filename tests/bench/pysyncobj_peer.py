"""How many entries a second PySyncObj commits: three processes on loopback, asked by its leader.

`measure` is for `raft.py` next door, which sets the figures beside ours; run as a program it prints
one line of JSON for 1, 64 and 512 callers, default and tuned. A caller appends its next entry when
the one before is committed and applied at the leader.

Default: the library's own settings and a journal on disk, which it never syncs. Tuned: no journal,
frequent ticks, large buffers and batches. Neither encrypts or syncs anything, as ours does.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MEMBERS = 3
ENTRY_BYTES = 200
START_SECONDS_MAX = 30.0
TUNED = {
    "appendEntriesUseBatch": True,
    "appendEntriesPeriod": 0.002,
    "autoTickPeriod": 0.001,
    "raftMinTimeout": 0.3,
    "raftMaxTimeout": 0.6,
    "connectionRetryTime": 0.2,
    "sendBufferSize": 1 << 20,
    "recvBufferSize": 1 << 20,
    "appendEntriesBatchSizeBytes": 1 << 20,
}


def measure(callers: int, seconds: float, *, tuned: bool) -> float:
    """Return the commits a second; takes some seconds more to begin.

    Args:
        callers: how many append at a time.
        seconds: how long is measured.
        tuned: with the settings that make it fast.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(MEMBERS)]
    with tempfile.TemporaryDirectory(prefix="pysyncobj-") as folder:
        processes = []
        try:
            for number in range(MEMBERS):
                config = json.dumps([number, addresses, folder, callers, seconds, tuned])
                command = [sys.executable, __file__, "member", config]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                processes.append(process)
            return _first_answer(processes, START_SECONDS_MAX + seconds)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait(10)
                process.stdout.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _first_answer(processes: list[subprocess.Popen[str]], seconds: float) -> float:
    """Return what the one that became leader has measured."""
    answers: list[float] = []
    is_there = threading.Event()

    def listen(process: subprocess.Popen[str]) -> None:
        line = process.stdout.readline()
        if line:
            answers.append(float(line))
            is_there.set()

    for process in processes:
        threading.Thread(target=listen, args=(process,), daemon=True).start()
    assert is_there.wait(seconds), "no leader of PySyncObj came up and measured in time"
    return answers[0]


def member(config: str) -> None:
    """Be one of the three; measure as soon as this one leads and all are connected."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports modules that Python is about to drop
        from pysyncobj import SyncObj, SyncObjConf, replicated

    logging.disable(logging.CRITICAL)
    number, addresses, folder, callers, seconds, tuned = json.loads(config)
    settings = TUNED if tuned else {"journalFile": str(Path(folder) / f"journal{number}")}

    class Store(SyncObj):
        """Counts what it is given."""

        def __init__(self) -> None:
            self.count = 0
            others = [address for place, address in enumerate(addresses) if place != number]
            super().__init__(addresses[number], others, SyncObjConf(**settings))

        @replicated
        def append(self, _entry: bytes) -> None:
            self.count += 1

    store = Store()
    while True:
        time.sleep(0.05)
        connected = sum(store.isNodeConnected(node) for node in store.otherNodes)
        if store._isLeader() and store.isReady() and connected == MEMBERS - 1:
            break
    print(_commits_a_second(store, callers, seconds), flush=True)
    threading.Event().wait()


def _commits_a_second(store: object, callers: int, seconds: float) -> float:
    entry = bytes(range(256))[:ENTRY_BYTES]
    committed = 0
    began = time.perf_counter()
    until = began + seconds
    is_over = threading.Event()

    def append() -> None:
        store.append(entry, callback=called_back)

    def called_back(_result: None, reason: int) -> None:
        nonlocal committed
        if time.perf_counter() >= until:
            is_over.set()
            return
        committed += reason == 0
        append()

    for _ in range(callers):
        append()
    is_over.wait(seconds + 10.0)
    return committed / seconds


def main() -> None:
    """Measure all and print them."""
    line = {
        f"{name}_c{callers}": round(measure(callers, 4.0, tuned=tuned), 1)
        for name, tuned in (("default", False), ("tuned", True))
        for callers in (1, 64, 512)
    }
    print(json.dumps(line))


if __name__ == "__main__":
    if sys.argv[1:2] == ["member"]:
        member(sys.argv[2])
    else:
        main()
