"""The SQLite store: the conformance suite, and what only a file has."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from agent_sessions.clock import Clock
from agent_sessions.errors import (
    CommitTooLargeError,
    FormatTooNewError,
    SessionConflictError,
    SessionNotFoundError,
    StateLostError,
)
from agent_sessions.stores.base import (
    CollectionChange,
    Commit,
    Key,
    LeaseWanted,
    LogWanted,
    Part,
    Store,
    Version,
    Wanted,
)
from agent_sessions.stores.sqlite import SQLiteStore, connection, schema, sweeping, writing
from agent_sessions.stores.sqlite.transaction import Transaction
from agent_sessions.stores.sqlite.worker import Mode
from agent_sessions.testing import FakeClock, ServedInOrder, StoreConformance

from .sqlite_files import (
    CART,
    CHECKPOINTS,
    KEY,
    LOG,
    append,
    beside,
    change,
    query,
    read_log,
    read_values,
    size,
    take,
)


class TestSQLiteStore(ServedInOrder, StoreConformance):
    """Each store with a thread and a connection of its own, on one file."""

    EXAMPLES = 30

    @pytest.fixture(autouse=True)
    def _start(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def make_store(self, clock: Clock) -> Store:
        return SQLiteStore(self.path, clock=clock, synchronous="normal")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    await store.aclose()


@pytest.fixture
async def other(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    yield store
    await store.aclose()


class Threads:
    """The threads that stores have started since."""

    def __init__(self) -> None:
        self.before = threading.enumerate()

    def count(self) -> int:
        running = [thread for thread in threading.enumerate() if thread.name == "agent-sessions-sqlite"]
        return len([thread for thread in running if thread not in self.before])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is asked of a file, or of a thread
            await asyncio.sleep(0.01)


# --------------------------------------------------------------------------------------------------- the file


async def test_the_files_are_for_their_owner_alone(store: SQLiteStore, path: Path) -> None:
    mask = os.umask(0)
    try:
        await store.commit(KEY, change())
    finally:
        os.umask(mask)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_what_is_stored_outlives_the_store(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(values={CART: b"apples"}, logs=append(b"hi")))
    await store.aclose()
    again = SQLiteStore(str(path))
    assert await read_values(again, KEY) == {CART: b"apples"}
    await again.aclose()


async def test_a_path_is_taken_from_where_the_store_was_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    store = SQLiteStore(path.name)
    monkeypatch.chdir("/")
    await store.commit(KEY, change())
    await store.aclose()
    assert beside(path) == [path.name]


@pytest.mark.parametrize("name", [":memory:", "file:a.db?mode=memory", "a%20b ?#.db", "séance.db"])
async def test_a_name_is_nothing_but_a_name(tmp_path: Path, name: str) -> None:
    store = SQLiteStore(tmp_path / name)
    await store.commit(KEY, change())
    await store.aclose()
    assert beside(tmp_path / name) == [name]


async def test_a_file_that_was_removed_is_made_again(store: SQLiteStore, path: Path) -> None:
    version = (await store.commit(KEY, change(values={CART: b"apples"}))).version
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(SessionNotFoundError):
        await store.commit(KEY, change(expected=version))
    await store.commit(KEY, change(logs=append(b"new")))
    assert query(path, "SELECT revision FROM keys") == [(1,)]


async def test_durable_is_what_the_settings_say(path: Path) -> None:
    from agent_sessions import Settings
    from agent_sessions.settings import SQLiteSettings
    from agent_sessions.stores import open_store

    assert Settings().sqlite.synchronous == "full"
    store = open_store(Settings(type="sqlite", sqlite=SQLiteSettings(path=path, synchronous="normal")))
    await store.commit(KEY, change())
    await store.aclose()
    assert beside(path) == [path.name]


async def test_a_file_that_is_replaced_while_it_is_opened_is_left(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = schema.prepare

    def prepare_and_replace(file: sqlite3.Connection, name: str) -> None:
        prepare(file, name)
        for old in path.parent.iterdir():
            old.rename(f"{old}.old")
        path.touch()

    with monkeypatch.context() as replaced:
        replaced.setattr(schema, "prepare", prepare_and_replace)
        await store.commit(KEY, change())
    await store.commit(KEY, change())
    assert query(path, "SELECT revision FROM keys") == [(1,)]


async def test_a_link_to_a_file_that_is_not_there_yet_is_followed(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    store, mask = SQLiteStore(link), os.umask(0)
    try:
        await store.commit(KEY, change())
    finally:
        os.umask(mask)
    await store.aclose()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert beside(path) == ["link.db", "sessions.db"]


async def test_a_copy_is_written_in_the_same_way(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(logs=append(b"1")))
    copy = path.with_name("copy.db")
    query(path, f"VACUUM INTO '{copy}'")
    assert query(copy, "PRAGMA journal_mode") == [("delete",)]
    restored = SQLiteStore(copy)
    assert await read_log(restored, KEY) == [b"1"]
    await restored.aclose()
    assert query(copy, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("default", ["OFF", "NORMAL", "FULL"])
@pytest.mark.parametrize(("synchronous", "number"), [("full", 2), ("normal", 1)])
async def test_durable_is_durable_whatever_sqlite_was_built_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, default: str, synchronous: Literal["full", "normal"], number: int
) -> None:
    monkeypatch.setattr(connection, "_PRAGMAS", (*connection._PRAGMAS, f"PRAGMA synchronous = {default}"))
    store = SQLiteStore(path, synchronous=synchronous)
    assert await store._do(Mode.STORES, lambda tx: tx.one("PRAGMA synchronous")) == (number,)
    await store.aclose()


# --------------------------------------------------------------------------------------------------- closing


async def test_closing_ends_the_thread_and_leaves_one_file(path: Path) -> None:
    threads = Threads()
    store = SQLiteStore(path)
    await store.commit(KEY, change())
    assert threads.count() == 1
    await store.aclose()
    assert threads.count() == 0
    assert beside(path) == [path.name]
    await store.aclose()


async def test_a_closed_store_opens_again_when_it_is_used(store: SQLiteStore) -> None:
    await store.commit(KEY, change(logs=append(b"1")))
    await store.aclose()
    await store.commit(KEY, change(logs=append(b"2")))
    assert await read_log(store, KEY) == [b"1", b"2"]


async def test_what_was_asked_for_before_closing_is_done(store: SQLiteStore) -> None:
    commits = [asyncio.ensure_future(store.commit(KEY, change(logs=append(b"%d" % n)))) for n in range(50)]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*commits)
    assert len(await read_log(store, KEY)) == 50


def test_the_last_event_loop_that_leaves_closes_the_file(path: Path) -> None:
    store, threads = SQLiteStore(path), Threads()

    async def use() -> None:
        await store.commit(KEY, change(logs=append(b"1")))

    async def use_and_leave() -> None:
        await use()
        await store.detach()

    asyncio.run(use_and_leave())
    assert threads.count() == 0
    with asyncio.Runner() as staying:
        staying.run(use())
        asyncio.run(use_and_leave())
        assert threads.count() == 1
        assert len(staying.run(read_log(store, KEY))) == 3
    asyncio.run(use_and_leave())
    assert threads.count() == 0


async def test_a_store_that_nobody_closed_ends_with_its_last_reference(path: Path) -> None:
    threads = Threads()
    store = SQLiteStore(path)
    await store.commit(KEY, change())
    del store
    gc.collect()
    await until(lambda: threads.count() == 0)
    assert beside(path) == [path.name]


def test_a_process_that_closes_nothing_leaves_a_whole_file(path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from agent_sessions.stores.base import Commit, Key\n"
        "from agent_sessions.stores.sqlite import SQLiteStore\n"
        "store = SQLiteStore(sys.argv[1])\n"
        "commit = Commit(id=b'12345678', owner='', expected=None)\n"
        "asyncio.run(store.commit(Key('t', 'session', 's'), commit))\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script, str(path)], check=True, cwd=Path(__file__).parents[2])
    assert beside(path) == [path.name]
    assert query(path, "SELECT id, revision FROM keys") == [("s", 1)]


def test_what_runs_at_exit_may_store_and_close(path: Path) -> None:
    script = (
        "import asyncio, atexit, sys\n"
        "def save():\n"
        "    with manager.open('s') as session:\n"
        "        session.set('saved', True)\n"
        "    asyncio.run(store.aclose())\n"
        "    print('saved')\n"
        "atexit.register(save)  # before anything is imported, so it runs last\n"
        "from agent_sessions import SyncSessionManager\n"
        "from agent_sessions.stores.sqlite import SQLiteStore\n"
        "store = SQLiteStore(sys.argv[1])\n"
        "manager = SyncSessionManager(store)\n"
        "with manager.open('s') as session:\n"
        "    session.set('saved', False)\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
        cwd=Path(__file__).parents[2],
    )
    assert (process.stdout, process.stderr) == ("saved\n", "")
    assert query(path, "SELECT id, revision FROM keys WHERE kind = 'session'") == [("s", 2)]


# --------------------------------------------------------------------------------------------------- waiting


async def test_a_waiter_of_another_process_is_woken_within_twenty_ms(store: SQLiteStore, other: SQLiteStore) -> None:
    assert await _median_handover(store, other) < 0.02


async def test_a_waiter_of_the_same_process_is_woken_within_twenty_ms(store: SQLiteStore) -> None:
    assert await _median_handover(store, store) < 0.02


async def _median_handover(holder: SQLiteStore, waiter: SQLiteStore) -> float:
    delays = []
    for turn in range(15):
        ours, theirs = f"ours-{turn}", f"theirs-{turn}"
        assert await take(holder, KEY, ours)
        assert not await take(waiter, KEY, theirs, queue=True)
        waiting = asyncio.ensure_future(waiter.wait(KEY, theirs, 5))
        await asyncio.sleep(0.005 + 0.001 * turn)
        begun = time.perf_counter()
        await holder.release(KEY, ours)
        await waiting
        delays.append(time.perf_counter() - begun)
        assert await take(waiter, KEY, theirs, queue=True)
        await waiter.release(KEY, theirs)
    return statistics.median(delays)


async def test_who_has_no_place_in_the_queue_does_not_wait(store: SQLiteStore) -> None:
    assert await take(store, KEY, "us")
    async with asyncio.timeout(0.9):
        await store.wait(KEY, "a stranger", 5)


async def test_a_waiter_asks_again_when_the_lease_before_it_runs_out(store: SQLiteStore) -> None:
    assert await take(store, KEY, "dead", ms=50)
    assert not await take(store, KEY, "next", queue=True)
    begun = time.monotonic()
    async with asyncio.timeout(0.9):
        while not await take(store, KEY, "next", queue=True):
            await store.wait(KEY, "next", 5)
    assert time.monotonic() - begun > 0.03


async def test_a_waiter_that_died_delays_the_next_for_no_longer_than_its_place_lasts(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    assert await take(store, KEY, "us", ms=100)
    assert not await take(store, KEY, "dead", queue=True)
    clock.advance(1.95)
    assert not await take(store, KEY, "next", queue=True)
    async with asyncio.timeout(0.9):
        await store.wait(KEY, "next", 5)
    clock.advance(0.05)
    assert await take(store, KEY, "next", queue=True)
    await store.aclose()


async def test_a_waiter_that_died_before_the_clock_was_set_back_keeps_nobody_out(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    assert await take(store, KEY, "us", ms=1000)
    for owner in ("dead", "alive"):
        assert not await take(store, KEY, owner, queue=True)
    clock.advance(-3600)
    assert await store.renew(KEY, "us", 1000)
    clock.advance(1)
    assert not await take(store, KEY, "alive", queue=True)
    assert await take(store, KEY, "alive", queue=True)
    await store.aclose()


async def test_many_turns_at_once_share_the_file(store: SQLiteStore) -> None:
    keys = [Key("default", "session", f"s{number}") for number in range(200)]
    await asyncio.gather(*(store.commit(key, change(logs=append(key.id.encode()))) for key in keys))
    assert [await read_log(store, key) for key in keys] == [[key.id.encode()] for key in keys]


async def test_of_turns_at_once_one_that_fails_takes_no_other_along(store: SQLiteStore) -> None:
    keys = [Key("default", "session", f"s{number}") for number in range(20)]
    wrong = change(values={CART: b"1"}, logs=append("not bytes"))  # type: ignore[arg-type]
    wrong.logs[LOG].append.insert(0, {})  # type: ignore[arg-type]
    done = await asyncio.gather(
        *(store.commit(key, wrong if number == 7 else change()) for number, key in enumerate(keys)),
        return_exceptions=True,
    )
    assert [number for number, result in enumerate(done) if isinstance(result, BaseException)] == [7]
    assert (await store.open(keys[7])).row is None
    assert await store.count("default", "session") == 19


async def test_who_refuses_in_mid_change_changes_nothing(store: SQLiteStore) -> None:
    def refuse(tx: Transaction) -> None:
        writing.commit(tx, KEY, change())
        raise SessionConflictError("too late")

    others = [KEY._replace(id=f"s-{number}") for number in (2, 3)]
    await store.open(KEY)
    first, refused, last = await asyncio.gather(
        store.commit(others[0], change()),
        store._do(Mode.STORES, refuse),
        store.commit(others[1], change()),
        return_exceptions=True,
    )
    assert isinstance(refused, SessionConflictError)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert {found.id for found in (await store.find("default", "session")).found} == {"s-2", "s-3"}


# --------------------------------------------------------------------------------------------------- sweeping


def full(**changes: Any) -> Commit:
    """A commit that makes a session of all sorts of parts."""
    return change(
        values={CART: b"v" * 5000},
        logs=append(*[b"i" * 500] * 100),
        collections={CHECKPOINTS: CollectionChange(entries={f"{number:03}": b"e" * 500 for number in range(100)})},
        fields={"status": b"new"},
        **changes,
    )


TABLES = ("value", "item", "entry", "part", "record", "dead", "waiter", "deletion")


def rows_left(path: Path) -> dict[str, int]:
    counted = {table: query(path, f"SELECT count(*) FROM {table}")[0][0] for table in ("keys", *TABLES)}
    return {table: number for table, number in counted.items() if number}


async def test_what_is_past_its_time_is_swept_with_all_its_parts(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    await store.commit(KEY, full(ttl_ms=1_000_000))
    for number in range(40):
        await store.commit(Key("default", "session", f"old-{number}"), full(ttl_ms=1000, belongs_to="ann"))
    await store.aclose()
    large = size(path)
    clock.advance(1)
    assert await store.count("default", "session") == 1  # opens it, and so starts a sweep
    kept = {"keys": 1, "value": 1, "item": 100, "entry": 100, "part": 3, "record": 1}
    await until(lambda: rows_left(path) == kept)
    assert await store.count("default", "session") == 1
    assert await store.count("default", "session", belongs_to="ann") == 0
    await until(lambda: query(path, "PRAGMA freelist_count")[0][0] <= 256)
    assert len(await read_log(store, KEY)) == 100
    await store.aclose()
    assert size(path) < large / 2


async def test_a_deleted_key_leaves_no_rows(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    await store.commit(KEY, full())
    assert await store.delete(KEY, os.urandom(8))
    await store.commit(KEY, change(logs=append(b"new")))
    await store.aclose()
    clock.advance(60)
    assert await read_log(store, KEY) == [b"new"]
    await until(lambda: rows_left(path) == {"keys": 1, "item": 1, "part": 1})
    await store.aclose()


async def test_a_lease_on_an_absent_key_is_swept_when_it_ran_out(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    assert await take(store, KEY, "us", ms=10_000)
    assert not await take(store, KEY, "dead", queue=True)
    await store.aclose()
    clock.advance(10)
    assert (await store.open(KEY)).row is None
    await until(lambda: rows_left(path) == {})
    await store.aclose()


async def test_a_sweep_spares_what_is_leased_and_who_waits_for_it(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    absent = KEY._replace(id="absent")
    await store.commit(KEY, change(ttl_ms=1000))
    assert await take(store, KEY, "us", ms=60_000)
    assert await take(store, absent, "us", ms=1000)
    clock.advance(1)
    for owner in ("first", "second"):
        assert not await take(store, KEY, owner, queue=True)
        assert await take(store, absent, "them", ms=500)
        assert not await take(store, absent, owner, queue=True)
    clock.advance(1)
    await store.commit(KEY._replace(id="swept"), change(ttl_ms=0))
    await store.aclose()
    assert (await store.open(KEY)).row is None
    await until(lambda: query(path, "SELECT count(*) FROM keys WHERE id = 'swept'") == [(0,)])
    for key in (KEY, absent):
        assert not await take(store, key, "second", queue=key == absent)
    assert await take(store, absent, "first", queue=True)
    await store.aclose()


async def test_one_step_of_a_sweep_removes_few_large_values(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock, synchronous="normal")
    for number in range(12):
        await store.commit(KEY, change(values={Part("shop", f"{number}"): b"v" * 2_000_000}, ttl_ms=1000))
    await store.aclose()
    clock.advance(1)

    def step(tx: Transaction) -> int:
        assert sweeping.sweep(tx)
        return len(tx.all("SELECT 1 FROM value"))

    assert 1 <= await store._do(Mode.WRITES, step) <= 11
    await until(lambda: rows_left(path) == {})
    await store.aclose()


async def test_the_log_of_changes_stays_small(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(values={CART: b"x" * 30_000_000}))
    for _ in range(700):
        await store.commit(KEY, change(logs=append(b"x" * 4000)))
    assert size(path.with_name("sessions.db-wal")) <= 20_000_000
    assert size(path) > 30_000_000


# --------------------------------------------------------------------------------------------------- what it checks


async def test_a_log_of_which_items_are_gone_is_state_lost_and_takes_no_lease(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(values={CART: b"apples"}, logs=append(b"1", b"2", b"3")))
    query(path, "DELETE FROM item WHERE place = 2")
    with pytest.raises(StateLostError, match="openai/items"):
        await store.open(KEY, wanted=Wanted(logs=[LogWanted(LOG)]), lease=LeaseWanted("us", 1000, queue=False))
    opened = await store.open(KEY)
    assert opened.values == {CART.namespace: {CART.name: b"apples"}}
    assert opened.lease is None
    assert await read_log(store, KEY, limit=1) == [b"3"]


async def test_a_log_that_has_had_all_its_items_gets_no_more_and_keeps_out_of_other_logs(
    store: SQLiteStore, path: Path
) -> None:
    other = KEY._replace(id="s-2")
    await store.commit(KEY, change(logs=append(b"1")))
    await store.commit(other, change(logs=append(b"1")))
    query(path, "UPDATE part SET assigned = (1 << 28) - 2")
    await store.commit(KEY, change(logs=append(b"last")))
    before, *_ = query(path, "SELECT count(*) FROM item")
    with pytest.raises(CommitTooLargeError):
        await store.commit(KEY, change(values={CART: b"1"}, logs=append(b"too many")))
    assert query(path, "SELECT count(*) FROM item") == [before]
    assert await read_values(store, KEY) == {}
    assert [await read_log(store, key) for key in (KEY, other)] == [[b"1", b"last"], [b"1"]]


async def test_a_file_that_had_very_many_parts_takes_more(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(logs=append(b"1")))
    query(path, f"UPDATE sqlite_sequence SET seq = {1 << 34}")
    key = KEY._replace(id="s-2")
    await store.commit(key, change(logs=append(b"1", b"2")))
    assert await read_log(store, key) == [b"1", b"2"]


async def test_a_key_of_a_later_format_is_refused_and_left_alone(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(values={CART: b"apples"}))
    query(path, "UPDATE keys SET format = 99")
    for operation in (store.open(KEY), store.commit(KEY, change()), store.delete(KEY, os.urandom(8))):
        with pytest.raises(FormatTooNewError, match="99"):
            await operation
    query(path, "UPDATE keys SET format = 1")
    assert await read_values(store, KEY) == {CART: b"apples"}


async def test_what_is_small_costs_little_beside_what_is_large(path: Path) -> None:
    store = SQLiteStore(path, synchronous="normal")
    for number in range(4):
        large = CollectionChange(entries={f"{number}": b"e" * 8_000_000})
        key = Key("default", "session", f"large-{number}")
        await store.commit(key, change(values={CART: b"v" * 8_000_000}, collections={CHECKPOINTS: large}))
    small = CollectionChange(entries={"5": b"small"})
    taken = []
    for _ in range(15):
        begun = time.perf_counter()
        await store.commit(KEY, change(values={CART: b"small"}, collections={CHECKPOINTS: small}))
        await store.open(KEY, wanted=Wanted(entries=[(CHECKPOINTS, "5")]))
        taken.append(time.perf_counter() - begun)
    await store.aclose()
    assert statistics.median(taken) < 0.005


async def test_listings_among_very_many_keys_are_quick(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(ttl_ms=1_000_000_000, belongs_to="ann"))
    query(
        path,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
        " INSERT INTO keys (tenant, kind, id, format, revision, commit_ids, life, started_at, active_at, idle_at,"
        " ends_at, gone_at, was_ended, belongs_to) SELECT tenant, kind, 's' || i, format, revision, commit_ids, life,"
        " started_at - i, active_at - i, idle_at - i, ends_at - i, gone_at - i, 0, 'user' || (i % 100) FROM keys, n",
    )
    query(path, "UPDATE tally SET n = 100001")
    page = await store.find("default", "session", limit=50_000)
    middle, quickest = page.next, dict[str, float]()
    for _ in range(5):
        for name, listing in (
            ("first page", lambda: store.find("default", "session")),
            ("later page", lambda: store.find("default", "session", cursor=middle)),
            ("of a user", lambda: store.find("default", "session", belongs_to="user7")),
            ("count", lambda: store.count("default", "session")),
            ("count of a user", lambda: store.count("default", "session", belongs_to="user7")),
        ):
            begun = time.perf_counter()
            await listing()
            taken = time.perf_counter() - begun
            quickest[name] = min(taken, quickest.get(name, taken))
    assert max(quickest.values()) < 0.01, quickest
    assert quickest["count"] < 0.005
    assert await store.count("default", "session") == 100_001


async def test_the_status_of_a_commit_outlives_the_store(store: SQLiteStore, other: SQLiteStore) -> None:
    commit = change(expected=Version(0, b""))
    await store.commit(KEY, commit)
    await store.aclose()
    assert await other.commit_status(KEY, commit.id, since=Version(0, b"")) == "stored"
    assert (await other.commit(KEY, commit)).repeated
