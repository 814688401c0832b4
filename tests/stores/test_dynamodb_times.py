"""Time on a service that has no clock: leases, and the TTL of items."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from agent_sessions.errors import SessionBusyError, SessionConflictError, StoreUnavailableError
from agent_sessions.stores.base import Amend, CollectionChange, Key, LogWanted, Part, Store, Wanted
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.testing import FakeClock
from agent_sessions.testing.conformance.harness import CHECKPOINTS, LOG, append, change, new_id, read_log, take
from tests.dynamodb import RECORD, DynamoDB

from .dynamodb_proxy import Decision, Holding, dying, proxy

KEY = Key("acme", "session", "s-1")
LEASE_S = 30
DAY = 86_400
WEEK_MS = 7 * DAY * 1000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(dynamodb: DynamoDB, clock: FakeClock) -> AsyncIterator[Store]:
    store = dynamodb.store(clock)
    yield store
    await store.aclose()


@pytest.fixture
async def other(dynamodb: DynamoDB, clock: FakeClock) -> AsyncIterator[Store]:
    """The store of another process."""
    store = dynamodb.store(clock)
    yield store
    await store.aclose()


# --------------------------------------------------------------------------------------------------- leases


async def test_a_lease_that_ran_out_unseen_is_taken_over_only_after_its_length(
    store: Store, other: Store, clock: FakeClock
) -> None:
    assert await take(store, KEY, "us")
    clock.advance(3600)
    assert (await other.open(KEY)).lease is None  # by the clocks it is over
    assert not await take(other, KEY, "them")
    clock.advance(LEASE_S - 0.001)
    assert not await take(other, KEY, "them", queue=True)
    clock.advance(0.001)
    assert await take(other, KEY, "them", queue=True)
    assert not await store.renew(KEY, "us", 1000)


async def test_a_clock_that_is_ahead_takes_no_live_lease_over(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    ahead = FakeClock(clock.now_ms() + 3_600_000)
    hasty = dynamodb.store(ahead)
    assert await take(store, KEY, "us")
    for _ in range(8):
        assert not await take(hasty, KEY, "them")
        clock.advance(LEASE_S / 4)
        ahead.advance(LEASE_S / 4)
        assert await store.renew(KEY, "us", LEASE_S * 1000)
    ahead.advance(LEASE_S)
    assert not await take(hasty, KEY, "them")  # it sees the last renewal only now
    ahead.advance(LEASE_S)
    assert await take(hasty, KEY, "them")
    await hasty.aclose()


async def test_a_commit_does_not_go_past_a_lease_that_may_be_alive(
    store: Store, other: Store, clock: FakeClock
) -> None:
    await store.commit(KEY, change())
    assert await take(store, KEY, "us")
    clock.advance(3600)
    with pytest.raises(SessionBusyError):
        await other.commit(KEY, change(owner="them", logs=append(b"1")))
    clock.advance(LEASE_S)
    await other.commit(KEY, change(owner="them", logs=append(b"2")))
    assert await read_log(store, KEY) == [b"2"]


async def test_commits_that_are_tried_again_and_again_go_past_a_holder_that_died_after_it_renewed(
    store: Store, other: Store, clock: FakeClock
) -> None:
    """What was remembered of its lease is none of what is seen of it now."""
    await store.commit(KEY, change())
    assert await take(store, KEY, "us")
    assert (await other.open(KEY)).lease is not None
    assert await store.renew(KEY, "us", LEASE_S * 1000)
    for _ in range(3):
        with pytest.raises(SessionBusyError):
            await other.commit(KEY, change(owner="them", logs=append(b"1")))
        clock.advance(LEASE_S / 3)
    await other.commit(KEY, change(owner="them", logs=append(b"1")))
    assert await read_log(store, KEY) == [b"1"]


async def test_a_waiter_of_a_dead_holder_gets_the_lease_after_its_length(dynamodb: DynamoDB) -> None:
    """By the clocks of the host."""
    dead, waiting = dynamodb.store(), dynamodb.store()
    assert await take(dead, KEY, "dead", ms=500)
    begun = time.monotonic()
    while not await take(waiting, KEY, "waiting", queue=True):
        await waiting.wait(KEY, "waiting", 1.0)
    assert 0.4 < time.monotonic() - begun < 5
    await dead.aclose()
    await waiting.aclose()


async def test_waits_grow_from_a_tenth_of_a_second_to_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(8):
        await store.wait(KEY, "us", 10)
    assert 0.1 <= slept[0] <= 0.15
    assert slept[3] >= 0.8
    assert max(slept) == 1.0
    assert len(set(slept)) > 3
    await store.wait(KEY, "them", 0.02)
    assert slept[-1] == 0.02


# --------------------------------------------------------------------------------------------------- TTL


class Stamps:
    """When the TTL of items was rewritten, by item."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.times: defaultdict[bytes, list[int]] = defaultdict(list)

    def make_session(self) -> Any:
        from aiobotocore.session import get_session

        session = get_session()
        session.register("before-parameter-build.dynamodb.UpdateItem", self._see)
        return session

    def _see(self, params: dict[str, Any], **_: Any) -> None:
        if params["UpdateExpression"] == "SET x = :x":
            self.times[params["Key"]["k"]["B"]].append(self._clock.now_ms() // 1000)


def expiries(dynamodb: DynamoDB) -> list[int | None]:
    """The TTL of every item but the record."""
    items = [item for item in dynamodb.items() if base64.b64decode(item["k"]["B"]) != b"R"]
    return [int(item["x"]["N"]) if "x" in item else None for item in items]


async def test_the_items_of_a_session_in_use_outlive_it_and_are_stamped_once_in_23_days(
    dynamodb: DynamoDB, clock: FakeClock
) -> None:
    stamps = Stamps(clock)
    store = dynamodb.store(clock, make_session=stamps.make_session)
    put = {CHECKPOINTS: CollectionChange(entries={"a": b"1"})}
    first = change(ttl_ms=WEEK_MS, values={Part("a", "b"): b"1"}, fields={"f": b"1"}, collections=put)
    await store.commit(KEY, first)
    days_with_stamps = []
    for day in range(120):
        before = sum(map(len, stamps.times.values()))
        await store.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"%d" % day)))
        if sum(map(len, stamps.times.values())) > before:
            days_with_stamps.append(day)
        gone_at = clock.now_ms() + WEEK_MS
        assert all(expires is not None and expires * 1000 > gone_at for expires in expiries(dynamodb))
        (record,) = dynamodb.records()
        assert int(record["x"]["N"]) > min(expiry or 0 for expiry in expiries(dynamodb))
        clock.advance(DAY)
    for times in stamps.times.values():
        assert all(later - earlier >= 23 * DAY for earlier, later in pairwise(times))
    assert all(later - earlier >= 6 for earlier, later in pairwise(days_with_stamps))
    assert len(days_with_stamps) < 120 / 6
    assert await read_log(store, KEY) == [b"%d" % day for day in range(120)]
    await store.aclose()


