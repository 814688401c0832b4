"""Commits that are more than a transaction takes, whatever dies on the way."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent_sessions.errors import CommitTooLargeError, SessionConflictError, SessionNotFoundError, StoreUnavailableError
from agent_sessions.stores.base import (
    ABSENT,
    CollectionChange,
    Commit,
    EntryRange,
    Key,
    LogWanted,
    Part,
    Store,
    Wanted,
)
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.testing import FakeClock
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    LOG,
    append,
    change,
    lease,
    new_id,
    read_log,
    read_range,
    read_values,
    take,
)
from tests.dynamodb import RECORD, DynamoDB
from tests.support import until

from .dynamodb_proxy import Decision, Holding, dying, proxy

KEY = Key("acme", "session", "s-1")
LARGE = Part("files", "large")
EVERYTHING = Wanted(logs=[LogWanted(LOG)], ranges=[EntryRange(CHECKPOINTS)])
DATA = random.Random(7).randbytes(400_000)
PIECES = 2
ENTRIES = {f"{number:04}": b"%d" % number for number in range(110)}


@pytest.fixture
async def store(dynamodb: DynamoDB) -> AsyncIterator[Store]:
    store = dynamodb.store()
    yield store
    await store.aclose()


def is_publishing(arguments: dict[str, Any]) -> bool:
    return "st = :st" in arguments.get("UpdateExpression", "")


def before(**more: Any) -> Commit:
    return change(
        values={LARGE: DATA[::-1]},
        logs=append(b"1", b"2"),
        collections={CHECKPOINTS: CollectionChange(entries={"0000": b"old", "old": b"old"})},
        **more,
    )


def many(**more: Any) -> Commit:
    """More than a transaction takes, in number and in size."""
    return change(
        values={LARGE: DATA, Part("a", "small"): b"new"},
        logs=append(b"3", pop=1),
        collections={CHECKPOINTS: CollectionChange(delete_prefixes=["o"], entries=dict(ENTRIES))},
        **more,
    )


def large(**more: Any) -> Commit:
    """More than a transaction takes, in size only."""
    return change(values={LARGE: DATA}, logs=append(b"3", pop=1), **more)


OLD = ({LARGE: DATA[::-1]}, [b"1", b"2"], [("0000", b"old"), ("old", b"old")])
NEW: dict[Callable[..., Commit], Any] = {
    many: ({LARGE: DATA, Part("a", "small"): b"new"}, [b"1", b"3"], sorted(ENTRIES.items())),
    large: ({LARGE: DATA}, [b"1", b"3"], OLD[2]),
}


async def contents(store: Store) -> Any:
    return await read_values(store, KEY), await read_log(store, KEY), await read_range(store, KEY)


@pytest.mark.parametrize(("make", "fault"), [(many, "lose the request"), (large, "lose the reply")])
async def test_a_commit_that_dies_at_any_step_is_there_whole_or_not_at_all(
    dynamodb: DynamoDB,
    store: Store,
    make: Callable[..., Commit],
    fault: Decision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_sessions.stores.dynamodb.staging._FILLING_MS", 0)  # what is dead here, writes no more
    seen = []
    for requests in range(40):
        await store.commit(KEY, before())
        version = (await store.open(KEY)).version
        commit = make(expected=version)
        async with dying(dynamodb, requests, fault) as victim:
            try:
                await victim.commit(KEY, commit)
                answered = True
            except StoreUnavailableError:
                answered = False
        status = await store.commit_status(KEY, commit.id, since=version)
        seen.append(status)
        assert await contents(store) == (NEW[make] if status == "stored" else OLD)
        assert status == "stored" or not answered
        assert (await store.commit(KEY, commit)).repeated == (status == "stored")
        assert await contents(store) == NEW[make]
        await tidy(dynamodb, store)
        await store.delete(KEY, new_id())
        if seen.count("stored") == 4:  # the rest of the steps are read and carried out by the others
            break
    assert seen == sorted(seen)  # from one request on, the one that decides, it is always stored
    assert {"not_stored", "stored"} == set(seen)


async def tidy(dynamodb: DynamoDB, store: Store) -> None:
    """After one more turn, nothing is left that nobody can reach."""
    opened = await store.open(KEY, lease=lease("sweeper"))
    await store.commit(KEY, change(owner="sweeper", expected=opened.version))
    assert (await store.open(KEY, lease=lease("sweeper"))).granted
    await store.release(KEY, "sweeper")
    (record,) = dynamodb.records()
    assert not record.keys() & {"st", "pd", "gb"}
    values, _, entries = await contents(store)
    assert dynamodb.kinds() == {"V": len(values), "L": 2, "C": len(entries), "X": PIECES}


async def test_a_published_commit_is_finished_by_whoever_reads_next(dynamodb: DynamoDB, store: Store) -> None:
    await store.commit(KEY, before())
    for requests in (0, 1, 3):
        async with dying(dynamodb, requests, "lose the request", begin=is_publishing) as victim:
            await victim.commit(KEY, many())
        readers = [dynamodb.store() for _ in range(2)]
        for opened in await asyncio.gather(*(reader.open(KEY, wanted=EVERYTHING) for reader in readers)):
            assert opened.ranges == [sorted(ENTRIES.items())]
            assert opened.values["files"]["large"] == DATA
        for reader in readers:
            await reader.aclose()


@pytest.mark.parametrize("make", [change, many])
async def test_a_published_commit_of_a_session_past_its_end_is_in_nobodys_way(
    dynamodb: DynamoDB, make: Callable[..., Commit]
) -> None:
    """Its publisher died, nobody came until the session was over, and the service has swept all but the record."""
    clock = FakeClock()
    store, other = dynamodb.store(clock), dynamodb.store(clock)
    async with dying(dynamodb, 0, "lose the request", begin=is_publishing, clock=clock) as victim:
        await victim.commit(KEY, many(ttl_ms=1000))
    assert "st" in dynamodb.records()[0]
    clock.advance(35 * 86_400)
    for item in dynamodb.items():
        if item["k"]["B"] != RECORD:
            dynamodb.request("DeleteItem", Key={"p": item["p"], "k": item["k"]})
    assert (await store.open(KEY)).row is None
    assert await take(store, KEY, "us")
    commit = make(expected=ABSENT)
    assert (await store.commit(KEY, commit)).previous == ABSENT
    assert (await other.open(KEY)).version == (1, commit.id)
    assert "st" not in dynamodb.records()[0]
    assert len(await read_range(other, KEY)) == len(commit.collections and ENTRIES)
    await store.aclose()
    await other.aclose()


async def test_what_is_published_and_not_in_its_places_is_not_remembered_for_other_threads(
    dynamodb: DynamoDB, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would work out their commits on items that are not there yet."""
    from agent_sessions.stores.dynamodb.layout.records import Record  # which needs aiobotocore
    from agent_sessions.stores.dynamodb.memory import Memory

    keep, kept = Memory.keep, []

    def see(memory: Memory[str, Any], key: str, value: Any) -> None:
        if isinstance(value, Record) and value.stage is None:
            kept.append("st" in dynamodb.records()[0])
        keep(memory, key, value)

    monkeypatch.setattr(Memory, "keep", see)
    await store.commit(KEY, many())
    assert set(kept) == {False}


