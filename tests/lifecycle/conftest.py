"""Managers over every store, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent_sessions import MemoryStore, SessionManager, Settings
from agent_sessions.stores.base import Store
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import FakeClock
from tests.lifecycle import raw


class Everywhere:
    """Makes managers as other processes would have them: with caches of their own, over the same stored sessions."""

    def __init__(self, open_store: Callable[[], Store], raw: Callable[[], bytes], *, speed: float = 1.0) -> None:
        self._open_store = open_store
        self._speed = speed
        self.raw = raw
        """All that the backend holds."""
        self.stores: list[Store] = []

    def fewer(self, times: int) -> int:
        """How often to do something: less where it takes long."""
        return round(times * self._speed)

    def __call__(self, **settings: object) -> SessionManager:
        """A manager with these settings."""
        self.stores.append(self._open_store())
        return SessionManager(self.stores[-1], settings=Settings.model_validate(settings))


@pytest.fixture
def clock() -> FakeClock:
    """The time of the stores."""
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite", "redis", "redis-cluster", "dynamodb"])
async def everywhere(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Everywhere]:
    """Make managers over one backend."""
    made = _over(request.param, request, tmp_path / "sessions.db", clock)
    yield made
    for store in made.stores:
        await store.aclose()


def _over(backend: str, request: pytest.FixtureRequest, path: Path, clock: FakeClock) -> Everywhere:
    if backend == "memory":
        memory = MemoryStore(clock)
        return Everywhere(lambda: memory, lambda: raw.of_memory(memory))
    if backend == "sqlite":
        return Everywhere(lambda: SQLiteStore(path, clock=clock), lambda: raw.of_sqlite(path))
    if backend == "dynamodb":
        table = request.getfixturevalue("dynamodb")
        return Everywhere(lambda: table.store(clock), lambda: raw.of_dynamodb(table), speed=0.2)
    from agent_sessions.stores.redis import RedisStore

    if backend == "redis":
        url = request.getfixturevalue("redis_url")
        return Everywhere(lambda: RedisStore.from_url(url, prefix="life:", clock=clock), lambda: raw.of_redis(url))
    cluster = request.getfixturevalue("redis_cluster")
    cluster.flush()
    return Everywhere(
        lambda: RedisStore.from_url(cluster.url, cluster=True, prefix="life:", clock=clock),
        lambda: b"".join(raw.of_redis(f"redis://127.0.0.1:{node.port}") for node in cluster.nodes),
    )
