"""How the SQLite store fails, and goes on: locks, disks, wrong files, other versions, forks."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from agent_sessions.errors import FormatTooNewError, SessionError, StoreUnavailableError
from agent_sessions.stores.base import Key, LeaseWanted
from agent_sessions.stores.sqlite import SQLiteStore, connection, schema
from agent_sessions.stores.sqlite import store as store_module
from agent_sessions.testing import FakeClock
from tests.faults import victims

from .sqlite_files import CART, KEY, LOG, append, beside, change, content, query, read_log, read_values, take, write

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, wait_s=0.5)
    yield store
    await store.aclose()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program has begun to write, and does not go on."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield
        file.execute("ROLLBACK")


async def refused(store: SQLiteStore) -> StoreUnavailableError:
    """What a turn is told."""
    with pytest.raises(StoreUnavailableError) as told:
        await store.open(KEY, lease=LeaseWanted("us", 1000, queue=False))
    with pytest.raises(StoreUnavailableError):
        await store.commit(KEY, change())
    return told.value


# --------------------------------------------------------------------------------------------------- locks


async def test_a_file_that_stays_locked_is_reported_in_time_and_blocks_nothing(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change(values={CART: b"apples"}))
    with locked(path):
        begun = time.monotonic()
        commits = [asyncio.ensure_future(store.commit(KEY, change(values={CART: b"pears"}))) for _ in range(20)]
        longest, last, reads = 0.0, time.monotonic(), 0
        while not all(commit.done() for commit in commits):
            assert await read_values(store, KEY) == {CART: b"apples"}
            reads += 1
            await asyncio.sleep(0.002)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert 0.4 < time.monotonic() - begun < 2
        assert longest < 0.3
        assert reads > 10
        for commit in commits:
            error = commit.exception()
            assert isinstance(error, StoreUnavailableError)
            assert not error.maybe_done
            assert "lsof" in error.message
    await store.commit(KEY, change(values={CART: b"plums"}))
    assert await read_values(store, KEY) == {CART: b"plums"}


async def test_a_lock_that_is_given_up_in_time_is_no_error(path: Path) -> None:
    store = SQLiteStore(path)
    await store.commit(KEY, change())
    with locked(path):
        commit = asyncio.ensure_future(store.commit(KEY, change(logs=append(b"late"))))
        await asyncio.sleep(0.1)
        assert not commit.done()
    await commit
    assert await read_log(store, KEY) == [b"late"]
    await store.aclose()


async def test_a_commit_that_is_cancelled_before_it_begins_never_happens(path: Path) -> None:
    store = SQLiteStore(path)
    await store.commit(KEY, change())
    with locked(path):
        commit = asyncio.ensure_future(store.commit(KEY, change(logs=append(b"never"))))
        await asyncio.sleep(0.02)
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
    await store.commit(KEY, change(logs=append(b"then")))
    assert await read_log(store, KEY) == [b"then"]
    await store.aclose()


class StuckClock(FakeClock):
    """Stands for a disk: whoever reads the time in the middle of a transaction stays there."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck, self.free = False, threading.Event()

    def now_ms(self) -> int:
        if self.stuck:
            self.free.wait()
        return super().now_ms()


async def test_a_disk_that_does_not_answer_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StuckClock()
    store = SQLiteStore(path, clock=clock)
    await store.commit(KEY, change())
    clock.stuck = True
    with monkeypatch.context() as impatient:
        impatient.setattr(store_module, "_ANSWER_S", -4.9)
        with pytest.raises(StoreUnavailableError, match="no answer from the disk") as told:
            await store.commit(KEY, change(logs=append(b"late")))
    assert told.value.maybe_done
    clock.stuck = False
    clock.free.set()
    assert await read_log(store, KEY) == [b"late"]
    await store.aclose()


# --------------------------------------------------------------------------------------------------- places


async def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    error = await refused(SQLiteStore(tmp_path / "no" / "sessions.db"))
    assert f"there is no folder {tmp_path / 'no'}" in error.message
    assert "AK_SESSION__SQLITE__PATH" in error.message
    assert not error.maybe_done
    assert not (tmp_path / "no").exists()


async def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    assert "is a folder" in (await refused(SQLiteStore(tmp_path))).message


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Permissions count, also where the tests are run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


@pytest.fixture
def shut() -> Iterator[Path]:
    with TemporaryDirectory(prefix="shut-") as name:  # not in pytest's own, which only this user may enter
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@pytest.fixture
def unreadable(shut: Path) -> Path:
    shut.chmod(0o755)
    file = shut / "sessions.db"
    file.touch(0o000)
    return file


async def test_a_folder_that_may_not_be_written_is_told(shut: Path, as_nobody: None) -> None:
    error = await refused(SQLiteStore(shut / "sessions.db"))
    assert f"make files in {shut}" in error.message
    assert not error.maybe_done