async def test_a_session_that_is_to_stay_for_ever_loses_no_item(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    await store.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"1"), values={Part("a", "b"): b"1"}))
    assert None not in expiries(dynamodb)
    await store.commit(KEY, change(ttl_ms=None, logs=append(b"2")))
    assert expiries(dynamodb) == [None] * 3
    (record,) = dynamodb.records()
    assert int(record["x"]["N"]) == 253_402_300_799
    await store.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"3")))
    assert None not in expiries(dynamodb)
    assert min(expiry or 0 for expiry in expiries(dynamodb)) * 1000 > clock.now_ms() + WEEK_MS


async def test_a_session_without_an_end_keeps_all_items_though_a_commit_that_ends_it_is_lost(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    await store.commit(KEY, change(logs=append(b"1")))

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        return "lose the request" if operation == "TransactWriteItems" else "pass"

    async with proxy(dynamodb.port, decide) as url:
        dying = dynamodb.store(clock, url=url)
        with pytest.raises(StoreUnavailableError):
            await dying.commit(KEY, change(ttl_ms=WEEK_MS))
        await dying.aclose()
    await store.commit(KEY, change(logs=append(b"2")))
    assert expiries(dynamodb) == [None, None]


async def test_no_late_stamp_reaches_a_session_that_has_no_end_any_more(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    """The stamps of the commit that gave it an end stay on their way while another one takes it away."""
    held = Holding("TransactWriteItems", lambda params: "ConditionCheck" in params["TransactItems"][0])
    await store.commit(KEY, change(logs=append(b"1")))
    slow = dynamodb.store(clock, make_session=held.make_session)
    ending = asyncio.create_task(slow.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"2"))))
    await held.on_its_way.wait()
    await store.commit(KEY, change(logs=append(b"3")))
    held.may_go_on.set()
    await ending
    assert expiries(dynamodb) == [None] * 3
    (record,) = dynamodb.records()
    assert "h" not in record
    await slow.aclose()


