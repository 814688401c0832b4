"""The surface without async: the same operations, the same behaviour, also after a fork."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent_sessions import (
    Collection,
    Log,
    MemoryStore,
    Namespace,
    Runner,
    Session,
    SessionManager,
    SyncSession,
    SyncSessionManager,
    current_session,
)
from agent_sessions.errors import InvalidError, SerializationError, SessionBusyError, TurnClosedError
from agent_sessions.stores.base import Store
from agent_sessions.sync import SyncCollection, SyncLog, SyncNamespace
from tests.support import Stopping, before

FORK_S = 20.0


class Fault(Exception):
    pass


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    from agent_sessions.stores.redis import RedisStore

    opened = RedisStore.from_url(request.getfixturevalue("redis_url"))
    manager = SessionManager(opened)
    manager._owns_store = True
    yield opened
    SyncSessionManager(manager=manager).close()


@pytest.fixture
def manager(store: Store) -> SyncSessionManager:
    return SyncSessionManager(store)


# -------------------------------------------------------------------------------------------------------------- parity


def _operations(cls: type) -> dict[str, Callable[..., Any]]:
    """Every public operation that waits, by name."""
    waits: dict[str, Callable[..., Any]] = {}
    for name, member in inspect.getmembers(cls, inspect.isfunction):
        inner = inspect.unwrap(member)
        if not name.startswith("_") and (inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)):
            waits[name] = member
    return waits


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any, Any]]:
    signature = inspect.signature(function)
    return [(one.name, one.kind, one.default, one.annotation) for one in signature.parameters.values()]


@pytest.mark.parametrize(
    ("cls", "half"),
    [(SessionManager, SyncSessionManager), (Log, SyncLog), (Collection, SyncCollection)],
    ids=lambda cls: cls.__name__,
)
def test_every_operation_has_a_sync_half_with_the_same_parameters(cls: type, half: type) -> None:
    operations = _operations(cls)
    assert operations
    for name, operation in operations.items():
        sync_name = {"aclose": "close"}.get(name, name)
        blocking = getattr(half, sync_name, None)
        assert blocking is not None, f"{half.__name__} has no {sync_name}"
        assert not inspect.iscoroutinefunction(inspect.unwrap(blocking))
        assert _parameters(blocking) == _parameters(operation), name
        assert inspect.getdoc(blocking)


@pytest.mark.parametrize(("cls", "half"), [(Session, SyncSession), (Namespace, SyncNamespace)])
def test_a_sync_session_has_all_that_a_session_has(cls: type, half: type) -> None:
    names = {name for name in dir(cls("x") if cls is Session else cls) if not name.startswith("_")}
    assert names <= set(dir(half)) | {"name"}


def test_every_operation_of_the_runner_has_a_sync_half() -> None:
    for name, operation in _operations(Runner).items():
        blocking = getattr(Runner, f"{name}_sync", None)
        assert blocking is not None, f"Runner has no {name}_sync"
        theirs, ours = _parameters(operation), _parameters(blocking)
        if ours[-1][1] is inspect.Parameter.VAR_KEYWORD:  # the rest is passed on
            ours = ours[:-1]
        assert ours == theirs[: len(ours)]
        assert len(ours) == len(theirs) or all(
            kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for _, kind, _, _ in theirs[len(ours) :]
        )


# ----------------------------------------------------------------------------------------------------------- behaviour


def test_a_sync_turn_does_what_a_turn_does(manager: SyncSessionManager, store: Store) -> None:
    with manager.open("s", user_id="u", metadata={"a": 1}) as session:
        assert isinstance(session, SyncSession)
        session.set("x", [1])
        session.get("x").append(2)
        log, entries = session.namespace("openai").log("items"), session.collection("c")
        log.append([1, 2, 3])
        assert (log.pop(), log.count(), log.read(limit=1), log.read()) == (3, 2, [2], [1, 2])
        entries.put_many({"a/1": 1, "a/2": 2, "b": 3})
        entries.delete("b")
        assert (entries.get("a/1"), entries.get("b", 0), entries.get_many(["a/2"])) == (1, 0, {"a/2": 2})
        assert entries.range(prefix="a/", reverse=True, limit=1) == [("a/2", 2)]
        entries.delete_prefix("a/1")
        entries.put("c", 4)
        assert current_session().id == "s"
    elsewhere = SyncSessionManager(store)
    with elsewhere.read("s", logs={("openai", "items"): None}) as snapshot:
        assert (snapshot.id, snapshot.tenant_id, snapshot.user_id) == ("s", "default", "u")
        assert (snapshot.metadata, snapshot.revision, snapshot.namespaces()) == ({"a": 1}, 1, ["default", "openai"])
        assert snapshot.get("x") == [1, 2]
        assert snapshot.namespace("openai").log("items").read() == [1, 2]
        assert snapshot.collection("c").range() == [("a/2", 2), ("c", 4)]
        assert snapshot.record is not None
    with elsewhere.open("s") as session:
        session.namespace("openai").log("items").clear()
    elsewhere.append("s", "openai", "items", ["blind"])
    with manager.read("s") as snapshot:
        assert snapshot.namespace("openai").log("items").read() == ["blind"]
    assert manager.get("s") is not None
    assert manager.lock("s") is None
    assert manager.unlock("s", force=True) is None
    assert manager.for_tenant("acme").get("s") is None
    assert (manager.delete("s"), manager.delete("s")) == (True, False)


def test_a_sync_turn_that_raises_stores_nothing(manager: SyncSessionManager) -> None:
    def turn() -> None:
        with manager.open("s") as session:
            session.set("x", 1)
            session.log("l").append([1])
            raise Fault

    with pytest.raises(Fault):
        turn()
    assert manager.get("s") is None
    assert manager.lock("s") is None


def test_a_sync_turn_that_cannot_be_stored_says_so(manager: SyncSessionManager) -> None:
    def turn() -> None:
        with manager.open("s") as session:
            value: list[Any] = []
            session.set("x", value)
            value.append(object())

    with pytest.raises(SerializationError):
        turn()
    assert manager.get("s") is None


def test_used_after_its_turn_a_sync_session_raises_turn_closed(manager: SyncSessionManager) -> None:
    with manager.open("s") as session:
        log = session.log("l")
    for use in (
        lambda: session.get("x"),
        lambda: session.set("x", 1),
        lambda: log.append([1]),
        log.read,
        current_session,
    ):
        with pytest.raises(TurnClosedError):
            use()


def test_a_nested_sync_open_joins_also_in_a_thread(manager: SyncSessionManager) -> None:
    import contextvars

    def in_a_thread() -> None:
        with manager.open("s") as joined:
            joined.update("n", lambda n: n + 1, default=0)
            joined.log("l").append([threading.get_ident()])

    with manager.open("s"):
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(in_a_thread,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        in_a_thread()
    with manager.read("s") as snapshot:
        assert (snapshot.get("n"), snapshot.log("l").count(), snapshot.revision) == (5, 5, 1)


def test_a_session_made_by_hand_is_bound(manager: SyncSessionManager) -> None:
    mine = Session("s")
    mine.set("x", 1)
    with manager.open(mine) as session:
        session.update("x", lambda n: n + 1)
    assert mine.get("x") == 2


def test_turns_of_threads_come_one_at_a_time(store: Store) -> None:
    def add(manager: SyncSessionManager) -> None:
        for _ in range(10):
            with manager.open("s") as session:
                session.set("n", session.get("n", 0) + 1)

    threads = [threading.Thread(target=add, args=(SyncSessionManager(store),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with SyncSessionManager(store).read("s") as snapshot:
        assert snapshot.get("n") == 60


def test_user_code_runs_in_the_caller_s_thread(manager: SyncSessionManager) -> None:
    here = threading.get_ident()
    with manager.open("s") as session:
        assert session.update("thread", lambda _: threading.get_ident()) == here


def test_sync_and_async_turns_wait_for_one_another(manager: SyncSessionManager, store: Store) -> None:
    async def turn() -> None:
        async with SessionManager(store).open("s", wait_s=0):
            pass

    async def detached() -> None:
        try:
            await turn()
        finally:
            await store.detach()

    with manager.open("s"), pytest.raises(SessionBusyError):
        threading_run(detached)
    threading_run(detached)


def threading_run(work: Callable[[], Any]) -> None:
    """Run it on a loop of its own in a thread where no turn is open, and raise what it raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


