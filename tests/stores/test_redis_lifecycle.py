"""Idle, ended, gone, by the server's own clock; and how the indexes follow the time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sessions.errors import SessionEndedError, SessionExpiredError
from agent_sessions.stores.base import ABSENT, Amend, Key, LogChange, Page, Store
from agent_sessions.stores.lifetime import Course, Lifetime, Status
from agent_sessions.stores.redis import RedisStore
from agent_sessions.testing import FakeClock
from tests.lifecycle import raw

from .redis_turns import KEY, LOG, MEMBERS, change, everything, lease, score

SHORT = Lifetime(idle_ms=400, end_ms=400, ttl_ms=60_000, retention_ms=400)
HALF_HOUR = Lifetime(idle_ms=1_800_000, end_ms=86_400_000, ttl_ms=604_800_000, retention_ms=604_800_000)
STATUSES: list[Status] = ["active", "idle", "ended"]
BY_ACTIVITY = 1  # a shelf (places.lua)


@pytest.fixture(params=["one server", "cluster"])
async def servers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How to reach one server, or a cluster; and what sends it commands."""
    if request.param == "cluster":
        cluster = request.getfixturevalue("redis_cluster")
        cluster.flush()
        return {"url": cluster.url, "cluster": True, "backend": cluster}
    return {"url": request.getfixturevalue("redis_url"), "backend": request.getfixturevalue("redis_server")}


@pytest.fixture
async def store(servers: dict[str, Any]) -> AsyncIterator[RedisStore]:
    """By the clock of the server."""
    store = connect(servers)
    yield store
    await store.aclose()


def connect(servers: dict[str, Any], clock: FakeClock | None = None) -> RedisStore:
    return RedisStore.from_url(servers["url"], cluster=servers.get("cluster", False), clock=clock)


async def counted(store: Store) -> dict[Status, int]:
    numbers = {status: await store.count("default", "session", status=status) for status in STATUSES}
    return {status: number for status, number in numbers.items() if number}


async def listed(store: Store, **asked: Any) -> list[str]:
    ids, page = list[str](), Page(0, [], None)
    while not page.now or page.next is not None:
        page = await store.find("default", "session", cursor=page.next, **asked)
        ids += [found.id for found in page.found]
    return ids


async def test_a_session_idles_ends_and_goes_to_the_millisecond_of_the_server(
    store: RedisStore, servers: dict[str, Any]
) -> None:
    made = await store.commit(KEY, everything(lifetime=SHORT))
    assert made.row is not None
    stamps, active_at = made.row.stamps, made.row.active_at
    assert [*stamps] == [active_at + 400, active_at + 800, active_at + 1_200]
    seen = list[Status]()
    while (before := await store.open(KEY)).row is not None:
        pages = [status for status in STATUSES if await listed(store, status=status)]
        numbers = await counted(store)
        after = await store.open(KEY)
        if after.row is not None and stamps.status(before.now) == stamps.status(after.now):
            assert pages == list(numbers) == [stamps.status(before.now)]
            assert list(numbers.values()) == [1]
            seen += pages
    assert sorted(set(seen), key=STATUSES.index) == STATUSES
    assert before.now >= (stamps.gone_at or 0)
    assert await counted(store) == {}
    assert await listed(store) == []
    assert servers["backend"].command("EXISTS", "ak:sessions:s{default/s-1}") == 0


async def test_all_keys_go_natively_when_the_session_does(store: RedisStore, servers: dict[str, Any]) -> None:
    await store.commit(KEY, everything(lifetime=HALF_HOUR))
    ended = await store.amend(KEY, Amend(id=os.urandom(8), end=True, lifetime=SHORT._replace(retention_ms=100_000)))
    gone_at = ended.row.gone_at
    assert gone_at == ended.now + 100_000
    parts = ["", ":v", ":lopenai/items", ":clanggraph/checkpoints", ":zlanggraph/checkpoints"]
    ends = {servers["backend"].command("PEXPIRETIME", f"ak:sessions:s{{default/s-1}}{part}") for part in parts}
    assert all(abs(int(end) - gone_at) <= 1 for end in ends)


@pytest.mark.parametrize("servers", ["one server"], indirect=True)
async def test_a_young_session_is_kept_compact(store: RedisStore, servers: dict[str, Any]) -> None:
    own = dict.fromkeys(Lifetime._fields, 60000)
    await store.commit(KEY, change(lifetime=HALF_HOUR, own=own, expires_at=2**47, counters={"messages": 2}))
    for _ in range(4):
        await store.commit(KEY, change(logs={LOG: LogChange(append=[b"hi"])}))
        await store.amend(KEY, Amend(id=os.urandom(8), activity=True))
    row = (await store.open(KEY)).row
    assert row is not None
    assert (row.own, row.expires_at) == (own, 2**47)
    assert servers["backend"].command("OBJECT", "ENCODING", "ak:sessions:s{default/s-1}") == b"listpack"