async def test_a_staged_commit_that_was_overtaken_is_refused_and_swept(dynamodb: DynamoDB, store: Store) -> None:
    version = (await store.commit(KEY, before())).version
    overtaken = asyncio.Event()

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        if operation == "BatchWriteItem":
            overtaken.set()
        return "pass"

    async with proxy(dynamodb.port, decide) as url:
        slow = dynamodb.store(url=url)
        staging = asyncio.create_task(slow.commit(KEY, many(expected=version)))
        await overtaken.wait()
        await store.commit(KEY, change(values={Part("a", "small"): b"first"}))
        with pytest.raises(SessionConflictError):
            await staging
        await slow.aclose()
    assert (await read_values(store, KEY))[Part("a", "small")] == b"first"
    assert await read_log(store, KEY) == [b"1", b"2"]
    assert dynamodb.kinds()["X"] == PIECES  # those of the old value


async def test_the_largest_value_is_exact(dynamodb: DynamoDB, store: Store) -> None:
    value = random.Random(1).randbytes(16 << 20)
    items = [random.Random(number).randbytes(1 << 20) for number in range(2)]
    await store.commit(KEY, change(values={LARGE: value}, logs=append(*items)))
    assert await read_values(store, KEY) == {LARGE: value}
    assert await read_log(store, KEY) == items


