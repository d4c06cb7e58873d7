"""Two members on a loopback that is cut and healed; prints how long they took to notice each."""

import asyncio
import importlib.util
import subprocess
import time
from pathlib import Path

PARTS = Path(__file__).parents[2] / "integration/raft_transport/conftest.py"
RULES = "table inet cut { chain in { type filter hook input priority 0; iif lo counter drop; }; }"


def run(*command):
    """Run a command that must succeed."""
    subprocess.run(command, check=True, timeout=10)


async def main():
    """Connect, cut, heal."""
    spec = importlib.util.spec_from_file_location("parts", PARTS)
    parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parts)
    authority = parts.Authority()
    a = await parts.Member("a", authority.issue("a")).start()
    b = await parts.Member("b", authority.issue("b")).start()
    a.transport.set_peer("b", b.address)
    b.transport.set_peer("a", a.address)

    def both():
        return a.transport.reachable("b") and b.transport.reachable("a")

    def neither():
        return not a.transport.reachable("b") and not b.transport.reachable("a")

    await parts.eventually(both)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    run("nft", RULES)
    await parts.eventually(neither)
    noticed = time.monotonic() - began
    await asyncio.sleep(1.5)
    began = time.monotonic()
    run("nft", "delete", "table", "inet", "cut")
    await parts.eventually(both)
    healed = time.monotonic() - began
    await a.transport.close()
    await b.transport.close()
    print(noticed, healed)


run("ip", "link", "set", "lo", "up")
asyncio.run(main())
