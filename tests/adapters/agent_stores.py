"""`AgentStore` over each backend. Import the fixtures that a test module needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore

OpenBackend = Callable[[Clock | None], Store]


class MakeStore(Protocol):
    """Makes an `AgentStore` as another process would have it, over the same stored items."""

    def __call__(self, *, clock: Clock | None = None, tenant: str = "default", **options: Any) -> AgentStore: ...


@pytest.fixture(params=["memory", "sqlite", "redis", "dynamodb"])
def open_backend(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBackend:
    if request.param == "memory":
        only: list[MemoryStore] = []

        def open_memory(clock: Clock | None) -> Store:
            only.extend([] if only else [MemoryStore(clock)])
            return only[0]

        return open_memory
    if request.param == "sqlite":
        return lambda clock: SQLiteStore(tmp_path / "items.db", clock=clock)
    if request.param == "dynamodb":
        table = request.getfixturevalue("dynamodb")
        return lambda clock: table.store(clock)
    from agent_sessions.stores.redis import RedisStore

    url = request.getfixturevalue("redis_url")
    return lambda clock: RedisStore.from_url(url, clock=clock)


@pytest.fixture
async def make_store(open_backend: OpenBackend) -> AsyncIterator[MakeStore]:
    opened: list[Store] = []

    def make(*, clock: Clock | None = None, tenant: str = "default", **options: Any) -> AgentStore:
        opened.append(open_backend(clock))
        return AgentStore(SessionManager(opened[-1], tenant_id=tenant), **options)

    yield make
    for backend in opened:
        await backend.aclose()


@pytest.fixture
def store(make_store: MakeStore) -> AgentStore:
    """The store under test."""
    return make_store()


@pytest.fixture
def elsewhere(make_store: MakeStore, store: AgentStore) -> AgentStore:
    """That of another process."""
    return make_store()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(make_store: MakeStore, clock: FakeClock) -> AgentStore:
    """One whose time a test moves."""
    return make_store(clock=clock)


@pytest.fixture
def in_memory() -> AgentStore:
    """One for what is the same on every backend."""
    return AgentStore(SessionManager(MemoryStore()))


def embed(texts: list[str]) -> list[list[float]]:
    """A vector that says how often each of a few letters is in a text."""
    return [[float(text.count(letter)) for letter in "abcd"] for text in texts]


def index_of(**config: Any) -> Any:
    return {"embed": embed, **config}


INDEX = index_of(dims=4, fields=["text"])


def keys(items: list[Any]) -> list[str]:
    return [item.key for item in items]
