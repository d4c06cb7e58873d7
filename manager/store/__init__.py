"""The replicated store: typed tables with indexes, transactions, watches, snapshots."""

from manager.store.log import Entry, ReplicatedLog
from manager.store.store import Store
from manager.store.tables import TableView, View
from manager.store.transaction import (
    TRANSACTION_BYTES_MAX,
    TRANSACTION_CHANGES_MAX,
    Transaction,
)
from manager.store.watch import Change, Created, Deleted, Event, Resync, Updated, Watch

__all__ = [
    "TRANSACTION_BYTES_MAX",
    "TRANSACTION_CHANGES_MAX",
    "Change",
    "Created",
    "Deleted",
    "Entry",
    "Event",
    "ReplicatedLog",
    "Resync",
    "Store",
    "TableView",
    "Transaction",
    "Updated",
    "View",
    "Watch",
]