# ---------------------------------------------------------------------------------------------------------------- fork


def _forked(work: Callable[[], Any]) -> Any:
    """What it returns in a child process; fails the test if the child hangs or raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = json.dumps(["done", work()])
        except BaseException as error:
            said = json.dumps(["raised", f"{type(error).__name__}: {error}"])
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    killer = threading.Timer(FORK_S, os.kill, (pid, 9))
    killer.start()
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    killer.cancel()
    assert said, f"the child hung for {FORK_S} s"
    outcome, value = json.loads(said)
    assert outcome == "done", value
    return value


def _turn(manager: SyncSessionManager, session_id: str) -> int:
    with manager.open(session_id) as session:
        session.log("l").append([os.getpid()])
        return int(session.update("n", lambda n: n + 1, default=0))


def test_after_a_fork_both_processes_work(manager: SyncSessionManager, store: Store) -> None:
    assert _turn(manager, "s") == 1
    assert _forked(lambda: [_turn(manager, "s") for _ in range(3)]) == [2, 3, 4]
    shared = not isinstance(store, MemoryStore)
    assert _turn(manager, "s") == (5 if shared else 2)


def test_after_a_fork_async_works_too(manager: SyncSessionManager, store: Store) -> None:
    _turn(manager, "s")

    async def turn() -> Any:
        try:
            async with SessionManager(store).open("s") as session:
                return session.update("n", lambda n: n + 1)
        finally:
            await store.detach()

    assert _forked(lambda: asyncio.run(turn())) == 2
    assert (
        _forked(lambda: Runner(SessionManager(store)).run_sync(lambda prompt, session: prompt, "r", "Hi").output)
        == "Hi"
    )
    _turn(manager, "s")


def test_a_fork_while_threads_are_at_work_hangs_neither_process(manager: SyncSessionManager) -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            _turn(manager, f"busy {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            assert _forked(lambda: _turn(manager, f"child {number}")) == 1  # noqa: B023 - called at once
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_child_keeps_its_lease_alive(store: Store) -> None:
    from agent_sessions import Settings
    from agent_sessions.settings import TurnSettings

    manager = SyncSessionManager(store, settings=Settings(turn=TurnSettings(lease_s=1)))
    _turn(manager, "s")

    def long_turn() -> Any:
        with manager.open("s") as session:
            since = manager.lock("s")
            time.sleep(1.5)  # longer than the lease
            lock = manager.lock("s")
            session.set("x", 1)
            return since is not None and lock is not None and lock.owner == since.owner

    assert _forked(long_turn) is True


def test_a_turn_is_the_parent_s_also_after_a_fork(manager: SyncSessionManager) -> None:
    def use(session: SyncSession) -> list[str]:
        refused = []
        for name, write in (
            ("set", lambda: session.set("x", 2)),
            ("append", lambda: session.log("l").append([2])),
            ("current", current_session),
        ):
            try:
                write()
            except TurnClosedError:
                refused.append(name)
        return refused

    with manager.open("s") as session:
        session.set("x", 1)
        assert _forked(lambda: use(session)) == ["set", "append", "current"]
        session.set("y", 1)
    with manager.read("s") as snapshot:
        assert snapshot.items() == [("x", 1), ("y", 1)]


async def test_a_blocking_call_that_would_wait_for_its_own_loop_is_refused() -> None:
    manager = SessionManager(Stopping(MemoryStore()).store)
    async with manager.open("s", commit="step") as session:
        held = before(manager, Stopping).stop("commit")
        step = asyncio.create_task(session.log("items").append([1]))
        await held.reached.wait()
        with pytest.raises(InvalidError, match="INVALID_CONTEXT"):
            SyncSession(session).log("items").append([2])
        held.lift()
        await asyncio.gather(step, asyncio.to_thread(SyncSession(session).log("items").append, [3]))
        assert await session.log("items").read() == [1, 3]