async def test_no_stamp_is_taken_off_late(dynamodb: DynamoDB, store: Store, clock: FakeClock) -> None:
    """A commit that would take the end away stays on its way while another one keeps it."""
    held = Holding("TransactWriteItems", lambda params: "ConditionCheck" in params["TransactItems"][0])
    first = await store.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"1")))
    slow = dynamodb.store(clock, make_session=held.make_session)
    lasting = asyncio.create_task(slow.commit(KEY, change(expected=first.version, logs=append(b"2"))))
    await held.on_its_way.wait()
    await store.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"3")))
    held.may_go_on.set()
    with pytest.raises(SessionConflictError):
        await lasting
    assert len(expiries(dynamodb)) == 2
    assert None not in expiries(dynamodb)
    await slow.aclose()


def is_known(dynamodb: DynamoDB) -> bool:
    """Whether what lacks a TTL under a session that has an end, can be found again: its record has none either."""
    lacking = {item["p"]["S"] for item in dynamodb.items() if "x" not in item}
    records = [item for item in dynamodb.records() if "g" in item and item["p"]["S"] in lacking]
    return all(int(record["x"]["N"]) == 253_402_300_799 for record in records)


def is_commit(arguments: dict[str, Any]) -> bool:
    """Whether a request is the transaction of a commit."""
    return "Update" in arguments.get("TransactItems", [{}])[0]


