"""Everything of one store, brought to another."""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_sessions import MemoryStore, Runner, SessionManager
from agent_sessions.errors import StoreUnavailableError
from agent_sessions.migration import Migration, Outcome, migrate, migrate_sync
from agent_sessions.stores.base import Amend, CollectionChange, Commit, Key, LogChange, Opened, Part, Store, Wanted
from agent_sessions.stores.encryption import EncryptedStore, Keyring
from agent_sessions.stores.encryption.rekeying import _JOURNAL
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.stores.whole import read_whole
from agent_sessions.testing import FakeClock, ScriptedAgent

from .support import Before, Counting, LosingReplies, Stopping, alone, waiters

EXAMPLE = Path(__file__).parents[1] / "examples" / "store_of_your_own" / "file_store.py"
TEXT = Part("default", "text")

MakeStore = Callable[[str], Any]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def make_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[MakeStore]:
    """Make an empty store of a kind."""
    made: list[Store] = []

    def make(kind: str) -> Any:
        if kind == "memory":
            return MemoryStore(clock)
        if kind == "sqlite":
            made.append(SQLiteStore(tmp_path / f"{len(made)}.db", synchronous="normal", clock=clock))
        elif kind == "files":
            made.append(_file_store()(tmp_path / "files", clock))
        elif kind == "dynamodb":
            made.append(request.getfixturevalue("dynamodb").store(clock))
        else:
            from agent_sessions.stores.redis import RedisStore

            made.append(RedisStore.from_url(request.getfixturevalue("redis_url"), clock=clock))
        return made[-1]

    yield make
    for store in made:
        await store.aclose()


