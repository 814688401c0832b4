"""What is the in-memory store's own: loops, forks, and that it forgets."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from agent_sessions.stores.base import ABSENT, CollectionChange, Key, LeaseWanted, Part, Store
from agent_sessions.stores.memory import MemoryStore
from agent_sessions.testing import FakeClock
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    append,
    change,
    new_id,
    read_log,
    read_range,
    start_turn,
    take,
)

KEY = Key("default", "session", "s-1")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


def test_it_is_a_store_and_needs_no_settings():
    store: Store = MemoryStore.from_settings(object())
    asyncio.run(store.commit(KEY, change(logs=append(b"hi"))))
    assert asyncio.run(read_log(store, KEY)) == [b"hi"]


def test_two_loops_in_two_threads_hand_a_lease_to_and_fro():
    store = MemoryStore()
    turns = 200

    async def play(owner: str) -> None:
        for _ in range(turns):
            await start_turn(store, KEY, owner)
            await store.commit(KEY, change(owner=owner, logs=append(owner.encode())))

    threads = [threading.Thread(target=asyncio.run, args=(play(owner),)) for owner in ("ping", "pong")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    items = asyncio.run(read_log(store, KEY))
    assert items.count(b"ping") == items.count(b"pong") == turns


async def test_a_waiter_is_woken_at_once():
    store = MemoryStore()
    delays = []
    for _ in range(20):
        await start_turn(store, KEY, "us")
        assert not await take(store, KEY, "them", queue=True)
        waiting = asyncio.create_task(store.wait(KEY, "them", 10))
        await asyncio.sleep(0)
        await store.release(KEY, "us")
        released = time.monotonic()
        await waiting
        delays.append(time.monotonic() - released)
        await store.release(KEY, "them")
    assert sorted(delays)[10] < 0.02


async def test_a_waiter_returns_when_the_lease_runs_out():
    store = MemoryStore()
    assert await take(store, KEY, "dead", ms=50)
    assert not await take(store, KEY, "next", queue=True)
    await asyncio.wait_for(store.wait(KEY, "next", 60), 5)
    assert await take(store, KEY, "next", queue=True)


async def test_a_waiter_whose_loop_is_gone_disturbs_nobody():
    store = MemoryStore()
    assert await take(store, KEY, "us")

    async def wait_and_vanish() -> None:
        assert not await take(store, KEY, "gone", queue=True)
        task = asyncio.create_task(store.wait(KEY, "gone", 60))
        await asyncio.sleep(0)
        assert not task.done()

    await asyncio.to_thread(asyncio.run, wait_and_vanish())
    await store.release(KEY, "us")
    assert not await take(store, KEY, "us")  # reserved for two seconds, for the one that is gone
    await store.release(KEY, "gone")
    assert await take(store, KEY, "us")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_has_a_whole_copy_of_its_own():
    store = MemoryStore()
    stop = threading.Event()
    twins = {Part("a", "twin"), Part("b", "twin")}

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await store.commit(KEY, change(values=dict.fromkeys(twins, b"%d" % number), logs=append(b"parent")))

    async def in_child() -> None:
        opened = await store.open(KEY)
        twin_values = {named["twin"] for named in opened.values.values()}
        assert len(twin_values) == 1
        assert opened.log_heads[Part("openai", "items")].count == opened.version.revision
        await start_turn(store, KEY, "child")
        await store.commit(KEY, change(owner="child", logs=append(b"child")))
        assert (await read_log(store, KEY))[-1] == b"child"

    writer = threading.Thread(target=asyncio.run, args=(write(),))
    writer.start()
    try:
        while not asyncio.run(read_log(store, KEY)):
            pass
        for _ in range(10):
            assert _in_child(lambda: asyncio.run(in_child())) == 0
    finally:
        stop.set()
        writer.join()
    assert set(asyncio.run(read_log(store, KEY))) == {b"parent"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_child_process_does_not_inherit_waiters():
    store = MemoryStore()
    await store.commit(KEY, change(hold_ms=30_000))
    assert not await take(store, KEY, "parent", queue=True)
    waiting = asyncio.create_task(store.wait(KEY, "parent", 10))
    await asyncio.sleep(0)

    def in_child() -> None:
        for step in (store.release(KEY, "us"), take(store, KEY, "child")):
            with pytest.raises(StopIteration) as done:
                step.send(None)
        assert done.value.value is True

    assert _in_child(in_child) == 0
    assert not waiting.done()
    await store.release(KEY, "us")
    await asyncio.wait_for(waiting, 5)
    assert await take(store, KEY, "parent")


def _in_child(work) -> int:
    """Run some work in a forked child, and return its exit status."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
        except BaseException:  # whatever it is, the child must not go on as a second pytest
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


