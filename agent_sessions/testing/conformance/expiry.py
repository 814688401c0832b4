"""What is past its time is absent, whatever the backend's own sweep has done so far."""

from __future__ import annotations

import pytest

from agent_sessions.errors import SessionNotFoundError
from agent_sessions.stores.base import ABSENT, CollectionChange, Key, LogHead, LogWanted, Part, Store, Version, Wanted
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    LOG,
    Client,
    Harness,
    append,
    change,
    lease,
    new_id,
    read_log,
    take,
)

CART = Part("default", "cart")
EVERYTHING = Wanted(logs=[LogWanted(LOG)], entries=[(CHECKPOINTS, "a")])


class Expiry(Harness):
    """Keys with an end."""

    @pytest.fixture
    async def version(self, store: Store, key: Key) -> Version:
        """A key of everything that lives for ten seconds."""
        committed = await store.commit(
            key,
            change(
                ttl_ms=10_000,
                belongs_to="ann",
                values={CART: b"apples"},
                logs=append(b"hi", b"ho"),
                collections={CHECKPOINTS: CollectionChange(entries={"a": b"state"})},
                fields={"status": b"new"},
            ),
        )
        return committed.version

    async def test_a_key_is_there_until_its_last_millisecond(
        self, store: Store, other: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        clock.advance(9.999)
        opened = await other.open(key, wanted=EVERYTHING)
        assert opened.row is not None
        assert opened.logs[0].items == [b"hi", b"ho"]
        assert await store.count(key.tenant, key.kind, belongs_to="ann") == 1
        clock.advance(0.001)
        assert (await other.open(key)).row is None

    async def test_a_key_past_its_time_is_absent_for_everybody(
        self, store: Store, other: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        clock.advance(10)
        assert await other.count(key.tenant, key.kind) == 0
        assert await other.count(key.tenant, key.kind, belongs_to="ann") == 0
        assert (await other.find(key.tenant, key.kind)).found == []
        assert (await other.find(key.tenant, key.kind, belongs_to="ann")).found == []
        opened = await other.open(key, wanted=EVERYTHING)
        assert opened.row is None
        assert opened.version == ABSENT
        assert opened.values == {}
        assert opened.log_heads == {}
        assert opened.collections == {}
        assert not await other.delete(key, new_id())

    async def test_a_commit_past_the_keys_time_does_not_recreate_it(
        self, store: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        clock.advance(10)
        with pytest.raises(SessionNotFoundError):
            await store.commit(key, change(expected=version, logs=append(b"late")))
        assert (await store.open(key)).row is None

    @pytest.mark.parametrize("expected", [ABSENT, None])
    async def test_a_new_life_shows_nothing_of_the_old_one(
        self, store: Store, other: Store, key: Key, clock: FakeClock, version: Version, expected: Version | None
    ) -> None:
        client = Client(key)
        await client.refresh(other)
        clock.advance(10)
        born = clock.now_ms()
        committed = await store.commit(key, change(expected=expected, ttl_ms=10_000, logs=append(b"new")))
        assert committed.version.revision == 1
        assert committed.previous == ABSENT
        assert committed.log_heads == {LOG: LogHead(1, 1)}
        opened = await other.open(key, wanted=EVERYTHING)
        assert opened.row is not None
        assert opened.row.fields == {}
        assert opened.row.started_at == born
        assert opened.row.belongs_to is None
        assert opened.values == {}
        assert opened.collections == {}
        assert opened.log_heads == {LOG: LogHead(1, 1)}
        assert opened.entries == [None]
        assert await other.count(key.tenant, key.kind, belongs_to="ann") == 0
        assert await other.count(key.tenant, key.kind) == 1
        await client.check(other)
        assert client.logs[LOG] == [b"new"]

    async def test_each_commit_moves_the_end(self, store: Store, key: Key, clock: FakeClock, version: Version) -> None:
        clock.advance(9)
        await store.commit(key, change(ttl_ms=10_000, logs=append(b"more")))
        clock.advance(9)
        assert await read_log(store, key) == [b"hi", b"ho", b"more"]
        await store.commit(key, change(ttl_ms=1_000))
        clock.advance(1)
        assert (await store.open(key)).row is None

    async def test_a_key_without_a_time_to_live_stays(
        self, store: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        await store.commit(key, change(ttl_ms=None))
        clock.advance(10 * 365 * 24 * 3600)
        opened = await store.open(key)
        assert opened.row is not None
        assert opened.row.gone_at is None
        assert await read_log(store, key) == [b"hi", b"ho"]
        assert await store.count(key.tenant, key.kind) == 1

    async def test_an_absent_key_can_be_leased_after_its_time(
        self, store: Store, other: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        clock.advance(10)
        opened = await store.open(key, lease=lease("us"))
        assert opened.granted
        assert opened.row is None
        assert not await take(other, key, "them")

    async def test_a_lease_outlives_its_key(
        self, store: Store, other: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        clock.advance(9)
        assert await take(store, key, "us")
        clock.advance(1)
        opened = await other.open(key, lease=lease("them"))
        assert not opened.granted or opened.row is None

    async def test_parts_that_are_not_written_live_as_long_as_their_key(
        self, store: Store, key: Key, clock: FakeClock, version: Version
    ) -> None:
        for _ in range(5):
            clock.advance(9)
            await store.commit(key, change(ttl_ms=10_000, values={Part("other", "value"): b"1"}))
        opened = await store.open(key, wanted=EVERYTHING)
        assert opened.values["default"] == {"cart": b"apples"}
        assert opened.logs[0].items == [b"hi", b"ho"]
        assert opened.entries == [b"state"]
