"""The backends under fault tests, as settings: what a process needs to reach the same one as another."""

from __future__ import annotations

import pytest

from agent_sessions import Settings
from agent_sessions.settings import RedisSettings


@pytest.fixture(params=["redis"])
def backend(request: pytest.FixtureRequest) -> Settings:
    """An empty backend. Another process gets these settings, which can be pickled, and opens a store by them."""
    return Settings(type="redis", redis=RedisSettings(url=request.getfixturevalue("redis_url"), prefix="faults:"))
