"""Sends the output of this node's tasks to managers of its cluster, from the first wish on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proto.ids import ClusterID
from proto.logs import LogRequest
from raft.transport.identity import CredentialsSource

if TYPE_CHECKING:
    from manager.logbroker.publisher import LogPublisher, Read


class Publishing:
    """A `LogPublisher` made when it is needed: grpc takes memory that a node alone does without."""

    def __init__(self, read: Read) -> None:
        """Have none yet; `read` yields the output of a task of this node."""
        self._read = read
        self._publisher: LogPublisher | None = None

    def take(
        self, request: LogRequest, cluster_id: ClusterID, credentials: CredentialsSource
    ) -> None:
        """Begin to fulfil a wish."""
        if self._publisher is None:
            from manager.logbroker.publisher import LogPublisher  # noqa: PLC0415 -- as above

            self._publisher = LogPublisher(cluster_id, credentials, self._read)
        self._publisher.take(request)

    async def close(self) -> None:
        """Give up all streams; the next wish may be another cluster's."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.close()