# ------------------------------------------------------------------------------------------------- what it forgets


def weight(store: MemoryStore) -> int:
    """How much the store holds on to."""
    listings = store._listings.values()
    places = sum(len(order._order) for listing in listings for order in (listing.by_activity, listing.by_start))
    return len(store._slots) + len(store._due) + len(listings) + len(store._deleted) + places


async def test_memory_does_not_grow_past_expiry(store: MemoryStore, clock: FakeClock):
    weights = []
    for number in range(5_000):
        await store.commit(
            Key("default", "session", f"s{number}"), change(ttl_ms=10_000, belongs_to=f"user{number % 300}")
        )
        clock.advance(0.1)
        weights.append(weight(store))
    assert max(weights[1_000:]) <= max(weights[:1_000]) * 1.1
    clock.advance(10)
    assert await store.count("default", "session") == 0
    assert weight(store) == 0


async def test_commits_alone_drop_what_is_past_its_time(store: MemoryStore, clock: FakeClock):
    for number in range(1_000):
        await store.commit(Key("default", "session", f"s{number}"), change(ttl_ms=10_000))
    clock.advance(10)
    for _ in range(300):
        await store.commit(KEY, change())
    assert len(store._slots) == 1


async def test_a_key_that_goes_on_living_has_one_place_in_the_sweep(store: MemoryStore, clock: FakeClock):
    for ttl_ms in [10_000, 60_000] * 500:
        await store.commit(KEY, change(ttl_ms=ttl_ms))
        clock.advance(1)
    assert weight(store) < 200


async def test_deleted_keys_leave_nothing(store: MemoryStore, clock: FakeClock):
    for number in range(1_000):
        key = Key("default", "session", f"s{number}")
        await store.commit(key, change(ttl_ms=7 * 24 * 3600 * 1000, belongs_to="ann"))
        assert await store.delete(key, new_id())
        clock.advance(1)
    await store.delete(KEY, new_id())
    assert weight(store) < 300


async def test_leases_on_absent_keys_leave_nothing(store: MemoryStore, clock: FakeClock):
    for number in range(1_000):
        key = Key("default", "session", f"s{number}")
        assert await take(store, key, "us", ms=1_000)
        assert not await take(store, key, "them", queue=True)
        clock.advance(0.001)
    clock.advance(10)
    assert await store.count("default", "session") == 0
    assert weight(store) == 0


async def test_reading_what_is_absent_leaves_nothing(store: MemoryStore):
    for number in range(100):
        await store.open(Key("default", "session", f"s{number}"))
        assert not await store.renew(Key("default", "session", f"s{number}"), "us", 1000)
        await store.release(Key("default", "session", f"s{number}"), "us")
    assert weight(store) == 0


# ------------------------------------------------------------------------------------------------- how long it takes


async def test_a_page_does_not_take_longer_among_many(store: MemoryStore, clock: FakeClock):
    """A scan or a sort of 20,000 places would take some 5 ms for each page."""
    for number in range(20_000):
        await store.commit(Key("default", "session", f"s{number}"), change(belongs_to=f"user{number % 100}"))
    started = time.perf_counter()
    for number in range(100):
        await store.commit(Key("default", "session", f"s{number * 199}"), change())
        assert len((await store.find("default", "session", limit=10)).found) == 10
        assert await store.count("default", "session", belongs_to="user7") == 200
    assert time.perf_counter() - started < 0.25


async def test_a_range_does_not_take_longer_among_many(store: MemoryStore):
    """A sort of 10,000 keys would take some 1 ms for each change."""
    put = CollectionChange(entries={f"{number:05}": b"1" for number in range(10_000)})
    await store.commit(KEY, change(expected=ABSENT, collections={CHECKPOINTS: put}))
    started = time.perf_counter()
    for number in range(200):
        put = CollectionChange(entries={f"{number:05}/new": b"1"})
        await store.commit(KEY, change(collections={CHECKPOINTS: put}))
        found = await read_range(store, KEY, prefix="0", after=f"{number:05}", reverse=True, limit=10)
        assert len(found) == 10
    assert time.perf_counter() - started < 0.25


async def test_a_turn_does_not_take_longer_with_its_history(store: MemoryStore):
    """A copy of 50,000 items would take some 0.2 ms."""
    await store.commit(KEY, change(logs=append(*[b"item"] * 50_000)))
    started = time.perf_counter()
    for _ in range(500):
        opened = await store.open(KEY, lease=LeaseWanted("us", 30_000, queue=True))
        await store.commit(KEY, change(expected=opened.version, logs=append(b"1", b"2")))
    assert time.perf_counter() - started < 0.25
