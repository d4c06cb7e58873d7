"""Says whether a line that repeats is due again. Pure."""

from __future__ import annotations

from collections.abc import Hashable

SECONDS_BETWEEN = 60.0
KEYS_MAX = 256


class Throttle:
    """Remembers when each key was last due; `KEYS_MAX` of them, then it forgets the oldest."""

    def __init__(self) -> None:
        """Know nothing: every key is due at first."""
        self._last: dict[Hashable, float] = {}

    def is_due(self, key: Hashable, now: float) -> bool:
        """Tell whether the key was not due within the last minute; if so, it is now.

        Args:
            key: what the line is about.
            now: seconds, monotonic.
        """
        last = self._last.get(key)
        if last is not None and now - last < SECONDS_BETWEEN:
            return False
        self._last.pop(key, None)
        if len(self._last) >= KEYS_MAX:
            self._last.pop(next(iter(self._last)))
        self._last[key] = now
        return True
