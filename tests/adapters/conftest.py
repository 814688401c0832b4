"""The stores that adapters are tested on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sessions import MemoryStore, Runner, SessionManager
from agent_sessions.stores.sqlite import SQLiteStore

from .langgraph_sources import origin as origin
from .langgraph_sources import postgres_server as postgres_server
from .langgraph_sources import redis_with_modules as redis_with_modules


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    store = _opened(request.param, request)
    yield store
    await store.aclose()


def _opened(kind: str, request: pytest.FixtureRequest) -> Any:
    if kind == "memory":
        return MemoryStore()
    if kind == "sqlite":
        return SQLiteStore(request.getfixturevalue("tmp_path") / "sessions.db")
    if kind == "dynamodb":
        return request.getfixturevalue("dynamodb").store()
    from agent_sessions.stores.redis import RedisStore

    return RedisStore.from_url(request.getfixturevalue("redis_url"))


@pytest.fixture
def manager(store: Any) -> SessionManager:
    return SessionManager(store)


@pytest.fixture
def runner(manager: SessionManager) -> Runner:
    return Runner(manager)
