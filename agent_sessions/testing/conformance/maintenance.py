"""What goes through all keys, and what changes one without being activity."""

from __future__ import annotations

import pytest

from agent_sessions.errors import SessionBusyError, SessionConflictError, SessionNotFoundError
from agent_sessions.stores.base import CollectionChange, Key, Kind, Part, Store
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.contents import LONG_IDS
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    Client,
    Harness,
    append,
    change,
    new_id,
    read_log,
    read_values,
    take,
)

KINDS: list[Kind] = ["session", "user", "app", "agent", "run", "system"]
A, B = Part("default", "a"), Part("other", "b")


class Maintenance(Harness):
    """Scans, and commits that are no activity."""

    # ------------------------------------------------------------------------ maintenance commits

    async def test_a_maintenance_commit_is_no_activity(self, store: Store, key: Key, clock: FakeClock) -> None:
        older = key._replace(id="older")
        for made in (older, key):
            await store.commit(made, change(ttl_ms=60_000, values={A: b"1"}, fields={"f": b"1"}, belongs_to="ann"))
            clock.advance(1)
        before = await store.open(older)
        committed = await store.commit(
            older,
            change(
                expected=before.version,
                maintenance=True,
                values={A: b"2"},
                logs=append(b"new"),
                collections={CHECKPOINTS: CollectionChange(entries={"x": b"new"})},
                fields={"f": b"2"},
            ),
        )
        after = await store.open(older)
        assert before.row is not None
        assert after.row is not None
        assert committed.row is not None
        assert after.version == committed.version
        assert after.version.revision == 2
        for row in (committed.row, after.row):
            assert (row.active_at, row.gone_at, row.started_at, row.belongs_to) == (
                before.row.active_at,
                before.row.gone_at,
                before.row.started_at,
                "ann",
            )
        assert after.row.fields == {"f": b"2"}
        assert await read_values(store, older) == {A: b"2"}
        for user in (None, "ann"):
            page = await store.find(key.tenant, key.kind, belongs_to=user)
            assert [found.id for found in page.found] == [key.id, "older"]
        clock.advance(57.999)
        assert await read_log(store, older) == [b"new"]
        clock.advance(0.001)
        assert (await store.open(older)).row is None

    async def test_a_maintenance_commit_keeps_what_never_goes(self, store: Store, key: Key, clock: FakeClock) -> None:
        version = (await store.commit(key, change(values={A: b"1"}))).version
        await store.commit(key, change(expected=version, maintenance=True, ttl_ms=1000, logs=append(b"new")))
        clock.advance(10 * 365 * 24 * 3600)
        assert await read_log(store, key) == [b"new"]
        assert await read_values(store, key) == {A: b"1"}

    async def test_a_maintenance_commit_is_refused_like_any_other(self, store: Store, key: Key) -> None:
        version = (await store.commit(key, change(values={A: b"1"}))).version
        commit = change(expected=version, maintenance=True, values={A: b"2"})
        assert await take(store, key, "them")
        with pytest.raises(SessionBusyError):
            await store.commit(key, commit)
        await store.release(key, "them")
        await store.commit(key, commit)
        assert (await store.commit(key, commit)).repeated
        with pytest.raises(SessionConflictError):
            await store.commit(key, change(expected=version, maintenance=True))
        await store.delete(key, new_id())
        with pytest.raises(SessionNotFoundError):
            await store.commit(key, change(expected=version, maintenance=True))

    async def test_caches_follow_a_maintenance_commit(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={A: b"1", B: b"1"}, logs=append(b"1", b"2"), fields={"f": b"1"}))
        client = Client(key)
        await client.check(store)
        rewritten = change(
            expected=client.version,
            maintenance=True,
            values={A: b"one"},
            logs=append(b"one", b"two", clear=True),
            fields={"f": b"one"},
        )
        await store.commit(key, rewritten)
        assert (await client.check(store)).continues
        assert client.logs[Part("openai", "items")] == [b"one", b"two"]
        assert client.fields == {"f": b"one"}

    # ------------------------------------------------------------------------ scan

    async def test_a_scan_comes_by_every_key_of_every_kind(self, store: Store, other: Store, tenant: str) -> None:
        made = {Key(tenant, kind, f"{number}") for kind in KINDS for number in range(5)}
        made |= {
            Key(f"{tenant}/{odd}", "session", odd) for odd in ["{a}", "é/%", "*", "a}b{", "#a", " ", *LONG_IDS[:2]]
        }
        for key in made:
            await store.commit(key, change(values={A: b"1"}, logs=append(b"1"), belongs_to="ann"))
        assert made <= await _scan(other, 7)

    async def test_a_scan_leaves_out_what_is_gone_and_what_is_only_leased(
        self, store: Store, key: Key, clock: FakeClock
    ) -> None:
        leased, deleted, gone = (key._replace(id=id) for id in ("leased", "deleted", "gone"))
        await store.commit(key, change())
        await store.commit(deleted, change())
        await store.commit(gone, change(ttl_ms=1000))
        await store.delete(deleted, new_id())
        clock.advance(1)
        assert await take(store, leased, "us")
        assert {found for found in await _scan(store, 100) if found.tenant == key.tenant} == {key}

    async def test_a_scan_misses_nothing_while_keys_come_go_and_change(self, store: Store, tenant: str) -> None:
        stay = [Key(tenant, "session", f"stay-{number}") for number in range(30)]
        go = [Key(tenant, "session", f"go-{number}") for number in range(30)]
        for key in [*stay, *go]:
            await store.commit(key, change())
        seen: set[Key] = set()
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = await store.scan(limit=5, cursor=cursor)
            seen.update(page.keys)
            cursor, pages = page.next, pages + 1
            if go:
                await store.delete(go.pop(), new_id())
                await store.commit(stay[pages % 30], change())
                await store.commit(Key(tenant, "session", f"new-{pages}"), change())
        assert seen.issuperset(stay)


async def _scan(store: Store, limit: int) -> set[Key]:
    """Every key of the store."""
    keys: set[Key] = set()
    cursor, first = None, True
    while first or cursor is not None:
        page = await store.scan(limit=limit, cursor=cursor)
        keys.update(page.keys)
        cursor, first = page.next, False
    return keys
