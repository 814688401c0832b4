"""One turn at a time, and nobody waits for the dead.

Who takes over a lease that ran out has asked for it before: a store whose clock is the host's gives it only to
somebody who saw it stand unchanged for its length.
"""

from __future__ import annotations

import asyncio

import pytest

from agent_sessions.errors import SessionBusyError
from agent_sessions.stores.base import ABSENT, Key, Lease, Store
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import (
    LEASE_MS,
    Harness,
    append,
    change,
    lease,
    new_id,
    read_log,
    take,
)

SOON_S = 3.0
"""The time in which a wait has to end."""


class Leases(Harness):
    """Leases, alone and with commits."""

    async def test_a_lease_is_taken_and_shown(self, store: Store, other: Store, made: Key, clock: FakeClock) -> None:
        opened = await store.open(made, lease=lease("us"))
        held = Lease("us", clock.now_ms(), clock.now_ms() + LEASE_MS)
        assert opened.granted
        assert opened.lease == held
        assert opened.row is not None
        assert (await other.open(made)).lease == held

    async def test_a_held_lease_is_not_given_to_another(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        opened = await other.open(made, lease=lease("them"))
        assert not opened.granted
        assert opened.row is None
        assert opened.lease is not None
        assert opened.lease.owner == "us"
        assert (await other.open(made)).row is not None  # reading needs none

    async def test_taking_a_lease_again_renews_it(self, store: Store, made: Key, clock: FakeClock) -> None:
        started = clock.now_ms()
        assert await take(store, made, "us")
        clock.advance(20)
        opened = await store.open(made, lease=lease("us"))
        assert opened.granted
        assert opened.lease == Lease("us", started, clock.now_ms() + LEASE_MS)
        clock.advance(20)
        assert not await take(store, made, "them")

    async def test_a_released_lease_is_free(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        await store.release(made, "us")
        assert (await store.open(made)).lease is None
        assert await take(other, made, "them")

    async def test_releasing_what_one_does_not_hold_changes_nothing(self, store: Store, made: Key) -> None:
        await store.release(made, "us")
        assert await take(store, made, "us")
        await store.release(made, "them")
        assert not await take(store, made, "them")

    async def test_a_lease_runs_out_at_its_end(self, store: Store, other: Store, made: Key, clock: FakeClock) -> None:
        assert await take(store, made, "us", ms=10_000)
        assert not await take(other, made, "them")
        clock.advance(9.999)
        assert not await take(other, made, "them")
        clock.advance(0.001)
        assert (await other.open(made)).lease is None
        assert await take(other, made, "them")
        assert not await take(store, made, "us")

    async def test_leases_of_different_keys_have_nothing_to_do_with_each_other(self, store: Store, tenant: str) -> None:
        assert await take(store, Key(tenant, "session", "a"), "us")
        assert await take(store, Key(tenant, "session", "b"), "them")
        assert await take(store, Key(tenant, "user", "a"), "them")

    # ------------------------------------------------------------------------ leases and commits

    async def test_a_commit_under_somebody_elses_lease_is_refused(self, store: Store, other: Store, made: Key) -> None:
        before = await store.open(made)
        assert await take(store, made, "them")
        for expected in (None, before.version):
            with pytest.raises(SessionBusyError):
                await other.commit(made, change(expected=expected, logs=append(b"lost"), fields={"a": b"1"}))
        after = await store.open(made)
        assert after.version == before.version
        assert after.row == before.row
        assert after.lease is not None
        assert after.lease.owner == "them"
        assert await read_log(store, made) == []

    async def test_a_commit_releases_the_lease(self, store: Store, other: Store, made: Key) -> None:
        opened = await store.open(made, lease=lease("us"))
        await store.commit(made, change(expected=opened.version))
        assert (await other.open(made)).lease is None
        assert await take(other, made, "them")

    async def test_a_commit_that_holds_keeps_the_lease(self, store: Store, made: Key, clock: FakeClock) -> None:
        started = clock.now_ms()
        opened = await store.open(made, lease=lease("us"))
        clock.advance(20)
        await store.commit(made, change(expected=opened.version, hold_ms=15_000))
        assert (await store.open(made)).lease == Lease("us", started, clock.now_ms() + 15_000)
        clock.advance(14)
        assert not await take(store, made, "them")
        clock.advance(1)
        assert await take(store, made, "them")

    async def test_a_commit_that_holds_takes_a_free_lease(self, store: Store, key: Key) -> None:
        await store.commit(key, change(expected=ABSENT, hold_ms=15_000))
        assert not await take(store, key, "them")
        assert await take(store, key, "us")

    async def test_a_lease_that_was_overtaken_refuses_its_first_owner(
        self, store: Store, other: Store, made: Key, clock: FakeClock
    ) -> None:
        ours = await store.open(made, lease=lease("us"))
        assert not await take(other, made, "them")
        clock.advance(LEASE_MS / 1000)
        theirs = await other.open(made, lease=lease("them"))
        assert theirs.granted
        with pytest.raises(SessionBusyError):
            await store.commit(made, change(expected=ours.version, logs=append(b"ours")))
        await other.commit(made, change(expected=theirs.version, owner="them", logs=append(b"theirs")))
        assert await read_log(store, made) == [b"theirs"]

    async def test_a_lease_that_ran_out_unnoticed_does_no_harm(self, store: Store, made: Key, clock: FakeClock) -> None:
        opened = await store.open(made, lease=lease("us"))
        clock.advance(LEASE_MS / 1000 + 1)
        await store.commit(made, change(expected=opened.version, logs=append(b"late")))
        assert await read_log(store, made) == [b"late"]
        assert await take(store, made, "them")

    # ------------------------------------------------------------------------ renew

    async def test_a_renewed_lease_lasts_longer(self, store: Store, made: Key, clock: FakeClock) -> None:
        started = clock.now_ms()
        assert await take(store, made, "us")
        for _ in range(3):
            clock.advance(20)
            assert await store.renew(made, "us", LEASE_MS)
        assert (await store.open(made)).lease == Lease("us", started, clock.now_ms() + LEASE_MS)
        assert await store.renew(made, "us", 1000)
        clock.advance(1)
        assert await take(store, made, "them")

    async def test_only_the_holder_of_a_live_lease_renews_it(self, store: Store, made: Key, clock: FakeClock) -> None:
        assert not await store.renew(made, "us", LEASE_MS)
        assert await take(store, made, "us")
        assert not await store.renew(made, "them", LEASE_MS)
        clock.advance(LEASE_MS / 1000)
        assert not await store.renew(made, "us", LEASE_MS)
        assert await take(store, made, "them")
        assert not await store.renew(made, "us", LEASE_MS)

    async def test_a_key_does_not_go_before_a_lease_that_is_renewed(
        self, store: Store, key: Key, clock: FakeClock
    ) -> None:
        created = await store.commit(key, change(ttl_ms=10_000, hold_ms=8_000))
        clock.advance(5)
        assert await store.renew(key, "us", LEASE_MS)
        opened = await store.open(key)
        assert opened.row is not None
        assert opened.row.gone_at == clock.now_ms() + LEASE_MS
        assert opened.version == created.version
        clock.advance(25)
        await store.commit(key, change(expected=created.version, ttl_ms=60_000))
        assert await take(store, key, "us")
        assert await store.renew(key, "us", 1000)
        row = (await store.open(key)).row
        assert row is not None
        assert row.gone_at == clock.now_ms() + 60_000

    async def test_a_key_that_never_goes_is_renewed_as_such(self, store: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert await store.renew(made, "us", LEASE_MS)
        row = (await store.open(made)).row
        assert row is not None
        assert row.gone_at is None

    # ------------------------------------------------------------------------ leases of what does not exist

    async def test_a_lease_on_an_absent_key_leaves_nothing(self, store: Store, key: Key, clock: FakeClock) -> None:
        opened = await store.open(key, lease=lease("us"))
        assert opened.granted
        assert opened.row is None
        assert opened.version == ABSENT
        assert not await take(store, key, "them")
        assert await store.renew(key, "us", LEASE_MS)
        assert await store.count(key.tenant, key.kind) == 0
        assert (await store.find(key.tenant, key.kind)).found == []
        await store.release(key, "us")
        opened = await store.open(key)
        assert opened.row is None
        assert opened.lease is None
        clock.advance(3600)
        assert await take(store, key, "them")

    async def test_a_key_is_made_under_a_lease_taken_before(self, store: Store, other: Store, key: Key) -> None:
        assert await take(store, key, "us")
        with pytest.raises(SessionBusyError):
            await other.commit(key, change(expected=ABSENT, owner="them"))
        await store.commit(key, change(expected=ABSENT, logs=append(b"ours")))
        assert await read_log(other, key) == [b"ours"]
        assert await take(other, key, "them")

    # ------------------------------------------------------------------------ waiting

    async def test_who_does_not_queue_has_no_place(self, store: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(store, made, "passer-by")
        assert (await store.open(made)).waiters == 0
        await store.release(made, "us")
        assert await take(store, made, "them")

    async def test_a_wait_ends_after_its_time(self, store: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(store, made, "them", queue=True)
        await asyncio.wait_for(store.wait(made, "them", 0.02), SOON_S)
        assert not await take(store, made, "them", queue=True)

    async def test_a_waiter_gets_the_lease_soon_after_it_is_free(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "them", queue=True)
        await store.release(made, "us")
        async with asyncio.timeout(SOON_S):
            while not await take(other, made, "them", queue=True):
                await other.wait(made, "them", SOON_S)

    # ------------------------------------------------------------------------ unlock and delete

    async def test_a_broken_lease_is_told_and_free(self, store: Store, other: Store, made: Key) -> None:
        assert await store.unlock(made) is None
        held = (await store.open(made, lease=lease("us"))).lease
        assert await other.unlock(made) == held
        assert not await store.renew(made, "us", LEASE_MS)
        assert await take(other, made, "them")
        with pytest.raises(SessionBusyError):
            await store.commit(made, change())

    async def test_a_lease_that_ran_out_is_not_broken(self, store: Store, made: Key, clock: FakeClock) -> None:
        assert await take(store, made, "us")
        clock.advance(LEASE_MS / 1000)
        assert await store.unlock(made) is None

    async def test_a_key_is_deleted_in_spite_of_a_live_lease(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert await other.delete(made, new_id())
        assert (await store.open(made)).row is None
        await store.release(made, "us")
        assert await take(other, made, "them")