async def test_a_file_that_may_not_be_read_is_told(unreadable: Path, as_nobody: None) -> None:
    assert "must be able to read and write it" in (await refused(SQLiteStore(unreadable))).message


# --------------------------------------------------------------------------------------------------- wrong files


async def test_what_is_no_database_is_told_and_left_alone(store: SQLiteStore, path: Path) -> None:
    text = b"Dear diary,\n" * 1000
    write(path, text)
    assert "is not an SQLite database" in (await refused(store)).message
    assert content(path) == text


async def test_the_database_of_another_application_is_told_and_left_alone(store: SQLiteStore, path: Path) -> None:
    query(path, "CREATE TABLE customers (name TEXT)")
    before = content(path)
    assert "of another application" in (await refused(store)).message
    assert content(path) == before
    assert beside(path) == [path.name]


async def test_a_damaged_file_is_told(store: SQLiteStore, path: Path) -> None:
    for number in range(50):
        await store.commit(Key("default", "session", f"s{number}"), change(logs=append(b"x" * 3000)))
    await store.commit(KEY, change())
    await store.aclose()
    write(path, b"\xaa" * 4096 * 20, at=4096)
    error = await refused(store)
    assert "is damaged" in error.message
    assert ".recover" in error.message
    assert not error.maybe_done


# --------------------------------------------------------------------------------------------------- full disks


async def fill_up(store: SQLiteStore) -> int:
    """Commit until it fails; return how many commits were stored."""
    stored = 0
    while stored < 1000:
        try:
            await store.commit(KEY, change(values={CART: b"%d" % stored}, logs=append(b"x" * 20_000)))
        except StoreUnavailableError as error:
            assert "is full" in error.message
            assert not error.maybe_done
            return stored
        stored += 1
    raise AssertionError("the disk was never full")


async def check_nothing_is_torn(store: SQLiteStore, path: Path, stored: int) -> None:
    assert await read_values(store, KEY) == {CART: b"%d" % (stored - 1)}
    assert await read_log(store, KEY) == [b"x" * 20_000] * stored
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_file_that_may_not_grow_refuses_commits_whole(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit(KEY, change())
    await store.aclose()
    with monkeypatch.context() as limited:
        limited.setattr(connection, "_PRAGMAS", (*connection._PRAGMAS, "PRAGMA max_page_count = 100"))
        stored = await fill_up(store)
        assert stored > 5
        await check_nothing_is_torn(store, path, stored)
        assert await take(store, KEY, "us")
        await store.release(KEY, "us")
        await store.aclose()
    await store.commit(KEY, change(values={CART: b"%d" % stored}, logs=append(b"x" * 20_000)))
    await check_nothing_is_torn(store, path, stored + 1)


async def test_one_large_commit_among_many_at_once_fails_alone(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PRAGMAS", (*connection._PRAGMAS, "PRAGMA max_page_count = 200"))
    keys = [Key("default", "session", f"s{number}") for number in range(20)]
    done = await asyncio.gather(
        *(store.commit(key, change(logs=append(b"x" * (2_000_000 if n == 7 else 10)))) for n, key in enumerate(keys)),
        return_exceptions=True,
    )
    assert [number for number, result in enumerate(done) if isinstance(result, SessionError)] == [7]
    assert await store.count("default", "session") == 19


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here, which needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_refuses_commits_whole_until_there_is_room_again(small_disk: Path) -> None:
    path = small_disk / "sessions.db"
    store = SQLiteStore(path)
    await store.commit(KEY, change())
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 500_000)
    stored = await fill_up(store)
    await check_nothing_is_torn(store, path, stored)
    ballast.unlink()
    await store.commit(KEY, change(values={CART: b"%d" % stored}, logs=append(b"x" * 20_000)))
    await check_nothing_is_torn(store, path, stored + 1)
    await store.aclose()


async def test_a_disk_that_is_too_full_to_open_the_file_says_so(small_disk: Path) -> None:
    told = set()
    for room in range(0, 300_000, 12_288):
        path = small_disk / f"{room}.db"
        store, ballast = SQLiteStore(path), small_disk / "ballast"
        write(ballast, b"x" * (2 * 1024 * 1024 - room - 8192))
        try:
            await store.commit(KEY, change())
        except StoreUnavailableError as error:
            told.add(error.message.removeprefix(f"the disk of {path} "))
            assert not error.maybe_done
        await store.aclose()
        for name in beside(path):
            os.unlink(small_disk / name)
    assert told == {"is full, or the file may not grow; nothing was stored. Make room: no restart is needed."}


# --------------------------------------------------------------------------------------------------- versions

LATER = "ALTER TABLE keys ADD COLUMN colour TEXT; UPDATE keys SET colour = 'green';\n"


async def test_a_file_of_an_earlier_version_is_migrated(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit(KEY, change(values={CART: b"apples"}, logs=append(b"1")))
    await store.aclose()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, LATER))
    stores = [SQLiteStore(path) for _ in range(8)]
    for found in await asyncio.gather(*(read_log(each, KEY) for each in stores)):
        assert found == [b"1"]
    for each in stores:
        await each.aclose()
    assert query(path, "SELECT id, colour FROM keys") == [(KEY.id, "green")]
    assert query(path, "PRAGMA user_version") == [(2,)]


