"""Listings: the most recently active first, page by page, each tenant and kind for itself."""

from __future__ import annotations

from agent_sessions.stores.base import Cursor, Found, Key, Kind, Page, Store
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import Harness, change, new_id


class Listing(Harness):
    """Find and count."""

    async def test_an_empty_listing_has_no_pages(self, store: Store, tenant: str, clock: FakeClock) -> None:
        assert await store.find(tenant, "session") == Page(clock.now_ms(), [], None)
        assert await store.count(tenant, "session") == 0

    async def test_keys_are_listed_with_their_rows(self, store: Store, other: Store, key: Key) -> None:
        await store.commit(key, change(ttl_ms=60_000, belongs_to="ann", fields={"status": b"new"}))
        row = (await store.open(key)).row
        assert row is not None
        assert (await other.find(key.tenant, key.kind)).found == [Found(key.id, row, 1)]
        assert (await other.find(key.tenant, key.kind, belongs_to="ann")).found == [Found(key.id, row, 1)]

    async def test_the_most_recently_active_come_first(self, store: Store, tenant: str, clock: FakeClock) -> None:
        for id in ("c", "a", "b", "d"):
            await make(store, tenant, id)
            clock.advance(1)
        await make(store, tenant, "a")
        assert await ids(store, tenant) == ["a", "d", "b", "c"]

    async def test_keys_of_one_moment_are_in_byte_order_backward(self, store: Store, tenant: str) -> None:
        names = ["b", "a", "B", "é", "\uffff", "👩", "aa", "10", "9"]
        for id in names:
            await make(store, tenant, id)
        assert await ids(store, tenant) == sorted(names, key=str.encode, reverse=True)
        assert await ids(store, tenant, limit=2) == sorted(names, key=str.encode, reverse=True)

    async def test_pages_follow_each_other(self, store: Store, tenant: str, clock: FakeClock) -> None:
        names = [f"s{number:02}" for number in range(25)]
        for number, id in enumerate(names):
            await make(store, tenant, id, belongs_to=f"user{number % 2}")
            if number % 3 == 0:
                clock.advance(1)
        for limit in (1, 7, 25, 100):
            assert await ids(store, tenant, limit=limit) == names[::-1]
            assert await ids(store, tenant, limit=limit, belongs_to="user1") == names[::-1][1::2]
        first = await store.find(tenant, "session", limit=10)
        assert len(first.found) == 10
        last = first.found[-1]
        assert first.next == Cursor(last.row.active_at, last.id)

    async def test_no_page_repeats_a_key_while_keys_move(
        self, store: Store, other: Store, tenant: str, clock: FakeClock
    ) -> None:
        names = [f"s{number:02}" for number in range(30)]
        for id in names:
            await make(store, tenant, id)
            clock.advance(1)
        seen: list[str] = []
        cursor = None
        while True:
            page = await store.find(tenant, "session", limit=4, cursor=cursor)
            assert not {found.id for found in page.found}.intersection(seen)
            seen += [found.id for found in page.found]
            cursor = page.next
            if cursor is None:
                break
            for id in (seen[-1], seen[0], "s00", f"new{len(seen)}"):
                await make(other, tenant, id)
            clock.advance(1)
        assert set(names) - set(seen) <= {"s00"}  # it moved to the front, which was read already

    async def test_a_cursor_outlives_its_key(self, store: Store, tenant: str, clock: FakeClock) -> None:
        for id in ("a", "b", "c", "d"):
            await make(store, tenant, id)
            clock.advance(1)
        page = await store.find(tenant, "session", limit=2)
        assert [found.id for found in page.found] == ["d", "c"]
        await store.delete(Key(tenant, "session", "c"), new_id())
        page = await store.find(tenant, "session", limit=2, cursor=page.next)
        assert [found.id for found in page.found] == ["b", "a"]

    async def test_tenants_and_kinds_are_listed_apart(self, store: Store, tenant: str) -> None:
        kinds: list[Kind] = ["session", "user", "app", "agent", "run", "system"]
        for kind in kinds:
            await store.commit(Key(tenant, kind, kind), change(belongs_to="ann"))
        await store.commit(Key(tenant + "2", "session", "other"), change(belongs_to="ann"))
        for kind in kinds:
            assert [found.id for found in (await store.find(tenant, kind)).found] == [kind]
            assert [found.id for found in (await store.find(tenant, kind, belongs_to="ann")).found] == [kind]
            assert await store.count(tenant, kind) == 1
            assert await store.count(tenant, kind, belongs_to="ann") == 1

    async def test_what_belongs_to_somebody_is_listed_for_them_alone(self, store: Store, tenant: str) -> None:
        users = ["ann", "an", "ann/", "ann:x", "{ann}", "ann\n", "é", "x" * 256, "*", ""]
        for number, user in enumerate(users):
            await make(store, tenant, f"s{number}", belongs_to=user)
        await make(store, tenant, "nobody's")
        for number, user in enumerate(users):
            assert await ids(store, tenant, belongs_to=user) == [f"s{number}"], user
            assert await store.count(tenant, "session", belongs_to=user) == 1
        assert await store.count(tenant, "session", belongs_to="bob") == 0
        assert await store.count(tenant, "session") == len(users) + 1

    async def test_a_key_is_listed_for_its_user_as_soon_as_it_has_one(self, store: Store, tenant: str) -> None:
        await make(store, tenant, "a")
        assert await store.count(tenant, "session", belongs_to="ann") == 0
        await make(store, tenant, "a", belongs_to="ann")
        assert await ids(store, tenant, belongs_to="ann") == ["a"]
        await make(store, tenant, "a", belongs_to="bob")
        assert await ids(store, tenant, belongs_to="ann") == ["a"]
        assert await ids(store, tenant, belongs_to="bob") == []
        assert await store.count(tenant, "session") == 1

    async def test_deleted_keys_and_keys_made_again_are_listed_as_they_are(self, store: Store, tenant: str) -> None:
        for id in ("a", "b"):
            await make(store, tenant, id, belongs_to="ann")
        await store.delete(Key(tenant, "session", "a"), new_id())
        assert await ids(store, tenant) == ["b"]
        await make(store, tenant, "a", belongs_to="bob")
        assert await ids(store, tenant) == ["b", "a"]
        assert await ids(store, tenant, belongs_to="ann") == ["b"]
        assert await ids(store, tenant, belongs_to="bob") == ["a"]
        assert await store.count(tenant, "session", belongs_to="ann") == 1

    async def test_only_what_is_past_its_time_is_left_out(self, store: Store, tenant: str, clock: FakeClock) -> None:
        for number in range(1, 11):
            key = Key(tenant, "session", f"s{number:02}")
            await store.commit(key, change(ttl_ms=number * 1000, belongs_to="ann"))
        for gone in (3, 5, 10):
            clock.set(clock.now_ms() + 1000 * (gone - (10 - await store.count(tenant, "session"))))
            assert await store.count(tenant, "session") == 10 - gone
            assert await store.count(tenant, "session", belongs_to="ann") == 10 - gone
            assert await ids(store, tenant, limit=2) == [f"s{number:02}" for number in range(10, gone, -1)]
            assert await ids(store, tenant, belongs_to="ann") == [f"s{number:02}" for number in range(10, gone, -1)]


async def make(store: Store, tenant: str, id: str, *, belongs_to: str | None = None) -> None:
    """Make a session, or be active on it."""
    await store.commit(Key(tenant, "session", id), change(belongs_to=belongs_to))


async def ids(store: Store, tenant: str, *, limit: int = 50, belongs_to: str | None = None) -> list[str]:
    """All ids of a listing, page by page."""
    listed: list[str] = []
    cursor = None
    while True:
        page = await store.find(tenant, "session", limit=limit, cursor=cursor, belongs_to=belongs_to)
        assert len(page.found) <= limit
        assert page.next is None or page.next != cursor
        assert not {found.id for found in page.found}.intersection(listed)
        listed += [found.id for found in page.found]
        cursor = page.next
        if cursor is None:
            return listed
