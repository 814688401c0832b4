"""The conformance suite over our own stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.memory import MemoryStore
from agent_sessions.testing import FakeClock, LostReplies, ServedInOrder, StoreConformance
from agent_sessions.testing.conformance.faults import Fault

if TYPE_CHECKING:
    from tests.redis_cluster import RedisCluster
    from tests.redis_server import RedisServer


class TestMemoryStore(ServedInOrder, StoreConformance):
    """One object stands for all processes: it has no backend but itself."""

    @pytest.fixture(autouse=True)
    def _start(self) -> None:
        self.stores: dict[Clock, MemoryStore] = {}

    def make_store(self, clock: Clock) -> Store:
        return self.stores.setdefault(clock, MemoryStore(clock))


class TestRedisStore(LostReplies, ServedInOrder, StoreConformance):
    """Each store with connections of its own, on a real redis-server."""

    EXAMPLES = 30

    @pytest.fixture(autouse=True)
    def _start(self, redis_server: RedisServer, redis_url: str, clock: FakeClock) -> None:
        self.server, self.url, self.time = redis_server, redis_url, clock

    def make_store(self, clock: Clock) -> Store:
        return self.connect(self.url, clock)

    @asynccontextmanager
    async def losing(self, fault: Fault) -> AsyncIterator[Store]:
        from .losing_proxy import losing_proxy

        async with losing_proxy(self.server.port, fault) as port:
            store = self.connect(self.url.replace(f":{self.server.port}", f":{port}"), self.time)
            yield store
            await store.aclose()

    def connect(self, url: str, clock: Clock) -> Store:
        from agent_sessions.stores.redis import RedisStore  # which needs redis, and the other stores do not

        return RedisStore.from_url(url, prefix="test:", clock=clock)


class TestValkeyStore(TestRedisStore):
    """The same on a real valkey-server."""

    EXAMPLES = 10

    @pytest.fixture(autouse=True)
    def _start(self, valkey_server: RedisServer, clock: FakeClock) -> None:
        valkey_server.command("FLUSHALL")
        self.server, self.url, self.time = valkey_server, valkey_server.url.replace("redis", "valkey"), clock


class TestRedisCluster(LostReplies, ServedInOrder, StoreConformance):
    """The same on three real nodes."""

    EXAMPLES = 12

    @pytest.fixture(autouse=True)
    def _start(self, redis_cluster: RedisCluster, clock: FakeClock) -> None:
        self.cluster, self.time = redis_cluster, clock

    def make_store(self, clock: Clock) -> Store:
        return self.connect(clock)

    @asynccontextmanager
    async def losing(self, fault: Fault) -> AsyncIterator[Store]:
        from .losing_proxy import losing_proxy

        async with AsyncExitStack() as proxies:
            ports = {
                node.port: await proxies.enter_async_context(losing_proxy(node.port, fault))
                for node in self.cluster.nodes
            }
            store = self.connect(
                self.time,
                address_remap=lambda address: (address[0], ports[address[1]]),
                connect_timeout_s=0.1,
                timeout_s=0.2,
            )
            yield store
            await store.aclose()

    def connect(self, clock: Clock, **options: Any) -> Store:
        from agent_sessions.stores.redis import RedisStore

        return RedisStore.from_url(self.cluster.url, cluster=True, prefix="test:", clock=clock, **options)
