"""For tests: a clock to move, and the suite that every store passes (it needs pytest, pytest-asyncio, hypothesis)."""

import pytest

pytest.register_assert_rewrite("agent_sessions.testing.conformance")

from agent_sessions.testing.clock import FakeClock  # noqa: E402 - only what follows is rewritten
from agent_sessions.testing.conformance import LostReplies, StoreConformance  # noqa: E402

__all__ = ["FakeClock", "LostReplies", "StoreConformance"]
