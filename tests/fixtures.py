"""Managers over each store. Import the fixtures that a test module needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent_sessions import MemoryStore, SessionManager, Settings
from agent_sessions.settings import TurnSettings
from agent_sessions.stores.base import Store
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import FakeClock

Wrap = Callable[[Store], Any]


class MakeManager(Protocol):
    """Makes a manager as another process would have it: with a cache of its own, over the same stored sessions."""

    def __call__(self, wrap: Wrap | None = None, *, clock: FakeClock | None = None, **turn: Any) -> SessionManager: ...


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def make_manager(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeManager]:
    """Make managers over one backend. `wrap` puts something before its store; the rest are settings of turns."""
    stores: list[Store] = []

    def store(clock: FakeClock | None) -> Store:
        if request.param == "memory":
            if not stores:
                stores.append(MemoryStore(clock))
            return stores[0]
        if request.param == "sqlite":
            stores.append(SQLiteStore(tmp_path / "sessions.db", clock=clock))
            return stores[-1]
        from agent_sessions.stores.redis import RedisStore

        stores.append(RedisStore.from_url(request.getfixturevalue("redis_url"), clock=clock))
        return stores[-1]

    def make(wrap: Wrap | None = None, *, clock: FakeClock | None = None, **turn: Any) -> SessionManager:
        inner = store(clock)
        settings = Settings(turn=TurnSettings(**turn))
        return SessionManager(inner if wrap is None else wrap(inner).store, settings=settings)

    yield make
    for opened in stores:
        await opened.aclose()


@pytest.fixture
def manager(make_manager: MakeManager) -> SessionManager:
    """The manager under test."""
    return make_manager()


@pytest.fixture
def elsewhere(make_manager: MakeManager, manager: SessionManager) -> SessionManager:
    """The manager of another process."""
    return make_manager()
