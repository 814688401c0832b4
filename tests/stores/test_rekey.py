"""Encrypting everything anew with the first key."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import CommitTooLargeError, StoreUnavailableError
from agent_sessions.stores.base import (
    CollectionChange,
    Commit,
    Committed,
    EntryRange,
    Key,
    Keys,
    Kind,
    LogChange,
    LogWanted,
    Part,
    Store,
    Wanted,
)
from agent_sessions.stores.encryption import EncryptedStore, Keyring, Progress, rekey
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import FakeClock
from tests.support import Before, Stopping, alone, waiters

if TYPE_CHECKING:
    from tests.dynamodb import DynamoDB

OLD, NEW, OTHER = (secrets.token_urlsafe(32) for _ in range(3))
ROTATING = Keyring([NEW, OLD])
LOG, ENTRIES, VALUE = Part("openai", "items"), Part("langgraph", "checkpoints"), Part("default", "cart")
KINDS: list[Kind] = ["session", "user", "app", "agent", "run", "system"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> AsyncIterator[Store]:
    """What the backend holds, encrypted or not."""
    opened: Store = MemoryStore(clock)
    if request.param == "sqlite":
        opened = SQLiteStore(tmp_path / "sessions.db", clock=clock)
    elif request.param == "redis":
        from agent_sessions.stores.redis import RedisStore  # which needs redis, and the other stores do not

        opened = RedisStore.from_url(request.getfixturevalue("redis_url"), clock=clock)
    yield opened
    await opened.aclose()


def encrypted(store: Store, *keys: str, accept_plaintext: bool = False) -> EncryptedStore:
    return EncryptedStore(store, Keyring(keys, accept_plaintext=accept_plaintext))


async def fill(store: Store, key: Key, *, ttl_ms: int | None = None, belongs_to: str | None = None) -> None:
    """Put something of every sort under a key."""
    commit = Commit(
        id=secrets.token_bytes(8),
        owner="test",
        expected=None,
        lifetime=Lifetime(ttl_ms=ttl_ms),
        belongs_to=belongs_to,
        values={VALUE: b"milk", Part("crewai", "cart"): b"eggs"},
        logs={LOG: LogChange(append=[b"%d" % number for number in range(20)])},
        collections={ENTRIES: CollectionChange(entries={f"{number:03}": b"%d" % number for number in range(250)})},
        fields={"metadata": b"web", "description": b""},
    )
    await store.commit(key, commit)


async def contents(store: Store, key: Key) -> dict[str, Any]:
    """All that is under a key."""
    opened = await store.open(key, wanted=Wanted(logs=[LogWanted(LOG)], ranges=[EntryRange(ENTRIES)]))
    assert opened.row is not None
    return {
        "fields": opened.row.fields,
        "values": opened.values,
        "items": opened.logs[0].items,
        "entries": opened.ranges[0],
    }


async def run(store: Store, keyring: Keyring = ROTATING, **options: Any) -> Progress:
    """Rekey to the end; all problems are in the result."""
    problems = []
    async for progress in rekey(store, keyring, **options):
        problems += progress.problems
    return msgspec.structs.replace(progress, problems=problems)


class TestAllOfIt:
    async def test_afterwards_the_first_key_alone_reads_everything(self, store: Store) -> None:
        keys = [Key("acme", kind, f"{kind}-1") for kind in KINDS] + [Key("default", "session", "s-1")]
        for key in keys:
            await fill(encrypted(store, OLD), key)
        expected = await contents(encrypted(store, OLD), keys[0])

        progress = await run(store)

        assert (progress.looked_at, progress.rewritten) == (len(keys), len(keys))
        assert progress.is_clean
        for key in keys:
            assert await contents(encrypted(store, NEW), key) == expected

    async def test_activity_expiry_and_places_stay(self, store: Store, clock: FakeClock) -> None:
        keys = [Key("acme", "session", f"s-{number}") for number in range(3)]
        for key in keys:
            await fill(encrypted(store, OLD), key, ttl_ms=60_000, belongs_to="ann")
            clock.advance(1)
        before = await encrypted(store, OLD).find("acme", "session", belongs_to="ann")
        clock.advance(10)

        await run(store)

        after = await encrypted(store, NEW).find("acme", "session", belongs_to="ann")
        assert [found.id for found in after.found] == [found.id for found in before.found]
        for was, found in zip(before.found, after.found, strict=True):
            assert msgspec.structs.replace(found.row, record_tag=was.row.record_tag) == was.row

    async def test_a_second_time_there_is_nothing_to_do(self, store: Store) -> None:
        key = Key("acme", "session", "s-1")
        await fill(encrypted(store, OLD), key)
        await run(store)
        before = await contents(store, key)

        progress = await run(store)

        assert (progress.looked_at, progress.rewritten) == (1, 0)
        assert await contents(store, key) == before

    async def test_what_is_new_is_left_and_what_is_old_rewritten(self, store: Store) -> None:
        key = Key("acme", "session", "s-1")
        await fill(encrypted(store, OLD), key)
        await fill(encrypted(store, NEW, OLD), key)
        expected = await contents(encrypted(store, NEW, OLD), key)

        assert (await run(store)).rewritten == 1
        assert await contents(encrypted(store, NEW), key) == expected

    async def test_a_cache_goes_on_with_what_it_has_seen(self, store: Store) -> None:
        manager = SessionManager(encrypted(store, OLD, NEW))
        async with manager.open("s-1") as session:
            session.set("cart", ["milk"])
            await session.namespace("openai").log("items").append([{"n": 1}])

        await run(store)

        async with manager.open("s-1") as session:
            assert session.get("cart") == ["milk"]
            await session.namespace("openai").log("items").append([{"n": 2}])
        async with SessionManager(encrypted(store, NEW, OLD)).read("s-1") as session:
            assert await session.namespace("openai").log("items").read() == [{"n": 1}, {"n": 2}]

    async def test_an_empty_store_is_done_at_once(self, store: Store) -> None:
        assert await run(store) == Progress()


class TestAllOfItOnDynamoDB(TestAllOfIt):
    @pytest.fixture
    async def store(self, dynamodb: DynamoDB, clock: FakeClock) -> AsyncIterator[Store]:
        opened: Store = dynamodb.store(clock)
        yield opened
        await opened.aclose()


class TestPlainData:
    async def test_it_is_encrypted_where_it_is_accepted(self, store: Store) -> None:
        key = Key("acme", "session", "s-1")
        await fill(store, key)
        expected = await contents(store, key)

        progress = await run(store, Keyring([NEW], accept_plaintext=True))

        assert (progress.rewritten, progress.is_clean) == (1, True)
        assert await contents(encrypted(store, NEW), key) == expected

    async def test_it_is_reported_where_it_is_not(self, store: Store) -> None:
        """Else whoever can write to the backend would get anything passed for genuine at the next rotation."""
        key = Key("acme", "session", "s-1")
        await fill(store, key)
        expected = await contents(store, key)

        progress = await run(store)

        assert (progress.rewritten, progress.failed, progress.is_clean) == (0, 1, False)
        assert {problem.key for problem in progress.problems} == {key}
        assert all("is not encrypted" in problem.what for problem in progress.problems)
        assert await contents(store, key) == expected


class TestWhatCanNotBeRead:
    async def test_it_is_named_and_stays_and_the_rest_is_done(self, store: Store) -> None:
        key, lost = Key("acme", "session", "s-1"), Key("acme", "session", "s-2")
        await fill(encrypted(store, OLD), key)
        await fill(encrypted(store, OTHER), lost)
        before = await contents(store, lost)

        progress = await run(store)

        assert (progress.looked_at, progress.rewritten, progress.failed) == (2, 1, 1)
        [problem] = progress.problems
        assert problem.key == lost
        # Two values, two fields, 250 entries, and a log as a whole.
        assert re.match(r"record field '\w+' and 254 more: the stored data is encrypted with the key", problem.what)
        assert Keyring([OTHER]).key_ids[0] in problem.what
        assert await contents(store, lost) == before

    async def test_of_one_session_what_can_be_read_is_done(self, store: Store) -> None:
        key = Key("acme", "session", "s-1")
        await fill(encrypted(store, OLD), key)
        lost = Commit(id=secrets.token_bytes(8), owner="test", expected=None, values={VALUE: b"lost"})
        lost.logs = {LOG: LogChange(append=[b"lost"])}
        await encrypted(store, OTHER).commit(key, lost)
        before = await contents(store, key)

        progress = await run(store)

        after, read = await contents(store, key), await contents(encrypted(store, NEW), key)
        assert (progress.rewritten, progress.failed) == (1, 1)
        assert after["values"]["default"] == before["values"]["default"]
        assert after["items"] == before["items"]
        assert read["values"]["crewai"] == {"cart": b"eggs"}
        assert read["entries"][:2] == [("000", b"0"), ("001", b"1")]


class TestBesideTurns:
    async def test_a_session_in_use_is_waited_for(self, store: Store) -> None:
        manager = SessionManager(encrypted(store, OLD, NEW))
        await fill(encrypted(store, OLD), Key("default", "session", "s-1"))
        async with manager.open("s-1") as session:
            session.set("own", 1)
            running = asyncio.create_task(run(store))
            await waiters(manager, "s-1", 1)
        progress = await running

        assert progress == Progress(looked_at=2, rewritten=2)  # with the list of tenants
        async with SessionManager(encrypted(store, NEW)).read("s-1") as session:
            assert session.get("own") == 1
        assert await manager.lock("s-1") is None

    async def test_a_large_one_is_kept_from_the_next_turn_until_it_is_done(self, store: Store) -> None:
        manager, key = SessionManager(encrypted(store, OLD, NEW)), Key("default", "session", "s-1")
        for number in range(3):
            values: dict[Part, bytes | None] = {Part("files", f"{number}-{name}"): b"x" * 1_000_000 for name in "abc"}
            large = Commit(id=secrets.token_bytes(8), owner="test", expected=None, values=values)
            await encrypted(store, OLD).commit(key, large)

        async def turn() -> None:
            async with manager.open("s-1") as session:
                session.set("own", 1)

        async with manager.open("s-1"):
            running = asyncio.create_task(run(store))
            await waiters(manager, "s-1", 1)
            following = asyncio.create_task(turn(), context=alone())
            await waiters(manager, "s-1", 2)

        assert await running == Progress(looked_at=2, rewritten=2)  # with the list of tenants
        await following

    async def test_one_that_stays_in_use_is_reported_and_left(self, store: Store) -> None:
        key = Key("default", "session", "s-1")
        await fill(encrypted(store, OLD), key)
        before = await contents(store, key)
        async with SessionManager(encrypted(store, OLD, NEW)).open("s-1"):
            progress = await run(store, wait_s=0)

            assert (progress.looked_at, progress.rewritten, progress.in_use) == (2, 1, 1)  # the list of tenants
            assert not progress.is_clean
            assert [problem.key for problem in progress.problems] == [key]
            assert await contents(store, key) == before

    async def test_one_in_use_that_needs_nothing_is_not_waited_for(self, store: Store) -> None:
        await fill(encrypted(store, NEW), Key("default", "session", "s-1"))
        async with SessionManager(encrypted(store, NEW)).open("s-1"):
            assert await run(store, wait_s=0) == Progress(looked_at=2)  # the list of tenants, too

    async def test_no_turn_is_refused_or_lost(self, store: Store) -> None:
        """Turns write with the old key all the time, so that every attempt finds something to rewrite."""
        managers = [SessionManager(encrypted(store, OLD, NEW)) for _ in range(3)]

        async def work(manager: SessionManager) -> None:
            for turn in range(40):
                async with manager.open(f"s-{turn % 4}") as session:
                    session.update("count", lambda count: count + 1, default=0)
                    await session.namespace("openai").log("items").append([{"turn": turn}])
                await asyncio.sleep(0)

        working = asyncio.gather(*map(work, managers))
        rewritten = 0
        while not working.done():
            rewritten += (await run(store)).rewritten
            await asyncio.sleep(0)  # the store in memory never waits
        await working

        assert rewritten > 0
        assert (await run(store)).is_clean
        manager = SessionManager(encrypted(store, NEW))
        for number in range(4):
            async with manager.read(f"s-{number}") as session:
                assert session.get("count") == await session.namespace("openai").log("items").count() == 30

    async def test_an_append_in_between_is_not_lost(self, store: Store) -> None:
        key = Key("default", "session", "s-1")
        await fill(encrypted(store, OLD), key)
        stopping = Stopping(store)
        barrier = stopping.stop("commit")
        running = asyncio.create_task(run(stopping.store))
        await barrier.reached.wait()
        await SessionManager(encrypted(store, OLD)).append("s-1", "openai", "items", ["mine"])
        barrier.lift()
        progress = await running

        assert progress == Progress(looked_at=1, rewritten=1)
        items = (await contents(encrypted(store, NEW), key))["items"]
        assert len(items) == 21

    @pytest.mark.parametrize(("operation", "when"), [("open", "after"), ("commit", "before")])
    async def test_one_deleted_in_between_stays_deleted(self, store: Store, operation: str, when: str) -> None:
        key = Key("default", "session", "s-1")
        await fill(encrypted(store, OLD), key)
        stopping = Stopping(store)
        barrier = stopping.stop(operation, when=when)
        running = asyncio.create_task(run(stopping.store))
        await barrier.reached.wait()
        await store.delete(key, secrets.token_bytes(8))
        barrier.lift()

        assert (await running).is_clean
        assert (await store.open(key)).row is None


class TestInPieces:
    async def test_a_large_key_is_rewritten_by_several_commits_all_readable(self, store: Store) -> None:
        key, old = Key("acme", "session", "s-1"), encrypted(store, OLD)
        for number in range(6):
            values: dict[Part, bytes | None] = {Part("files", f"{number}-{name}"): b"x" * 1_000_000 for name in "abc"}
            await old.commit(key, Commit(id=secrets.token_bytes(8), owner="test", expected=None, values=values))
        await fill(old, key)
        more = CollectionChange(entries={f"{number:04}": b"entry" for number in range(2_000)})
        long = Commit(id=secrets.token_bytes(8), owner="test", expected=None, collections={ENTRIES: more})
        long.logs = {LOG: LogChange(append=[b"item"] * 10_000)}
        await old.commit(key, long)
        expected = await contents(old, key)
        watching = Watching(store, lambda: contents(encrypted(store, NEW, OLD), key))

        assert (await run(watching.store)).rewritten == 1

        assert await contents(encrypted(store, NEW), key) == expected
        assert watching.seen == [expected] * len(watching.sizes)
        assert len(watching.sizes) >= 5
        assert max(watching.sizes) < 6_000_000

    async def test_what_is_too_large_for_the_store_is_reported(self, store: Store) -> None:
        key = Key("acme", "session", "s-1")
        await fill(encrypted(store, OLD), key)

        progress = await run(Small(store).store)

        assert (progress.rewritten, progress.failed) == (0, 1)
        assert "COMMIT_TOO_LARGE" in progress.problems[0].what
        assert (await contents(encrypted(store, OLD), key))["values"]["default"] == {"cart": b"milk"}


class Watching(Before):
    """Looks at a key after each commit of it."""

    def __init__(self, inner: Store, look: Callable[[], Any]) -> None:
        super().__init__(inner)
        self.seen: list[Any] = []
        self.sizes: list[int] = []
        self._look = look

    async def commit(self, key: Key, commit: Commit) -> Committed:
        committed = await super().commit(key, commit)
        if key.kind == "session":
            self.seen.append(await self._look())
            self.sizes.append(len(msgspec.msgpack.encode([*commit.values.values(), *commit.logs.values()])))
        return committed


class Small(Before):
    """Takes no log of more than ten items."""

    async def commit(self, key: Key, commit: Commit) -> Committed:
        if any(len(change.append) > 10 for change in commit.logs.values()):
            raise CommitTooLargeError("more than this store takes")
        return await super().commit(key, commit)


class TestBrokenOff:
    async def test_the_next_run_goes_on_where_it_was(self, store: Store) -> None:
        expected = await fill_many(store, 350)
        async with aclosing(rekey(store, ROTATING)) as reports:
            first = await anext(reports)
        counting = Scans(store)

        last = await run(counting.store)

        assert 0 < first.looked_at < last.looked_at
        assert 350 <= last.looked_at == last.rewritten
        assert counting.cursors[0] is not None
        assert await read_many(encrypted(store, NEW), 350) == expected
        assert {key.id for key in await all_keys(store) if key.kind == "system"} <= {"tenants"}

    async def test_it_begins_again_if_told_to_or_for_another_key(self, store: Store) -> None:
        await fill_many(store, 150)
        for keyring, restart in ((ROTATING, True), (Keyring([OTHER, NEW, OLD]), False)):
            async with aclosing(rekey(store, ROTATING)) as reports:
                await anext(reports)
            counting = Scans(store)
            async with aclosing(rekey(counting.store, keyring, restart=restart)) as reports:
                await anext(reports)
            assert counting.cursors == [None]

    async def test_those_in_use_are_remembered(self, store: Store) -> None:
        expected = await fill_many(store, 250)
        manager = SessionManager(encrypted(store, OLD, NEW))
        async with aclosing(rekey(store, ROTATING)) as reports:
            page = await store.scan(limit=100)
            async with manager.open(page.keys[0].id):  # while the first page is passed
                await anext(reports)
        await run(store)

        assert await read_many(encrypted(store, NEW), 250) == expected

    async def test_a_store_that_goes_away_ends_it_and_the_next_run_goes_on(self, store: Store) -> None:
        expected = await fill_many(store, 250)
        failing = GoesAway(store, after=130)
        with pytest.raises(StoreUnavailableError):
            await run(failing.store)

        assert await read_many(encrypted(store, NEW, OLD), 250) == expected
        last = await run(store)
        assert last.is_clean
        assert last.looked_at >= 250
        assert await read_many(encrypted(store, NEW), 250) == expected


class Scans(Before):
    """Notes from where it is scanned."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.cursors: list[bytes | None] = []

    async def scan(self, *, limit: int = 100, cursor: bytes | None = None) -> Keys:
        self.cursors.append(cursor)
        return await self.inner.scan(limit=limit, cursor=cursor)


class GoesAway(Before):
    """Is there for so many commits."""

    def __init__(self, inner: Store, *, after: int) -> None:
        super().__init__(inner)
        self.left = after

    async def commit(self, key: Key, commit: Commit) -> Committed:
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailableError("it is away")
        return await super().commit(key, commit)


async def fill_many(store: Store, number: int) -> dict[str, str]:
    """So many small sessions of the old key."""
    manager = SessionManager(encrypted(store, OLD))
    for place in range(number):
        async with manager.open(f"s-{place}") as session:
            session.set("cart", f"milk {place}")
    return {f"s-{place}": f"milk {place}" for place in range(number)}


async def read_many(store: Store, number: int) -> dict[str, str]:
    manager, found = SessionManager(store), {}
    for place in range(number):
        async with manager.read(f"s-{place}") as session:
            found[f"s-{place}"] = session.get("cart")
    return found


async def all_keys(store: Store) -> set[Key]:
    keys: set[Key] = set()
    cursor = None
    while True:
        page = await store.scan(cursor=cursor)
        keys.update(page.keys)
        cursor = page.next
        if cursor is None:
            return keys
