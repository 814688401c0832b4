"""The two clocks of a store on a service that has none."""

from __future__ import annotations

import time

from agent_sessions.clock import Clock, SystemClock


class Times:
    """The host's time, and one that nobody sets. A clock that is given, as tests do, serves as both."""

    def __init__(self, clock: Clock | None) -> None:
        self._given = clock
        self._clock: Clock = clock or SystemClock()

    def now_ms(self) -> int:
        """Whole milliseconds since 1970-01-01 UTC."""
        return self._clock.now_ms()

    def monotonic_ms(self) -> int:
        """Whole milliseconds since some moment."""
        return time.monotonic_ns() // 1_000_000 if self._given is None else self._given.now_ms()
