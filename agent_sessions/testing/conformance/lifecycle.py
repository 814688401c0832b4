"""Idle, ended, gone; what is amended; listings by status."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_sessions.errors import (
    SessionConflictError,
    SessionEndedError,
    SessionExpiredError,
    SessionNotFoundError,
)
from agent_sessions.stores.base import AMENDMENTS_REMEMBERED, Amend, Amended, Cursor, Key, Part, Row, Store
from agent_sessions.stores.lifetime import Lifetime, Status
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import (
    Client,
    Harness,
    append,
    change,
    lease,
    new_id,
    read_log,
    take,
    version_of,
)

A = Part("default", "a")
HALF_HOUR, DAY, WEEK = 1_800, 86_400, 604_800
MADE = Lifetime(idle_ms=HALF_HOUR * 1000, end_ms=DAY * 1000, ttl_ms=WEEK * 1000, retention_ms=WEEK * 1000)


class Lifecycle(Harness):
    """The times of a key, and its record."""

    async def row(self, store: Store, key: Key) -> Row:
        """The row of a key that exists."""
        row = (await store.open(key)).row
        assert row is not None
        return row

    async def amend(self, store: Store, key: Key, **changes: Any) -> Amended:
        """Amend a key's record."""
        return await store.amend(key, Amend(id=new_id(), **changes))

    async def counts(self, store: Store, key: Key) -> dict[Status, int]:
        """How many there are of each status that there is."""
        statuses: list[Status] = ["active", "idle", "ended"]
        counted = {status: await store.count(key.tenant, key.kind, status=status) for status in statuses}
        return {status: number for status, number in counted.items() if number}

    # ------------------------------------------------------------------------ by the clock

    async def test_it_is_idle_then_ended_then_gone(
        self, store: Store, other: Store, key: Key, clock: FakeClock
    ) -> None:
        start = clock.now_ms()
        await store.commit(key, change(lifetime=MADE))
        row = await self.row(other, key)
        assert (row.idle_at, row.ends_at) == (start + HALF_HOUR * 1000, start + (HALF_HOUR + DAY) * 1000)
        assert row.gone_at == start + (HALF_HOUR + DAY + WEEK) * 1000
        assert row.lifetime == MADE
        for seconds, status in ((HALF_HOUR, "idle"), (DAY, "ended")):
            clock.advance(seconds - 0.001)
            assert status not in await self.counts(other, key)
            clock.advance(0.001)
            assert await self.counts(other, key) == {status: 1}
            page = await other.find(key.tenant, key.kind, status=status)  # type: ignore[arg-type]
            assert [found.id for found in page.found] == [key.id]
        clock.advance(WEEK - 0.001)
        assert (await store.open(key)).row is not None
        clock.advance(0.001)
        assert (await store.open(key)).row is None
        assert await self.counts(store, key) == {}

    async def test_what_goes_before_it_ends_never_ends(self, store: Store, key: Key, clock: FakeClock) -> None:
        start = clock.now_ms()
        await store.commit(key, change(lifetime=MADE._replace(ttl_ms=60_000)))
        row = await self.row(store, key)
        assert (row.idle_at, row.ends_at, row.gone_at) == (start + 60_000,) * 3
        clock.advance(60)
        assert (await store.open(key)).row is None

    async def test_what_has_no_end_by_idling_goes_on(self, store: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(lifetime=MADE, own={"end_ms": None}))
        clock.advance(3 * DAY)
        assert await self.counts(store, key) == {"idle": 1}
        await store.commit(key, change(lifetime=MADE))
        row = await self.row(store, key)
        assert (row.ends_at, row.own) == (row.gone_at, {"end_ms": None})
        assert row.gone_at == clock.now_ms() + WEEK * 1000

    async def test_its_own_lifetime_wins_at_every_activity(self, store: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(lifetime=MADE, own={"ttl_ms": 5_000, "idle_ms": 1_000}))
        clock.advance(1)
        await store.commit(key, change(lifetime=Lifetime(ttl_ms=90_000, idle_ms=50_000), own={"ttl_ms": 7}))
        row = await self.row(store, key)
        assert (row.idle_at, row.gone_at) == (clock.now_ms() + 1_000, clock.now_ms() + 5_000)
        await self.amend(store, key, own={"ttl_ms": 9_000}, lifetime=Lifetime(ttl_ms=90_000))
        assert (await self.row(store, key)).gone_at == clock.now_ms() + 9_000

    async def test_a_given_end_and_an_age_end_it_in_spite_of_activity(
        self, store: Store, key: Key, clock: FakeClock
    ) -> None:
        old = key._replace(id="old")
        await store.commit(key, change(lifetime=MADE, expires_at=clock.now_ms() + 10_000))
        await store.commit(old, change(lifetime=MADE._replace(absolute_ms=10_000)))
        clock.advance(9.999)
        for name in (key, old):
            await store.commit(name, change(lifetime=MADE._replace(absolute_ms=10_000), logs=append(b"1")))
        clock.advance(0.001)
        for name in (key, old):
            with pytest.raises(SessionExpiredError):
                await store.commit(name, change(logs=append(b"late")))
            with pytest.raises(SessionExpiredError):
                await store.amend(name, Amend(id=new_id(), activity=True))
            assert await read_log(store, name) == [b"1"]

    async def test_a_lease_that_is_renewed_keeps_it_from_idling(self, store: Store, key: Key, clock: FakeClock) -> None:
        lifetime = Lifetime(idle_ms=5_000, end_ms=5_000, ttl_ms=60_000, retention_ms=60_000)
        version = (await store.commit(key, change(lifetime=lifetime))).version
        assert await take(store, key, "us")
        assert await store.renew(key, "us", 30_000)
        clock.advance(25)
        assert await self.counts(store, key) == {"active": 1}
        assert await store.renew(key, "us", 10_000)
        clock.advance(9)
        await store.commit(key, change(expected=version, lifetime=lifetime))
        row = await self.row(store, key)
        assert row.stamps == (clock.now_ms() + 5_000, clock.now_ms() + 10_000, clock.now_ms() + 70_000)

    async def test_what_is_amended_under_a_lease_neither_idles_nor_goes(
        self, store: Store, other: Store, key: Key, clock: FakeClock
    ) -> None:
        lifetime = Lifetime(idle_ms=2_000, end_ms=1_000, ttl_ms=4_000, retention_ms=60_000)
        version = (await store.commit(key, change(lifetime=lifetime))).version
        assert await take(store, key, "us")
        for changes in ({"activity": True}, {"fields": {"f": b"1"}}, {"counters": {"n": 1}}, {"lifetime": lifetime}):
            assert await store.renew(key, "us", 30_000)
            clock.advance(3)
            await self.amend(other, key, **changes)
            clock.advance(20)
            assert await self.counts(other, key) == {"active": 1}
        await store.commit(key, change(expected=version, lifetime=lifetime, owner="us"))

    async def test_a_lease_does_not_move_a_given_end(self, store: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(lifetime=MADE, expires_at=clock.now_ms() + 10_000))
        assert await take(store, key, "us")
        assert await store.renew(key, "us", 30_000)
        clock.advance(10)
        with pytest.raises(SessionExpiredError):
            await store.commit(key, change())

    # ------------------------------------------------------------------------ ended by somebody

    async def test_an_end_refuses_a_running_turn(self, store: Store, other: Store, key: Key) -> None:
        await store.commit(key, change(lifetime=MADE))
        opened = await store.open(key, lease=lease("us"))
        ended = await self.amend(other, key, end=True, fields={"why": b"done"})
        assert ended.changed
        with pytest.raises(SessionEndedError):
            await store.commit(key, change(expected=opened.version, logs=append(b"lost"), fields={"f": b"lost"}))
        with pytest.raises(SessionEndedError):
            await store.commit(key, change(logs=append(b"lost")))
        row = await self.row(store, key)
        assert row.fields == {"why": b"done"}
        assert (row.ended_at, row.ends_at) == (ended.now, ended.now)
        assert row.gone_at == ended.now + WEEK * 1000
        assert await read_log(store, key) == []
        assert await version_of(store, key) == opened.version
        assert await self.counts(store, key) == {"ended": 1}

    async def test_the_first_end_stays(self, store: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(lifetime=MADE))
        first = await self.amend(store, key, end=True, fields={"why": b"first"})
        clock.advance(5)
        again = await self.amend(store, key, end=True, fields={"why": b"second"}, counters={"n": 1})
        assert not again.changed
        assert again.row == first.row
        assert (await self.row(store, key)).fields == {"why": b"first"}

    async def test_what_ran_out_ended_when_it_did(self, store: Store, key: Key, clock: FakeClock) -> None:
        start = clock.now_ms()
        await store.commit(key, change(lifetime=MADE))
        await store.commit(key._replace(id="late"), change(lifetime=MADE, expires_at=start + 100_000))
        await store.commit(key._replace(id="alive"), change(lifetime=MADE, own={"end_ms": None}))
        clock.advance(HALF_HOUR + DAY - 1)
        assert [found.id for found in (await store.run_out(key.tenant, key.kind)).found] == ["late"]
        clock.advance(1)
        found = (await store.run_out(key.tenant, key.kind)).found
        assert [place.id for place in found] == ["late", key.id]
        assert len((await store.run_out(key.tenant, key.kind, limit=1)).found) == 1
        for place, ended_at in zip(found, (start + 100_000, start + (HALF_HOUR + DAY) * 1000), strict=True):
            ended = await self.amend(store, key._replace(id=place.id), end=True)
            assert ended.row.ended_at == ended_at
            assert ended.row.gone_at == ended_at + WEEK * 1000
        assert (await store.run_out(key.tenant, key.kind)).found == []
        assert await self.counts(store, key) == {"ended": 2, "idle": 1}
        with pytest.raises(SessionExpiredError):
            await store.commit(key._replace(id="late"), change())
        with pytest.raises(SessionEndedError):
            await store.commit(key, change())

    async def test_an_ended_key_is_made_anew_after_it_is_gone(self, store: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(lifetime=MADE, logs=append(b"old"), counters={"n": 3}, own={"idle_ms": 1}))
        await self.amend(store, key, end=True)
        clock.advance(WEEK)
        await store.commit(key, change(lifetime=MADE))
        row = await self.row(store, key)
        assert (row.ended_at, row.counters, row.own, row.started_at) == (None, {}, {}, clock.now_ms())
        assert await read_log(store, key) == []

    async def test_maintenance_works_on_what_has_ended(self, store: Store, key: Key) -> None:
        version = (await store.commit(key, change(lifetime=MADE, values={A: b"1"}))).version
        ended = await self.amend(store, key, end=True)
        await store.commit(key, change(expected=version, maintenance=True, values={A: b"2"}))
        assert (await store.open(key)).values == {"default": {"a": b"2"}}
        assert (await self.row(store, key)).stamps == ended.row.stamps

    # ------------------------------------------------------------------------ amendments

    async def test_an_amendment_disturbs_no_turn(self, store: Store, other: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(lifetime=MADE, fields={"f": b"1"}))
        opened = await store.open(key, lease=lease("us"))
        clock.advance(60)
        amended = await self.amend(other, key, activity=True, fields={"f": b"2", "g": b"3"}, counters={"n": 2})
        assert amended.changed
        assert amended.row.fields == {"f": b"2", "g": b"3"}
        assert amended.row.active_at == clock.now_ms()
        assert amended.revision == opened.version.revision
        assert await version_of(store, key) == opened.version
        committed = await store.commit(key, change(expected=opened.version, lifetime=MADE, counters={"n": 1, "m": 1}))
        assert committed.row is not None
        assert committed.row.counters == {"n": 3, "m": 1}
        assert (await self.row(store, key)).fields == {"f": b"2", "g": b"3"}

    async def test_a_commit_tells_what_record_it_found(self, store: Store, key: Key) -> None:
        made = await store.commit(key, change(fields={"f": b"1"}))
        assert made.row is not None
        assert made.previous_tag == made.row.record_tag
        amended = await self.amend(store, key, fields={"g": b"1"})
        committed = await store.commit(key, change(fields={"f": b"2"}))
        assert committed.previous_tag == amended.row.record_tag
        assert committed.row is not None
        again = await store.commit(key, change())
        assert again.previous_tag == committed.row.record_tag
        assert again.row is not None
        assert again.row.record_tag == again.previous_tag

    async def test_an_amendment_is_applied_once(self, store: Store, key: Key) -> None:
        await store.commit(key, change(lifetime=MADE))
        amend = Amend(id=new_id(), counters={"n": 1}, fields={"f": b"1"})
        assert (await store.amend(key, amend)).changed
        for _ in range(AMENDMENTS_REMEMBERED - 1):
            await self.amend(store, key, counters={"m": 1})
        again = await store.amend(key, amend)
        assert not again.changed
        assert again.row.counters == {"n": 1, "m": AMENDMENTS_REMEMBERED - 1}

    async def test_an_amendment_expects_a_record(self, store: Store, key: Key) -> None:
        await store.commit(key, change(lifetime=MADE))
        tag = (await self.row(store, key)).record_tag
        first = await self.amend(store, key, expected_tag=tag, expires_at=5_000_000_000_000)
        assert first.row.record_tag != tag
        assert first.row.expires_at == 5_000_000_000_000
        with pytest.raises(SessionConflictError):
            await self.amend(store, key, expected_tag=tag, fields={"f": b"1"})
        with pytest.raises(SessionConflictError):
            await self.amend(store, key, expected_tag=new_id(), activity=True)
        counted = await self.amend(store, key, expected_tag=first.row.record_tag, counters={"n": 1}, activity=True)
        assert counted.row.record_tag == first.row.record_tag  # as these two belong to no record that was read
        cleared = await self.amend(store, key, expires_at=None)
        assert cleared.row.expires_at is None

    async def test_what_is_absent_can_not_be_amended(self, store: Store, key: Key, clock: FakeClock) -> None:
        with pytest.raises(SessionNotFoundError):
            await self.amend(store, key, activity=True)
        await store.commit(key, change(ttl_ms=1000))
        clock.advance(1)
        with pytest.raises(SessionNotFoundError):
            await self.amend(store, key, end=True)
        assert await take(store, key, "us")
        with pytest.raises(SessionNotFoundError):
            await self.amend(store, key, fields={"f": b"1"})

    async def test_a_cache_follows_amendments(self, store: Store, key: Key) -> None:
        await store.commit(key, change(lifetime=MADE, fields={"f": b"1"}, logs=append(b"1")))
        client = Client(key)
        await client.check(store)
        await self.amend(store, key, fields={"f": None, "g": b"2"})
        opened = await client.check(store)
        assert client.fields == {"g": b"2"}
        assert opened.continues
        assert opened.logs[0].items == []

    async def test_counters_lose_nothing_at_once(self, store: Store, other: Store, key: Key) -> None:
        await store.commit(key, change(lifetime=MADE))
        by_amending = [self.amend(place, key, counters={"n": 1}) for place in (store, other) * 10]
        by_committing = [place.commit(key, change(counters={"n": 1})) for place in (store, other) * 10]
        await asyncio.gather(*by_amending, *by_committing)
        assert (await self.row(store, key)).counters == {"n": 40}

    async def test_a_new_lifetime_stamps_anew_and_is_no_activity(
        self, store: Store, key: Key, clock: FakeClock
    ) -> None:
        await store.commit(key, change(lifetime=MADE))
        start = clock.now_ms()
        clock.advance(100)
        shorter = Lifetime(idle_ms=60_000, end_ms=20_000, retention_ms=1_000_000)
        amended = await self.amend(store, key, lifetime=shorter)
        assert amended.row.active_at == start
        assert amended.row.stamps == (start + 60_000, start + 80_000, start + 1_080_000)
        assert await self.counts(store, key) == {"ended": 1}
        await self.amend(store, key, lifetime=MADE)
        assert await self.counts(store, key) == {"active": 1}

    # ------------------------------------------------------------------------ listings

    async def test_listings_by_status_and_start(self, store: Store, tenant: str, clock: FakeClock) -> None:
        names = [f"s{number}" for number in range(6)]
        for name in names:
            await store.commit(Key(tenant, "session", name), change(lifetime=MADE, belongs_to="ann"))
            clock.advance(1)
        clock.advance(HALF_HOUR)
        for name in ("s1", "s4"):
            await self.amend(store, Key(tenant, "session", name), activity=True, lifetime=MADE)
        await self.amend(store, Key(tenant, "session", "s2"), end=True)

        async def ids(**asked: Any) -> list[str]:
            found, cursor = list[str](), None
            while True:
                page = await store.find(tenant, "session", limit=2, cursor=cursor, **asked)
                found += [place.id for place in page.found]
                cursor = page.next
                if cursor is None:
                    return found

        assert await ids(status="active") == ["s4", "s1"]
        assert await ids(status="idle", belongs_to="ann") == ["s5", "s3", "s0"]
        assert await ids(status="ended") == ["s2"]
        assert await ids() == ["s4", "s1", "s5", "s3", "s2", "s0"]
        assert await ids(order="start") == names[::-1]
        assert await ids(order="start", belongs_to="ann", status="idle") == ["s5", "s3", "s0"]
        assert await ids(belongs_to="bob") == []
        assert await self.counts(store, Key(tenant, "session", "")) == {"active": 2, "idle": 3, "ended": 1}
        assert await store.count(tenant, "session", belongs_to="ann", status="idle") == 3
        page = await store.find(tenant, "session", order="start", limit=1)
        assert page.next == Cursor(page.found[0].row.started_at, "s5")

    async def test_the_order_of_start_is_complete_while_keys_move(
        self, store: Store, tenant: str, clock: FakeClock
    ) -> None:
        keys = [Key(tenant, "session", f"s{number:02}") for number in range(20)]
        for key in keys:
            await store.commit(key, change(lifetime=MADE))
            clock.advance(1)
        seen, cursor = list[str](), None
        while len(seen) < 100:
            page = await store.find(tenant, "session", order="start", limit=3, cursor=cursor)
            seen += [place.id for place in page.found]
            cursor = page.next
            if cursor is None:
                break
            for key in keys[::4]:
                await self.amend(store, key, activity=True)
            clock.advance(1)
        assert seen == [key.id for key in keys[::-1]]
