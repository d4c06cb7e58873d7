"""What was said to a former life of a member is nothing to the next one."""

from __future__ import annotations

import asyncio

from raft.core import decode
from raft.core.messages import ReadReply


def test_an_answer_to_a_former_life_is_no_answer(play):
    """A restarted member counts its reads anew; what was under way to it before is not for them."""

    async def story(group):
        a = await group.form("abc")
        b = group["b"]
        carry, kept = group.carry, []

        def keep_answers(source, name, messages, lane):
            for data in messages:
                is_answer = any(isinstance(each, ReadReply) for each in decode(data))
                if source is a and name == "b" and is_answer:
                    kept.append(data)
                else:
                    carry(source, name, [data], lane)

        group.carry = keep_answers
        read = asyncio.ensure_future(b.node.read_barrier())
        await group.until(lambda: kept)
        read.cancel()
        b.kill()
        await a.propose(b"NEW")
        await b.restart()
        await group.until(lambda: b.node._core.leader)
        for _ in range(5):
            reading = asyncio.ensure_future(b.node.read_barrier())
            await asyncio.sleep(0)
            b.node.on_messages("a", [kept[0]])
            await asyncio.sleep(0)
            assert not reading.done()
            reading.cancel()
        group.carry = carry
        assert await b.node.read_barrier() >= a.node.applied_index

    play(story)
