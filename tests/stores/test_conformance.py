"""The conformance suite over our own stores."""

from __future__ import annotations

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.memory import MemoryStore
from agent_sessions.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    """One object stands for all processes: it has no backend but itself."""

    @pytest.fixture(autouse=True)
    def _start(self) -> None:
        self.stores: dict[Clock, MemoryStore] = {}

    def make_store(self, clock: Clock) -> Store:
        return self.stores.setdefault(clock, MemoryStore(clock))


class TestRedisStore(StoreConformance):
    """Each store with connections of its own, on a real redis-server."""

    EXAMPLES = 30

    @pytest.fixture(autouse=True)
    def _start(self, redis_url: str) -> None:
        self.redis_url = redis_url

    def make_store(self, clock: Clock) -> Store:
        from agent_sessions.stores.redis import RedisStore

        return RedisStore.from_url(self.redis_url, prefix="test:", clock=clock)