async def test_who_dies_over_the_ttl_of_a_session_that_got_an_end_leaves_it_to_the_next_write(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    left = 0
    for requests in (0, 1, 3):  # before anything, with the note in the record, with the items stamped
        key = KEY._replace(id=f"s-{requests}")
        await store.commit(key, change(logs=append(b"1"), values={Part("a", "b"): b"1"}))
        async with dying(dynamodb, requests, "lose the request", is_commit, clock) as dead:
            await dead.commit(key, change(ttl_ms=WEEK_MS, logs=append(b"2")))
        left += None in expiries(dynamodb)
        assert is_known(dynamodb)
        await store.commit(key, change(ttl_ms=WEEK_MS))
        assert None not in expiries(dynamodb)
        (record,) = [item for item in dynamodb.records() if item["p"]["S"].endswith(key.id)]
        assert int(record["x"]["N"]) < 253_402_300_799
    assert left == 2


async def test_who_dies_over_the_ttl_of_a_session_that_is_to_have_no_end_leaves_it_to_the_next_write(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    left = 0
    for requests in (2, 4):  # with the note in the record, with the items' stamps taken off
        key = KEY._replace(id=f"s-{requests}")
        await store.commit(key, change(ttl_ms=WEEK_MS, logs=append(b"1"), values={Part("a", "b"): b"1"}))
        async with dying(dynamodb, requests, "lose the request", clock=clock) as dead:
            with pytest.raises(StoreUnavailableError):
                await dead.commit(key, change(logs=append(b"2")))
        left += None in expiries(dynamodb)
        assert is_known(dynamodb)
        await store.commit(key, change(ttl_ms=WEEK_MS))
        assert None not in expiries(dynamodb)
    assert left == 1


@pytest.mark.parametrize("after", ["a lease", "an amendment", "a scan", "a commit of a new life, though it dies"])
async def test_what_was_left_without_a_ttl_gets_it_with(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, after: str
) -> None:
    await store.commit(KEY, change(logs=append(b"1"), values={Part("a", "b"): b"1"}))
    async with dying(dynamodb, 1, "lose the reply", lambda arguments: "TransactItems" not in arguments, clock) as dead:
        await dead.amend(KEY, Amend(id=new_id(), end=True, lifetime=Lifetime(retention_ms=WEEK_MS)))
    assert expiries(dynamodb) == [None, None]
    assert is_known(dynamodb)
    if after == "an amendment":
        await store.amend(KEY, Amend(id=new_id(), lifetime=Lifetime(retention_ms=2 * WEEK_MS)))
    else:
        clock.advance(60 * DAY)
    if after == "a lease":
        assert await take(store, KEY, "us")
    elif after == "a scan":
        assert not (await store.scan()).keys
    elif after != "an amendment":
        async with dying(dynamodb, 0, "lose the request", is_commit, clock) as dead:
            await dead.commit(KEY, change(ttl_ms=WEEK_MS, logs=append(b"2")))
        assert len(expiries(dynamodb)) == 3
    assert None not in expiries(dynamodb)
    assert all((expires or 0) * 1000 > clock.now_ms() for expires in expiries(dynamodb))
    assert clock.now_ms() // 1000 + DAY < int(dynamodb.records()[0]["x"]["N"]) < 253_402_300_799


async def test_a_longer_time_to_live_reaches_all_items(dynamodb: DynamoDB, store: Store, clock: FakeClock) -> None:
    await store.commit(KEY, change(ttl_ms=1000, logs=append(b"1")))
    await store.commit(KEY, change(ttl_ms=100 * WEEK_MS, values={Part("a", "b"): b"1"}))
    assert all((expiry or 0) * 1000 > clock.now_ms() + 100 * WEEK_MS for expiry in expiries(dynamodb))
    clock.advance(99 * 7 * DAY)
    assert await read_log(store, KEY) == [b"1"]


async def test_an_amendment_that_moves_the_end_keeps_all_items(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    lasting = change(ttl_ms=1000, logs=append(b"1"), values={Part("a", "b"): b"1"}, fields={"f": b"1"})
    await store.commit(KEY, lasting)
    await store.amend(KEY, Amend(id=new_id(), lifetime=Lifetime(ttl_ms=100 * WEEK_MS)))
    assert all((expiry or 0) * 1000 > clock.now_ms() + 100 * WEEK_MS for expiry in expiries(dynamodb))
    await store.amend(KEY, Amend(id=new_id(), lifetime=Lifetime()))
    assert expiries(dynamodb) == [None] * 3
    await store.amend(KEY, Amend(id=new_id(), lifetime=Lifetime(ttl_ms=WEEK_MS), fields={"g": b"2"}))
    assert None not in expiries(dynamodb)
    await store.amend(KEY, Amend(id=new_id(), fields={"g": None}))
    clock.advance(7 * DAY - 1)
    assert await read_log(store, KEY) == [b"1"]
    (record,) = dynamodb.records()
    assert int(record["x"]["N"]) > min(expiry or 0 for expiry in expiries(dynamodb))


async def test_a_lease_that_is_renewed_for_very_long_does_not_outlast_the_items(
    dynamodb: DynamoDB, store: Store, clock: FakeClock
) -> None:
    """A turn of more than a month, which commits nothing."""
    await store.commit(KEY, change(ttl_ms=1000, logs=append(b"1")))
    assert await take(store, KEY, "us")
    for _ in range(40):
        assert await store.renew(KEY, "us", DAY * 1000)
        clock.advance(DAY - 1)
    (expires,) = expiries(dynamodb)
    row = (await store.open(KEY)).row
    assert row is None or (row.gone_at or 0) <= (expires or 0) * 1000


async def test_a_lease_on_what_is_absent_goes_by_itself(dynamodb: DynamoDB, store: Store, clock: FakeClock) -> None:
    assert await take(store, KEY, "us")
    (record,) = dynamodb.records()
    assert int(record["x"]["N"]) * 1000 <= clock.now_ms() + 2 * DAY * 1000
    assert "t" not in record
    await store.commit(KEY, change(ttl_ms=None, hold_ms=1000))
    assert int(dynamodb.records()[0]["x"]["N"]) == 253_402_300_799


@pytest.mark.parametrize("left", ["a lease", "a deletion", "an end"])
async def test_a_lease_outlasts_what_was_left_of_a_session_long_ago(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, left: str
) -> None:
    """DynamoDB, which deletes when it finds the time, has not yet: it must not do so under the lease."""
    if left == "a lease":
        assert await take(store, KEY, "us")
        await store.release(KEY, "us")
    else:
        await store.commit(KEY, change(ttl_ms=1000))
    if left == "a deletion":
        assert await store.delete(KEY, new_id())
    clock.advance(60 * DAY)
    for _ in range(2):
        assert await take(store, KEY, "them")
        assert int(dynamodb.records()[0]["x"]["N"]) * 1000 > clock.now_ms() + LEASE_S * 1000
    assert not await take(store, KEY, "us")


@pytest.mark.parametrize("swept", ["the record", "the rest", "everything"])
async def test_what_the_service_has_swept_is_absent_and_can_be_made_again(
    dynamodb: DynamoDB, store: Store, clock: FakeClock, swept: str
) -> None:
    """By hand: DynamoDB Local sweeps no table that has indexes."""
    await store.commit(KEY, change(ttl_ms=1000, logs=append(b"1", b"1"), values={Part("a", "b"): b"1"}))
    clock.advance(60 * DAY)
    for item in dynamodb.items():
        assert int(item["x"]["N"]) * 1000 < clock.now_ms()
        if swept == "everything" or (swept == "the record") == (item["k"]["B"] == RECORD):
            dynamodb.request("DeleteItem", Key={"p": item["p"], "k": item["k"]})
    assert (await store.open(KEY)).row is None
    committed = await store.commit(KEY, change(ttl_ms=1000, logs=append(b"2")))
    assert committed.version.revision == 1
    opened = await store.open(KEY, wanted=Wanted(logs=[LogWanted(LOG)]))
    assert opened.logs[0].items == [b"2"]
    assert opened.values == {}
