"""Decides when a container's health check runs and what its results mean. Pure.

The rules are Docker's. The state starts as STARTING. The first success makes it HEALTHY; `retries`
failures in a row make it UNHEALTHY, but those which began within the start period do not count as
long as nothing succeeded. The pause between two checks counts from the end of the former; within
the start period, until the first success, it is the start interval.

Source: Docker's Dockerfile reference, HEALTHCHECK (30 s, 30 s, 3, 0 s, 5 s).
"""

from __future__ import annotations

from enum import Enum

from proto.objects import NANOSECONDS, HealthConfig

INTERVAL_SECONDS = 30.0
TIMEOUT_SECONDS = 30.0
RETRIES = 3
START_INTERVAL_SECONDS = 5.0


class Health(Enum):
    """What the checks say so far."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


def merged(spec: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    """Lay the spec's health check over the image's; None when there is no check.

    As Docker merges them: what the spec leaves empty comes from the image, and a test of `NONE`
    switches the check off.
    """
    base = image if image is not None else HealthConfig()
    if spec is not None:
        base = HealthConfig(
            test=spec.test or base.test,
            interval_ns=spec.interval_ns or base.interval_ns,
            timeout_ns=spec.timeout_ns or base.timeout_ns,
            retries=spec.retries or base.retries,
            start_period_ns=spec.start_period_ns or base.start_period_ns,
            start_interval_ns=spec.start_interval_ns or base.start_interval_ns,
        )
    return base if command_of(base) else None


def command_of(config: HealthConfig) -> tuple[str, ...]:
    """Return the command line of the check; empty when there is nothing to run."""
    match config.test:
        case ("CMD", *argv):
            return tuple(argv)
        case ("CMD-SHELL", *words) if words:
            return ("/bin/sh", "-c", " ".join(words))
        case _:
            return ()


class HealthMonitor:
    """The health of one running container.

    `next_check_at` is None while a check runs; whoever runs it reports with `finished`.
    """

    def __init__(self, config: HealthConfig, now: float) -> None:
        """Begin as STARTING at `now`, with the first check one interval later."""
        self.argv = command_of(config)
        assert self.argv
        self.timeout_seconds = _seconds(config.timeout_ns, TIMEOUT_SECONDS)
        self.health = Health.STARTING
        self.failing_streak = 0
        self._interval = _seconds(config.interval_ns, INTERVAL_SECONDS)
        self._start_interval = _seconds(config.start_interval_ns, START_INTERVAL_SECONDS)
        self._retries = config.retries or RETRIES
        self._start_period_end = now + config.start_period_ns / NANOSECONDS
        self._began_at = now
        self.next_check_at: float | None = now + self._pause(now)

    def begin(self, now: float) -> None:
        """Note that a check runs now."""
        assert self.next_check_at is not None
        self._began_at = now
        self.next_check_at = None

    def finished(self, *, is_success: bool, now: float) -> None:
        """Take a result into account and plan the next check."""
        assert self.next_check_at is None
        if is_success:
            self.health = Health.HEALTHY
            self.failing_streak = 0
        elif self.health is not Health.STARTING or self._began_at >= self._start_period_end:
            self.failing_streak += 1
            if self.failing_streak >= self._retries:
                self.health = Health.UNHEALTHY
        self.next_check_at = now + self._pause(now)

    def skipped(self, now: float) -> None:
        """Plan the next check after one that could not be made."""
        assert self.next_check_at is None
        self.next_check_at = now + self._pause(now)

    def _pause(self, now: float) -> float:
        is_within_start = self.health is Health.STARTING and now < self._start_period_end
        return self._start_interval if is_within_start else self._interval


def _seconds(value_ns: int, default: float) -> float:
    return value_ns / NANOSECONDS if value_ns else default
