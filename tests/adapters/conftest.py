"""The stores that adapters are tested on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sessions import MemoryStore, Runner, SessionManager


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryStore()
        return
    from agent_sessions.stores.redis import RedisStore

    store = RedisStore.from_url(request.getfixturevalue("redis_url"))
    yield store
    await store.aclose()


@pytest.fixture
def manager(store: Any) -> SessionManager:
    return SessionManager(store)


@pytest.fixture
def runner(manager: SessionManager) -> Runner:
    return Runner(manager)