async def test_a_migration_that_fails_changes_nothing(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit(KEY, change(values={CART: b"apples"}))
    await store.aclose()
    with monkeypatch.context() as broken:
        broken.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, f"{LATER}SELECT nothing FROM nowhere;\n"))
        await refused(store)
    assert query(path, "PRAGMA user_version") == [(1,)]
    assert await read_values(store, KEY) == {CART: b"apples"}


async def test_a_file_of_a_later_version_is_refused_and_left_alone(store: SQLiteStore, path: Path) -> None:
    await store.commit(KEY, change())
    await store.aclose()
    query(path, "PRAGMA user_version = 7")
    before = content(path)
    for operation in (store.open(KEY), store.commit(KEY, change()), store.delete(KEY, os.urandom(8))):
        with pytest.raises(FormatTooNewError, match="layout 7"):
            await operation
    await store.aclose()
    assert content(path) == before
    assert beside(path) == [path.name]


async def test_a_file_that_is_migrated_beside_a_running_process_is_refused_from_then_on(
    store: SQLiteStore, path: Path
) -> None:
    await store.commit(KEY, change())
    query(path, "PRAGMA user_version = 7")
    for operation in (store.open(KEY), store.commit(KEY, change())):
        with pytest.raises(FormatTooNewError, match="layout 7"):
            await operation


# --------------------------------------------------------------------------------------------------- processes


def commit_once(path: Path, number: int) -> None:
    async def work() -> None:
        store = SQLiteStore(path)
        await store.commit(Key("default", "session", f"s{number}"), change())
        await store.commit(KEY, change(logs=append(b"%d" % number)))
        await store.aclose()

    asyncio.run(work())


async def test_many_processes_that_come_first_make_one_file(store: SQLiteStore, path: Path) -> None:
    workers = [victims.start(commit_once, path, number) for number in range(12)]
    for worker in workers:
        await asyncio.to_thread(worker.join)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)
    assert sorted(await read_log(store, KEY)) == sorted(b"%d" % number for number in range(12))
    assert await store.count("default", "session") == 13


def test_a_forked_child_opens_the_file_itself(path: Path) -> None:
    store = SQLiteStore(path)

    async def add(item: bytes) -> None:
        await store.commit(KEY, change(logs=append(item)))

    with asyncio.Runner() as runner:
        runner.run(add(b"before"))
        for _ in range(5):
            _in_a_child(lambda: asyncio.run(add(b"child")))
            runner.run(add(b"parent"))
        items = runner.run(read_log(store, KEY))
        runner.run(store.aclose())
    assert items == [b"before", *[b"child", b"parent"] * 5]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_forks_in_the_middle_of_commits_harm_neither_side(path: Path) -> None:
    store, stop = SQLiteStore(path), threading.Event()
    added = 0

    async def add(owner: str, item: bytes) -> None:
        await store.commit(KEY, change(owner=owner, logs=append(item)))

    def keep_adding() -> None:
        async def work() -> None:
            nonlocal added
            while not stop.is_set():
                await add("parent", b"parent")
                added += 1

        asyncio.run(work())

    thread = threading.Thread(target=keep_adding)
    thread.start()
    for _ in range(20):
        _in_a_child(lambda: asyncio.run(add("child", b"child")))
    stop.set()
    thread.join()
    items = asyncio.run(read_log(store, KEY))
    asyncio.run(store.aclose())
    assert items.count(b"child") == 20
    assert items.count(b"parent") == added > 0
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def _in_a_child(work: object) -> None:
    assert callable(work)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_of_a_parent_that_holds_a_lease_waits_for_it_like_anybody(path: Path) -> None:
    store = SQLiteStore(path)

    async def ask() -> None:
        assert not await take(store, KEY, "child", queue=True)

    with asyncio.Runner() as runner:
        assert runner.run(take(store, KEY, "parent"))
        _in_a_child(lambda: asyncio.run(ask()))
        assert runner.run(store.renew(KEY, "parent", 1000))
        runner.run(store.aclose())


async def test_no_error_shows_a_value(store: SQLiteStore, path: Path) -> None:
    secret = "correct horse battery staple"
    with pytest.raises(Exception, match=r".") as raised:
        await store.commit(KEY, change(values={CART: {secret: 1}}))
    assert secret not in repr(raised.value) + str(raised.value)
    assert LOG not in (await store.open(KEY)).log_heads
