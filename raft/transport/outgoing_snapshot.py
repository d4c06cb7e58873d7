"""Sending one snapshot: a connection of its own, as fast as the peer takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc import aio

from proto.errors import DeniedError, UnavailableError
from proto.v1 import raft_pb2, raft_pb2_grpc
from raft.transport.channels import secure_channel
from raft.transport.limits import Limits
from raft.transport.link import Surroundings, Target, outcome_of, wait_accepted

Call = aio.StreamUnaryCall[raft_pb2.SnapshotChunk, raft_pb2.Outcome]


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
    stub: raft_pb2_grpc.RaftAsyncStub = raft_pb2_grpc.RaftStub(channel)
    call = stub.Snapshot(None, metadata=target.metadata())
    try:
        if await wait_accepted(call, target, around.limits):
            await _write_all(call, around.limits, header, chunks)
        outcome = await outcome_of(call, around.limits.snapshot_finish_seconds_max)
    except TimeoutError as error:
        raise UnavailableError(f"node {target.node_id} stopped taking the snapshot") from error
    finally:
        call.cancel()
        await channel.close(None)
    if outcome.refusal:
        reason = f"node {target.node_id} did not take the snapshot: {outcome.refusal}"
        raise DeniedError(reason) if outcome.is_denied else UnavailableError(reason)


async def _write_all(
    call: Call, limits: Limits, header: bytes, chunks: AsyncIterator[bytes]
) -> None:
    """Write the stream's messages; if the peer ends it meanwhile, return.

    What a write raises then is not the reason; the call itself has it.
    """
    try:
        async with asyncio.timeout(limits.snapshot_stall_seconds_max):
            await call.write(raft_pb2.SnapshotChunk(header=header))
        async for chunk in chunks:
            for start in range(0, len(chunk), limits.snapshot_chunk_bytes):
                data = chunk[start : start + limits.snapshot_chunk_bytes]
                async with asyncio.timeout(limits.snapshot_stall_seconds_max):
                    await call.write(raft_pb2.SnapshotChunk(data=data))
        async with asyncio.timeout(limits.snapshot_stall_seconds_max):
            await call.write(raft_pb2.SnapshotChunk(is_last=True))
            await call.done_writing()
    except (aio.AioRpcError, asyncio.InvalidStateError):
        return
