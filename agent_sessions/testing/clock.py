"""A clock that stands still until a test moves it."""

from __future__ import annotations


class FakeClock:
    """A `Clock` for tests: `FakeClock().advance(30)` is half a minute later, at once."""

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Whole milliseconds since 1970-01-01 UTC, as a test says."""
        return self._now_ms

    def advance(self, seconds: float) -> None:
        """Move forward."""
        self._now_ms += round(seconds * 1000)

    def set(self, now_ms: int) -> None:
        """Move to a time, forward or backward."""
        self._now_ms = now_ms
