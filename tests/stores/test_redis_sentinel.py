"""Sentinels name the server, and another one when it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from redis.asyncio import Sentinel as SentinelClient
from redis.connection import Connection

from agent_sessions import SessionManager, Settings
from agent_sessions.errors import StoreUnavailableError
from agent_sessions.settings import RedisSettings, SentinelSettings
from agent_sessions.stores.redis import RedisStore
from tests.conftest import need_redis
from tests.redis_cluster import wait_until
from tests.redis_sentinels import SERVICE, WatchedRedis
from tests.redis_server import RedisServer

from .redis_turns import KEY, change, start_turn


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRedis]:
    need_redis()
    watched = WatchedRedis(tmp_path_factory.mktemp("watched"))
    watched.start()
    yield watched
    watched.stop()


def store_of(watched: WatchedRedis) -> RedisStore:
    nodes = ",".join(f"{host}:{port}" for host, port in watched.addresses)
    redis = RedisSettings(url="redis://nowhere", sentinel=SentinelSettings(nodes=nodes, service_name=SERVICE))  # type: ignore[arg-type]
    return RedisStore.from_settings(Settings(type="redis", redis=redis))


def wait_for_the_replica(primary: RedisServer) -> None:
    """Until it has all that was written so far. WAIT counts from the last write of its own connection."""
    connection = Connection(port=primary.port, protocol=2, socket_timeout=30)
    for command in (("SET", "mark", 1), ("WAIT", 1, 10_000)):
        connection.send_command(*command)
        answer = connection.read_response()
    connection.disconnect()
    assert answer == 1


async def test_the_sentinels_name_the_primary(watched: WatchedRedis) -> None:
    store = store_of(watched)
    await store.commit(KEY, change())
    assert watched.primary().command("EXISTS", "ak:sessions:s{default/s-1}") == 1
    await store.aclose()


async def test_a_sentinel_that_is_down_is_not_missed(watched: WatchedRedis) -> None:
    store = RedisStore.from_url("redis://", sentinels=[("127.0.0.1", 1), *watched.addresses], service_name=SERVICE)
    await store.commit(KEY, change())
    await store.aclose()


async def test_a_client_of_the_users_own_is_good_for_sentinels(watched: WatchedRedis) -> None:
    client = SentinelClient(watched.addresses).master_for(SERVICE)
    store = RedisStore(client)
    await store.commit(KEY, change())
    await store.aclose()
    await client.aclose()


async def test_a_service_that_no_sentinel_knows_is_reported(watched: WatchedRedis) -> None:
    store = RedisStore.from_url("redis://", sentinels=watched.addresses, service_name="other")
    with pytest.raises(StoreUnavailableError, match="no service 'other'") as raised:
        await store.commit(KEY, change())
    assert not raised.value.maybe_done
    await store.aclose()


async def test_sentinels_that_are_all_down_are_reported_in_time() -> None:
    store = RedisStore.from_url("redis://", sentinels=[("127.0.0.1", 1)], connect_timeout_s=0.2, timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"of the sentinels 127\.0\.0\.1:1"):
        await store.open(KEY)
    assert time.monotonic() - started < 2
    await store.aclose()


async def test_a_primary_that_was_turned_into_a_replica_is_left(watched: WatchedRedis) -> None:
    store = store_of(watched)
    await store.commit(KEY, change())
    first = watched.primary()
    watched.sentinel.raw("SENTINEL", "FAILOVER", SERVICE)
    await asyncio.to_thread(wait_until, lambda: watched.primary() is not first)
    first.raw("REPLICAOF", "127.0.0.1", watched.primary().port)  # as the sentinel does, some seconds later
    committed = await store.commit(KEY, change())
    assert int(watched.primary().command("HGET", "ak:sessions:s{default/s-1}", "v")) == committed.version.revision
    await store.aclose()
    await asyncio.to_thread(wait_until, lambda: b"master_link_status:up" in first.raw("INFO", "replication"))


async def test_turns_go_on_with_the_server_that_takes_over(watched: WatchedRedis) -> None:
    manager, elsewhere = SessionManager(store_of(watched)), SessionManager(store_of(watched))
    first = watched.primary()
    in_the_middle, go_on = asyncio.Event(), asyncio.Event()
    stored = 0

    async def turns() -> None:
        nonlocal stored
        while stored < 40:
            async with manager.open("turns") as session:
                session.update("count", lambda count: count + 1, default=0)
                if stored == 20:
                    in_the_middle.set()
                    await go_on.wait()
            stored += 1

    async def waits() -> None:
        await start_turn(elsewhere.store, "waiter")  # it is to be woken by the server that dies
        await elsewhere.store.release(KEY, "waiter")

    await start_turn(manager.store, "holder")
    running, waiting = asyncio.create_task(turns()), asyncio.create_task(waits())
    await in_the_middle.wait()
    await asyncio.to_thread(wait_for_the_replica, first)  # else what it lacks is lost
    first.kill()
    go_on.set()
    await asyncio.wait_for(running, 15)
    assert watched.primary() is not first
    async with elsewhere.read("turns") as session:
        assert session.get("count") == stored
    await manager.store.release(KEY, "holder")
    await asyncio.wait_for(waiting, 5)
    for one in (manager, elsewhere):
        await one.store.aclose()
