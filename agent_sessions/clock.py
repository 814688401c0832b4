"""Where the time comes from."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. Stores take one, so that tests can move it (`agent_sessions.testing.FakeClock`)."""

    def now_ms(self) -> int:
        """Whole milliseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The host's clock."""

    def now_ms(self) -> int:
        """Whole milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000