def _file_store() -> Any:
    if "file_store" not in sys.modules:
        spec = importlib.util.spec_from_file_location("file_store", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["file_store"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["file_store"].FileStore


@pytest.fixture
def source(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def target(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


async def write(store: Store, session_id: str, text: str) -> None:
    async with SessionManager(store).open(session_id) as session:
        session.set("text", text)


async def read(store: Store, session_id: str) -> Any:
    async with SessionManager(store).read(session_id) as session:
        return session.get("text")


async def keys_of(store: Store) -> list[Key]:
    found: set[Key] = set()
    cursor: bytes | None = None
    while True:
        page = await store.scan(cursor=cursor)
        found |= {*page.keys}
        cursor = page.next
        if cursor is None:
            return sorted(found)


async def everything(store: Store) -> dict[Key, Any]:
    """All that a store holds, but for versions."""
    found = {key: await read_whole(store, key) for key in await keys_of(store)}
    return {key: (whole.content, whole.row.lifetime, whole.row.stamps) for key, whole in found.items() if whole}


def sessions(report: Migration) -> dict[Outcome, int]:
    return dict(report.counts.get("session", Counter()))


# --------------------------------------------------------------------------------------------------- everything


async def fill(store: Store, clock: FakeClock) -> None:
    """Sessions of all sorts, in two tenants, and keys of every kind."""
    manager, soon = SessionManager(store), datetime.fromtimestamp(clock.now_ms() / 1000 + 3_600, UTC)
    acme = manager.for_tenant("acme:{ä}/%")
    await manager.set_policy({"idle_after": "10m"})
    await manager.create("ann", session_id="plain", metadata={"n": 1}, description="d", agent_id="a")
    clock.advance(60)
    await manager.create("ann", session_id="own", ttl=500, expires_at=soon, policy={"retention": "1h"})
    await manager.create("bob", session_id="ended")
    await acme.create("ann", session_id="plain", metadata={"other": "tenant"})
    await manager.extend("plain", hours=2)
    clock.advance(1)
    async with manager.open("talk 💬", user_id="ann") as session:
        session.set("deep", {"a": (1, {2}), "when": soon, "raw": b"\x00\xff" * 10, "n": 2**100})
        session.set("none", None)
        log = session.namespace("openai").log("items", messages=True)
        await log.append([{"n": n} for n in range(300)])
        await session.namespace("ns").collection("entries").put_many({f"{n:03}/ö": n for n in range(120)})
    async with manager.open("talk 💬") as session:
        await session.namespace("openai").log("items", messages=True).pop()
        await session.namespace("emptied").log("items").append([1])
        await session.namespace("emptied").log("items").clear()
        session.delete("none")
    await Runner(manager).run(ScriptedAgent("hi"), "run", "hello", user_id="ann")
    await manager.end("ended", reason="revoked")
    for kind in ("user", "app", "agent", "system"):
        commit = Commit(
            id=secrets.token_bytes(8),
            owner="o",
            expected=None,
            lifetime=Lifetime(ttl_ms=10**9),
            belongs_to="ann",
            values={TEXT: b"\xa1v"},
            logs={TEXT: LogChange(append=[b"\x01", b"\x02"])},
            collections={TEXT: CollectionChange(entries={"k": b"\xa1e"})},
            fields={"f": b"\xc0"},
            counters={"c": 3},
        )
        await store.commit(Key("default", kind, f"some {kind}"), commit)


@pytest.mark.parametrize(
    ("from_", "to"),
    [
        ("memory", "sqlite"),
        ("sqlite", "files"),
        ("files", "memory"),
        ("sqlite", "redis"),
        ("redis", "dynamodb"),
        ("dynamodb", "sqlite"),
    ],
)
async def test_everything_is_there_byte_for_byte(make_store: MakeStore, clock: FakeClock, from_: str, to: str) -> None:
    source, target = make_store(from_), make_store(to)
    await fill(source, clock)
    expected = await everything(source)
    kinds = Counter(key.kind for key in expected)
    assert set(kinds) == {"session", "run", "user", "app", "agent", "system"}

    report = await migrate(source, target)

    assert report.is_complete
    assert {kind: {**counts} for kind, counts in report.counts.items()} == {
        kind: {"copied": number} for kind, number in kinds.items()
    }
    assert await everything(target) == expected
    assert await everything(source) == expected
    before, after = SessionManager(source), SessionManager(target)
    for status in ("active", "idle", "ended", None):
        assert [one.session_id for one in (await after.list(status=status)).sessions] == [
            one.session_id for one in (await before.list(status=status)).sessions
        ]
        assert await after.count("ann", status=status) == await before.count("ann", status=status)
    old, new = await before.get("talk 💬", strict=True), await after.get("talk 💬", strict=True)
    assert old is not None
    assert new is not None
    assert new.revision == old.revision + 1
    assert new.message_count == old.message_count == 299
    again = await migrate(source, target)
    assert again.totals == {"same": sum(kinds.values())}
    async with after.open("talk 💬") as session:
        log = session.namespace("openai").log("items", messages=True)
        await log.append([{"n": "new"}])
        assert (await log.read(2)) == [{"n": 298}, {"n": "new"}]


async def test_many_sessions_come_in_reports_of_a_hundred(source: Store, target: Store) -> None:
    for number in range(250):
        await write(source, f"s{number}", "x" * number)
    reports: list[int] = []

    report = await migrate(source, target, report=lambda so_far: reports.append(so_far.totals["copied"]))

    assert reports == [100, 200, 251]
    assert sessions(report) == {"copied": 250}
    assert report.bytes_copied > sum(range(250))


def test_the_same_without_async(tmp_path: Path) -> None:
    source, target = SQLiteStore(tmp_path / "a.db"), SQLiteStore(tmp_path / "b.db")
    asyncio.run(write(source, "s", "hello"))

    report = migrate_sync(source, target)

    assert sessions(report) == {"copied": 1}
    assert asyncio.run(read(target, "s")) == "hello"


# --------------------------------------------------------------------------------------------------- again


async def test_what_is_there_already_is_not_read(source: Store, target: Store) -> None:
    for number in range(20):
        await write(source, f"s{number}", "x")
    await migrate(source, target)
    seen = Counting(source), Counting(target)

    report = await migrate(seen[0].store, seen[1].store)

    assert sessions(report) == {"same": 20}
    for counting in seen:
        assert counting.calls["open"] == 20
        assert not any(asked["wanted"].values for asked in counting.opens)
        assert counting.calls["commit"] == 0


async def test_what_was_written_meanwhile_comes_with_the_next_run(
    source: Store, target: Store, clock: FakeClock
) -> None:
    for name in ("a", "b", "c", "d"):
        await write(source, name, "old")
    await migrate(source, target)
    clock.advance(1)
    await write(source, "a", "new")
    await SessionManager(source).touch("b")
    await SessionManager(source).update("c", description="new")
    await write(source, "e", "new")

    report = await migrate(source, target)

    assert sessions(report) == {"updated": 3, "same": 1, "copied": 1}
    assert await everything(target) == await everything(source)


@pytest.mark.parametrize("change", ["write", "touch", "update", "end", "count"])
async def test_what_somebody_has_changed_in_the_target_is_left_alone(
    source: Store, target: Store, clock: FakeClock, change: str
) -> None:
    await write(source, "s", "old")
    await migrate(source, target)
    clock.advance(1)
    there = SessionManager(target)
    if change == "write":
        await write(target, "s", "theirs")
    elif change == "count":
        await target.amend(Key("default", "session", "s"), Amend(id=secrets.token_bytes(8), counters={"c": 1}))
    else:
        how: dict[str, Any] = {"touch": there.touch, "end": there.end}
        await (there.update("s", description="theirs") if change == "update" else how[change]("s"))
    await write(source, "s", "new")
    before = await everything(target)

    report = await migrate(source, target)

    assert sessions(report) == {"differs": 1}
    assert not report.is_complete
    assert [(problem.key.id, problem.outcome) for problem in report.problems] == [("s", "differs")]
    assert await everything(target) == before
    assert sessions(await migrate(source, target, overwrite=True)) == {"updated": 1}
    assert await read(target, "s") == "new"


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_copy_can_be_made_again_and_again(
    source: Store, make_store: MakeStore, clock: FakeClock, kind: str
) -> None:
    target = make_store(kind)
    await write(source, "s", "ours")
    assert sessions(await migrate(source, target)) == {"copied": 1}
    for _ in range(2):
        await write(target, "s", "theirs")
        assert sessions(await migrate(source, target, overwrite=True)) == {"updated": 1}
    await SessionManager(target).delete("s")
    assert sessions(await migrate(source, target)) == {"copied": 1}
    for number in range(2):
        clock.advance(1)
        await write(source, "s", f"ours {number}")
        assert sessions(await migrate(source, target)) == {"updated": 1}
        assert sessions(await migrate(source, target, verify=True)) == {"same": 1}


async def test_another_session_of_the_same_id_is_left_alone(clock: FakeClock, target: Store) -> None:
    one, other = MemoryStore(clock), MemoryStore(clock)
    await write(one, "s", "one")
    clock.advance(1)
    await write(other, "s", "other")
    await migrate(one, target)

    report = await migrate(other, target)

    assert sessions(report) == {"differs": 1}
    assert await read(target, "s") == "one"


async def test_the_same_content_is_the_same_wherever_it_is_from(source: Store, target: Store) -> None:
    manager = SessionManager(source)
    await write(source, "s", "x")
    await SessionManager(target).import_(await manager.export("s"))

    assert sessions(await migrate(source, target)) == {"same": 1}


async def test_the_tenants_of_both_are_known(source: Store, target: Store) -> None:
    for store, tenant in ((source, "acme"), (target, "umbrella")):
        async with SessionManager(store, tenant_id=tenant).open("s") as session:
            session.set("text", tenant)

    report = await migrate(source, target)

    assert report.counts["system"] == {"updated": 1}
    policies = SessionManager(target).policies
    assert {tenant async for tenant in policies.tenants()} == {"acme", "umbrella"}


async def test_a_dry_run_writes_nothing(source: Store, target: Store) -> None:
    await write(source, "new", "x")
    await write(source, "both", "x")
    await write(target, "both", "y")
    before = await everything(target)

    report = await migrate(source, target, dry_run=True)

    assert sessions(report) == {"copied": 1, "differs": 1}
    assert await everything(target) == before


class Forgetful(Before):
    """Shows values that are not those that were stored."""

    async def open(self, key: Key, **asked: Any) -> Opened:
        opened = await super().open(key, **asked)
        if key.id == "s" and "default" in opened.values:
            opened.values["default"]["text"] = b"\xa1?"
        return opened


async def test_a_copy_that_is_not_the_same_is_found(source: Store, target: Store) -> None:
    await write(source, "s", "x")

    report = await migrate(source, Forgetful(target).store)

    assert sessions(report) == {"failed": 1}
    assert "not the same" in report.problems[0].what
    assert sessions(await migrate(source, Forgetful(target).store)) == {"same": 1}
    assert sessions(await migrate(source, Forgetful(target).store, verify=True)) == {"failed": 1}


# --------------------------------------------------------------------------------------------------- beside turns


async def test_a_running_turn_is_waited_for(source: Store, target: Store) -> None:
    manager = SessionManager(source)
    await write(source, "s", "old")
    async with manager.open("s") as session:
        migrating = asyncio.create_task(migrate(source, target), context=alone())
        await waiters(manager, "s", 1)
        session.set("text", "new")
    report = await migrating

    assert sessions(report) == {"copied": 1}
    assert await read(target, "s") == "new"
    assert await manager.lock("s") is None


async def test_a_turn_that_is_too_long_is_told(source: Store, target: Store) -> None:
    await write(source, "s", "old")
    await write(source, "other", "old")
    async with SessionManager(source).open("s"):
        report = await migrate(source, target, wait_s=0)

    assert sessions(report) == {"copied": 1, "in_use": 1}
    assert not report.is_complete
    assert sessions(await migrate(source, target)) == {"copied": 1, "same": 1}


async def test_a_session_is_whole_though_it_is_written_while_it_is_read(source: Store, target: Store) -> None:
    await write(source, "s", "old")
    stopping = Stopping(source)
    barrier = stopping.stop("open", when="after")
    migrating = asyncio.create_task(migrate(stopping.store, target))
    await barrier.reached.wait()
    await write(source, "s", "new")
    barrier.lift()

    assert sessions(await migrating) == {"copied": 1}
    assert await read(target, "s") == "new"


async def test_a_turn_on_an_older_copy_is_not_broken(source: Store, target: Store) -> None:
    await write(source, "s", "old")
    await migrate(source, target)
    await write(source, "s", "new")
    async with SessionManager(target).open("s") as session:
        report = await migrate(source, target)
        session.set("text", "theirs")

    assert sessions(report) == {"in_use": 1}
    assert await read(target, "s") == "theirs"


async def test_two_at_once_copy_everything_once(source: Store, target: Store) -> None:
    for number in range(30):
        await write(source, f"s{number}", "x")

    reports = await asyncio.gather(*(migrate(Before(source).store, Before(target).store) for _ in range(2)))

    assert all(report.is_complete for report in reports)
    assert await everything(target) == await everything(source)


# --------------------------------------------------------------------------------------------------- faults


async def test_lost_replies_are_made_good(source: Store, target: Store) -> None:
    for number in range(10):
        await write(source, f"s{number}", "x")

    report = await migrate(source, LosingReplies(target, 5).store)

    assert sessions(report) == {"copied": 10}
    assert await everything(target) == await everything(source)


class Away(Before):
    """Can't be reached after so many commits."""

    def __init__(self, inner: Store, commits: int) -> None:
        super().__init__(inner)
        self.left = commits

    async def open(self, key: Key, **asked: Any) -> Opened:
        if self.left <= 0:
            raise StoreUnavailableError("away")
        return await super().open(key, **asked)

    async def commit(self, key: Key, commit: Commit) -> Any:
        self.left -= 1
        return await super().commit(key, commit)


async def test_what_is_copied_when_a_store_goes_away_stays(source: Store, target: Store) -> None:
    for number in range(50):
        await write(source, f"s{number:02}", "x")

    with pytest.raises(StoreUnavailableError):
        await migrate(source, Away(target, 20).store)
    report = await migrate(source, target)

    assert report.is_complete
    assert report.totals["same"] >= 10
    assert await everything(target) == await everything(source)


async def test_a_session_that_is_deleted_meanwhile_is_gone(source: Store, target: Store) -> None:
    await write(source, "s", "x")
    stopping = Stopping(source)
    barrier = stopping.stop("open", when="before")
    migrating = asyncio.create_task(migrate(stopping.store, target))
    await barrier.reached.wait()
    await SessionManager(source).delete("s")
    barrier.lift()

    assert sessions(await migrating) == {"gone": 1}
    assert await read(target, "s") is None


# --------------------------------------------------------------------------------------------------- encryption

KEY, OTHER = secrets.token_urlsafe(32), secrets.token_urlsafe(32)


async def test_each_store_has_its_own_encryption(source: Store, target: Store, clock: FakeClock) -> None:
    encrypted, plain = EncryptedStore(target, Keyring([KEY])), MemoryStore(clock)
    await write(source, "s", "clear text")

    assert (await migrate(source, encrypted)).is_complete
    raw = await target.open(Key("default", "session", "s"), wanted=Wanted())
    assert b"clear text" not in raw.values["default"]["text"]
    assert (await migrate(encrypted, plain)).is_complete

    assert await everything(plain) == await everything(source)
    assert (await migrate(source, encrypted)).totals == {"same": 2}


async def test_what_can_not_be_decrypted_is_told_and_not_copied(source: Store, target: Store) -> None:
    await write(EncryptedStore(source, Keyring([KEY])), "s", "x")

    for wrong in (source, EncryptedStore(source, Keyring([OTHER]))):
        report = await migrate(wrong, target)

        assert sessions(report) == {"failed": 1}
        assert "value 'text' in namespace 'default': the stored data is encrypted" in str(report.problems)
        assert await keys_of(target) == []


async def test_how_far_a_rekey_is_is_not_copied(source: Store, target: Store) -> None:
    await source.commit(_JOURNAL, Commit(id=secrets.token_bytes(8), owner="o", expected=None, fields={"f": b"\xc0"}))

    assert (await migrate(source, target)).totals == {}
    assert await keys_of(target) == []


async def test_times_that_ran_out_on_the_way_are_no_failure(source: Store, target: Store, clock: FakeClock) -> None:
    await SessionManager(source).create(session_id="s", ttl=timedelta(seconds=10))
    manager = SessionManager(source)
    async with manager.open("s"):
        pass

    class Slow(Before):
        async def commit(self, key: Key, commit: Commit) -> Any:
            clock.advance(20 * (key.kind == "session"))
            return await super().commit(key, commit)

    assert sessions(await migrate(source, Slow(target).store)) == {"gone": 1}
