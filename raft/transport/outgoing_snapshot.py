"""Sending one snapshot: a connection of its own, as fast as the peer takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc import StatusCode, aio

from proto.errors import DeniedError, UnavailableError
from proto.v1 import raft_pb2, raft_pb2_grpc
from raft.transport.channels import secure_channel
from raft.transport.link import Surroundings, Target

Call = aio.StreamUnaryCall[raft_pb2.SnapshotChunk, raft_pb2.Accepted]


async def send_snapshot(
    target: Target, around: Surroundings, header: bytes, chunks: AsyncIterator[bytes]
) -> None:
    """Send header and content; return when the peer has taken them.

    Raises:
        DeniedError: the peer does not let us.
        UnavailableError: it was not reached, or failed or stalled meanwhile.
    """
    channel = secure_channel(
        target.address, target.server_name, around.credentials(), around.limits
    )
    try:
        stub: raft_pb2_grpc.RaftAsyncStub = raft_pb2_grpc.RaftStub(channel)
        call = stub.Snapshot(None, metadata=target.metadata())
        try:
            await _write_all(call, around, header, chunks)
            async with asyncio.timeout(around.limits.snapshot_finish_seconds_max):
                await call
        finally:
            call.cancel()
    except TimeoutError as error:
        raise UnavailableError(f"node {target.node_id} stopped taking the snapshot") from error
    except aio.AioRpcError as error:
        reason = f"node {target.node_id} did not take the snapshot: {error.details()}"
        if error.code() is StatusCode.PERMISSION_DENIED:
            raise DeniedError(reason) from error
        raise UnavailableError(reason) from error
    finally:
        await channel.close(None)


async def _write_all(
    call: Call, around: Surroundings, header: bytes, chunks: AsyncIterator[bytes]
) -> None:
    """Write the stream's messages; if the peer ends it meanwhile, return: the call knows why."""
    limits = around.limits
    try:
        async with asyncio.timeout(limits.connect_seconds_max):
            await call.write(raft_pb2.SnapshotChunk(header=header))
        async for chunk in chunks:
            for start in range(0, len(chunk), limits.snapshot_chunk_bytes):
                data = chunk[start : start + limits.snapshot_chunk_bytes]
                async with asyncio.timeout(limits.snapshot_stall_seconds_max):
                    await call.write(raft_pb2.SnapshotChunk(data=data))
        async with asyncio.timeout(limits.snapshot_stall_seconds_max):
            await call.write(raft_pb2.SnapshotChunk(is_last=True))
            await call.done_writing()
    except asyncio.InvalidStateError:
        return
