"""What a turn costs on DynamoDB, by the rules that AWS documents."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from agent_sessions import SessionManager
from agent_sessions.codec import encode
from agent_sessions.stores.base import ABSENT, AMENDMENTS_REMEMBERED, Amend, Key, Part, Version
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.testing.conformance.harness import append, change, lease, new_id
from tests.dynamodb import RECORD, DynamoDB
from tests.dynamodb_local import size

MADE = Lifetime(idle_ms=1_800_000, end_ms=86_400_000, ttl_ms=604_800_000, retention_ms=604_800_000)
WARM = Counter(UpdateItem=1, TransactWriteItems=1)
ITEMS = [{"role": role, "content": "x" * 220} for role in ("user", "assistant", "user", "assistant")]
LOGS = {("openai", "items"): None}
KEY = Key("default", "session", "7f9c2ba4-e88f-4a1d-9f6b-1c0a5d1e5c8b")
USER = "auth0|5f7c8ec7c33c6c004bbafe82"


@pytest.fixture(autouse=True)
def _policies_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again after some seconds, beside a turn that is measured."""
    monkeypatch.setattr("agent_sessions.lifecycle.policies.FRESH_S", 3600.0)
    monkeypatch.setattr("agent_sessions.lifecycle.policies.STALE_S", 3600.0)


def partition(key: Key) -> str:
    from agent_sessions.stores.dynamodb.layout.keys import partition  # whose package needs aiobotocore

    return partition(key)


async def turn(manager: SessionManager) -> None:
    async with manager.open(KEY.id, user_id=USER, logs=LOGS) as session:
        log = session.namespace("openai").log("items")
        await log.read()
        await log.append(ITEMS)


