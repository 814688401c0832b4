"""The lifecycle operations, by the clock."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from agent_sessions import AdminManager, MemoryStore, SessionManager, Settings
from agent_sessions.errors import (
    InvalidError,
    SessionEndedError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
)
from agent_sessions.policy import Policy
from agent_sessions.stores.base import Key, Kind, Opened, Page
from agent_sessions.testing import FakeClock

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def manager(clock: FakeClock) -> AsyncIterator[SessionManager]:
    store = MemoryStore(clock)
    yield SessionManager(store)
    await store.aclose()


async def status_of(manager: SessionManager, session_id: str) -> str:
    record = await manager.get(session_id)
    return "gone" if record is None else record.status


def forged(*place: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode()


# --------------------------------------------------------------------------------------------------- create, get


async def test_a_created_session_has_what_it_was_given(manager: SessionManager, clock: FakeClock) -> None:
    end = datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(days=2)
    made = await manager.create(
        user_id="user-123",
        session_id="s-1",
        agent_id="shop",
        memory_space_id="space",
        description="a chat",
        metadata={"deviceType": "web"},
        ttl=1000,
        expires_at=end,
    )
    got = await manager.get("s-1")
    assert got == made
    assert (made.session_id, made.tenant_id, made.user_id) == ("s-1", "default", "user-123")
    assert (made.agent_id, made.memory_space_id) == ("shop", "space")
    assert (made.description, made.metadata) == ("a chat", {"deviceType": "web"})
    assert (made.status, made.end_reason, made.ended_at) == ("active", None, None)
    assert (made.ttl, made.expires_at, made.revision) == (timedelta(seconds=1000), end, 1)
    assert made.started_at == made.last_active_at == datetime.fromtimestamp(clock.now_ms() / 1000, UTC)


async def test_an_id_is_made_if_none_is_given(manager: SessionManager) -> None:
    first, second = await manager.create("u"), await manager.create("u")
    assert first.session_id != second.session_id
    assert len(first.session_id) == 36


async def test_an_id_that_exists_is_refused(manager: SessionManager) -> None:
    await manager.create(session_id="s")
    with pytest.raises(SessionExistsError):
        await manager.create(session_id="s")
    async with manager.open("opened"):
        pass
    with pytest.raises(SessionExistsError):
        await manager.create("u", session_id="opened")


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"user_id": " "}, "INVALID_USER_ID", "user_id"),
        ({"session_id": 5}, "INVALID_SESSION_ID", "session_id"),
        ({"agent_id": ""}, "INVALID_AGENT_ID", "agent_id"),
        ({"memory_space_id": "a\n"}, "INVALID_MEMORY_SPACE_ID", "memory_space_id"),
        ({"description": 5}, "INVALID_DESCRIPTION", "description"),
        ({"metadata": []}, "INVALID_METADATA", "metadata"),
        ({"metadata": {1: 2}}, "INVALID_METADATA", "metadata"),
        ({"metadata": {"a": [{1: 2}]}}, "INVALID_METADATA", "metadata"),
        ({"metadata": {"a": float("nan")}}, "INVALID_METADATA", "metadata"),
        ({"metadata": {"a": (1, 2)}}, "INVALID_METADATA", "metadata"),
        ({"metadata": {"a": b"bytes"}}, "INVALID_METADATA", "metadata"),
        ({"ttl": -1}, "INVALID_TTL", "ttl"),
        ({"ttl": True}, "INVALID_TTL", "ttl"),
        ({"ttl": float("nan")}, "INVALID_TTL", "ttl"),
        ({"ttl": 10**400}, "INVALID_TTL", "ttl"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "INVALID_EXPIRES_AT", "expires_at"),
        ({"expires_at": datetime(2100, 1, 1)}, "INVALID_EXPIRES_AT", "expires_at"),
        ({"expires_at": datetime.max.replace(tzinfo=UTC)}, "INVALID_EXPIRES_AT", "expires_at"),
        ({"policy": {"inactiveTimeout": 10**400}}, "INVALID_POLICY", "idle_after"),
        ({"policy": {"idle": 1}}, "INVALID_POLICY", "idle"),
        ({"policy": {"max_sessions_per_user": 5}}, "INVALID_POLICY", "max_sessions_per_user"),
    ],
)
async def test_wrong_arguments_are_named(manager: SessionManager, wrong: Any, code: str, field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await manager.create(**wrong)
    assert (refused.value.code, refused.value.field) == (code, field)
    assert await manager.count() == 0


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"metadata": "text"}, "INVALID_METADATA"),
        ({"metadata": {"a": {1, 2}}}, "INVALID_METADATA"),
        ({"commit": "steps"}, "INVALID_COMMIT"),
        ({"wait_s": "5"}, "INVALID_WAIT_S"),
        ({"wait_s": -1}, "INVALID_WAIT_S"),
    ],
)
async def test_wrong_arguments_of_a_turn_are_named(manager: SessionManager, wrong: Any, code: str) -> None:
    with pytest.raises(InvalidError) as refused:
        async with manager.open("s", **wrong):
            pass
    assert refused.value.code == code
    assert await manager.get("s") is None


async def test_the_shortest_ttl_is_not_the_longest(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create(ttl=0.0001)
    clock.advance(0.001)
    assert await status_of(manager, made.session_id) == "gone"


async def test_what_is_missing_is_none_or_an_error(manager: SessionManager) -> None:
    assert await manager.get("nobody") is None
    with pytest.raises(SessionNotFoundError):
        await manager.get("nobody", strict=True)
    for operation in (manager.touch, manager.end, manager.update):
        with pytest.raises(SessionNotFoundError):
            await operation("nobody")
    with pytest.raises(SessionNotFoundError):
        await manager.extend("nobody", hours=1)


# --------------------------------------------------------------------------------------------------- time


async def test_an_ended_session_says_why(manager: SessionManager, clock: FakeClock) -> None:
    start = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    idle = await manager.create("u")
    expired = await manager.create("u", expires_at=start + timedelta(hours=1))
    ended = await manager.create("u")
    summary = await manager.end(ended.session_id)
    assert (summary.end_reason, summary.duration) == ("explicit", timedelta(0))
    clock.advance(2 * DAY)
    for made, reason, at in (
        (idle, "idle", start + timedelta(days=1, minutes=30)),
        (expired, "expired", start + timedelta(hours=1)),
        (ended, "explicit", start),
    ):
        record = await manager.get(made.session_id, strict=True)
        assert record is not None
        assert (record.status, record.end_reason, record.ended_at) == ("ended", reason, at)
        assert record.time_remaining == timedelta(0)


async def test_touch_makes_an_idle_session_active(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u")
    clock.advance(HOUR)
    touched = await manager.touch(made.session_id)
    assert (touched.status, touched.revision) == ("active", 1)
    assert touched.last_active_at == made.last_active_at + timedelta(hours=1)
    clock.advance(30 * MINUTE)
    assert await status_of(manager, made.session_id) == "idle"


async def test_ending_again_changes_nothing(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u")
    clock.advance(5)
    first = await manager.end(made.session_id)
    clock.advance(5)
    assert await manager.end(made.session_id, reason="revoked") == first
    assert first.duration == timedelta(seconds=5)


# --------------------------------------------------------------------------------------------------- update, extend


@pytest.mark.parametrize(("how", "reason"), [({"expires_at": 60}, "expired"), ({"policy": {"end_after": 0}}, "idle")])
async def test_what_has_run_out_is_not_ended_for_another_reason(
    manager: SessionManager, clock: FakeClock, how: dict[str, Any], reason: str
) -> None:
    if "expires_at" in how:
        how = {"expires_at": _in(clock, how["expires_at"])}
    made = await manager.create("u", **how)
    clock.advance(HOUR)
    summary = await manager.end(made.session_id)
    clock.advance(HOUR)
    assert (summary.end_reason, await manager.end(made.session_id)) == (reason, summary)
    assert (await manager.get(made.session_id, strict=True)).end_reason == reason


async def test_update_merges_and_removes(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u", metadata={"a": 1, "b": {"c": 1}}, description="old")
    updated = await manager.update(made.session_id, metadata={"a": None, "b": 2, "d": 3}, description=None, ttl="1h")
    assert (updated.metadata, updated.description, updated.ttl) == ({"b": 2, "d": 3}, None, timedelta(hours=1))
    assert updated == await manager.get(made.session_id)
    ends = _in(clock, HOUR)
    assert (await manager.update(made.session_id, expires_at=ends)).expires_at == ends
    cleared = await manager.update(made.session_id, expires_at=None, ttl=None)
    assert (cleared.expires_at, cleared.ttl) == (None, timedelta(days=7))


async def test_only_what_is_named_is_removed_from_metadata(manager: SessionManager) -> None:
    await manager.create(session_id="s", metadata={"a": None, "b": 1})
    assert (await manager.update("s", metadata={"b": 2})).metadata == {"a": None, "b": 2}
    async with manager.open("s", metadata={"c": 3}):
        pass
    assert (await manager.update("s", metadata={"a": None})).metadata == {"b": 2, "c": 3}


async def test_an_update_beside_a_turn_disturbs_neither(manager: SessionManager) -> None:
    made = await manager.create("u", metadata={"a": 1})
    async with manager.open(made.session_id, metadata={"by": "turn"}) as session:
        session.set("n", 1)
        await manager.update(made.session_id, metadata={"b": 2})
    async with manager.open(made.session_id) as session:
        assert session.get("n") == 1
        assert session.metadata in ({"a": 1, "b": 2, "by": "turn"}, {"a": 1, "by": "turn"})
    record = await manager.get(made.session_id, strict=True)
    assert record is not None
    assert record.metadata == session.metadata


async def test_extensions_add_up(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u", expires_at=_in(clock, HOUR))
    extended = await manager.extend(made.session_id, hours=6)
    assert extended.expires_at == _in(clock, 7 * HOUR)
    clock.advance(7 * HOUR - 0.001)
    await manager.touch(made.session_id)
    clock.advance(0.001)
    with pytest.raises(SessionExpiredError):
        await manager.touch(made.session_id)


async def test_an_extension_of_no_end_counts_from_the_ttl(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u", ttl=1000)
    extended = await manager.extend(made.session_id, seconds=500)
    assert extended.expires_at == _in(clock, 1500)
    clock.advance(1200)
    assert await status_of(manager, made.session_id) == "active"
    clock.advance(300)
    assert await status_of(manager, made.session_id) == "ended"


async def test_an_extension_of_what_never_goes_does_not_end_it(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u", ttl=0, policy={"end_after": None})
    clock.advance(HOUR)
    extended = await manager.extend(made.session_id, hours=1)
    assert (extended.expires_at, extended.status) == (None, "active")
    clock.advance(9 * DAY)
    assert await status_of(manager, made.session_id) == "idle"


async def test_extensions_stay_within_what_is_a_date(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u", expires_at=_in(clock, HOUR))
    for _ in range(80):
        await manager.extend(made.session_id, hours=36_525 * 24)
    [found] = (await manager.list("u")).sessions
    assert found.expires_at is not None
    assert 9499 <= found.expires_at.year <= 9500


async def test_an_extension_stops_at_the_absolute_timeout(manager: SessionManager, clock: FakeClock) -> None:
    made = await manager.create("u", policy={"absolute_timeout": "2h"}, expires_at=_in(clock, HOUR))
    assert (await manager.extend(made.session_id, hours=6)).expires_at == _in(clock, 2 * HOUR)


@pytest.mark.parametrize("wrong", [{}, {"hours": 0}, {"hours": -1}, {"seconds": 0}, {"hours": 1, "seconds": 1}])
async def test_an_extension_is_more_than_nothing(manager: SessionManager, wrong: Any) -> None:
    made = await manager.create("u")
    with pytest.raises(InvalidError) as refused:
        await manager.extend(made.session_id, **wrong)
    assert refused.value.code == "INVALID_DURATION"


# --------------------------------------------------------------------------------------------------- users


async def test_get_or_create_gives_the_most_recently_active(manager: SessionManager, clock: FakeClock) -> None:
    first = await manager.get_or_create("u", {"device": "web"})
    assert first.metadata == {"device": "web"}
    clock.advance(60)
    second = await manager.create("u")
    clock.advance(60)
    assert (await manager.get_or_create("u")).session_id == second.session_id
    clock.advance(60)
    await manager.touch(first.session_id)
    again = await manager.get_or_create("u")
    assert again.session_id == first.session_id
    clock.advance(HOUR)
    assert (await manager.get_or_create("u")).session_id not in (first.session_id, second.session_id)


async def test_a_limit_is_exact(clock: FakeClock) -> None:
    manager = SessionManager(MemoryStore(clock), settings=Settings(policy=Policy(max_sessions_per_user=10)))
    made = await asyncio.gather(*(manager.create("u") for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(one, SessionLimitError) for one in made) == 40
    assert await manager.count("u") == 10
    first = next(one for one in made if not isinstance(one, BaseException))
    await manager.end(first.session_id)
    await manager.create("u")
    with pytest.raises(SessionLimitError):
        await manager.create("u")
    await manager.create("other")


async def test_at_the_limit_the_oldest_may_be_ended(clock: FakeClock) -> None:
    policy = Policy(max_sessions_per_user=2, on_limit="end_oldest")
    manager = SessionManager(MemoryStore(clock), settings=Settings(policy=policy))
    made = []
    for _ in range(4):
        made.append(await manager.create("u"))
        clock.advance(1)
    statuses = [await manager.get(one.session_id) for one in made]
    assert [one.status for one in statuses if one] == ["ended", "ended", "active", "active"]
    assert [one.end_reason for one in statuses if one] == ["replaced", "replaced", None, None]


async def test_end_all_keeps_one(manager: SessionManager, clock: FakeClock) -> None:
    made = [await manager.create("u") for _ in range(3)]
    clock.advance(HOUR)
    made.append(await manager.create("u"))
    await manager.create("other")
    ended = await manager.end_all("u", except_session_id=made[3].session_id)
    assert ended.ended == 3
    assert sorted(ended.session_ids) == sorted(one.session_id for one in made[:3])
    assert (await manager.end_all("u")).session_ids == [made[3].session_id]
    assert await manager.count("other", status="active") == 1


# --------------------------------------------------------------------------------------------------- listing


async def test_end_all_finds_what_is_touched_while_it_looks(clock: FakeClock) -> None:
    class Touched(MemoryStore):
        async def find(self, tenant: str, kind: Kind, **options: Any) -> Page:
            page = await super().find(tenant, kind, **options)
            if options["status"] == "active":
                await touch()
            return page

    manager = SessionManager(Touched(clock))
    made = [await manager.create("u") for _ in range(2)]
    clock.advance(HOUR)

    async def touch() -> None:
        with suppress(SessionEndedError):
            await manager.touch(made[0].session_id)

    ended = await manager.end_all("u")
    assert sorted(ended.session_ids) == sorted(record.session_id for record in made)
    assert await manager.count("u", status="ended") == 2


async def test_end_all_keeps_nothing_by_mistake(manager: SessionManager) -> None:
    made = await manager.create("u")
    with pytest.raises(InvalidError):
        await manager.end_all("u", except_session_id=made)  # type: ignore[arg-type]
    assert await status_of(manager, made.session_id) == "active"


async def test_list_filters_and_pages(manager: SessionManager, clock: FakeClock) -> None:
    for number in range(25):
        await manager.create(
            f"u{number % 2}",
            session_id=f"s{number:02}",
            agent_id=f"a{number % 3}",
            metadata={"device": "web" if number % 5 else "mobile"},
        )
        clock.advance(1)
    assert [record.session_id for record in (await manager.list(limit=3)).sessions] == ["s24", "s23", "s22"]

    async def everything(**filters: Any) -> list[str]:
        found, cursor = list[str](), None
        while True:
            page = await manager.list(limit=4, cursor=cursor, **filters)
            found += [record.session_id for record in page.sessions]
            cursor = page.next_cursor
            if cursor is None:
                return found

    names = [f"s{number:02}" for number in range(24, -1, -1)]
    assert await everything() == names
    assert await everything(order="started") == names
    assert await everything(user_id="u1") == names[1::2]
    assert await everything(agent_id="a0") == names[0::3]
    assert await everything(metadata={"device": "mobile"}) == ["s20", "s15", "s10", "s05", "s00"]
    assert await everything(user_id="u0", metadata={"device": "mobile"}) == ["s20", "s10", "s00"]
    fifth = (await manager.get("s05", strict=True)).started_at
    assert await everything(started_before=fifth) == names[-5:]
    assert await everything(started_after=fifth) == names[:19]
    assert [r.session_id for r in (await manager.list(offset=10, limit=2)).sessions] == names[10:12]
    assert await manager.count() == 25
    assert await manager.count("u1", agent_id="a0") == 4
    assert await manager.count(metadata={"device": "mobile"}) == 5


async def test_a_page_that_ends_on_the_last_session_is_the_last(manager: SessionManager) -> None:
    for number in range(4):
        await manager.create(session_id=f"s{number}", agent_id="a")
    for filters in ({}, {"agent_id": "a"}):
        page = await manager.list(limit=4, **filters)  # type: ignore[arg-type]
        assert len(page.sessions) == 4
        assert page.next_cursor is None


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"limit": 0}, "INVALID_LIMIT"),
        ({"limit": 1001}, "INVALID_LIMIT"),
        ({"limit": True}, "INVALID_LIMIT"),
        ({"offset": -1}, "INVALID_OFFSET"),
        ({"status": "asleep"}, "INVALID_STATUS"),
        ({"order": "name"}, "INVALID_ORDER"),
        ({"cursor": "x"}, "INVALID_CURSOR"),
        ({"cursor": 5}, "INVALID_CURSOR"),
        ({"cursor": forged("a", 2**63, "s")}, "INVALID_CURSOR"),
        ({"cursor": forged("a", 5, "\0")}, "INVALID_CURSOR"),
        ({"cursor": forged("s", 5, "s")}, "INVALID_CURSOR"),
        ({"started_after": 5}, "INVALID_STARTED_AFTER"),
    ],
)
async def test_wrong_filters_are_named(manager: SessionManager, wrong: Any, code: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await manager.list(**wrong)
    assert refused.value.code == code


async def test_stats_and_active_ones(manager: SessionManager, clock: FakeClock) -> None:
    old = [await manager.create("u") for _ in range(3)]
    await manager.end(old[0].session_id)
    clock.advance(HOUR)
    new = [await manager.create("u") for _ in range(2)]
    stats = await manager.stats()
    assert (stats.active, stats.idle, stats.ended, stats.total) == (2, 2, 1, 5)
    assert {one.session_id for one in await manager.get_active("u")} == {one.session_id for one in new}


async def test_expire_idle_tells_each_once(manager: SessionManager, clock: FakeClock) -> None:
    made = [await manager.create("u", session_id=f"s{number:03}") for number in range(450)]
    await manager.create("u", session_id="expires", expires_at=_in(clock, HOUR))
    async with manager.open("chat"):
        pass
    clock.advance(DAY + 30 * MINUTE)
    await manager.create("u", session_id="young")
    dry = await manager.expire_idle(dry_run=True)
    assert dry.expired > 0
    runs = await asyncio.gather(*(manager.expire_idle() for _ in range(3)))
    told = [id for run in runs for id in run.session_ids]
    assert sorted(told) == sorted([*(one.session_id for one in made), "expires"])
    assert (await manager.expire_idle()).expired == 0
    reasons = [await manager.get(id, strict=True) for id in ("s000", "expires")]
    assert [one.end_reason for one in reasons] == ["idle", "expired"]


async def test_expire_idle_by_age(manager: SessionManager, clock: FakeClock) -> None:
    for number in range(5):
        await manager.create("u", session_id=f"s{number}")
        clock.advance(600)
    assert (await manager.expire_idle(max_age="25m", dry_run=True)).session_ids == ["s2", "s1", "s0"]
    assert sorted((await manager.expire_idle(max_age="25m")).session_ids) == ["s0", "s1", "s2"]
    assert (await manager.stats()).ended == 3


# --------------------------------------------------------------------------------------------------- policies


def test_a_policy_can_be_configured_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IDLE_AFTER": "10m", "END_AFTER": "3600", "MAX_SESSIONS_PER_USER": "3"}.items():
        monkeypatch.setenv(f"AK_SESSION__POLICY__{name}", value)
    policy = Settings.load().policy
    assert (policy.idle_after, policy.end_after) == (timedelta(minutes=10), timedelta(hours=1))
    assert policy.max_sessions_per_user == 3
    for wrong in ("0", "true", "3.5"):
        monkeypatch.setenv("AK_SESSION__POLICY__MAX_SESSIONS_PER_USER", wrong)
        with pytest.raises(InvalidError, match="MAX_SESSIONS_PER_USER"):
            Settings.load()
    for number in (True, 3.0, 0):
        with pytest.raises(InvalidError):
            Policy.of({"max_sessions_per_user": number})


async def test_the_nearest_policy_wins(manager: SessionManager, clock: FakeClock) -> None:
    acme = manager.for_tenant("acme")
    await AdminManager(manager).set_policy({"idle_after": "10m", "end_after": "1h"})
    await acme.set_policy({"inactiveTimeout": 300_000})
    plain, theirs = await manager.create("u"), await acme.create("u")
    own = await acme.create("u", policy={"idle_after": 60})
    clock.advance(MINUTE)
    assert await status_of(acme, own.session_id) == "idle"
    clock.advance(4 * MINUTE)
    assert (await status_of(acme, theirs.session_id), await status_of(manager, plain.session_id)) == ("idle", "active")
    clock.advance(5 * MINUTE)
    assert await status_of(manager, plain.session_id) == "idle"
    clock.advance(HOUR)
    assert await status_of(manager, plain.session_id) == "ended"


class SlowToTellPolicies(MemoryStore):
    never_waits = False

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def open(self, key: Key, **asked: Any) -> Opened:
        if key.kind == "system":
            self.asked.set()
            await self.answers.wait()
        return await super().open(key, **asked)


async def test_a_policy_that_nobody_waits_for_any_more_is_not_read_on() -> None:
    manager = SessionManager(SlowToTellPolicies())
    store = manager.store
    assert isinstance(store, SlowToTellPolicies)
    before = asyncio.all_tasks()
    first, second = (asyncio.create_task(manager.create("ann")) for _ in range(2))
    await store.asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    store.answers.set()
    assert (await second).status == "active"
    store.answers.clear()
    other = asyncio.create_task(manager.for_tenant("acme").create("ann"))
    store.asked.clear()
    await store.asked.wait()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    assert asyncio.all_tasks() == before


async def test_a_policy_that_was_read_long_ago_is_not_gone_by(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = SessionManager(manager.store)
    await manager.create("u")
    await elsewhere.set_policy({"max_sessions_per_user": 1})
    monkeypatch.setattr("agent_sessions.lifecycle.policies.STALE_S", -1.0)
    with pytest.raises(SessionLimitError):
        await manager.create("u")


async def test_a_policy_reaches_a_session_at_its_next_activity_or_when_applied(
    manager: SessionManager, clock: FakeClock
) -> None:
    one, two = await manager.create("u"), await manager.create("u")
    await manager.set_policy({"idle_after": "1m"})
    clock.advance(5 * MINUTE)
    await manager.touch(one.session_id)
    clock.advance(2 * MINUTE)
    assert (await status_of(manager, one.session_id), await status_of(manager, two.session_id)) == ("idle", "active")
    assert await manager.apply_policy() == 2
    assert await status_of(manager, two.session_id) == "idle"
    await manager.set_policy(None)
    assert (await manager.get_policy()).idle_after == timedelta(minutes=30)


def _in(clock: FakeClock, seconds: float) -> datetime:
    return datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(seconds=seconds)


# --------------------------------------------------------------------------------------------------- copies


async def filled(manager: SessionManager, session_id: str = "s") -> None:
    await manager.create("u", session_id=session_id, metadata={"a": 1}, ttl=500)
    async with manager.open(session_id) as session:
        session.set("when", datetime(2026, 1, 1, tzinfo=UTC))
        session.set("deep", {"a": [1, (2, 3)], "b": b"\x00\xff"})
        await session.namespace("openai").log("items").append([{"n": n} for n in range(300)])
        await session.namespace("langgraph").collection("checkpoints").put_many({f"{n:03}": n for n in range(50)})


async def contents(manager: SessionManager, session_id: str) -> Any:
    async with manager.read(session_id) as session:
        return (
            dict(session.items()),
            await session.namespace("openai").log("items").read(),
            await session.namespace("langgraph").collection("checkpoints").range(),
            session.metadata,
        )


async def test_a_fork_goes_its_own_way(manager: SessionManager, clock: FakeClock) -> None:
    await filled(manager)
    before = await contents(manager, "s")
    clock.advance(100)
    forked = await manager.fork("s", "t")
    assert (forked.forked_from, forked.user_id, forked.metadata) == ("s", "u", {"a": 1})
    assert forked.ttl == timedelta(seconds=500)
    assert forked.started_at == datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    async with manager.open("t") as session:
        session.set("deep", 5)
        await session.namespace("openai").log("items").append([{"n": "new"}])
    assert await contents(manager, "s") == before
    assert (await contents(manager, "t"))[1][-1] == {"n": "new"}
    with pytest.raises(SessionExistsError):
        await manager.fork("s", "t")
    with pytest.raises(SessionNotFoundError):
        await manager.fork("nobody")


async def test_an_export_is_imported_byte_for_byte(manager: SessionManager, clock: FakeClock) -> None:
    await filled(manager)
    clock.advance(100)
    document = json.loads(json.dumps(await manager.export("s")))
    elsewhere = SessionManager(MemoryStore(clock))
    imported = await elsewhere.import_(document)
    original = await manager.get("s", strict=True)
    assert original is not None
    assert imported == replace(original, revision=original.revision + 1)
    assert await contents(elsewhere, "s") == await contents(manager, "s")
    again = await elsewhere.export("s")
    again["record"]["revision"] -= 1
    assert again == document
    with pytest.raises(SessionExistsError):
        await elsewhere.import_(document)
    assert (await elsewhere.import_(document, session_id="other")).session_id == "other"


@pytest.mark.parametrize("wrong", [None, {}, {"format": "x", "record": {}}, {"format": "agent-sessions/session/1"}])
async def test_what_is_no_export_is_refused(manager: SessionManager, wrong: Any) -> None:
    with pytest.raises(InvalidError) as refused:
        await manager.import_(wrong)
    assert refused.value.code == "INVALID_DOCUMENT"