async def test_replaced_and_deleted_values_leave_no_pieces(dynamodb: DynamoDB, store: Store) -> None:
    entry = {CHECKPOINTS: CollectionChange(entries={"a": DATA})}
    await store.commit(KEY, change(values={LARGE: DATA}, fields={"f": DATA}, collections=entry, logs=append(DATA)))
    assert dynamodb.kinds()["X"] == 4 * PIECES
    await store.commit(KEY, change(values={LARGE: DATA[:10]}))
    await store.commit(KEY, change(fields={"f": None}))
    await store.commit(KEY, change(collections={CHECKPOINTS: CollectionChange(delete_prefixes=["a"])}))
    await store.commit(KEY, change(logs=append(b"1", clear=True)))
    assert dynamodb.kinds() == {"V": 1, "T": 1, "L": 1}
    assert (await store.open(KEY)).values == {"files": {"large": DATA[:10]}}


async def test_popped_and_cleared_items_are_deleted(dynamodb: DynamoDB, store: Store) -> None:
    for number in range(30):
        await store.commit(KEY, change(logs=append(b"%d" % number)))
    await store.commit(KEY, change(logs=append(pop=10)))
    assert dynamodb.kinds()["L"] == 20
    await store.commit(KEY, change(logs=append(clear=True)))
    assert dynamodb.kinds() == {}


