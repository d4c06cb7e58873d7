"""What streams of the node port have in common: how they are let in, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

_ADMITTED = "swarm-admitted"
# Initial metadata of a stream whose caller may speak; a refusal has none. Whoever opens one waits
# for it: a refusal that meets a write under way would lose its reason.


class Admits(Protocol):
    """The part of a servicer's context that sends initial metadata."""

    async def send_initial_metadata(self, initial_metadata: Any, /) -> None:
        """Send it."""


async def admit(context: Admits) -> None:
    """Let the caller speak."""
    await context.send_initial_metadata(((_ADMITTED, "1"),))


def is_admitted(metadata: Iterable[tuple[str, object]]) -> bool:
    """Tell by a call's initial metadata whether one may speak; if not, the call has its reason."""
    return any(key == _ADMITTED for key, _ in metadata)


async def until_first(*works: Coroutine[Any, Any, Any]) -> None:
    """Run all until one is done; end the others, and raise what failed."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