async def test_what_is_deleted_leaves_no_name_behind(store: RedisStore, servers: dict[str, Any]) -> None:
    key, write_id, other = KEY._replace(id="ann-0517/1" * 20), os.urandom(8), connect(servers)
    await store.commit(key, everything(lifetime=HALF_HOUR, belongs_to="ann-0517"))
    ports = [node.port for node in getattr(servers["backend"], "nodes", [servers["backend"]])]

    def left() -> bytes:
        return b"\n".join(raw.of_redis(f"redis://127.0.0.1:{port}") for port in ports)

    assert b"ann-0517" in left()
    assert await store.delete(key, write_id)
    assert await other.delete(key, write_id)
    assert b"d@{" in left()
    assert b"ann-0517" not in left()
    await other.aclose()


async def test_what_ended_refuses_by_the_servers_clock(store: RedisStore) -> None:
    expiring, idling = KEY._replace(id="expiring"), KEY._replace(id="idling")
    now = (await store.open(KEY)).now
    await store.commit(expiring, change(lifetime=HALF_HOUR, expires_at=now + 120))
    await store.commit(idling, change(lifetime=SHORT._replace(idle_ms=60, end_ms=60, retention_ms=60_000)))
    while len((await store.run_out("default", "session")).found) < 2:  # noqa: ASYNC110 - it is Redis that tells
        await asyncio.sleep(0.01)
    with pytest.raises(SessionExpiredError):
        await store.commit(expiring, change())
    with pytest.raises(SessionEndedError):
        await store.commit(idling, change())


async def test_a_renewed_lease_keeps_a_session_by_the_servers_clock(store: RedisStore) -> None:
    await store.commit(KEY, change(lifetime=Lifetime(idle_ms=400, end_ms=200, ttl_ms=600)))
    assert (await store.open(KEY, lease=lease("us", ms=60_000))).granted
    assert await store.renew(KEY, "us", 60_000)
    row = (await store.open(KEY)).row
    assert row is not None
    while (await store.open(KEY)).now < row.active_at + 700:  # noqa: ASYNC110 - it is Redis that tells
        await asyncio.sleep(0.02)
    assert await counted(store) == {"active": 1}


async def test_very_many_that_became_idle_at_once_are_listed_page_by_page(servers: dict[str, Any]) -> None:
    clock = FakeClock()
    store = connect(servers, clock)
    names = [f"s{number:03}" for number in range(600)]
    for name in names:
        await store.commit(Key("default", "session", name), change(lifetime=HALF_HOUR, belongs_to="ann"))
    clock.advance(1_800)
    assert await counted(store) == {"idle": 600}
    assert await listed(store, status="active") == []
    assert await listed(store, status="idle", limit=250) == names[::-1]
    assert await listed(store, status="idle", order="start", belongs_to="ann", limit=400) == names[::-1]
    clock.advance(86_400)
    assert await counted(store) == {"ended": 600}
    assert await listed(store, status="ended", limit=600) == names[::-1]
    assert [found.id for found in (await store.run_out("default", "session", limit=600)).found] == names
    await store.aclose()


async def test_what_is_gone_is_taken_out_of_the_index(servers: dict[str, Any]) -> None:
    clock = FakeClock()
    store = connect(servers, clock)
    await store.commit(KEY, change(lifetime=HALF_HOUR, belongs_to="ann"))
    await store.commit(KEY._replace(id="short"), change(lifetime=SHORT, belongs_to="ann"))
    clock.advance(2)
    assert await listed(store, status="ended") == []
    clock.advance(60)
    for user in (None, "ann"):
        assert await store.count("default", "session", belongs_to=user) == 1
    for index in ("ak:sessions:{s@default}:i", "ak:sessions:{s@default}/ann:i"):
        assert servers["backend"].command("ZCARD", index) == MEMBERS
    await store.aclose()


@pytest.mark.parametrize("servers", ["one server"], indirect=True)
async def test_an_index_does_not_outlast_a_last_session_whose_end_was_moved_to_the_past(
    store: RedisStore, servers: dict[str, Any]
) -> None:
    made = await store.commit(KEY, change(ttl_ms=None))
    assert made.row is not None
    past = made.row.started_at - 1_000
    await store.amend(KEY, Amend(id=os.urandom(8), lifetime=Lifetime(retention_ms=0), expires_at=past))
    assert servers["backend"].command("PTTL", "ak:sessions:{s@default}:i") != -1