async def test_a_session_of_too_many_parts_is_refused(
    dynamodb: DynamoDB, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_sessions.stores.dynamodb.writing._MOST_PARTS_BYTES", 20_000)
    parts = [Part("n" * 120 + f"{number:05}", "x" * 128) for number in range(100)]
    await store.commit(KEY, change(values={Part("a", "b"): b"1"}))
    with pytest.raises(CommitTooLargeError):
        await store.commit(KEY, change(values=dict.fromkeys(parts, b"1"), logs=dict.fromkeys(parts, append(b"1")[LOG])))
    assert await read_values(store, KEY) == {Part("a", "b"): b"1"}
    assert dynamodb.kinds() == {"V": 1}


@pytest.mark.parametrize("fault", ["lose the request", "lose the reply"])
async def test_a_delete_that_dies_at_any_step_leaves_it_deleted_or_untouched(
    dynamodb: DynamoDB, store: Store, fault: Decision
) -> None:
    answers = set[bool | None]()
    for requests in range(12):
        await store.commit(KEY, before())
        write_id = new_id()
        async with dying(dynamodb, requests, fault) as victim:
            try:
                answers.add(await victim.delete(KEY, write_id))
            except StoreUnavailableError:
                answers.add(None)
        opened = await store.open(KEY)
        if opened.row is not None:
            assert await contents(store) == OLD
        assert await store.delete(KEY, write_id)
        assert dynamodb.kinds() == {}
        assert (await store.open(KEY)).row is None
        await store.commit(KEY, change(logs=append(b"new")))
        assert await contents(store) == ({}, [b"new"], [])
        assert await store.delete(KEY, new_id())
        if True in answers:
            break
    assert answers == {None, True}


async def test_a_listing_shows_what_is_published_and_not_in_its_places(dynamodb: DynamoDB, store: Store) -> None:
    await store.commit(KEY, change(fields={"f": b"old"}))
    async with dying(dynamodb, 0, "lose the request", begin=is_publishing) as victim:
        await victim.commit(KEY, many(fields={"f": b"new"}))
    assert "st" in dynamodb.records()[0]
    (found,) = (await store.find("acme", "session")).found
    assert found.row.fields == {"f": b"new"}
    assert "st" not in dynamodb.records()[0]


async def is_absent(store: Store) -> bool:
    return (await store.open(KEY)).row is None


async def test_a_delete_waits_for_a_turn_that_has_just_begun_and_then_leaves_nothing(dynamodb: DynamoDB) -> None:
    """The turn may be reading what it goes by."""
    clock = FakeClock()
    turn, other = dynamodb.store(clock), dynamodb.store(clock)
    version = (await turn.commit(KEY, before())).version
    assert await take(turn, KEY, "us")
    deleting = asyncio.create_task(other.delete(KEY, new_id()))
    await until(lambda: is_absent(turn))
    assert dynamodb.kinds() != {}
    assert not deleting.done()
    assert await deleting
    assert dynamodb.kinds() == {}
    assert not dynamodb.records()[0].keys() & {"st", "pd", "gb"}
    with pytest.raises(SessionNotFoundError):
        await turn.commit(KEY, change(expected=version))
    assert dynamodb.kinds() == {}
    await turn.aclose()
    await other.aclose()


async def test_a_session_made_again_by_the_commit_that_made_it_meets_nothing_of_its_first_life(
    dynamodb: DynamoDB,
) -> None:
    """A reply was lost, and the session deleted before the commit came again."""
    clock = FakeClock()
    turn, other = dynamodb.store(clock), dynamodb.store(clock)
    commit = change(expected=ABSENT, values={Part("a", "b"): b"1"}, logs=append(b"1"))
    await turn.commit(KEY, commit)
    await turn.commit(KEY, change(values={Part("a", "later"): b"2"}))
    assert await take(turn, KEY, "us")
    deleting = asyncio.create_task(other.delete(KEY, new_id()))
    await until(lambda: is_absent(other))
    assert dynamodb.kinds() != {}  # the turn may be reading
    await other.commit(KEY, commit)
    assert await deleting
    assert dynamodb.kinds() == {"V": 1, "L": 1}
    assert await contents(other) == ({Part("a", "b"): b"1"}, [b"1"], [])
    await turn.aclose()
    await other.aclose()


async def test_what_a_delete_that_died_has_left_is_swept_by_who_lists_the_user(
    dynamodb: DynamoDB, store: Store
) -> None:
    """An erasure that was cut short goes on with what is listed; the session itself is not."""
    ids = [KEY.id, "é" * 256]  # the name of one fits a key of the table, that of the other does not
    for requests, id in enumerate(ids, start=2):
        await store.commit(KEY._replace(id=id), before(belongs_to="ann"))
        async with dying(dynamodb, requests, "lose the request") as victim:
            with pytest.raises(StoreUnavailableError):
                await victim.delete(KEY._replace(id=id), new_id())
    assert dynamodb.kinds() != {}
    assert await store.count("acme", "session") == await store.count("acme", "session", belongs_to="ann") == 0
    for belongs_to in (None, "bob", "ann"):
        assert dynamodb.kinds() != {}
        assert (await store.find("acme", "session", belongs_to=belongs_to)).found == []
    assert dynamodb.kinds() == {}
    assert dynamodb.request("Scan", IndexName="by_user")["Items"] == []
    assert b"ann" not in json.dumps(dynamodb.items("p, k, u, b, a, n")).encode()


async def test_what_is_still_being_filled_under_a_delete_is_swept_again_later(dynamodb: DynamoDB) -> None:
    """By a process that dies over it."""
    clock = FakeClock()
    slow, other = Holding("BatchWriteItem"), dynamodb.store(clock)
    filling = dynamodb.store(clock, make_session=slow.make_session)
    await other.commit(KEY, change(logs=append(b"1")))
    committing = asyncio.create_task(filling.commit(KEY, change(values={LARGE: DATA})))
    await slow.on_its_way.wait()
    assert await other.delete(KEY, new_id())
    assert dynamodb.kinds() == {}
    slow.may_go_on.set()
    while dynamodb.kinds() != {"X": PIECES}:  # noqa: ASYNC110 - it is asked of the table
        await asyncio.sleep(0)
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    clock.advance(60)
    await other.scan()
    assert dynamodb.kinds() == {}
    await filling.aclose()
    await other.aclose()


async def test_a_session_made_again_when_its_time_was_over_keeps_nothing_of_its_first_life(dynamodb: DynamoDB) -> None:
    """DynamoDB, which deletes when it finds the time, has not yet; and a delete would leave it there."""
    clock = FakeClock()
    store = dynamodb.store(clock)
    first = before()
    first.lifetime = Lifetime(ttl_ms=1000)
    await store.commit(KEY, first)
    clock.advance(1)
    await store.commit(KEY, change(logs=append(b"new")))
    assert dynamodb.kinds() == {"L": 1}
    assert await contents(store) == ({}, [b"new"], [])
    await store.aclose()


async def test_a_commit_that_makes_a_session_twice_is_not_taken_for_itself(dynamodb: DynamoDB) -> None:
    """By who remembers the first one, which had the same id."""
    clock = FakeClock()
    store, other = dynamodb.store(clock), dynamodb.store(clock)
    commit = change(ttl_ms=1000, logs=append(b"1"))
    await store.commit(KEY, commit)
    assert await read_log(other, KEY) == [b"1"]
    clock.advance(1)
    await store.commit(KEY, commit)
    clock.advance(1)
    await other.commit(KEY, change(logs=append(b"new")))
    assert dynamodb.kinds() == {"L": 1}
    await store.aclose()
    await other.aclose()


async def test_a_scan_passes_leases_on_absent_keys_of_any_name(dynamodb: DynamoDB, store: Store) -> None:
    long = Key("acme", "session", "👩" * 256)
    assert await take(store, long, "us")
    await store.commit(KEY, change())
    assert (await store.scan()).keys == [KEY]
    await store.commit(long, change())
    assert set((await store.scan()).keys) == {KEY, long}
    await store.delete(long, new_id())
    assert (await store.scan()).keys == [KEY]
