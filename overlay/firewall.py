"""`HostFirewall`: keeps the rules of the manager's ports in this process's network namespace."""

from __future__ import annotations

import asyncio
from typing import Protocol

from typing_extensions import override

from overlay import firewall_rules
from overlay.firewall_rules import Protected
from overlay.netns import in_new_thread
from overlay.nft import Nft, NftError, open_nft


class Firewall(Protocol):
    """Decides who may connect to the manager's ports, before anything listens on them."""

    async def protect(self, protected: Protected) -> None:
        """Have the kernel protect exactly this; cheap when it does already.

        Raises:
            RuntimeFailedError: nftables is not installed, or the kernel refused.
        """

    async def remove(self) -> None:
        """Leave nothing of it in the kernel; raises as `protect`."""


class HostFirewall(Firewall):
    """See the module. One call at a time; each does its work in a thread."""

    def __init__(self) -> None:
        """Do nothing yet."""
        self._nft: Nft | None = None
        self._in_force: Protected | None = None
        self._lock = asyncio.Lock()

    @override
    async def protect(self, protected: Protected) -> None:
        """See `Firewall`. A table that somebody else removed is made again."""
        async with self._lock:
            await in_new_thread(lambda: self._protect(protected))

    @override
    async def remove(self) -> None:
        """See `Firewall`."""
        async with self._lock:
            await in_new_thread(self._remove)

    def _protect(self, protected: Protected) -> None:
        nft = self._opened()
        before = self._in_force
        self._in_force = None
        is_there = before is not None and firewall_rules.has_table(nft.list_json("list tables"))
        if not is_there or before is None:
            try:
                nft.run(firewall_rules.table_text(protected))
            except NftError:
                # A table of another version of swarmd, with which ours does not agree.
                nft.run(firewall_rules.delete_text() + firewall_rules.table_text(protected))
        elif before.is_open_to_containers != protected.is_open_to_containers:
            nft.run(firewall_rules.table_text(protected))
        elif before != protected:
            nft.run(firewall_rules.elements_text(protected))
        self._in_force = protected

    def _remove(self) -> None:
        self._in_force = None
        self._opened().run(firewall_rules.delete_text())

    def _opened(self) -> Nft:
        if self._nft is None:
            self._nft = open_nft()
        return self._nft
