"""What a node asks of the leader. Imported only when there is somebody to ask: it needs grpc."""

from __future__ import annotations

from manager.daemon.membership import Admission
from manager.nodeport.leader import LeaderClient
from proto.v1 import ca_pb2, ca_pb2_grpc, managers_pb2, managers_pb2_grpc
from raft.core import Member, RaftID


async def renew(leader: LeaderClient, csr_pem: bytes) -> tuple[bytes, bytes]:
    """Have a certificate issued; return it with what it hangs from, and the roots to trust.

    Raises:
        UnavailableError: no leader answered.
        SwarmError: what it answered.
    """
    reply = await leader.call(
        lambda channel: ca_pb2_grpc.CAStub(channel).Renew, ca_pb2.RenewRequest(csr_pem=csr_pem)
    )
    return reply.certificate_pem, reply.roots_pem


async def join_group(leader: LeaderClient, *, address: str, api_address: str) -> Admission:
    """Become a learner of the managers' group, or be told again that one is; raises as `renew`."""
    reply = await leader.call(
        lambda channel: managers_pb2_grpc.ManagersStub(channel).Join,
        managers_pb2.ManagerJoinRequest(address=address, api_address=api_address),
    )
    members = tuple(
        Member(RaftID(member.member_id), member.is_voter, member.node_id, member.address)
        for member in reply.members
    )
    return Admission(RaftID(reply.member_id), members, reply.unlock_key)


async def leave(leader: LeaderClient) -> None:
    """Ask to be taken out of the managers' group; raises as `renew`."""
    await leader.call(
        lambda channel: managers_pb2_grpc.ManagersStub(channel).Leave,
        managers_pb2.ManagerLeaveRequest(),
    )
