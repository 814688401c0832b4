"""Waiters in order of arrival, woken when it is their turn."""

from __future__ import annotations

import asyncio

import pytest

from agent_sessions.errors import SessionBusyError
from agent_sessions.stores.base import ABSENT, HANDOVER_MS, Key, Part, Store
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import (
    LEASE_MS,
    Harness,
    change,
    lease,
    new_id,
    read_values,
    take,
)

LONG_S, SOON_S = 20.0, 3.0
"""A wait that nobody wants to end by itself, and the time in which it has to end for another reason."""


class ServedInOrder(Harness):
    """A chapter to mix in beside `StoreConformance` by a store that keeps its waiters in a queue."""

    async def test_waiters_are_served_in_order_of_arrival(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        for owner in ("first", "second", "third"):
            assert not await take(other, made, owner, queue=True)
        assert (await store.open(made)).waiters == 3
        await store.commit(made, change())
        for owner, late in (("first", "second"), ("second", "third"), ("third", "us")):
            assert not await take(other, made, late, queue=True)
            opened = await other.open(made, lease=lease(owner, queue=True))
            assert opened.granted
            assert opened.row is not None
            await other.release(made, owner)
        assert await take(store, made, "us")
        assert (await store.open(made)).waiters == 0

    async def test_asking_again_keeps_the_place_in_the_queue(self, store: Store, made: Key, clock: FakeClock) -> None:
        assert await take(store, made, "us")
        for _ in range(4):
            assert not await take(store, made, "first", queue=True)
            assert not await take(store, made, "second", queue=True)
            clock.advance(HANDOVER_MS / 1000 - 0.5)
        await store.release(made, "us")
        assert not await take(store, made, "second", queue=True)
        assert await take(store, made, "first", queue=True)

    async def test_nobody_barges_in(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "first", queue=True)
        await store.release(made, "us")
        assert not await take(store, made, "us", queue=True)
        assert not await take(other, made, "stranger")
        with pytest.raises(SessionBusyError):
            await store.commit(made, change())
        assert await take(other, made, "first", queue=True)

    async def test_a_commit_that_holds_leaves_the_queue_as_it_is(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        for owner in ("first", "second"):
            assert not await take(other, made, owner, queue=True)
        for _ in range(2):
            await store.commit(made, change(hold_ms=LEASE_MS))
        assert (await store.open(made)).waiters == 2
        assert not await take(other, made, "first", queue=True)
        await store.release(made, "us")
        assert not await take(other, made, "second", queue=True)
        assert await take(other, made, "first", queue=True)

    async def test_after_a_lease_ran_out_the_first_waiter_is_next(
        self, store: Store, other: Store, made: Key, clock: FakeClock
    ) -> None:
        assert await take(store, made, "us", ms=1000)
        assert not await take(other, made, "first", queue=True)
        assert not await take(other, made, "second", queue=True)
        clock.advance(1)
        assert not await take(other, made, "second", queue=True)
        assert not await take(store, made, "us", queue=True)
        assert await take(other, made, "first", queue=True)

    async def test_a_dead_waiter_delays_the_next_by_the_handover_time(
        self, store: Store, other: Store, made: Key, clock: FakeClock
    ) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "dead", queue=True)
        assert not await take(other, made, "second", queue=True)
        await store.release(made, "us")
        clock.advance(HANDOVER_MS / 1000 - 0.001)
        assert not await take(other, made, "second", queue=True)
        clock.advance(0.001)
        assert await take(other, made, "second", queue=True)

    async def test_a_waiter_that_stopped_asking_is_passed_over(
        self, store: Store, other: Store, made: Key, clock: FakeClock
    ) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "dead", queue=True)
        clock.advance(HANDOVER_MS / 1000)
        assert not await take(other, made, "second", queue=True)
        await store.release(made, "us")
        assert await take(other, made, "second", queue=True)

    async def test_a_waiter_leaves_by_release(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "first", queue=True)
        assert not await take(other, made, "second", queue=True)
        await other.release(made, "first")
        assert (await store.open(made)).waiters == 1
        await store.release(made, "us")
        assert await take(other, made, "second", queue=True)

    async def test_a_waiter_that_was_handed_the_lease_gives_it_on(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "first", queue=True)
        assert not await take(other, made, "second", queue=True)
        await store.release(made, "us")
        await other.release(made, "first")
        assert await take(other, made, "second", queue=True)

    async def test_waiters_queue_for_an_absent_key_as_well(self, store: Store, other: Store, key: Key) -> None:
        assert await take(store, key, "us")
        assert not await take(other, key, "first", queue=True)
        assert not await take(other, key, "second", queue=True)
        await store.commit(key, change(expected=ABSENT))
        assert not await take(other, key, "second", queue=True)
        assert await take(other, key, "first", queue=True)

    async def test_a_broken_lease_goes_to_the_next_waiter(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "first", queue=True)
        await store.unlock(made)
        assert not await take(store, made, "stranger")
        assert await take(other, made, "first", queue=True)

    async def test_a_deleted_keys_lease_goes_to_the_next_waiter(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "first", queue=True)
        assert await other.delete(made, new_id())
        assert not await take(store, made, "us")
        opened = await other.open(made, lease=lease("first", queue=True))
        assert opened.granted
        assert opened.row is None

    # ------------------------------------------------------------------------ waking

    @pytest.mark.parametrize("how", ["release", "commit", "unlock", "delete"])
    async def test_a_waiter_is_woken(self, store: Store, other: Store, made: Key, how: str) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "them", queue=True)
        waiting = asyncio.create_task(other.wait(made, "them", LONG_S))
        await asyncio.sleep(0.01)  # as a rule it waits by now; it has to work in either order
        assert not waiting.done()
        if how == "release":
            await store.release(made, "us")
        elif how == "unlock":
            await store.unlock(made)
        elif how == "delete":
            await store.delete(made, new_id())
        else:
            await store.commit(made, change())
        await asyncio.wait_for(waiting, SOON_S)
        assert await take(other, made, "them", queue=True)

    async def test_a_waiter_that_comes_late_is_woken_as_well(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "them", queue=True)
        await store.release(made, "us")
        await asyncio.wait_for(other.wait(made, "them", LONG_S), SOON_S)
        assert await take(other, made, "them", queue=True)

    async def test_a_dead_waiter_delays_a_waiting_one_for_no_longer_than_its_place_lasts(
        self, store: Store, other: Store, made: Key, clock: FakeClock
    ) -> None:
        assert await take(store, made, "us", ms=100)
        assert not await take(other, made, "dead", queue=True)
        clock.advance(HANDOVER_MS / 1000 - 0.05)
        assert not await take(other, made, "next", queue=True)
        async with asyncio.timeout(LONG_S):
            await other.wait(made, "next", 0.9)
        clock.advance(0.05)
        assert await take(other, made, "next", queue=True)

    async def test_only_the_next_waiter_is_woken(self, store: Store, other: Store, made: Key) -> None:
        assert await take(store, made, "us")
        owners = ["first", "second", "third"]
        for owner in owners:
            assert not await take(other, made, owner, queue=True)
        waits = [asyncio.create_task(other.wait(made, owner, LONG_S)) for owner in owners]
        holder, holding = store, "us"
        for owner, waiting in zip(owners, waits, strict=True):
            await holder.release(made, holding)
            await asyncio.wait_for(waiting, SOON_S)
            assert await take(other, made, owner, queue=True)
            holder, holding = other, owner
            assert sum(wait.done() for wait in waits) == owners.index(owner) + 1

    async def test_a_cancelled_wait_keeps_the_place_until_it_is_released(
        self, store: Store, other: Store, made: Key
    ) -> None:
        assert await take(store, made, "us")
        assert not await take(other, made, "first", queue=True)
        assert not await take(other, made, "second", queue=True)
        waiting = asyncio.create_task(other.wait(made, "first", LONG_S))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await other.release(made, "first")
        await store.release(made, "us")
        assert await take(other, made, "second", queue=True)
        assert await read_values(store, made) == {Part("default", "a"): b"1"}
