"""Managers over every store, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent_sessions import MemoryStore, SessionManager, Settings
from agent_sessions.stores.base import Store
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import FakeClock

Everywhere = Callable[..., SessionManager]
"""Makes a manager as another process would have it: with a cache of its own, over the same stored sessions."""


@pytest.fixture
def clock() -> FakeClock:
    """The time of the stores."""
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite", "redis", "redis-cluster", "dynamodb"])
async def everywhere(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Everywhere]:
    """Make managers over one backend, with the settings given."""
    opened: list[Store] = []

    def make(**settings: object) -> SessionManager:
        if request.param == "memory":
            store: Store = opened[0] if opened else MemoryStore(clock)
        elif request.param == "sqlite":
            store = SQLiteStore(tmp_path / "sessions.db", clock=clock)
        elif request.param == "dynamodb":
            store = dynamodb.store(clock)
        else:
            from agent_sessions.stores.redis import RedisStore

            store = RedisStore.from_url(url, cluster=request.param == "redis-cluster", prefix="life:", clock=clock)
        opened.append(store)
        return SessionManager(store, settings=Settings.model_validate(settings))

    if request.param == "dynamodb":
        dynamodb = request.getfixturevalue("dynamodb")
    elif request.param == "redis":
        url = request.getfixturevalue("redis_url")
    elif request.param == "redis-cluster":
        cluster = request.getfixturevalue("redis_cluster")
        cluster.flush()
        url = cluster.url
    yield make
    for store in opened:
        await store.aclose()