async def test_a_warm_turn_is_two_requests_and_costs_the_same_at_turn_10_and_500(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    manager = SessionManager(store)
    costs = []
    for turns in (9, 489):
        for _ in range(turns - 1):
            await store.commit(KEY, change(lifetime=MADE, logs=append(*map(encode, ITEMS)), belongs_to=USER))
        await turn(manager)  # learns of the others, and is warm from here on
        meter.reset()
        await turn(manager)
        assert meter.requests == WARM
        costs.append((meter.write_units, meter.index_units, meter.read_units))
    assert (await store.open(KEY)).version.revision == 500
    assert costs == [(7, 4, 0), (7, 4, 0)]
    record = dynamodb.request("GetItem", Key={"p": {"S": partition(KEY)}, "k": {"B": RECORD}})["Item"]
    assert size(record) < 1000
    await store.aclose()


async def test_values_collections_and_fields_need_no_request_of_their_own(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    manager = SessionManager(store)
    for number in range(4):
        meter.reset()
        async with manager.open(KEY.id, logs=LOGS) as session:
            session.set("step", number)
            await session.namespace("langgraph").collection("checkpoints").put(f"{number:06}", {"n": number})
            await session.namespace("openai").log("items").append(ITEMS)
        assert meter.requests == WARM or number == 0
    await store.aclose()


async def test_what_another_process_committed_is_one_query_more(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store, other = dynamodb.store(make_session=meter.make_session), dynamodb.store()
    ours, theirs = SessionManager(store), SessionManager(other)
    await turn(ours)
    await turn(ours)
    for _ in range(3):
        await turn(theirs)
    meter.reset()
    await turn(ours)
    assert meter.requests == WARM + Counter(Query=1)
    meter.reset()
    await turn(ours)
    assert meter.requests == WARM
    await store.aclose()
    await other.aclose()


async def test_a_cold_turn_is_one_query_more_for_each_part_that_is_asked_for(dynamodb: DynamoDB) -> None:
    warm = dynamodb.store()
    manager = SessionManager(warm)
    for _ in range(20):
        await turn(manager)
    async with manager.open(KEY.id) as session:
        session.set("step", 1)
    meter = dynamodb.meter()
    cold = dynamodb.store(make_session=meter.make_session)
    theirs = SessionManager(cold)
    async with theirs.open("another"):
        pass  # reads the policies
    meter.reset()
    await turn(theirs)
    assert meter.requests == WARM + Counter(Query=2)
    await warm.aclose()
    await cold.aclose()


async def test_an_amendment_is_one_write_and_a_read_if_the_record_has_fields(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    bare, key = KEY._replace(id="bare"), KEY
    await store.commit(bare, change(lifetime=MADE))
    await store.commit(key, change(lifetime=MADE, belongs_to=USER, fields={"f": b"1"}))
    steps: list[tuple[Key, dict[str, Any], Counter[str], tuple[int, int, float]]] = [
        (bare, {"activity": True}, Counter(UpdateItem=1), (1, 2, 0)),
        (key, {"activity": True}, Counter(UpdateItem=1, GetItem=1), (1, 4, 1)),
        (key, {"counters": {"n": 1}}, Counter(UpdateItem=1, GetItem=1), (1, 0, 1)),
        (key, {"fields": {"g": b"2"}}, Counter(TransactWriteItems=1, GetItem=1), (4, 0, 1)),
        (key, {"end": True}, Counter(UpdateItem=1, GetItem=1), (1, 3, 1)),
    ]
    for of, changes, requests, units in steps:
        meter.reset()
        await store.amend(of, Amend(id=new_id(), **changes))
        assert meter.requests == requests, changes
        assert (meter.write_units, meter.index_units, meter.read_units) == units, changes
    cold = dynamodb.store(make_session=meter.make_session)
    meter.reset()
    await cold.amend(bare, Amend(id=new_id(), activity=True))
    assert meter.requests == Counter(GetItem=1, UpdateItem=1)
    await store.aclose()
    await cold.aclose()


async def test_writes_of_one_process_at_once_do_not_refuse_each_other_again_and_again(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    await store.commit(KEY, change(lifetime=MADE))
    meter.reset()
    commits = [store.commit(KEY, change(lifetime=MADE, counters={"n": 1})) for _ in range(15)]
    amendments = [store.amend(KEY, Amend(id=new_id(), counters={"n": 1})) for _ in range(15)]
    await asyncio.gather(*commits, *amendments)
    row = (await store.open(KEY)).row
    assert row is not None
    assert row.counters == {"n": 30}
    assert meter.requests.total() < 30 * 4
    await store.aclose()


async def test_a_turn_on_a_session_that_ends_by_idling_and_was_often_touched_costs_no_more(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    manager = SessionManager(store)
    await manager.create(USER, session_id=KEY.id)
    await turn(manager)
    for _ in range(AMENDMENTS_REMEMBERED + 1):
        await manager.touch(KEY.id)
    await turn(manager)
    for _ in range(5):
        meter.reset()
        await turn(manager)
        assert meter.requests == WARM
        assert (meter.write_units, meter.index_units, meter.read_units) == (7, 4, 0)
    await store.aclose()


async def test_what_listings_ask(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    for number in range(30):
        await store.commit(KEY._replace(id=f"s-{number}"), change(lifetime=MADE, belongs_to=USER, fields={"f": b"1"}))
    read = Counter(BatchGetItem=2)  # records, fields
    shards = Counter(Query=8)
    asked: list[tuple[Any, Counter[str]]] = [
        (store.find("default", "session", limit=10), shards + read),
        (store.find("default", "session", order="start", limit=10), shards + read),
        (store.find("default", "session", belongs_to=USER, status="active", limit=20), Counter(Query=1) + read),
        (store.find("default", "session", belongs_to=USER, order="start", limit=20), Counter(Query=1) + read),
        (store.count("default", "session", status="idle"), shards),
        (store.count("default", "session", belongs_to=USER), Counter(Query=1)),
        (store.run_out("default", "session"), shards),
    ]
    for listing, requests in asked:
        meter.reset()
        await listing
        assert meter.requests == requests
    await store.aclose()


@pytest.mark.parametrize("expected", [ABSENT, None])
async def test_a_session_that_is_known_is_committed_in_one_request(
    dynamodb: DynamoDB, expected: Version | None
) -> None:
    meter = dynamodb.meter()
    store, key = dynamodb.store(make_session=meter.make_session), Key("acme", "session", "s-1")
    await store.commit(key, change(expected=expected, logs=append(b"1")))
    meter.reset()
    await store.commit(key, change(logs=append(b"2"), values={Part("a", "b"): b"1"}, fields={"f": b"1"}))
    assert meter.requests == Counter(TransactWriteItems=1)
    await store.aclose()


async def test_a_waiter_looks_before_it_writes(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store, waiting = dynamodb.store(), dynamodb.store(make_session=meter.make_session)
    key = Key("acme", "session", "s-1")
    await store.commit(key, change(hold_ms=30_000))
    for _ in range(3):
        assert not (await waiting.open(key, lease=lease("them", queue=True))).granted
    assert meter.requests == Counter(GetItem=3)
    assert meter.write_units == 0
    await store.aclose()
    await waiting.aclose()


async def test_a_tenants_sessions_are_spread_over_eight_index_partitions(dynamodb: DynamoDB) -> None:
    store = dynamodb.store()
    for number in range(160):
        await store.commit(Key("acme", "session", f"user-{number}"), change(belongs_to=f"user-{number}"))
    shards = Counter(item["t"]["S"] for item in dynamodb.request("Scan", IndexName="by_tenant")["Items"])
    assert len(shards) == 8
    assert max(shards.values()) <= 2 * 160 / 8
    assert await store.count("acme", "session") == 160
    await store.aclose()


async def test_many_logs_do_not_make_turns_dear(dynamodb: DynamoDB) -> None:
    """As many calls of sub-agents have, each with a log of its own."""
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    manager = SessionManager(store)
    costs = []
    for number in range(100):
        meter.reset()
        async with manager.open(KEY.id, user_id=USER, logs=LOGS) as session:
            await session.namespace("openai").log(f"items:researcher:call_{number:020}").append(ITEMS)
        costs.append(meter.write_units)
        assert meter.requests.keys() >= WARM.keys()
    assert sum(costs[-25:]) / 25 < 3 * sum(costs[:10]) / 10
    cold = dynamodb.store()
    opened = await cold.open(KEY)
    assert [head.count for head in opened.log_heads.values()] == [len(ITEMS)] * 100
    assert dynamodb.kinds()["D"] == 1
    await store.aclose()
    await cold.aclose()
