"""What is a Redis Cluster's own: routing, moving slots, nodes that die, and indexes that follow the sessions."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import RedisCluster as RedisClusterClient

from agent_sessions.errors import InvalidError, SessionError, StoreUnavailableError
from agent_sessions.stores.base import ABSENT, Amend, Key, Known, LogChange, LogWanted, Part, Store, Wanted
from agent_sessions.stores.lifetime import Lifetime, Status
from agent_sessions.stores.redis import RedisStore
from agent_sessions.stores.redis.keys import KeyNames
from agent_sessions.stores.redis.places import Change, Order
from agent_sessions.stores.redis.scripts import INDEX as INDEX_SCRIPT
from agent_sessions.stores.redis.scripts import pack_now
from agent_sessions.stores.redis.slots import slot_of
from agent_sessions.testing import FakeClock
from tests.redis_cluster import RedisCluster
from tests.redis_server import RedisServer

from .redis_turns import EVERYTHING, KEY, LOG, MEMBERS, change, everything, lease, score, start_turn

MAIN = "ak:sessions:s{default/s-1}"
INDEX = "ak:sessions:{s@default}"
ENTERED, BY_ACTIVITY, GOES = 0, 1, 10  # shelves (places.lua)


@pytest.fixture
async def cluster(redis_cluster: RedisCluster) -> RedisCluster:
    """The shared cluster, empty."""
    redis_cluster.flush()
    return redis_cluster


@pytest.fixture
async def store(cluster: RedisCluster) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(cluster.url, cluster=True)
    yield store
    await store.aclose()


@pytest.fixture
async def other(cluster: RedisCluster) -> AsyncIterator[RedisStore]:
    """The store of another process."""
    store = RedisStore.from_url(cluster.url, cluster=True)
    yield store
    await store.aclose()


def key(id: str) -> Key:
    return Key("default", "session", id)


async def ids_of(store: Store, **of: Any) -> list[str]:
    return [found.id for found in (await store.find("default", "session", **of)).found]


# --------------------------------------------------------------------------------------------------- what a turn costs


async def test_a_warm_turn_is_three_requests(store: RedisStore, cluster: RedisCluster) -> None:
    committed = await store.commit(KEY, change(belongs_to="ann", logs={LOG: LogChange(append=[b"hi"])}))

    async def turn() -> None:
        nonlocal committed
        assert committed.row is not None
        opened = await store.open(
            KEY,
            wanted=Wanted(logs=[LogWanted(LOG, None, *committed.log_heads[LOG])]),
            known=Known(committed.version, committed.row.record_tag),
            lease=lease("us"),
        )
        commit = change(expected=opened.version, belongs_to="ann", logs={LOG: LogChange(append=[b"more"])})
        committed = await store.commit(KEY, commit)

    await turn()
    for node in cluster.nodes:
        node.command("CONFIG", "RESETSTAT")
    for _ in range(10):
        await turn()
    sent = [node.command("INFO", "commandstats") for node in cluster.nodes]
    assert sum(stats.get("cmdstat_evalsha", {"calls": 0})["calls"] for stats in sent) == 30
    assert not any({"cmdstat_eval", "cmdstat_multi"} & set(stats) for stats in sent)


async def test_all_keys_of_a_session_and_all_indexes_of_a_tenant_share_a_slot(
    store: RedisStore, cluster: RedisCluster
) -> None:
    await store.commit(KEY, everything(belongs_to="ann"))
    names = cluster.keys()
    assert len(names) == 8
    assert {cluster.nodes[0].raw("CLUSTER", "KEYSLOT", name) for name in names} == {
        cluster.nodes[0].raw("CLUSTER", "KEYSLOT", place) for place in (MAIN, INDEX)
    }


async def test_the_same_keys_are_written_as_on_a_redis_alone(
    store: RedisStore, cluster: RedisCluster, redis_url: str, redis_server: RedisServer
) -> None:
    alone = RedisStore.from_url(redis_url)
    for one in (store, alone):
        await one.commit(KEY, everything(belongs_to="ann"))
    await alone.aclose()
    assert set(cluster.keys()) - {f"{INDEX}:x".encode()} == set(redis_server.command("KEYS", "*"))


async def test_a_client_of_the_users_own_is_good_for_a_cluster(cluster: RedisCluster) -> None:
    client = RedisClusterClient(host="127.0.0.1", port=cluster.nodes[1].port)
    store = RedisStore(client)
    for number in range(20):
        await store.commit(key(f"{number}"), change())
    assert await store.count("default", "session") == 20
    await store.aclose()
    await client.aclose()


# --------------------------------------------------------------------------------------------------- finding the nodes


async def test_another_node_tells_of_the_cluster_when_that_of_the_url_is_down(cluster: RedisCluster) -> None:
    store = RedisStore.from_url("redis://127.0.0.1:1", cluster=True, startup_nodes=cluster.startup_nodes)
    await store.commit(KEY, change())
    await store.aclose()


async def test_a_cluster_that_is_down_is_reported_in_time() -> None:
    store = RedisStore.from_url("redis://127.0.0.1:1", cluster=True, connect_timeout_s=0.2, timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"cluster at 127\.0\.0\.1:1") as raised:
        await store.commit(KEY, change())
    assert not raised.value.maybe_done
    assert time.monotonic() - started < 2
    await store.aclose()


async def test_a_redis_that_is_no_cluster_says_so(redis_url: str) -> None:
    store = RedisStore.from_url(redis_url, cluster=True)
    with pytest.raises(StoreUnavailableError, match="this Redis is no cluster"):
        await store.open(KEY)
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "options"),
    [("redis://a/1", {}), ("unix:///run/redis.sock", {}), ("redis://a", {"sentinels": [("b", 1)]})],
)
def test_what_no_cluster_has_is_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidError) as raised:
        RedisStore.from_url(url, cluster=True, **options)
    assert raised.value.code == "INVALID_URL"


# --------------------------------------------------------------------------------------------------- wake-ups


async def test_waiters_on_other_nodes_are_woken_at_once(cluster: RedisCluster) -> None:
    stores = [RedisStore.from_url(cluster.url, cluster=True) for _ in range(6)]
    gaps: list[float] = []
    served: list[int] = []
    released = 0.0

    async def turn(number: int) -> None:
        nonlocal released
        await start_turn(stores[number], f"w{number}")
        gaps.append(time.monotonic() - released)
        served.append(number)
        await asyncio.sleep(0.01)
        released = time.monotonic()
        await stores[number].commit(KEY, change(owner=f"w{number}"))

    await start_turn(stores[0], "first")
    waiting = []
    for number in range(6):
        waiting.append(asyncio.create_task(turn(number)))
        while (await stores[0].open(KEY)).waiters <= number:  # noqa: ASYNC110 - it is Redis that tells
            await asyncio.sleep(0.002)
    released = time.monotonic()
    await stores[0].commit(KEY, change(owner="first"))
    await asyncio.gather(*waiting)
    assert served == list(range(6))
    assert sorted(gaps)[3] < 0.02
    for store in stores:
        await store.aclose()


async def test_a_waiter_is_woken_at_once_after_the_node_that_would_have_told_it_died(
    start_cluster: Callable[..., RedisCluster],
) -> None:
    cluster = start_cluster("--cluster-require-full-coverage", "no", replicas=0, masters=5)
    holder = RedisStore.from_url(cluster.url, cluster=True, startup_nodes=cluster.startup_nodes)
    await start_turn(holder, "holder")
    needed = {cluster.owner(MAIN), cluster.owner(INDEX)}
    while True:  # until somebody's messages come over a node that is not needed otherwise
        waiter = RedisStore.from_url(cluster.url, cluster=True, startup_nodes=cluster.startup_nodes)
        waiting = asyncio.create_task(start_turn(waiter, "waiter"))
        while not (tellers := [node for node in cluster.nodes if node.raw("PUBSUB", "CHANNELS")]):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if tellers[0] not in needed:
            break
        waiting.cancel()
        await holder.release(KEY, "waiter")
        await waiter.aclose()
        while tellers[0].raw("PUBSUB", "CHANNELS"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    tellers[0].kill()
    left = [node for node in cluster.nodes if node is not tellers[0]]
    while not any(node.raw("PUBSUB", "CHANNELS") for node in left):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # by now it has asked again
    released = time.monotonic()
    await holder.release(KEY, "holder")
    await waiting
    assert time.monotonic() - released < 0.1
    for store in (holder, waiter):
        await store.aclose()


# --------------------------------------------------------------------------------------------------- slots that move


def ids_in_one_slot(cluster: RedisCluster, number: int) -> tuple[int, list[str]]:
    """A slot, and ids of sessions that lie in it."""
    slot = slot_of(b"{default/s-1}")
    found = (f"s-{n}" for n in itertools.count() if slot_of(f"{{default/s-{n}}}".encode()) == slot)
    return slot, list(itertools.islice(found, number))


async def run_turns(store: RedisStore, id: str, until: asyncio.Event) -> int:
    """Turn after turn on a session, each with a new log beside the one that they share; return how many."""
    number = 0
    while not until.is_set():
        part = Part("turns", f"{number % 5}")
        opened = await store.open(key(id), wanted=EVERYTHING, lease=lease(f"{id}-{number}"))
        assert opened.logs[0].items == [b"%d" % turn for turn in range(number)]
        logs = {LOG: LogChange(append=[b"%d" % number]), part: LogChange(append=[b"x"])}
        await store.commit(key(id), change(owner=f"{id}-{number}", expected=opened.version, logs=logs))
        number += 1
    return number


@pytest.mark.parametrize("what", ["sessions", "indexes"])
async def test_a_slot_moves_to_another_node_in_the_middle_of_turns(
    store: RedisStore, other: RedisStore, cluster: RedisCluster, what: str
) -> None:
    slot, ids = ids_in_one_slot(cluster, 4)
    if what == "indexes":
        slot = slot_of(INDEX.encode())
    moved = asyncio.Event()
    turns = [asyncio.create_task(run_turns(one, id, moved)) for id, one in zip(ids, [store, other] * 2, strict=True)]
    await asyncio.sleep(0.1)
    home = cluster.owner("{default/s-1}" if what == "sessions" else INDEX)
    for to in (*(node for node in cluster.nodes if node is not home), home):
        await asyncio.to_thread(cluster.move_slot, slot, to, lambda: time.sleep(0.005))
        await asyncio.sleep(0.05)
    moved.set()
    assert min(await asyncio.gather(*turns)) > 5
    assert sorted(await ids_of(store)) == sorted(ids)
    assert await store.count("default", "session") == 4


async def test_a_session_of_which_half_has_moved_waits_for_the_rest(store: RedisStore, cluster: RedisCluster) -> None:
    created = await store.commit(KEY, everything())
    slot, home = slot_of(MAIN.encode()), cluster.owner(MAIN)
    to = next(node for node in cluster.nodes if node is not home)
    half, go_on = threading.Event(), threading.Event()

    def between() -> None:
        if len(to.raw("CLUSTER", "GETKEYSINSLOT", slot, 10)) == 2:
            half.set()
            assert go_on.wait(10)

    moving = asyncio.create_task(asyncio.to_thread(cluster.move_slot, slot, to, between))
    await asyncio.to_thread(half.wait)
    turn = change(expected=created.version, logs={LOG: LogChange(append=[b"more"])})
    committing = asyncio.create_task(store.commit(KEY, turn))
    scanned = await scan(store)
    await asyncio.sleep(0.2)
    assert not committing.done()
    go_on.set()
    await moving
    committed = await committing
    assert scanned == {KEY}
    assert (committed.version.revision, committed.repeated) == (2, False)
    assert (await store.open(KEY, wanted=EVERYTHING)).logs[0].items == [b"hi", b"ho", b"more"]
    await asyncio.to_thread(cluster.move_slot, slot, home)


async def test_a_slot_that_does_not_come_through_is_reported_in_time(cluster: RedisCluster) -> None:
    store = RedisStore.from_url(cluster.url, cluster=True, connect_timeout_s=0.2, timeout_s=0.3)
    created = await store.commit(KEY, everything())
    slot, home = slot_of(MAIN.encode()), cluster.owner(MAIN)
    to = next(node for node in cluster.nodes if node is not home)
    to.raw("CLUSTER", "SETSLOT", slot, "IMPORTING", home.raw("CLUSTER", "MYID"))
    home.raw("CLUSTER", "SETSLOT", slot, "MIGRATING", to.raw("CLUSTER", "MYID"))
    home.raw("MIGRATE", "127.0.0.1", to.port, MAIN, 0, 5000)
    with pytest.raises(StoreUnavailableError, match="being moved to another node") as raised:
        await store.commit(KEY, change(expected=created.version))
    assert not raised.value.maybe_done
    await asyncio.to_thread(cluster.move_slot, slot, to)
    assert (await store.commit(KEY, change(expected=created.version))).version.revision == 2
    await asyncio.to_thread(cluster.move_slot, slot, home)
    await store.aclose()


# --------------------------------------------------------------------------------------------------- scans


async def scan(store: Store, limit: int = 100) -> set[Key]:
    keys: set[Key] = set()
    cursor = None
    while True:
        page = await store.scan(limit=limit, cursor=cursor)
        keys.update(page.keys)
        cursor = page.next
        if cursor is None:
            return keys


async def test_a_scan_finds_every_key_while_slots_move(store: RedisStore, cluster: RedisCluster) -> None:
    all_keys = {Key(f"t{number % 3}", "session", "x" * (number % 3 * 60) + f"{number}") for number in range(300)}
    for one in all_keys:
        await store.commit(one, change(logs={LOG: LogChange(append=[b"1"])}))
    home = cluster.owner(MAIN)
    to = next(node for node in cluster.nodes if node is not home)
    first = next(first for first, _, master, *_ in cluster.map(home) if master[1] == home.port)
    is_over = threading.Event()

    def move_slots() -> None:
        for slot in itertools.cycle(range(first, first + 50)):
            for node in (to, home):
                cluster.move_slot(slot, node)
            if is_over.is_set():
                return

    moving = asyncio.create_task(asyncio.to_thread(move_slots))
    for limit in (50, 1000):
        assert await scan(store, limit=limit) == all_keys
    is_over.set()
    await moving


# --------------------------------------------------------------------------------------------------- indexes


async def test_places_of_evicted_sessions_leave_the_listing_when_they_are_a_minute_old(cluster: RedisCluster) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    for number in range(5):
        await store.commit(key(f"s-{number}"), change(belongs_to="ann"))
    cluster.command("DEL", MAIN)
    assert await ids_of(store) == ["s-4", "s-3", "s-2", "s-0"]
    assert await store.count("default", "session") == 4
    assert await store.count("default", "session", belongs_to="ann") == 5
    assert cluster.command("ZSCORE", f"{INDEX}:i", "as-1") is not None  # it is young: it may be about to be made
    clock.advance(60)
    assert len(await ids_of(store)) == 4
    assert await store.count("default", "session") == 4
    assert len(await ids_of(store, belongs_to="ann")) == 4
    assert await store.count("default", "session", belongs_to="ann") == 4
    await store.aclose()


@pytest.mark.parametrize("which", [":i", ":x", "/ann:i"])
async def test_an_index_that_was_deleted_comes_back_with_the_turns(
    store: RedisStore, other: RedisStore, cluster: RedisCluster, which: str
) -> None:
    version = (await store.commit(KEY, change(belongs_to="ann"))).version
    await store.commit(key("s-2"), change(belongs_to="ann"))
    cluster.command("DEL", INDEX + which)
    await store.commit(KEY, change(expected=version))
    await other.commit(key("s-2"), change())
    for belongs_to in (None, "ann"):
        assert sorted(await ids_of(other, belongs_to=belongs_to)) == ["s-1", "s-2"]
        assert await other.count("default", "session", belongs_to=belongs_to) == 2


async def test_a_scan_brings_back_indexes_that_were_deleted(cluster: RedisCluster) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    for number in range(5):
        await store.commit(key(f"s-{number}"), change(belongs_to="ann", ttl_ms=60_000 if number else None))
        clock.advance(1)
    before = [await store.find("default", "session", belongs_to=user) for user in (None, "ann")]
    for name in cluster.keys(INDEX.replace("{", "[{]") + "*"):
        cluster.command("DEL", name)
    assert await ids_of(store) == []
    await scan(store)
    assert [await store.find("default", "session", belongs_to=user) for user in (None, "ann")] == before
    assert await store.count("default", "session", belongs_to="ann") == 5
    await store.aclose()


async def test_a_place_that_a_crash_left_behind_is_put_right_by_the_listing_that_meets_it(
    cluster: RedisCluster,
) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    for number in range(9):
        await store.commit(key(f"s-{number}"), change(ttl_ms=1000_000))
        clock.advance(10)
    now = clock.now_ms()
    places = [
        (BY_ACTIVITY, now - 500_000, "as-7"),  # its last turn did not get here
        (GOES, now - 1, "gs-7"),
        (BY_ACTIVITY, now, "as-2"),  # this turn was moved, and then refused
        (ENTERED, now + 60_000, "gs-5"),  # it was entered and made, and no more
    ]
    for shelf, at, member in places:
        cluster.command("ZADD", f"{INDEX}:i", score(shelf, at), member)
    assert await store.count("default", "session") == 7
    assert await paged(store, 2) == ["s-8", "s-6", "s-5", "s-4", "s-3", "s-2", "s-1", "s-0", "s-7"]
    assert await paged(store, 2) == [f"s-{number}" for number in range(8, -1, -1)]
    assert await store.count("default", "session") == 9
    await store.aclose()


async def paged(store: Store, limit: int) -> list[str]:
    """All ids of the listing, page by page; none twice."""
    listed: list[str] = []
    cursor = None
    while True:
        page = await store.find("default", "session", limit=limit, cursor=cursor)
        assert len(page.found) <= limit
        listed += [found.id for found in page.found]
        assert len(set(listed)) == len(listed)
        cursor = page.next
        if cursor is None:
            return listed


async def test_an_end_that_a_crash_left_behind_is_put_right_by_the_count_that_meets_it(cluster: RedisCluster) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    for number in range(3):
        await store.commit(key(f"s-{number}"), change(ttl_ms=100_000))
    clock.advance(99)
    await store.commit(key("s-1"), change(ttl_ms=1000_000))
    cluster.command("ZADD", f"{INDEX}:i", score(GOES, clock.now_ms() + 1000), "gs-1")
    clock.advance(1)
    assert await store.count("default", "session") == 0
    clock.advance(60)
    assert await store.count("default", "session") == 1
    assert cluster.command("ZCARD", f"{INDEX}:i") == MEMBERS
    await store.aclose()


async def test_indexes_that_nobody_lists_do_not_grow_for_ever(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(0)
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    for number in range(300):
        await store.commit(key(f"s-{number}"), change(ttl_ms=1000, belongs_to="ann"))
        clock.advance(2)
    await asyncio.sleep(0.1)
    assert cluster.command("ZCARD", f"{INDEX}:i") < 150 * MEMBERS
    assert cluster.command("ZCARD", f"{INDEX}/ann:i") < 150 * MEMBERS
    assert cluster.command("HLEN", f"{INDEX}:x") < 150
    await store.aclose()


async def test_a_late_change_of_a_place_does_not_undo_a_later_one(cluster: RedisCluster) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    made = await store.commit(KEY, change(ttl_ms=1000_000))
    assert made.row is not None
    started, now = made.row.started_at, clock.now_ms()
    await store.commit(KEY, change(expected=made.version, ttl_ms=2000_000))
    names = KeyNames(b"ak:sessions:", KEY)
    keys, life = [names.index, names.orders], b"".join(cluster.command("HMGET", MAIN, "l", "p"))
    for what, writes in (("M", 1), ("S", 1), ("L", 1)):
        late = Change(what.encode(), names.member, Order(started, writes), life)  # type: ignore[arg-type]
        cluster.owner(INDEX).raw("EVAL", INDEX_SCRIPT.text, 2, *keys, pack_now(now + 5000), *late.packed())
        assert int(cluster.command("ZSCORE", f"{INDEX}:i", "gs-1")) == score(GOES, now + 2000_000), what
    await store.delete(KEY, os.urandom(8))
    late = Change(b"M", names.member, Order(started, 3), life)
    assert cluster.owner(INDEX).raw("EVAL", INDEX_SCRIPT.text, 2, *keys, pack_now(now + 5000), *late.packed()) == [0]
    assert cluster.command("EXISTS", f"{INDEX}:i") == 0
    await store.aclose()


async def test_a_late_word_that_a_session_is_of_others_does_not_lose_its_place(cluster: RedisCluster) -> None:
    store = RedisStore.from_url(cluster.url, cluster=True, clock=FakeClock())
    await store.commit(KEY, change(belongs_to="ann"))  # anew: it was of bob when the word was sent
    names = KeyNames(b"ak:sessions:", KEY)
    keys = [names.index, names.orders, names.user_index(b"=ann")]
    late = Change(b"W", names.member).packed()
    cluster.owner(INDEX).raw("EVAL", INDEX_SCRIPT.text, 3, *keys, pack_now(FakeClock().now_ms()), *late)
    assert await ids_of(store, belongs_to="ann") == ["s-1"]
    assert await store.count("default", "session", belongs_to="ann") == 1
    await store.aclose()


@pytest.mark.parametrize("mends", ["turn", "listing"])
async def test_places_agree_with_sessions_again_after_a_failover_that_lost_commits(
    cluster: RedisCluster, mends: str
) -> None:
    clock = FakeClock()
    store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    made = await store.commit(KEY, change(ttl_ms=1000_000))
    assert made.row is not None
    before = cluster.command("DUMP", MAIN)
    for _ in range(5):
        clock.advance(1)
        await store.commit(KEY, change(ttl_ms=1000_000))
    cluster.command("RESTORE", MAIN, 0, before, "REPLACE")
    active, gone = made.row.active_at, made.row.gone_at
    elsewhere = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
    if mends == "turn":
        clock.advance(100)
        mended = await elsewhere.commit(KEY, change(expected=made.version, ttl_ms=2000_000))
        assert mended.row is not None
        active, gone = mended.row.active_at, mended.row.gone_at
    else:
        assert await ids_of(elsewhere) == ["s-1"]
    assert int(cluster.command("ZSCORE", f"{INDEX}:i", "as-1")) == score(BY_ACTIVITY, active)
    assert int(cluster.command("ZSCORE", f"{INDEX}:i", "gs-1")) == score(GOES, gone or 0)
    for one in (store, elsewhere):
        await one.aclose()


async def test_a_turn_is_stored_when_the_indexes_are_away(
    start_cluster: Callable[..., RedisCluster],
) -> None:
    cluster = start_cluster("--cluster-require-full-coverage", "no", replicas=0)
    store = RedisStore.from_url(cluster.url, cluster=True, startup_nodes=cluster.startup_nodes)
    tenant = next(
        f"t{n}" for n in itertools.count() if cluster.owner(f"{{t{n}/s-1}}") is not cluster.owner(f"{{s@t{n}}}")
    )
    one = Key(tenant, "session", "s-1")
    version = (await store.commit(one, change())).version
    cluster.owner(f"{{s@{tenant}}}").kill()
    started = time.monotonic()
    assert (await store.commit(one, change(expected=version))).version.revision == 2
    assert time.monotonic() - started < 2
    await store.aclose()
    away = RedisStore.from_url(
        cluster.url, cluster=True, startup_nodes=cluster.startup_nodes, connect_timeout_s=0.2, timeout_s=0.3
    )
    with pytest.raises(StoreUnavailableError) as raised:
        await away.commit(one._replace(id="new"), change(expected=ABSENT))
    assert not raised.value.maybe_done
    await away.aclose()


USERS = ["ann", "bob", None]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_crash_leaves_anything_wrong_for_longer_than_a_listing(cluster: RedisCluster) -> None:
    """Processes die anywhere in making sessions, in turns on them and in deleting them."""
    clock, dice = FakeClock(), random.Random(7)

    def lives(seed: int) -> None:
        for number in range(80):
            asyncio.run(life(random.Random(f"{seed}/{number}")))

    async def life(dice: random.Random) -> None:
        store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
        with suppress(SessionError, TimeoutError):
            for _ in range(3):
                await operation(store, dice)
            async with asyncio.timeout(dice.random() * 0.003):
                await operation(store, dice)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await store.aclose()

    async def operation(store: RedisStore, dice: random.Random) -> None:
        clock.advance(dice.random())
        one, user = key(f"s-{dice.randrange(12)}"), dice.choice(USERS)
        lifetime = Lifetime(idle_ms=dice.choice([1_000, 50_000]), end_ms=50_000, ttl_ms=600_000, retention_ms=600_000)
        match dice.randrange(8):
            case 0:
                await store.delete(one, os.urandom(8))
            case 1 | 2:
                await store.commit(one, change(belongs_to=user, lifetime=lifetime))
            case 3:
                await store.amend(one, Amend(id=os.urandom(8), end=True))
            case 4:
                await store.amend(one, Amend(id=os.urandom(8), activity=True, lifetime=lifetime))
            case _:
                opened = await store.open(one)
                await store.commit(one, change(expected=opened.version, belongs_to=user, lifetime=lifetime))

    threads = [threading.Thread(target=lives, args=(dice.random(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def check(*, counts: bool) -> int:
        store = RedisStore.from_url(cluster.url, cluster=True, clock=clock)
        rows = {one.id: (await store.open(one)).row for one in [key(f"s-{number}") for number in range(12)]}
        statuses: list[Status] = ["active", "idle", "ended"]
        for user in ["ann", "bob", None]:
            whose = {id for id, row in rows.items() if row is not None and user in (None, row.belongs_to)}
            assert set(await ids_of(store, belongs_to=user)) == whose
            if counts:
                assert await store.count("default", "session", belongs_to=user) == len(whose)
                for status in statuses:
                    such = {id for id in whose if status == rows[id].stamps.status(clock.now_ms())}  # type: ignore[union-attr]
                    assert set(await ids_of(store, belongs_to=user, status=status)) == such
                    assert set(await ids_of(store, belongs_to=user, status=status, order="start")) == such
                    assert await store.count("default", "session", belongs_to=user, status=status) == len(such)
                    ran_out = {id for id in such if rows[id].ended_at is None} if status == "ended" else set()  # type: ignore[union-attr]
                    if user is None and status == "ended":
                        found = (await store.run_out("default", "session")).found
                        assert {one.id for one in found} == ran_out
        await store.aclose()
        return len(whose)

    assert asyncio.run(check(counts=False)) > 3
    clock.advance(60)
    asyncio.run(check(counts=False))
    asyncio.run(check(counts=True))
    gc.collect()  # what the crashes left open, as long as it is allowed
