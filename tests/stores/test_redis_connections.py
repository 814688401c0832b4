"""Waiting, event loops, threads, forks, and the two doors to the Redis store."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from agent_sessions.stores.base import (
    Key,
    LogChange,
    Opened,
    Part,
)
from agent_sessions.stores.redis import RedisStore

from .redis_turns import CART, EVERYTHING, KEY, LOG, change, everything, lease, start_turn


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(redis_url)
    yield store
    await store.aclose()


async def test_sixteen_waiters_are_woken_at_once_and_in_order(redis_url: str) -> None:
    stores = [RedisStore.from_url(redis_url) for _ in range(4)]
    first = await start_turn(stores[0], "first")
    assert first.granted
    served: list[int] = []
    gaps: list[float] = []
    released = 0.0

    async def turn(number: int) -> None:
        nonlocal released
        store = stores[number % 4]
        await start_turn(store, f"w{number}")
        gaps.append(time.monotonic() - released)
        served.append(number)
        await asyncio.sleep(0.01)
        released = time.monotonic()
        await store.commit(KEY, change(owner=f"w{number}", values={Part("n", str(number)): b"1"}))

    waiting = []
    for number in range(16):
        waiting.append(asyncio.create_task(turn(number)))
        while (await stores[0].open(KEY)).waiters <= number:  # noqa: ASYNC110 - it is Redis that tells
            await asyncio.sleep(0.002)
    released = time.monotonic()
    await stores[0].commit(KEY, change(owner="first"))
    await asyncio.gather(*waiting)
    assert served == list(range(16))
    assert sorted(gaps)[len(gaps) // 2] < 0.02
    assert len((await stores[0].open(KEY)).values["n"]) == 16
    for store in stores:
        await store.aclose()


async def test_uncontended_turns_subscribe_to_nothing(store: RedisStore, redis_server: Any) -> None:
    for number in range(3):
        await start_turn(store, f"{number}")
        await store.commit(KEY, change(owner=f"{number}"))
    assert redis_server.command("PUBSUB", "CHANNELS") == []


async def test_a_lost_subscription_is_made_again(store: RedisStore, redis_url: str, redis_server: Any) -> None:
    other = RedisStore.from_url(redis_url)
    await start_turn(store, "us")
    waiting = asyncio.create_task(start_turn(other, "them"))
    while not redis_server.command("PUBSUB", "CHANNELS"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.sleep(0.1)
    released = time.monotonic()
    await store.release(KEY, "us")
    await waiting
    assert time.monotonic() - released < 0.1
    await other.aclose()


HOLDER = """
import asyncio, sys
from agent_sessions.stores.base import Key, LeaseWanted
from agent_sessions.stores.redis import RedisStore
async def main():
    store, key = RedisStore.from_url(sys.argv[1]), Key("default", "session", "s-1")
    while not (await store.open(key, lease=LeaseWanted("dying", 1000, True))).granted:
        print("waiting", flush=True)
        await store.wait(key, "dying", 10)
    print("holding", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_holder_delays_the_next_by_its_lease(redis_url: str, store: RedisStore) -> None:
    process = await another_process(redis_url, until=b"holding")
    waiting = asyncio.create_task(start_turn(store, "us"))
    await asyncio.sleep(0.1)
    process.kill()
    await process.wait()
    killed = time.monotonic()
    await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - killed < 1.1


async def test_a_killed_waiter_delays_the_next_by_two_seconds(redis_url: str, store: RedisStore) -> None:
    await start_turn(store, "first")
    process = await another_process(redis_url, until=b"waiting")
    waiting = asyncio.create_task(start_turn(store, "us"))
    await asyncio.sleep(0.1)
    process.kill()
    await process.wait()
    released = time.monotonic()
    await store.commit(KEY, change(owner="first"))
    await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - released < 2.2


async def another_process(redis_url: str, *, until: bytes) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, redis_url, stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == until
    return process


# --------------------------------------------------------------------------------------------------- loops and forks


async def test_two_loops_in_two_threads_share_a_store(store: RedisStore) -> None:
    def elsewhere() -> None:
        async def turns() -> None:
            for number in range(20):
                await start_turn(store, f"thread-{number}")
                await store.commit(KEY, change(owner=f"thread-{number}", logs={LOG: LogChange(append=[b"t"])}))
            await store.detach()

        asyncio.run(turns())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    for number in range(20):
        await start_turn(store, f"main-{number}")
        await store.commit(KEY, change(owner=f"main-{number}", logs={LOG: LogChange(append=[b"m"])}))
    await asyncio.to_thread(thread.join)
    items = (await store.open(KEY, wanted=EVERYTHING)).logs[0].items
    assert sorted(items) == [b"m"] * 20 + [b"t"] * 20


def test_throw_away_loops_leave_no_sockets(redis_url: str) -> None:
    store = RedisStore.from_url(redis_url)

    def sockets() -> int:
        return sum("socket:" in _target(entry.path) for entry in os.scandir("/proc/self/fd"))

    asyncio.run(_use(store))
    gc.collect()
    before = sockets()
    for _ in range(10):
        asyncio.run(_use(store))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert sockets() <= before
    asyncio.run(store.aclose())
    assert sockets() < before


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


async def _use(store: RedisStore) -> None:
    await asyncio.gather(*(store.open(KEY, lease=lease("us")) for _ in range(3)))


def test_a_forked_child_uses_connections_of_its_own(redis_url: str, redis_server: Any) -> None:
    store = RedisStore.from_url(redis_url)

    async def append(item: bytes) -> None:
        await store.commit(KEY, change(logs={LOG: LogChange(append=[item])}))

    with asyncio.Runner() as runner:
        runner.run(append(b"parent"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                asyncio.run(append(b"child"))
                code = 0
            os._exit(code)
        for _ in range(20):
            runner.run(append(b"parent"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        opened = runner.run(store.open(KEY, wanted=EVERYTHING))
        runner.run(store.aclose())
    assert sorted(opened.logs[0].items) == [b"child"] + [b"parent"] * 21


# --------------------------------------------------------------------------------------------------- the other door


async def test_a_client_of_the_users_own_is_used_and_stays_open(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    store = RedisStore(client, prefix="mine:")
    await store.commit(KEY, everything(belongs_to="ann"))
    opened = await store.open(KEY, wanted=EVERYTHING)
    assert opened.values == {"shop": {"cart": b"apples"}}
    assert [found.id for found in (await store.find("default", "session", belongs_to="ann")).found] == ["s-1"]
    raw_names: Any = await client.keys("*")
    assert all(name.startswith(b"mine:") for name in raw_names)

    def elsewhere() -> Opened:
        async def read() -> Opened:
            opened = await store.open(KEY)
            await store.detach()
            return opened

        return asyncio.run(read())

    assert (await asyncio.to_thread(elsewhere)).version == opened.version
    await start_turn(store, "us")
    waiting = asyncio.create_task(start_turn(store, "them"))
    await asyncio.sleep(0.05)
    await store.release(KEY, "us")
    await asyncio.wait_for(waiting, 0.5)
    await store.aclose()
    assert await client.ping()
    await client.aclose()


async def test_a_client_that_decodes_is_as_good(redis_url: str) -> None:
    client = Redis.from_url(redis_url, decode_responses=True)
    store = RedisStore(client)
    await store.commit(KEY, change(values={CART: b"\xff\x00"}))
    assert (await store.open(KEY)).values == {"shop": {"cart": b"\xff\x00"}}
    await store.aclose()
    await client.aclose()


@pytest.mark.parametrize("scheme", ["valkey", "redis"])
async def test_valkey_urls_are_as_good(redis_url: str, scheme: str) -> None:
    store = RedisStore.from_url(redis_url.replace("redis", scheme))
    assert (await store.open(KEY)).row is None
    await store.aclose()


async def test_more_turns_at_once_than_connections_wait_for_one(redis_url: str) -> None:
    store = RedisStore.from_url(redis_url, max_connections=2)
    keys = [Key("t", "session", f"{number}") for number in range(50)]
    await asyncio.gather(*(store.commit(key, change()) for key in keys))
    assert await store.count("t", "session") == 50
    await store.aclose()
