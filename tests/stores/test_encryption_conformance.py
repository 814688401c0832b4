"""The conformance suite over our own stores, encrypted: what stands before a store keeps its promises."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.encryption import EncryptedStore, Keyring
from agent_sessions.stores.memory import MemoryStore
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import FakeClock, LostReplies, ServedInOrder, StoreConformance
from agent_sessions.testing.conformance.faults import Fault

from .losing_proxy import losing_proxy

if TYPE_CHECKING:
    from tests.conftest import RedisServer

KEYS = [secrets.token_urlsafe(32), secrets.token_urlsafe(32)]


def encrypted(store: Store) -> Store:
    return EncryptedStore(store, Keyring(KEYS))


class TestEncryptedMemory(ServedInOrder, StoreConformance):
    EXAMPLES = 20

    @pytest.fixture(autouse=True)
    def _start(self) -> None:
        self.stores: dict[Clock, MemoryStore] = {}

    def make_store(self, clock: Clock) -> Store:
        return encrypted(self.stores.setdefault(clock, MemoryStore(clock)))


class TestEncryptedSQLite(ServedInOrder, StoreConformance):
    EXAMPLES = 10

    @pytest.fixture(autouse=True)
    def _start(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def make_store(self, clock: Clock) -> Store:
        return encrypted(SQLiteStore(self.path, synchronous="normal", clock=clock))


class TestEncryptedRedis(LostReplies, ServedInOrder, StoreConformance):
    EXAMPLES = 10

    @pytest.fixture(autouse=True)
    def _start(self, redis_server: RedisServer, redis_url: str, clock: FakeClock) -> None:
        self.server, self.url, self.time = redis_server, redis_url, clock

    def make_store(self, clock: Clock) -> Store:
        return self.connect(self.url, clock)

    @asynccontextmanager
    async def losing(self, fault: Fault) -> AsyncIterator[Store]:
        async with losing_proxy(self.server.port, fault) as port:
            store = self.connect(f"redis://127.0.0.1:{port}/0", self.time)
            yield store
            await store.aclose()

    def connect(self, url: str, clock: Clock) -> Store:
        from agent_sessions.stores.redis import RedisStore  # which needs redis, and the other stores do not

        return encrypted(RedisStore.from_url(url, prefix="test:", clock=clock))
