"""Tells the managers when something about this node has changed since it was last told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proto.objects import NodeDescription

DESCRIBE_SECONDS = 5.0
"""How often it is looked; a comparison. Source: swarmkit agent/agent.go looks every 20 s, but here
the description also says what hampers the node."""

DESCRIBE_ITSELF_SECONDS = 300.0
"""The same on the leader's own node, which shall not wake up for nothing while it is idle. What
hampers it stands in its own `info` at once."""


async def keep_described(
    told: NodeDescription,
    describe: Callable[[], NodeDescription],
    send: Callable[[NodeDescription], Awaitable[None]],
    *,
    is_own: bool = False,
) -> None:
    """Send each changed description, until cancelled; what `send` raises, it raises."""
    while True:
        await asyncio.sleep(DESCRIBE_ITSELF_SECONDS if is_own else DESCRIBE_SECONDS)
        newer = describe()
        if newer != told:
            await send(newer)
            told = newer
