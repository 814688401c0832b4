"""Amendments beside commits, and what runs out, whatever gets lost or comes in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sessions.errors import SessionEndedError, StoreUnavailableError
from agent_sessions.stores.base import Amend, CollectionChange, Commit, Key, Part, Store
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.testing import FakeClock
from agent_sessions.testing.conformance.harness import CHECKPOINTS, append, change, new_id, read_log, take
from tests.dynamodb import DynamoDB

from .dynamodb_proxy import Decision, Holding, dying, proxy

KEY = Key("acme", "session", "s-1")
HOUR, DAY = 3_600, 86_400
MADE = Lifetime(idle_ms=HOUR * 1000, end_ms=23 * HOUR * 1000, ttl_ms=7 * DAY * 1000, retention_ms=7 * DAY * 1000)
LARGE = bytes(400_000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(dynamodb: DynamoDB, clock: FakeClock) -> AsyncIterator[Store]:
    store = dynamodb.store(clock)
    yield store
    await store.aclose()


def amendment(**changes: Any) -> Amend:
    return Amend(id=new_id(), **changes)


async def known(store: Store, key: Key = KEY) -> tuple[dict[str, bytes], dict[str, int], int]:
    """The fields, the counters, and the revision."""
    opened = await store.open(key)
    assert opened.row is not None
    assert opened.row.fields is not None
    return opened.row.fields, opened.row.counters, opened.version.revision


# --------------------------------------------------------------------------------------------------- beside commits


def small(**more: Any) -> Commit:
    return change(lifetime=MADE, logs=append(b"1"), counters={"n": 1}, fields={"theirs": b"1"}, **more)


def large(**more: Any) -> Commit:
    """More than a transaction takes."""
    entries: dict[str, bytes | None] = {f"{number:04}": b"1" for number in range(110)}
    commit = small(**more)
    commit.collections = {CHECKPOINTS: CollectionChange(entries=entries)}
    return commit


@pytest.mark.parametrize("make", [small, large])
async def test_a_commit_that_an_amendment_overtakes_is_stored_and_keeps_it(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, make: Any
) -> None:
    held = Holding("TransactWriteItems") if make is small else Holding("UpdateItem", _publishes)
    slow = dynamodb.store(clock, make_session=held.make_session)
    version = (await store.commit(KEY, small())).version
    committing = asyncio.create_task(slow.commit(KEY, make(expected=version)))
    await held.on_its_way.wait()
    clock.advance(1)
    amended = await store.amend(KEY, amendment(fields={"ours": b"2"}, counters={"n": 10}, expires_at=10**13))
    held.may_go_on.set()
    committed = await committing
    assert committed.previous == version
    assert committed.previous_tag == amended.row.record_tag
    assert await known(store) == ({"theirs": b"1", "ours": b"2"}, {"n": 12}, 2)
    row = (await store.open(KEY)).row
    assert row is not None
    assert row.expires_at == 10**13
    await slow.aclose()


def _publishes(params: dict[str, Any]) -> bool:
    return "st = :st" in params["UpdateExpression"]


@pytest.mark.parametrize("fields", [{}, {"ours": b"2"}, {"ours": LARGE}])
async def test_an_amendment_that_a_commit_overtakes_is_stored_and_keeps_it(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, fields: dict[str, bytes | None]
) -> None:
    held = Holding("TransactWriteItems" if fields else "UpdateItem")
    slow = dynamodb.store(clock, make_session=held.make_session)
    await store.commit(KEY, small())
    amending = asyncio.create_task(slow.amend(KEY, amendment(fields=fields, counters={"n": 10})))
    await held.on_its_way.wait()
    await store.commit(KEY, large())
    held.may_go_on.set()
    amended = await amending
    assert amended.changed
    assert amended.row.fields == {"theirs": b"1", **fields}
    assert await known(store) == (amended.row.fields, {"n": 12}, 2)
    assert dynamodb.kinds().get("X", 0) == (2 if LARGE in fields.values() else 0)
    await slow.aclose()


async def test_a_reader_between_two_amendments_finds_nothing_lost(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    """Each time that it reads the fields there are others, and the revision is the same."""
    await store.commit(KEY, change(fields={"f": b"0"}))
    reader = dynamodb.store(clock)
    done = asyncio.Event()

    async def amend() -> None:
        for number in range(15):
            await store.amend(KEY, amendment(fields={"f": b"%d" % number}))
        done.set()

    amending = asyncio.create_task(amend())
    while not done.is_set():
        assert (await known(reader))[2] == 1
        assert len((await reader.find("acme", "session")).found) == 1
    await amending
    assert (await known(reader))[0] == {"f": b"14"}
    await reader.aclose()


@pytest.mark.parametrize("make", [small, large])
async def test_a_commit_that_an_end_overtakes_is_refused_and_leaves_nothing(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, make: Any
) -> None:
    held = Holding("TransactWriteItems") if make is small else Holding("UpdateItem", _publishes)
    slow = dynamodb.store(clock, make_session=held.make_session)
    version = (await store.commit(KEY, small())).version
    committing = asyncio.create_task(slow.commit(KEY, make(expected=version)))
    await held.on_its_way.wait()
    assert (await store.amend(KEY, amendment(end=True))).changed
    held.may_go_on.set()
    with pytest.raises(SessionEndedError):
        await committing
    assert await known(store) == ({"theirs": b"1"}, {"n": 1}, 1)
    assert await read_log(store, KEY) == [b"1"]
    assert dynamodb.kinds() == {"L": 1, "T": 1}
    await slow.aclose()


async def test_an_end_that_a_commit_overtakes_ends_what_it_has_stored(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    held = Holding("UpdateItem")
    slow = dynamodb.store(clock, make_session=held.make_session)
    await store.commit(KEY, small())
    ending = asyncio.create_task(slow.amend(KEY, amendment(end=True)))
    await held.on_its_way.wait()
    await store.commit(KEY, small())
    held.may_go_on.set()
    ended = await ending
    assert ended.changed
    assert ended.row.counters == {"n": 2}
    assert await read_log(store, KEY) == [b"1", b"1"]
    with pytest.raises(SessionEndedError):
        await store.commit(KEY, small())
    await slow.aclose()


# --------------------------------------------------------------------------------------------------- lost


@pytest.mark.parametrize(("data", "fault"), [(b"new", "lose the request"), (LARGE, "lose the reply")])
async def test_an_amendment_that_dies_at_any_step_is_there_whole_or_not_at_all(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, fault: Decision, data: bytes
) -> None:
    changed: list[bool] = []
    for requests in range(9):
        await store.commit(KEY, change(fields={"f": LARGE[1:]}, lifetime=MADE))
        amend = amendment(fields={"f": data}, counters={"n": 1}, end=True)
        async with dying(dynamodb, requests, fault, clock=clock) as victim:
            try:
                assert (await victim.amend(KEY, amend)).changed
                answered = True
            except StoreUnavailableError:
                answered = False
        fields, counters, revision = await known(store)
        assert revision == 1
        assert (fields, counters) in [({"f": LARGE[1:]}, {}), ({"f": data}, {"n": 1})]
        again = await store.amend(KEY, amend)
        assert again.changed == (not counters)
        assert counters or not answered
        assert await known(store) == ({"f": data}, {"n": 1}, 1)
        assert not (await store.amend(KEY, amend)).changed
        changed.append(again.changed)
        await store.delete(KEY, new_id())
        await store.scan()  # which sweeps
        assert dynamodb.kinds() == {}
        if changed.count(False) == 2:
            break
    assert changed == sorted(changed, reverse=True)  # from one request on, the one that decides, it is stored
    assert set(changed) == {True, False}


@pytest.mark.parametrize("fields", [{}, {"why": b"done"}])
async def test_an_amendment_whose_reply_was_lost_is_known_for_ones_own(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, fields: dict[str, bytes | None]
) -> None:
    """It is sent again, and meets itself: to those who count what they ended, it is theirs."""
    lost = 0

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        nonlocal lost
        if operation not in ("UpdateItem", "TransactWriteItems") or lost:
            return "pass"
        lost += 1
        return "lose the reply"

    await store.commit(KEY, change(lifetime=MADE))
    async with proxy(dynamodb.port, decide) as url:
        losing = dynamodb.store(clock, url=url)
        amend = amendment(end=True, fields=fields)
        assert (await losing.amend(KEY, amend)).changed
        assert not (await losing.amend(KEY, amend)).changed
        await losing.aclose()
    assert lost == 1
    assert not (await store.amend(KEY, amendment(end=True))).changed


async def test_an_amendment_that_comes_again_elsewhere_is_known_for_a_repeated_one(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    """Where the record is remembered as it was before."""
    other = dynamodb.store(clock)
    await store.commit(KEY, change(lifetime=MADE))
    await other.open(KEY)
    amend = amendment(counters={"n": 1})
    assert (await store.amend(KEY, amend)).changed
    assert not (await other.amend(KEY, amend)).changed
    assert (await known(other))[1] == {"n": 1}
    await other.aclose()


# --------------------------------------------------------------------------------------------------- what runs out


def running_out(dynamodb: DynamoDB) -> dict[str, int]:
    """The index of what may have run out."""
    found = dynamodb.request("Scan", IndexName="by_end")["Items"]
    return {item["p"]["S"].rpartition("/")[2]: int(item["w"]["N"]) for item in found}


async def run_out(store: Store, limit: int = 100) -> list[str]:
    return [found.id for found in (await store.run_out("acme", "session", limit=limit)).found]


async def test_a_session_in_use_does_not_move_among_those_that_run_out(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    """Which would cost as much as an index does that goes by the last activity."""
    await store.commit(KEY, change(lifetime=MADE))
    places = set()
    for _ in range(12 * 5):
        clock.advance(HOUR / 12)
        await store.commit(KEY, change(lifetime=MADE))
        places.add(running_out(dynamodb)["s-1"])
        row = (await store.open(KEY)).row
        assert row is not None
        assert running_out(dynamodb)["s-1"] <= (row.ends_at or 0) <= running_out(dynamodb)["s-1"] + HOUR * 1000
    assert len(places) <= 5 + 1


async def test_who_looks_moves_what_is_there_too_early_and_takes_away_what_is_gone(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    start = clock.now_ms()
    for number in range(3):
        await store.commit(KEY._replace(id=f"gone-{number}"), change(lifetime=MADE._replace(retention_ms=1000)))
    await store.commit(KEY, change(lifetime=MADE))
    clock.advance(HOUR / 2)
    await store.commit(KEY, change(lifetime=MADE))
    assert set(running_out(dynamodb).values()) == {start + DAY * 1000}
    clock.advance(DAY - HOUR / 4)
    assert await run_out(store) == []
    assert running_out(dynamodb) == {"s-1": start + (DAY + HOUR // 2) * 1000}
    clock.advance(HOUR / 4)
    assert await run_out(store) == ["s-1"]
    assert (await store.amend(KEY, amendment(end=True))).changed
    assert running_out(dynamodb) == {}
    assert await run_out(store) == []


async def test_the_longest_ago_come_first_wherever_they_are_in_the_index(store: Store, clock: FakeClock) -> None:
    names = [f"s-{number}" for number in range(12)]
    for name in names:
        await store.commit(KEY._replace(id=name), change(lifetime=MADE))
    for name in names[::-1]:  # within an hour: their places stay
        clock.advance(60)
        await store.commit(KEY._replace(id=name), change(lifetime=MADE))
    clock.advance(2 * DAY)
    assert await run_out(store, 5) == names[:-6:-1]
    assert await run_out(store, 5) == names[:-6:-1]
    assert await run_out(store) == names[::-1]


async def test_what_never_ends_before_it_goes_is_not_among_those_that_run_out(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    await store.commit(KEY, change(lifetime=MADE, own={"end_ms": None}))
    assert running_out(dynamodb) == {}
    assert await take(store, KEY, "us")
    await store.renew(KEY, "us", 30_000)
    assert running_out(dynamodb) == {}
    await store.amend(KEY, amendment(expires_at=clock.now_ms() + 1000))
    assert running_out(dynamodb) == {"s-1": clock.now_ms() + 1000}
    await store.delete(KEY, new_id())
    assert running_out(dynamodb) == {}


async def test_three_who_end_what_has_run_out_end_each_once(dynamodb: DynamoDB, store: Store, clock: FakeClock) -> None:
    names = [f"s-{number:02}" for number in range(40)]
    await asyncio.gather(*(store.commit(KEY._replace(id=name), change(lifetime=MADE)) for name in names))
    clock.advance(DAY)
    told: list[str] = []

    async def expire(sweeper: Store) -> None:
        while page := await run_out(sweeper, 7):
            for name in page:
                if (await sweeper.amend(KEY._replace(id=name), amendment(end=True, fields={"why": b"idle"}))).changed:
                    told.append(name)

    sweepers = [dynamodb.store(clock) for _ in range(3)]
    await asyncio.gather(*map(expire, sweepers))
    assert sorted(told) == names
    for sweeper in sweepers:
        await sweeper.aclose()


# --------------------------------------------------------------------------------------------------- listings


async def test_a_page_costs_the_same_however_many_sessions_there_are(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    meter = dynamodb.meter()
    metered = dynamodb.store(clock, make_session=meter.make_session)
    listings: list[dict[str, Any]] = [{}, {"belongs_to": "ann", "status": "active"}, {"order": "start"}]
    costs: list[list[tuple[int, float]]] = []
    for first_one, upto in ((0, 60), (60, 200)):
        for number in range(first_one, upto):
            await store.commit(KEY._replace(id=f"s-{number:03}"), change(lifetime=MADE, belongs_to="ann"))
            clock.advance(1)
        costs.append([])
        for asked in listings:
            first = await metered.find("acme", "session", limit=10, **asked)
            meter.reset()
            assert len((await metered.find("acme", "session", limit=10, cursor=first.next, **asked)).found) == 10
            costs[-1].append((meter.requests.total(), meter.read_units))
    for (requests, units), (requests_of_many, units_of_many) in zip(*costs, strict=True):
        assert requests_of_many == requests
        assert units_of_many <= 1.5 * units
    await metered.aclose()


async def test_many_of_one_moment_are_all_listed(store: Store) -> None:
    """More than are read of a partition of the index at a time, and none comes before another by the clock."""
    names = {f"s-{number:03}" for number in range(60)}
    for name in names:
        await store.commit(KEY._replace(id=name), change(belongs_to="ann", values={Part("a", "b"): b"1"}))
    owners: list[dict[str, Any]] = [{}, {"belongs_to": "ann"}]
    listings = [{**owner, **order} for owner in owners for order in ({}, {"order": "start"})]
    for asked in listings:
        found, cursor = list[str](), None
        while len(found) < 100:
            page = await store.find("acme", "session", limit=9, cursor=cursor, **asked)
            found += [place.id for place in page.found]
            cursor = page.next
            if cursor is None:
                break
        assert found == sorted(names, reverse=True)
