"""Promises that wait for a disk: of each kind the newest says it all."""

from __future__ import annotations

from raft.core import RaftID
from raft.core.messages import AppendReply, VoteReply
from raft.promises import newest

ME, A, B = RaftID(1), RaftID(2), RaftID(3)


def test_of_what_is_accepted_the_farthest_stays():
    """By who is told and in which term; an older answer that comes later adds nothing."""
    older = [AppendReply(ME, A, 2, 5), AppendReply(ME, B, 2, 4)]
    newer = [AppendReply(ME, A, 2, 9), AppendReply(ME, A, 2, 7), AppendReply(ME, A, 3, 1)]
    expected = [AppendReply(ME, A, 2, 9), AppendReply(ME, B, 2, 4), AppendReply(ME, A, 3, 1)]
    assert newest(older, newer) == expected


def test_all_else_stays_once():
    """Votes and rejections are no numbers on one line."""
    vote = VoteReply(ME, A, 2, True)
    rejection = AppendReply(ME, A, 2, 5, is_rejected=True)
    assert newest([vote, rejection], [vote, AppendReply(ME, A, 2, 3)]) == [
        vote,
        rejection,
        AppendReply(ME, A, 2, 3),
    ]
