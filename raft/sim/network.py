"""The network of the simulator: messages are lost, late, doubled, overtaken and cut off."""

from __future__ import annotations

import random
from collections.abc import Collection

import msgspec

# Numbers of hosts are below this.
_HOSTS_MAX = 64
# The part of messages to the laggard that is late, if nobody says otherwise.
_LAGGARD_LATE = 0.5


class Weather(msgspec.Struct, frozen=True):
    """How the network behaves; times are in units of a tenth of a tick.

    Attributes:
        loss: the part of messages that vanishes.
        double: the part that arrives twice.
        late: the part that takes `late_time` longer, up to.
        delay_min: what each takes at least.
        delay_spread: and how much more at most; messages overtake each other within it.
        late_time: for those that are late.
    """

    loss: float = 0.0
    double: float = 0.0
    late: float = 0.0
    delay_min: float = 0.5
    delay_spread: float = 1.0
    late_time: float = 200.0


class Network:
    """Decides what becomes of a message.

    Attributes:
        weather: for all.
        laggard: a host to which many messages are late; 0 for none.
        laggard_late: the part of them that is.
    """

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        """Start whole."""
        self._random = rng.random
        self.weather = weather
        self.laggard = 0
        self.laggard_late = _LAGGARD_LATE
        self._cut: set[int] = set()

    def delays(self, sender: int, to: int, late: float = 0.0) -> tuple[float, ...]:
        """Return after which times a message arrives: never, once or twice; `late` is on top."""
        if self._cut and sender * _HOSTS_MAX + to in self._cut:
            return ()
        weather = self.weather
        chance = self._random()
        if chance < weather.loss:
            return ()
        delay = late + weather.delay_min + weather.delay_spread * self._random()
        chance -= weather.loss
        if chance < weather.late or (to == self.laggard and chance < self.laggard_late):
            return (delay + weather.late_time * self._random(),)
        if chance > 1.0 - weather.double - weather.loss:
            return (delay, delay + weather.delay_spread * self._random() * 4)
        return (delay,)

    def cut(self, sender: int, to: int) -> None:
        """Drop what goes from one to another, in this direction."""
        assert 0 < sender < _HOSTS_MAX
        assert 0 < to < _HOSTS_MAX
        self._cut.add(sender * _HOSTS_MAX + to)

    def split(self, some: Collection[int], others: Collection[int]) -> None:
        """Cut both ways between two groups."""
        for a in some:
            for b in others:
                self.cut(a, b)
                self.cut(b, a)

    def heal(self) -> None:
        """Join everything."""
        self._cut.clear()
        self.laggard = 0
        self.laggard_late = _LAGGARD_LATE

    def is_cut(self, sender: int, to: int) -> bool:
        """Whether messages from one to another are dropped."""
        return sender * _HOSTS_MAX + to in self._cut

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut."""
        return not self._cut