async def test_a_turn_that_an_end_refuses_does_not_bring_its_place_back(servers: dict[str, Any]) -> None:
    store, other = connect(servers), connect(servers)
    version = (await store.commit(KEY, change(lifetime=HALF_HOUR, belongs_to="ann"))).version
    await other.amend(KEY, Amend(id=os.urandom(8), end=True))
    with pytest.raises(SessionEndedError):
        await store.commit(KEY, change(expected=version, lifetime=HALF_HOUR))
    assert await counted(store) == {"ended": 1}
    assert await listed(store, belongs_to="ann", status="ended") == ["s-1"]
    assert await listed(store, belongs_to="ann", status="active") == []
    for one in (store, other):
        await one.aclose()


@pytest.mark.parametrize("servers", ["cluster"], indirect=True)
async def test_on_a_cluster_a_status_changes_only_if_the_session_itself_says_so(servers: dict[str, Any]) -> None:
    clock = FakeClock()
    store, index = connect(servers, clock), "ak:sessions:{s@default}:i"
    for name in ("s-1", "s-2"):
        await store.commit(KEY._replace(id=name), change(lifetime=HALF_HOUR))
    clock.advance(1_000)
    version = (await store.open(KEY)).version
    places = servers["backend"].command("ZRANGE", index, 0, -1, "WITHSCORES")
    await store.commit(KEY, change(expected=version, lifetime=HALF_HOUR))
    late = dict(zip(places[::2], places[1::2], strict=True))
    for member in (b"as-1", b"is-1", b"es-1", b"gs-1"):  # its last turn did not get here
        servers["backend"].command("ZADD", index, late[member], member)
    clock.advance(1_000)
    assert await listed(store, status="idle") == ["s-2"]
    assert await listed(store, status="active") == ["s-1"]
    assert await counted(store) == {"active": 1, "idle": 1}
    assert int(servers["backend"].command("ZSCORE", index, "as-1")) == score(BY_ACTIVITY, clock.now_ms() - 1_000_000)
    await store.aclose()


async def test_places_of_lost_sessions_leave_the_listings_by_status(servers: dict[str, Any]) -> None:
    clock = FakeClock()
    store = connect(servers, clock)
    for name in ("s-1", "s-2"):
        await store.commit(KEY._replace(id=name), change(lifetime=HALF_HOUR))
    clock.advance(1_800 + 86_400)
    servers["backend"].command("DEL", "ak:sessions:s{default/s-1}")
    assert [found.id for found in (await store.run_out("default", "session")).found] == ["s-2"]
    assert await listed(store, status="ended") == ["s-2"]
    assert await counted(store) == {"ended": 1}
    await store.aclose()


async def test_a_commit_that_is_refused_leaves_a_place_as_it_was(servers: dict[str, Any]) -> None:
    clock = FakeClock()
    store, other = connect(servers, clock), connect(servers, clock)
    await store.commit(KEY, change(lifetime=HALF_HOUR, belongs_to="ann"))
    await store.amend(KEY, Amend(id=os.urandom(8), end=True))
    clock.advance(60)
    for expected in (ABSENT, None):
        with pytest.raises(SessionEndedError):
            await other.commit(KEY, change(expected=expected, lifetime=HALF_HOUR, belongs_to="bob"))
    assert await store.count("default", "session", belongs_to="bob") == 0
    assert await listed(store, status="ended") == await listed(store, status="ended", belongs_to="ann") == ["s-1"]
    assert await counted(store) == {"ended": 1}
    for one in (store, other):
        await one.aclose()


async def test_maintenance_may_tell_whose_a_session_is(store: RedisStore) -> None:
    made = await store.commit(KEY, change(lifetime=HALF_HOUR))
    await store.commit(KEY, change(expected=made.version, maintenance=True, belongs_to="ann"))
    assert await listed(store, belongs_to="ann") == ["s-1"]
    assert await store.count("default", "session", belongs_to="ann") == 1


async def test_an_end_by_a_faster_clock_is_none_that_ran_out(servers: dict[str, Any]) -> None:
    clock = FakeClock()
    store, now = connect(servers, clock), clock.now_ms()
    for number in range(3):
        course = Course(now - 60_000, now - 60_000, ended_at=now + 1_000 + number)
        imported = change(expected=ABSENT, course=course, lifetime=HALF_HOUR._replace(idle_ms=30_000))
        await store.commit(KEY._replace(id=f"s{number}"), imported)
    assert await counted(store) == {"idle": 3}
    clock.advance(2)
    await store.commit(KEY, change(lifetime=HALF_HOUR, expires_at=clock.now_ms()))
    assert [found.id for found in (await store.run_out("default", "session", limit=1)).found] == ["s-1"]
    assert await listed(store, status="ended") == ["s-1", "s2", "s1", "s0"]
    assert await counted(store) == {"ended": 4}
    await store.aclose()
