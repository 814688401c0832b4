"""How the Redis store fails, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sessions.errors import (
    InvalidError,
    StoreUnavailableError,
)
from agent_sessions.stores.base import (
    CollectionChange,
    Key,
    LogChange,
)
from agent_sessions.stores.redis import RedisStore

from .redis_turns import CART, CHECKPOINTS, EVERYTHING, KEY, LOG, change, everything, lease, start_turn


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(redis_url)
    yield store
    await store.aclose()


async def test_a_server_that_is_gone_is_reported_soon_and_used_again_when_it_is_back(start_redis: Any) -> None:
    server = start_redis()
    store = RedisStore.from_url(server.url)
    await asyncio.gather(*(store.commit(Key("t", "session", f"{n}"), change()) for n in range(8)))
    await store.commit(KEY, change())
    server.kill()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="can't be reached"):
            await store.open(KEY)
        assert time.monotonic() - started < 1
    server.start()
    assert (await store.open(KEY)).row is None
    await asyncio.gather(*(store.commit(Key("t", "session", f"{n}"), change()) for n in range(16)))
    await store.aclose()


async def test_a_silent_server_is_reported_in_time_and_blocks_nothing(start_redis: Any) -> None:
    server = start_redis()
    store = RedisStore.from_url(server.url, connect_timeout_s=0.5, timeout_s=0.5)
    await store.commit(KEY, change())
    server.freeze()
    started = time.monotonic()
    calls = [asyncio.ensure_future(store.open(KEY)) for _ in range(3)]
    longest, last = 0.0, time.monotonic()
    while not all(call.done() for call in calls):
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.2
    assert time.monotonic() - started < 2
    for call in calls:
        with pytest.raises(StoreUnavailableError, match=r"did not answer in time|can't be reached"):
            await call
    server.thaw()
    assert (await store.open(KEY)).row is not None
    await store.aclose()


async def test_a_full_redis_refuses_a_commit_whole_and_lets_go_of_leases(start_redis: Any) -> None:
    server = start_redis("--maxmemory-policy", "noeviction")
    store = RedisStore.from_url(server.url)
    created = await store.commit(KEY, everything())
    await store.open(KEY, lease=lease("us"))
    server.command("CONFIG", "SET", "maxmemory", "1")
    full = change(
        expected=created.version,
        values={CART: None},
        logs={LOG: LogChange(pop=2, append=[b"new"])},
        collections={CHECKPOINTS: CollectionChange(delete_prefixes=[""])},
        fields={"status": None},
    )
    with pytest.raises(StoreUnavailableError, match="out of memory"):
        await store.commit(KEY, full)
    await store.release(KEY, "us")
    server.command("CONFIG", "SET", "maxmemory", "0")
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.lease is None
    assert opened.version == created.version
    assert opened.logs[0].items == [b"hi", b"ho"]
    assert opened.ranges == [[("a", b"A"), ("b", b"B")]]
    assert opened.values == {"shop": {"cart": b"apples"}}
    assert (await store.commit(KEY, full)).version.revision == 2
    await store.aclose()


async def test_a_read_only_replica_says_so(start_redis: Any) -> None:
    server = start_redis()
    store = RedisStore.from_url(server.url)
    server.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailableError, match="read-only replica"):
        await store.commit(KEY, change())
    await store.aclose()


async def test_a_node_of_a_cluster_says_so(start_redis: Any) -> None:
    server = start_redis("--cluster-enabled", "yes")
    server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    store = RedisStore.from_url(server.url)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with pytest.raises(StoreUnavailableError) as raised:
            await store.commit(KEY, change())
        if "down" not in str(raised.value):
            break
        await asyncio.sleep(0.05)
    assert "node of a cluster" in str(raised.value)
    await store.aclose()


async def test_a_wrong_password_is_reported_without_it(start_redis: Any) -> None:
    server = start_redis()
    server.command("ACL", "SETUSER", "default", ">geheim", "resetpass", ">geheim")
    for password in (None, "wrong-secret"):
        store = RedisStore.from_url(server.url, password=password)
        with pytest.raises(StoreUnavailableError, match="password") as raised:
            await store.open(KEY)
        assert "secret" not in str(raised.value)
        await store.aclose()
    store = RedisStore.from_url(server.url, password="geheim")
    assert (await store.open(KEY)).row is None
    await store.aclose()


def test_what_is_no_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidError) as raised:
        RedisStore.from_url("http://user:geheim@localhost")
    assert raised.value.field == "url"
    assert "geheim" not in str(raised.value)


async def test_an_acl_user_without_channels_commits_and_waits(start_redis: Any) -> None:
    server = start_redis()
    server.command("ACL", "SETUSER", "app", "on", ">pw", "~ak:sessions:*", "+@all", "resetchannels")
    url = server.url.replace("//", "//app:pw@")
    ours, theirs = RedisStore.from_url(url), RedisStore.from_url(url)
    await start_turn(ours, "us")
    waiting = asyncio.create_task(start_turn(theirs, "them"))
    await asyncio.sleep(0.2)
    await ours.commit(KEY, change())
    assert (await asyncio.wait_for(waiting, 2)).granted
    await ours.aclose()
    await theirs.aclose()


# --------------------------------------------------------------------------------------------------- lost replies


class Proxy:
    """Between a store and Redis; loses what it is told to."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.lose_replies = self.requests = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to)

        async def forward() -> None:
            while data := await reader.read(1 << 20):
                if b"EVAL" in data:
                    self.requests += 1
                up_writer.write(data)

        async def back() -> None:
            while data := await up_reader.read(1 << 20):
                if self.lose_replies and self.requests:
                    self.lose_replies -= 1
                    break
                writer.write(data)

        tasks = [asyncio.create_task(forward()), asyncio.create_task(back())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for closing in (writer, up_writer):
            closing.close()
            with contextlib.suppress(OSError):
                await closing.wait_closed()


async def test_a_commit_that_the_client_sends_again_by_itself_is_stored_once(
    store: RedisStore, redis_server: Any
) -> None:
    await store.commit(KEY, change(logs={LOG: LogChange(append=[b"first"])}))
    async with Proxy(redis_server.port) as proxy:
        behind = RedisStore.from_url(proxy.url)
        version = (await behind.open(KEY, lease=lease("us"))).version
        proxy.lose_replies = 1
        proxy.requests = 0
        committed = await behind.commit(KEY, change(expected=version, logs={LOG: LogChange(append=[b"once"])}))
        assert proxy.requests == 2
        assert committed.repeated
        assert committed.version.revision == 2
        proxy.lose_replies = 1
        proxy.requests = 0
        assert (await behind.commit(KEY, change(logs={LOG: LogChange(append=[b"blind"])}))).repeated
        await behind.aclose()
    assert (await store.open(KEY, wanted=EVERYTHING)).logs[0].items == [b"first", b"once", b"blind"]


@pytest.mark.parametrize(
    ("policy", "limit", "warns"),
    [("allkeys-lru", 10**9, True), ("noeviction", 10**9, False), ("allkeys-lru", 0, False)],
)
async def test_a_redis_that_may_evict_is_reported_at_the_start(
    start_redis: Any, caplog: pytest.LogCaptureFixture, policy: str, limit: int, warns: bool
) -> None:
    server = start_redis("--maxmemory-policy", policy, "--maxmemory", str(limit))
    store = RedisStore.from_url(server.url)
    await store.open(KEY)
    await store.commit(KEY, change())
    warnings = [record for record in caplog.records if "noeviction" in record.getMessage()]
    assert len(warnings) == (1 if warns else 0)
    await store.aclose()
