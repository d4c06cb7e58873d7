"""What a leader knows of one peer, and how much it may send it.

    PROBE --accepted--> REPLICATE --rejected--> PROBE --entries gone--> SNAPSHOT --reported--> PROBE

While probing, one small batch at a time is under way. While replicating, batches follow each other
without waiting, up to a number and a sum of bytes, so that large entries do not fill the link that
heartbeats need too. While a snapshot is under way nothing else is sent but heartbeats, and so it is
with a peer that is lost, until it answers.

Only an answer makes room. What is not answered may be lost, or be waiting for a slow disk: an
append without entries asks which, so that nothing is ever sent on a guess.
"""

from __future__ import annotations

import enum
from collections import deque

from proto.errors import InvariantViolationError


class Stance(enum.Enum):
    """How a leader treats a peer."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One peer's state; see the module.

    Attributes:
        match: the peer's log equals ours up to here, durably.
        next: the next entry to send.
        heard: the tick of our clock when it last answered in this term.
        round: the newest heartbeat round that it answered.
        moved: the tick of our clock when it last came nearer, or a snapshot to it began or ended.
        commit_sent: the newest commit index it was told.
        snapshot_index: what is under way in `SNAPSHOT`.
    """

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_is_waiting",
        "_messages_max",
        "_under_way",
        "commit_sent",
        "heard",
        "is_idle",
        "is_lost",
        "is_voter",
        "match",
        "moved",
        "next",
        "round",
        "snapshot_index",
        "stance",
    )

    def __init__(self, following: int, heard: int, messages_max: int, bytes_max: int) -> None:
        """Begin with a probe of the entry `following`."""
        self.stance = Stance.PROBE
        self.match = 0
        self.next = following
        self.heard = self.moved = heard
        self.round = 0
        self.commit_sent = 0
        self.snapshot_index = 0
        self.is_voter = False
        # Nothing was sent since the last answer to a heartbeat: what was may be lost.
        self.is_idle = True
        # The link broke, and nothing was heard since.
        self.is_lost = False
        self._is_waiting = False
        self._under_way: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max

    @property
    def is_paused(self) -> bool:
        """Whether nothing more may be sent until the peer answers."""
        if self.is_lost:
            return True
        if self.stance is Stance.REPLICATE:
            return len(self._under_way) >= self._messages_max or self._bytes >= self._bytes_max
        return self._is_waiting or self.stance is Stance.SNAPSHOT

    @property
    def bytes_under_way(self) -> int:
        """How many bytes of entries were sent and not answered."""
        return self._bytes

    @property
    def reached(self) -> int:
        """From where on the peer will need entries, as far as that is known."""
        if self.stance is Stance.SNAPSHOT:
            return self.snapshot_index
        return self.match if self.stance is Stance.REPLICATE else self.next - 1

    def answers(self, clock: int) -> None:
        """The peer said something, at a tick of our clock."""
        self.heard = clock
        self.is_lost = False

    def sent(self, last: int, size: int) -> None:
        """A batch that ends at `last` goes out."""
        self.is_idle = False
        if self.stance is Stance.REPLICATE:
            self.next = last + 1
            self._under_way.append((last, size))
            self._bytes += size
        else:
            self._is_waiting = True

    def accepted(self, index: int) -> bool:
        """The peer has everything up to `index`; return whether that is news."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= index:
            self._bytes -= under_way.popleft()[1]
        is_news = index > self.match
        if is_news:
            self.match = index
            self.moved = self.heard
        self.next = max(self.next, index + 1)
        if self.stance is Stance.PROBE:
            self._to_replicate()
        elif self.stance is Stance.SNAPSHOT and self.match >= self.snapshot_index:
            self.to_probe()
            self._to_replicate()
        return is_news

    def rejected(self, index: int, agreement: int) -> bool:
        """The batch after `index` did not fit; return whether to send again.

        Args:
            index: what the peer rejected.
            agreement: the last place where both logs may agree.
        """
        if self.stance is Stance.REPLICATE:
            if index <= self.match:
                return False
            self.to_probe()
            self.next = max(self.match, min(index - 1, agreement)) + 1
            return True
        if self.stance is Stance.SNAPSHOT or index != self.next - 1 or index <= self.match:
            # An answer to something older than what is under way; or the peer forgot what it had
            # confirmed, and will find out when it is told that it is committed.
            return False
        self.next = max(self.match, min(index - 1, agreement)) + 1
        self._is_waiting = False
        return True

    def answered(self) -> bool:
        """The peer answered a heartbeat; return whether to ask if it has what was sent.

        What was sent before the last answer and is still open may be lost.
        """
        if not self.is_idle:
            self.is_idle = True
            return False
        if self.stance is Stance.SNAPSHOT:
            return False
        return self._is_waiting or self.match < self.next - 1

    def asked(self) -> None:
        """An append without entries goes out; it is repeated no sooner than a batch."""
        self.is_idle = False

    def lost(self) -> None:
        """The link broke: what was under way is probably lost, and nothing goes out for now."""
        self.to_probe()
        self.is_lost = True

    def to_probe(self) -> None:
        """Send one batch and wait."""
        self.stance = Stance.PROBE
        self._is_waiting = False
        self._under_way.clear()
        self._bytes = 0
        self.next = self.match + 1
        self.snapshot_index = 0

    def to_snapshot(self, index: int) -> None:
        """A snapshot is on its way."""
        self.stance = Stance.SNAPSHOT
        self.moved = self.heard
        self.snapshot_index = index
        self._under_way.clear()
        self._bytes = 0

    def snapshot_done(self, *, is_sent: bool) -> None:
        """The caller reports how it went; the next answer of the peer goes on from here."""
        index = self.snapshot_index
        self.moved = self.heard
        self.to_probe()
        if is_sent:
            self.next = max(self.next, index + 1)
        self._is_waiting = True

    def check(self, last: int) -> None:
        """Verify the numbers."""
        if not self.match < self.next <= last + 1:
            raise InvariantViolationError(
                f"match {self.match}, next {self.next}, last {last}: out of order"
            )
        assert self._bytes == sum(size for _, size in self._under_way)

    def _to_replicate(self) -> None:
        self.stance = Stance.REPLICATE
        self._is_waiting = False
        self.next = self.match + 1
