"""A commit changes a key in one step, at the version that it expects, once."""

from __future__ import annotations

import pytest

from agent_sessions.errors import CommitUnknownError, SessionBusyError, SessionConflictError, SessionNotFoundError
from agent_sessions.stores.base import (
    ABSENT,
    CollectionChange,
    Commit,
    Key,
    LogHead,
    LogWanted,
    Part,
    Store,
    Version,
    Wanted,
)
from agent_sessions.testing.clock import FakeClock
from agent_sessions.testing.conformance.harness import (
    CHECKPOINTS,
    LOG,
    Harness,
    append,
    change,
    commit_many,
    new_id,
    read_log,
    read_values,
    take,
    version_of,
)

CART = Part("default", "cart")
EVERYTHING = Wanted(logs=[LogWanted(LOG)], entries=[(CHECKPOINTS, "a"), (CHECKPOINTS, "missing")])


class Commits(Harness):
    """Commits, versions, and what is remembered of them."""

    async def test_an_absent_key_opens_as_absent(self, store: Store, key: Key, clock: FakeClock) -> None:
        opened = await store.open(key, wanted=EVERYTHING)
        assert opened.row is None
        assert opened.version == ABSENT
        assert opened.now == clock.now_ms()
        assert not opened.granted
        assert opened.lease is None
        assert opened.waiters == 0

    async def test_a_commit_is_read_back_whole(self, store: Store, other: Store, key: Key, clock: FakeClock) -> None:
        commit = change(
            expected=ABSENT,
            ttl_ms=1000,
            belongs_to="ann",
            values={CART: b"apples"},
            logs=append(b"hi", b"ho"),
            collections={CHECKPOINTS: CollectionChange(entries={"a": b"state"})},
            fields={"status": b"new"},
        )
        committed = await store.commit(key, commit)
        assert committed.version == Version(1, commit.id)
        assert committed.previous == ABSENT
        assert committed.log_heads == {LOG: LogHead(2, 2)}
        assert not committed.repeated

        opened = await other.open(key, wanted=EVERYTHING)
        now = clock.now_ms()
        assert opened.version == committed.version
        assert not opened.continues
        assert opened.values == {"default": {"cart": b"apples"}}
        assert opened.log_heads == {LOG: LogHead(2, 2)}
        assert opened.collections == {CHECKPOINTS: 1}
        assert [log.items for log in opened.logs] == [[b"hi", b"ho"]]
        assert opened.logs[0].head == LogHead(2, 2)
        assert opened.entries == [b"state", None]
        assert opened.row is not None
        assert opened.row.fields == {"status": b"new"}
        assert (opened.row.started_at, opened.row.active_at, opened.row.gone_at) == (now, now, now + 1000)
        assert opened.row.belongs_to == "ann"
        assert committed.row is not None
        assert committed.row.fields is None
        assert committed.row.record_tag == opened.row.record_tag
        assert (committed.row.started_at, committed.row.gone_at) == (now, now + 1000)

    async def test_only_what_is_asked_for_is_read(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={CART: b"apples"}, logs=append(b"hi")))
        opened = await store.open(key, wanted=Wanted(values=False))
        assert opened.values == {}
        assert opened.logs == []
        assert opened.entries == []
        assert opened.ranges == []
        assert opened.log_heads == {LOG: LogHead(1, 1)}

    async def test_parts_that_do_not_exist_read_as_empty(self, store: Store, key: Key) -> None:
        await store.commit(key, change())
        opened = await store.open(key, wanted=EVERYTHING)
        assert opened.logs[0].items == []
        assert opened.logs[0].head == LogHead(0, 0)
        assert opened.entries == [None, None]
        assert opened.collections == {}

    async def test_the_revision_counts_commits(self, store: Store, key: Key) -> None:
        previous = ABSENT
        for number in range(1, 5):
            commit = change(expected=previous, values={CART: b"%d" % number})
            committed = await store.commit(key, commit)
            assert committed.previous == previous
            assert committed.version == Version(number, commit.id)
            assert await version_of(store, key) == committed.version
            previous = committed.version

    async def test_reading_is_no_activity(self, store: Store, key: Key, clock: FakeClock) -> None:
        await store.commit(key, change(ttl_ms=60_000))
        before = (await store.open(key)).row
        clock.advance(5)
        opened = await store.open(key)
        assert opened.row == before
        assert opened.now == clock.now_ms()

    async def test_a_commit_is_activity(self, store: Store, key: Key, clock: FakeClock) -> None:
        started = clock.now_ms()
        await store.commit(key, change(ttl_ms=60_000))
        clock.advance(5)
        committed = await store.commit(key, change(ttl_ms=10_000))
        assert committed.row is not None
        assert committed.row.started_at == started
        assert committed.row.active_at == started + 5000
        assert committed.row.gone_at == started + 15_000

    async def test_a_commit_on_an_old_version_is_refused_and_changes_nothing(
        self, store: Store, key: Key, clock: FakeClock
    ) -> None:
        first = await store.commit(key, change(values={CART: b"apples"}, logs=append(b"hi"), fields={"status": b"new"}))
        await store.commit(key, change(values={CART: b"pears"}, ttl_ms=60_000))
        before = await store.open(key, wanted=EVERYTHING)
        late = change(
            expected=first.version,
            hold_ms=1000,
            ttl_ms=1000,
            belongs_to="eve",
            values={CART: b"nothing", Part("new", "value"): b"1"},
            logs={**append(b"lost", clear=True), Part("new", "log"): append(b"lost")[LOG]},
            collections={CHECKPOINTS: CollectionChange(entries={"a": b"lost"})},
            fields={"status": b"lost"},
        )
        with pytest.raises(SessionConflictError):
            await store.commit(key, late)
        assert await store.open(key, wanted=EVERYTHING) == before

    async def test_the_same_revision_with_another_id_is_another_version(self, store: Store, key: Key) -> None:
        committed = await store.commit(key, change())
        with pytest.raises(SessionConflictError):
            await store.commit(key, change(expected=Version(committed.version.revision, new_id())))

    async def test_a_commit_ahead_of_the_key_is_refused(self, store: Store, key: Key) -> None:
        await store.commit(key, change())
        with pytest.raises(SessionConflictError):
            await store.commit(key, change(expected=Version(9, new_id())))

    async def test_a_commit_that_expects_a_key_does_not_make_one(self, store: Store, key: Key) -> None:
        with pytest.raises(SessionNotFoundError):
            await store.commit(key, change(expected=Version(1, new_id()), values={CART: b"ghost"}, belongs_to="ann"))
        assert (await store.open(key)).row is None
        assert await store.count(key.tenant, key.kind) == 0

    async def test_a_commit_that_expects_nothing_there_does_not_overwrite(self, store: Store, key: Key) -> None:
        await store.commit(key, change(values={CART: b"apples"}))
        with pytest.raises(SessionConflictError):
            await store.commit(key, change(expected=ABSENT, values={CART: b"pears"}))
        assert await read_values(store, key) == {CART: b"apples"}

    async def test_a_blind_commit_makes_the_key_or_adds_to_it(self, store: Store, key: Key) -> None:
        assert (await store.commit(key, change(logs=append(b"1")))).previous == ABSENT
        assert (await store.commit(key, change(logs=append(b"2")))).version.revision == 2
        assert await read_log(store, key) == [b"1", b"2"]

    async def test_values_and_fields_are_put_and_deleted_one_by_one(self, store: Store, key: Key) -> None:
        values = {Part(namespace, name): b"1" for namespace in ("a", "b") for name in ("x", "y")}
        await store.commit(key, change(values=values, fields={"status": b"1", "title": b"1"}))
        changed = {Part("a", "x"): None, Part("b", "y"): b"2", Part("b", "missing"): None}
        await store.commit(key, change(values=changed, fields={"status": None, "title": b"2", "missing": None}))
        assert await read_values(store, key) == {Part("a", "y"): b"1", Part("b", "x"): b"1", Part("b", "y"): b"2"}
        row = (await store.open(key)).row
        assert row is not None
        assert row.fields == {"title": b"2"}

    async def test_the_record_tag_changes_when_a_field_is_written(self, store: Store, key: Key) -> None:
        first = await store.commit(key, change(fields={"status": b"1"}))
        second = await store.commit(key, change(values={CART: b"1"}))
        third = await store.commit(key, change(fields={"status": b"2"}))
        assert first.row is not None
        assert second.row is not None
        assert third.row is not None
        assert first.row.record_tag == first.version.commit_id
        assert second.row.record_tag == first.row.record_tag
        assert third.row.record_tag == third.version.commit_id

    async def test_a_key_belongs_to_whom_it_was_given_first(self, store: Store, key: Key) -> None:
        owners = [None, "ann", "bob", None]
        rows = [(await store.commit(key, change(belongs_to=owner))).row for owner in owners]
        assert [row.belongs_to for row in rows if row is not None] == [None, "ann", "ann", "ann"]

    # ------------------------------------------------------------------------ repeated commits

    @pytest.mark.parametrize("followers", [0, 1, 10, 63])
    async def test_a_repeated_commit_is_recognised_and_not_applied_again(
        self, store: Store, other: Store, key: Key, followers: int
    ) -> None:
        base = await commit_many(store, key, 3)
        commit = change(expected=base.version, logs=append(b"once"))
        first = await store.commit(key, commit)
        if followers:
            await commit_many(store, key, followers)
        version = await version_of(store, key)
        again = await other.commit(key, commit)
        assert again.repeated
        assert again.version == first.version
        assert await version_of(store, key) == version
        assert await read_log(store, key) == [b"once"]

    @pytest.mark.parametrize("followers", [0, 1, 63])
    async def test_a_repeated_blind_commit_is_recognised(self, store: Store, key: Key, followers: int) -> None:
        commit = change(logs=append(b"once"))
        await store.commit(key, commit)
        if followers:
            await commit_many(store, key, followers)
        assert (await store.commit(key, commit)).repeated
        assert await read_log(store, key) == [b"once"]

    @pytest.mark.parametrize("followers", [64, 200])
    async def test_a_commit_repeated_too_late_is_stored_once_or_unknown(
        self, store: Store, key: Key, followers: int
    ) -> None:
        base = await commit_many(store, key, 3)
        commit = change(expected=base.version, logs=append(b"once"))
        await store.commit(key, commit)
        await commit_many(store, key, followers)
        await self._expect_repeated_or_unknown(store, key, commit.id, base.version)
        assert await read_log(store, key) == [b"once"]

    async def _expect_repeated_or_unknown(self, store: Store, key: Key, id: bytes, expected: Version) -> None:
        """A store may remember more than it must."""
        try:
            committed = await store.commit(key, change(id=id, expected=expected, logs=append(b"twice")))
        except CommitUnknownError as error:
            assert error.commit_id == id.hex()
        else:
            assert committed.repeated

    async def test_a_lost_commit_that_others_overtook_is_a_conflict(self, store: Store, key: Key) -> None:
        base = await commit_many(store, key, 2)
        await commit_many(store, key, 64)
        with pytest.raises(SessionConflictError):
            await store.commit(key, change(expected=base.version))

    async def test_a_repeated_commit_is_recognised_while_somebody_else_runs(self, store: Store, key: Key) -> None:
        base = await store.commit(key, change())
        commit = change(expected=base.version, logs=append(b"once"))
        first = await store.commit(key, commit)
        assert await take(store, key, "them")
        again = await store.commit(key, commit)
        assert again.repeated
        assert again.version == first.version
        with pytest.raises(SessionBusyError):
            await store.commit(key, change())  # and their lease is left alone

    async def test_the_status_of_a_commit_can_be_asked_for(self, store: Store, other: Store, key: Key) -> None:
        base = await commit_many(store, key, 2)
        commit = change(expected=base.version)
        assert await store.commit_status(key, commit.id, since=base.version) == "not_stored"
        await store.commit(key, commit)
        assert await other.commit_status(key, commit.id, since=base.version) == "stored"
        await commit_many(store, key, 63)
        assert await store.commit_status(key, commit.id, since=base.version) == "stored"
        assert await store.commit_status(key, new_id(), since=base.version) == "not_stored"
        await commit_many(store, key, 1)
        assert await store.commit_status(key, commit.id, since=base.version) in ("stored", "unknown")
        assert await store.commit_status(key, new_id(), since=base.version) in ("not_stored", "unknown")

    async def test_the_status_of_a_creating_commit_can_be_asked_for(self, store: Store, key: Key) -> None:
        commit = change(expected=ABSENT)
        assert await store.commit_status(key, commit.id, since=ABSENT) != "stored"
        await store.commit(key, commit)
        assert await store.commit_status(key, commit.id, since=ABSENT) == "stored"
        assert await store.commit_status(key, new_id(), since=ABSENT) == "not_stored"

    async def test_the_status_of_a_commit_on_another_life_of_the_key_is_unknown(self, store: Store, key: Key) -> None:
        old = await commit_many(store, key, 2)
        await store.delete(key, new_id())
        assert await store.commit_status(key, new_id(), since=old.version) != "stored"
        await commit_many(store, key, 3)
        assert await store.commit_status(key, new_id(), since=old.version) == "unknown"

    # ------------------------------------------------------------------------ delete

    async def test_a_deleted_key_is_gone_with_all_its_parts(self, store: Store, other: Store, key: Key) -> None:
        await store.commit(key, full(belongs_to="ann"))
        assert await store.delete(key, new_id())
        opened = await other.open(key, wanted=EVERYTHING)
        assert opened.row is None
        assert opened.version == ABSENT
        assert opened.values == {}
        assert opened.log_heads == {}
        assert opened.collections == {}
        assert await other.count(key.tenant, key.kind) == 0
        assert await other.count(key.tenant, key.kind, belongs_to="ann") == 0
        assert (await other.find(key.tenant, key.kind)).found == []

    async def test_a_key_made_again_shows_nothing_of_the_old_one(self, store: Store, key: Key) -> None:
        await store.commit(key, full(belongs_to="ann"))
        await store.delete(key, new_id())
        commit = change(expected=ABSENT, logs=append(b"new"))
        assert (await store.commit(key, commit)).version == Version(1, commit.id)
        opened = await store.open(key, wanted=EVERYTHING)
        assert opened.values == {}
        assert opened.logs[0].items == [b"new"]
        assert opened.log_heads == {LOG: LogHead(1, 1)}
        assert opened.collections == {}
        assert opened.entries == [None, None]
        assert opened.row is not None
        assert opened.row.fields == {}
        assert opened.row.belongs_to is None

    async def test_deleting_what_is_not_there_is_told(self, store: Store, key: Key) -> None:
        assert not await store.delete(key, new_id())

    async def test_a_repeated_delete_answers_as_before_and_spares_what_came_since(
        self, store: Store, other: Store, key: Key
    ) -> None:
        write_id = new_id()
        await store.commit(key, change())
        assert await store.delete(key, write_id)
        assert await other.delete(key, write_id)
        await store.commit(key, change(values={CART: b"new"}))
        assert await other.delete(key, write_id)
        assert await read_values(store, key) == {CART: b"new"}
        assert await store.delete(key, new_id())
        assert (await store.open(key)).row is None

    async def test_a_turn_whose_key_was_deleted_is_refused(self, store: Store, other: Store, key: Key) -> None:
        version = (await store.commit(key, change())).version
        assert await take(store, key, "us")
        assert await other.delete(key, new_id())
        with pytest.raises(SessionNotFoundError):
            await store.commit(key, change(expected=version, logs=append(b"late")))
        assert (await store.open(key)).row is None

    async def test_a_turn_whose_key_was_made_again_is_refused(self, store: Store, other: Store, key: Key) -> None:
        version = (await store.commit(key, change())).version
        await other.delete(key, new_id())
        await other.commit(key, change(values={CART: b"new"}))
        with pytest.raises(SessionConflictError):
            await store.commit(key, change(expected=version, values={CART: b"old"}))
        assert await read_values(store, key) == {CART: b"new"}


def full(belongs_to: str | None = None) -> Commit:
    """A commit with something of everything."""
    return change(
        belongs_to=belongs_to,
        values={CART: b"apples"},
        logs=append(b"hi", b"ho"),
        collections={CHECKPOINTS: CollectionChange(entries={"a": b"state"})},
        fields={"status": b"new"},
    )
