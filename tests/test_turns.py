"""Turns: stored whole or not at all, one at a time, joined from inside."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from agent_sessions import MemoryStore, Session, SessionManager, Settings, SyncSessionManager, current_session
from agent_sessions.errors import (
    CommitTooLargeError,
    CommitUnknownError,
    SessionBusyError,
    SessionConflictError,
    SessionError,
    SessionNotFoundError,
    StoreUnavailableError,
    TurnClosedError,
)
from agent_sessions.settings import CacheSettings, TurnSettings
from agent_sessions.testing import FakeClock
from tests.fixtures import MakeManager, elsewhere, make_manager, manager
from tests.support import (
    Barrier,
    Before,
    Counting,
    Deaf,
    Failing,
    LosingReplies,
    Stopping,
    alone,
    before,
    waiters,
)

__all__ = ["elsewhere", "make_manager", "manager"]


class Fault(Exception):
    """What an agent may raise."""


async def everything(session: Session) -> dict[str, Any]:
    """What the tests put into a session."""
    return {
        "value": session.get("value"),
        "log": await session.log("log").read(),
        "entries": await session.collection("entries").range(),
        "metadata": session.metadata,
    }


NOTHING: dict[str, Any] = {"value": None, "log": [], "entries": [], "metadata": {}}


async def fill(session: Session, what: Any) -> None:
    session.set("value", what)
    await session.log("log").append([what])
    await session.collection("entries").put("k", what)


def filled(*what: Any) -> dict[str, Any]:
    return {"value": what[-1], "log": list(what), "entries": [("k", what[-1])], "metadata": {"by": what[-1]}}


async def turn(manager: SessionManager, what: Any, **options: Any) -> None:
    async with manager.open("s", metadata={"by": what}, **options) as session:
        await fill(session, what)


async def stored(manager: SessionManager) -> dict[str, Any]:
    async with manager.read("s") as session:
        return await everything(session)


async def raised_by(work: Awaitable[Any]) -> BaseException:
    """The error that it ends with."""
    try:
        await work
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


# ------------------------------------------------------------------------------------------------------------- atomic


async def test_a_turn_that_raises_stores_nothing(manager: SessionManager, elsewhere: SessionManager) -> None:
    await turn(manager, 1)

    async def fail() -> None:
        async with manager.open("s", metadata={"by": 2}) as session:
            await fill(session, 2)
            session.get("value")
            assert await session.log("log").pop() == 2
            assert await session.log("log").pop() == 1
            await session.collection("entries").delete_prefix("")
            raise Fault

    with pytest.raises(Fault):
        await fail()
    for other in (manager, elsewhere):
        assert await stored(other) == filled(1)
        async with other.open("s") as session:
            assert await everything(session) == filled(1)


async def test_a_first_turn_that_raises_leaves_no_session(manager: SessionManager) -> None:
    async def fail() -> None:
        async with manager.open("s", user_id="alice", metadata={"by": 1}) as session:
            await fill(session, 1)
            raise Fault

    with pytest.raises(Fault):
        await fail()
    assert await manager.get("s") is None
    assert await stored(manager) == NOTHING


async def test_a_discarded_change_in_place_does_not_come_back(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("cart", ["apple"])

    async def fail() -> None:
        async with manager.open("s") as session:
            session.get("cart").append("pear")
            raise Fault

    with pytest.raises(Fault):
        await fail()
    async with manager.open("s") as session:
        assert session.get("cart") == ["apple"]


async def test_a_turn_that_raises_frees_the_session_at_once(manager: SessionManager, elsewhere: SessionManager) -> None:
    async def fail() -> None:
        async with manager.open("s"):
            raise Fault

    with pytest.raises(Fault):
        await fail()
    async with elsewhere.open("s", wait_s=0):
        pass


async def test_opening_without_creating_needs_the_session(manager: SessionManager) -> None:
    async def open_it() -> None:
        async with manager.open("s", create=False):
            pass

    with pytest.raises(SessionNotFoundError):
        await open_it()
    assert await manager.lock("s") is None
    await turn(manager, 1)
    await open_it()


async def test_a_commit_that_is_too_large_stores_nothing(manager: SessionManager) -> None:
    async def too_much() -> None:
        async with manager.open("s") as session:
            for name in "abc":
                session.set(name, b"x" * 12 * 2**20)

    with pytest.raises(CommitTooLargeError):
        await too_much()
    assert await manager.get("s") is None
    assert await manager.lock("s") is None


# -------------------------------------------------------------------------------------------------------------- joins


async def test_a_nested_open_joins(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as outer:
        async with manager.open("s", metadata={"by": 1}) as inner:
            assert inner is outer
            await fill(inner, 1)
        assert current_session() is outer
        assert await stored(elsewhere) == NOTHING
    assert await stored(elsewhere) == filled(1)


async def test_a_nested_open_is_no_savepoint(manager: SessionManager) -> None:
    async def fail_inside() -> None:
        async with manager.open("s") as inner:
            inner.set("inner", 1)
            raise Fault

    async with manager.open("s"):
        with pytest.raises(Fault):
            await fail_inside()
    async with manager.read("s") as session:
        assert session.get("inner") == 1


async def test_child_tasks_and_threads_join(manager: SessionManager) -> None:
    async def child(name: str) -> None:
        async with manager.open("s") as session:
            session.set(name, 1)
            await session.log("log").append([name])

    def in_a_thread(name: str) -> None:
        current_session().set(f"current {name}", 1)
        asyncio.run(child(name))
        with SyncSessionManager(manager=manager).open("s") as session:
            session.log("log").append([f"sync {name}"])

    async with manager.open("s") as session:
        async with asyncio.TaskGroup() as tasks:
            for n in range(4):
                tasks.create_task(child(f"task {n}"))
                tasks.create_task(asyncio.to_thread(in_a_thread, f"thread {n}"))
        assert await session.log("log").count() == 12
    async with manager.read("s") as session:
        assert len(session.keys()) == 12
        assert session.revision == 1


async def test_eight_children_update_one_value(make_manager: MakeManager) -> None:
    manager = make_manager(Before)

    async def child() -> None:
        async with manager.open("s") as session:
            session.update("cart", lambda cart: [*cart, 1], default=[])
            await session.log("l").append([1])

    async with manager.open("s", commit="step"):
        await asyncio.gather(*(child() for _ in range(8)))
    async with manager.read("s") as session:
        assert session.get("cart") == [1] * 8
        assert await session.log("l").read() == [1] * 8


async def test_two_sessions_in_one_another_are_two_turns(manager: SessionManager) -> None:
    async def fail() -> None:
        async with manager.open("a") as a:
            a.set("x", 1)
            async with manager.open("b") as b:
                b.set("x", 2)
                assert current_session() is b
                async with manager.open("a") as joined:
                    assert joined is a
            assert current_session() is a
            raise Fault

    with pytest.raises(Fault):
        await fail()
    assert await manager.get("a") is None
    assert await manager.get("b") is not None


async def test_another_task_does_not_join(make_manager: MakeManager) -> None:
    manager = make_manager(wait_s=0)
    opened, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with manager.open("s"):
            opened.set()
            await done.wait()

    holding = asyncio.create_task(hold())
    await opened.wait()
    with pytest.raises(TurnClosedError):
        current_session()
    with pytest.raises(SessionBusyError):
        await turn(manager, 1)
    done.set()
    await holding


async def test_a_child_task_that_outlives_the_turn_opens_its_own(manager: SessionManager) -> None:
    over = asyncio.Event()

    async def child() -> None:
        await over.wait()
        with pytest.raises(TurnClosedError):
            current_session()
        async with manager.open("s") as session:
            session.update("n", lambda n: n + 1)

    async with manager.open("s") as session:
        session.set("n", 1)
        task = asyncio.create_task(child())
    over.set()
    await task
    async with manager.read("s") as session:
        assert session.get("n") == 2


async def test_what_comes_after_the_last_commit_has_begun_is_refused_not_lost(make_manager: MakeManager) -> None:
    manager = make_manager(Stopping)
    store = before(manager, Stopping)
    barrier = store.stop("commit")

    async def child(session: Session) -> None:
        await barrier.reached.wait()
        for write in (lambda: session.set("late", 1), lambda: session.update("late", lambda n: n, default=1)):
            with pytest.raises(TurnClosedError):
                write()
        for awaited in (session.log("log").append([1]), session.collection("entries").put("k", 1)):
            with pytest.raises(TurnClosedError):
                await awaited
        barrier.lift()
        async with manager.open("s") as later:  # waits for the turn, and does not join it
            later.set("later", later.get("value"))

    async with manager.open("s") as session:
        task = asyncio.create_task(child(session))
        session.set("value", 1)
    await task
    async with manager.read("s") as session:
        assert session.items() == [("later", 1), ("value", 1)]


async def test_no_session_leaks_into_code_after_the_turn(manager: SessionManager) -> None:
    async with manager.open("s"):
        pass
    with pytest.raises(TurnClosedError):
        current_session()


async def test_a_turn_goes_with_its_last_reference() -> None:
    manager = SessionManager(MemoryStore())
    gc.collect()
    gc.disable()
    try:
        async with manager.open("s") as session:
            await fill(session, 1)
            alive = weakref.ref(session)
        del session
        assert alive() is None
    finally:
        gc.enable()


async def test_a_turn_left_by_a_generator_that_is_closed_is_discarded(manager: SessionManager) -> None:
    async def steps() -> Any:
        async with manager.open("s") as session:
            session.set("x", 1)
            yield

    going = steps()
    await anext(going)
    await going.aclose()
    assert await manager.get("s") is None
    assert await manager.lock("s") is None


async def test_a_turn_may_end_in_another_task_than_it_began_in(manager: SessionManager) -> None:
    opening = manager.open("s")
    session = await asyncio.create_task(opening.__aenter__())
    session.set("x", 1)
    await asyncio.create_task(opening.__aexit__(None, None, None))
    async with manager.read("s") as snapshot:
        assert snapshot.get("x") == 1


# ------------------------------------------------------------------------------------------------- leases and waiting


async def test_turns_wait_in_order_of_arrival(make_manager: MakeManager) -> None:
    manager = make_manager()
    order: list[int] = []

    async def wait_for_it(n: int) -> None:
        async with manager.open("s") as session:
            order.append(n)
            session.set("last", n)

    waiting = []
    async with manager.open("s"):
        for n in range(5):
            waiting.append(asyncio.create_task(asyncio.wait_for(wait_for_it(n), 20), context=alone()))
            await waiters(manager, "s", n + 1)
        assert order == []
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]


async def test_a_turn_on_a_held_session_is_refused_when_it_may_not_wait(make_manager: MakeManager) -> None:
    for other in (make_manager(on_busy="reject"), make_manager(wait_s=0), make_manager(wait_s=0.05)):
        async with make_manager().open("s"):
            with pytest.raises(SessionBusyError) as caught:
                await asyncio.create_task(turn(other, 1), context=alone())
        assert "unlock" in str(caught.value)
        assert await other.lock("s") is None


async def test_a_waiter_that_is_cancelled_leaves_the_queue(make_manager: MakeManager) -> None:
    manager = make_manager()
    async with manager.open("s"):
        waiter = asyncio.create_task(turn(manager, 1), context=alone())
        await waiters(manager, "s", 1)
        waiter.cancel()
        assert isinstance(await raised_by(waiter), asyncio.CancelledError)
        lock = await manager.lock("s")
        assert lock is not None
        assert lock.waiters == 0
    assert await manager.lock("s") is None


async def test_lock_tells_who_holds_the_session(manager: SessionManager) -> None:
    assert await manager.lock("s") is None
    async with manager.open("s"):
        lock = await manager.lock("s")
        assert lock is not None
        assert lock.process == os.getpid()
        assert lock.owner.startswith(lock.host)
        assert lock.since < lock.until
    assert await manager.lock("s") is None


async def test_unlock_needs_force(manager: SessionManager) -> None:
    async with manager.open("s"):
        with pytest.raises(SessionError) as caught:
            await manager.unlock("s", force=False)
        assert caught.value.code == "INVALID_FORCE"
    assert await manager.unlock("s", force=True) is None


async def test_a_turn_whose_lease_was_broken_and_taken_over_conflicts(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async def broken() -> None:
        async with manager.open("s") as session:
            await fill(session, "lost")
            lock = await elsewhere.unlock("s", force=True)
            assert lock is not None
            await asyncio.create_task(turn(elsewhere, "won", wait_s=0), context=alone())

    with pytest.raises(SessionConflictError):
        await broken()
    assert await stored(manager) == filled("won")
    assert await manager.lock("s") is None


async def test_a_turn_whose_lease_another_still_holds_conflicts_and_leaves_it_alone(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    other = elsewhere.open("s")

    async def broken() -> None:
        async with manager.open("s") as session:
            await fill(session, "lost")
            await elsewhere.unlock("s", force=True)
            await asyncio.create_task(other.__aenter__(), context=alone())

    with pytest.raises(SessionConflictError):
        await broken()
    lock = await manager.lock("s")
    assert lock is not None
    await asyncio.create_task(other.__aexit__(None, None, None), context=alone())


async def test_a_turn_whose_lease_was_broken_commits_if_nobody_came(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s", metadata={"by": 1}) as session:
        await fill(session, 1)
        await elsewhere.unlock("s", force=True)
    assert await stored(elsewhere) == filled(1)


async def test_a_dead_holder_delays_the_next_turn_by_its_lease_only(make_manager: MakeManager) -> None:
    clock = FakeClock()
    dead = make_manager(clock=clock)
    opening = dead.open("s")
    session = await opening.__aenter__()
    session.set("x", 1)
    dead.leases.drop(session._turn.owner or "")  # type: ignore[union-attr]
    next_one = make_manager(clock=clock, wait_s=0)
    with pytest.raises(SessionBusyError):
        await asyncio.create_task(turn(next_one, 2), context=alone())
    clock.advance(30.1)
    await asyncio.create_task(turn(next_one, 2), context=alone())
    with pytest.raises(SessionConflictError):
        await opening.__aexit__(None, None, None)
    assert (await stored(next_one))["value"] == 2


async def test_a_blocked_event_loop_keeps_its_lease(make_manager: MakeManager) -> None:
    manager = make_manager(lease_s=1.0)
    taken: list[str] = []

    def try_to_take_it() -> None:
        try:
            with SyncSessionManager(manager=make_manager(wait_s=1.5)).open("s"):
                taken.append("taken")
        except SessionBusyError:
            taken.append("refused")

    async with manager.open("s", metadata={"by": 1}) as session:
        await fill(session, 1)
        rival = threading.Thread(target=try_to_take_it)
        rival.start()
        time.sleep(2.0)  # noqa: ASYNC251 - a tool that blocks the loop for twice the lease
        rival.join()
        assert taken == ["refused"]
    assert await stored(manager) == filled(1)


async def test_a_store_that_fails_to_renew_once_is_asked_again(make_manager: MakeManager) -> None:
    renewed = threading.Event()

    class Hiccup(Before):
        failures = 0

        async def renew(self, key: Any, owner: str, ms: int) -> bool:
            self.failures += 1
            if self.failures == 1:
                raise OSError("a broken store")
            renewed.set()
            return await super().renew(key, owner, ms)

    async with make_manager(Hiccup, lease_s=1.0).open("s"):
        assert await asyncio.to_thread(renewed.wait, 5)


# ----------------------------------------------------------------------------------------------- cancelled on the way

AWAITS = ["open before", "open after", "body", "commit before", "commit after", "release before", "release after"]


@pytest.mark.parametrize("native", [True, False], ids=["native", "anyio"])
@pytest.mark.parametrize("point", AWAITS)
async def test_cancelled_anywhere_a_turn_is_whole_and_frees_the_session(
    make_manager: MakeManager, point: str, native: bool
) -> None:
    manager = make_manager(Stopping)
    store = before(manager, Stopping)
    await turn(manager, 1)
    operation, _, when = point.partition(" ")
    barrier = Barrier() if operation == "body" else store.stop(operation, when=when)
    scope = anyio.CancelScope()

    async def work() -> None:
        with scope:
            async with manager.open("s", metadata={"by": 2}) as session:
                await fill(session, 2)
                if operation == "body":
                    await barrier.stop()
                if operation == "release":
                    raise Fault

    task = asyncio.create_task(work())
    await asyncio.wait_for(barrier.reached.wait(), 5)
    task.cancel() if native else scope.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    if native and not task.done():
        task.cancel()  # a second time changes nothing
    barrier.lift()
    await asyncio.wait({task}, timeout=5)
    assert task.done()
    if native and operation != "release":
        assert task.cancelled()
    assert await stored(manager) == (filled(1, 2) if operation == "commit" else filled(1))
    async with make_manager(wait_s=0).open("s"):
        pass


async def test_a_step_cancelled_on_its_way_is_stored_and_the_turn_goes_on(make_manager: MakeManager) -> None:
    manager = make_manager(Stopping)
    store = before(manager, Stopping)
    async with manager.open("s", commit="step") as session:
        log = session.log("log")
        await log.append([1])
        barrier = store.stop("commit")
        appending = asyncio.create_task(log.append([2]))
        await barrier.reached.wait()
        appending.cancel()
        await asyncio.sleep(0)
        barrier.lift()
        assert isinstance(await raised_by(appending), asyncio.CancelledError)
        await log.append([3])
    async with manager.read("s") as snapshot:
        assert await snapshot.log("log").read() == [1, 2, 3]


async def test_a_session_made_by_hand_knows_of_a_commit_that_outlived_its_task(make_manager: MakeManager) -> None:
    manager = make_manager(Stopping)
    store = before(manager, Stopping)
    mine = Session("s")
    mine.set("n", 1)

    async def work() -> None:
        async with manager.open(mine) as session:
            session.update("n", lambda n: n + 1)

    barrier = store.stop("commit")
    task = asyncio.create_task(work())
    await barrier.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    barrier.lift()
    assert isinstance(await raised_by(task), asyncio.CancelledError)
    assert mine.get("n") == 2
    async with manager.open(mine) as session:
        assert session.get("n") == 2


# --------------------------------------------------------------------------------------------------------------- steps


async def test_steps_are_stored_one_by_one_with_the_values_so_far(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async def fail() -> None:
        async with manager.open("s", commit="step") as session:
            session.set("value", 1)
            assert await stored(elsewhere) == NOTHING
            await session.log("log").append([1])
            assert (await stored(elsewhere))["value"] == 1
            await session.collection("entries").put("k", 1)
            session.set("value", 2)
            raise Fault

    with pytest.raises(Fault):
        await fail()
    assert await stored(elsewhere) == {"value": 1, "log": [1], "entries": [("k", 1)], "metadata": {}}
    async with elsewhere.open("s", wait_s=0) as session:
        assert await everything(session) == {"value": 1, "log": [1], "entries": [("k", 1)], "metadata": {}}


async def test_steps_keep_one_lease_for_the_whole_turn(make_manager: MakeManager) -> None:
    async with make_manager().open("s", commit="step") as session:
        await session.log("log").append([1])
        with pytest.raises(SessionBusyError):
            await asyncio.create_task(turn(make_manager(wait_s=0), 2), context=alone())
        await session.log("log").append([2])
    assert (await stored(make_manager()))["log"] == [1, 2]


async def test_steps_from_many_tasks_and_threads_are_all_stored(make_manager: MakeManager) -> None:
    manager = make_manager(Before)

    async def task(session: Session, name: str) -> None:
        for n in range(5):
            await session.log("log").append([(name, n)])
            await session.collection("c").put(f"{name}{n}", n)
            session.update("count", lambda n: n + 1, default=0)

    async with manager.open("s", commit="step") as session, asyncio.TaskGroup() as tasks:
        for n in range(3):
            tasks.create_task(task(session, f"task{n}"))
            tasks.create_task(asyncio.to_thread(asyncio.run, task(session, f"thread{n}")))
    async with make_manager().read("s") as snapshot:
        items = await snapshot.log("log").read()
        assert len(items) == 30
        for name in {name for name, _ in items}:
            assert [n for one, n in items if one == name] == list(range(5))
        assert len(await snapshot.collection("c").range()) == 30
        assert snapshot.get("count") == 30


async def test_a_step_refused_ends_the_turn(manager: SessionManager, elsewhere: SessionManager) -> None:
    async def broken() -> None:
        async with manager.open("s", commit="step") as session:
            await session.log("log").append([1])
            await elsewhere.unlock("s", force=True)
            await asyncio.create_task(elsewhere.append("s", "default", "log", ["other"]), context=alone())
            with pytest.raises(SessionConflictError):
                await session.log("log").append([2])
            with pytest.raises(SessionConflictError):
                await session.log("log").read()

    with pytest.raises(SessionConflictError):
        await broken()
    assert (await stored(manager))["log"] == [1, "other"]


async def test_a_step_under_way_when_the_turn_is_discarded_leaves_no_lease(make_manager: MakeManager) -> None:
    manager = make_manager(Stopping)
    store = before(manager, Stopping)
    barrier = store.stop("commit")
    appending: list[asyncio.Task[None]] = []

    async def fail() -> None:
        async with manager.open("s", commit="step") as session:
            appending.append(asyncio.create_task(session.log("log").append([1])))
            await barrier.reached.wait()
            asyncio.get_running_loop().call_soon(barrier.lift)
            raise Fault

    with pytest.raises(Fault):
        await fail()
    await appending[0]
    assert await make_manager().lock("s") is None


# ------------------------------------------------------------------------------------------ replies lost, stores away


async def test_a_commit_whose_reply_is_lost_is_stored_once(make_manager: MakeManager) -> None:
    manager = make_manager(lambda inner: LosingReplies(inner, 1))
    store = before(manager, LosingReplies)
    await turn(manager, 1)
    assert store.calls["commit"] == 2
    assert await stored(manager) == filled(1)
    await turn(manager, 2)
    assert await stored(make_manager()) == filled(1, 2)
    assert (await manager.get("s")).revision == 2  # type: ignore[union-attr]


async def test_a_step_whose_reply_is_lost_is_stored_once(make_manager: MakeManager) -> None:
    manager = make_manager(lambda inner: LosingReplies(inner, 2))
    async with manager.open("s", commit="step", metadata={"by": 1}) as session:
        for n in range(4):
            await session.log("log").append([n])
            assert await session.log("log").read() == list(range(n + 1))
            assert session.metadata == {"by": 1}
        assert await session.log("log").pop() == 3
    async with manager.open("s") as session:
        assert await session.log("log").read() == [0, 1, 2]


async def test_a_delete_whose_reply_is_lost_is_repeated(make_manager: MakeManager) -> None:
    await turn(make_manager(), 1)
    manager = make_manager(lambda inner: LosingReplies(inner, 1))
    store = before(manager, LosingReplies)
    assert await manager.delete("s") is True
    assert store.calls["delete"] == 2
    assert await manager.delete("s") is False


async def test_a_store_silent_for_the_length_of_a_lease_leaves_the_commit_unknown(make_manager: MakeManager) -> None:
    manager = make_manager(Deaf, lease_s=1)
    store = before(manager, Deaf)
    for n in range(3):
        await turn(manager, n)
    store.is_deaf = True
    error = await raised_by(turn(manager, 3))
    store.is_deaf = False
    assert isinstance(error, CommitUnknownError)
    assert await manager.commit_status("s", error.commit_id) == "not_stored"
    assert await stored(manager) == filled(0, 1, 2)


async def test_commit_status_finds_what_is_stored(make_manager: MakeManager) -> None:
    manager = make_manager(lambda inner: LosingReplies(inner, 10**9), lease_s=1)
    error = await raised_by(turn(manager, 1))
    assert isinstance(error, CommitUnknownError)
    assert await manager.commit_status("s", error.commit_id) == "stored"
    other = make_manager()
    for n in range(2, 70):
        await turn(other, n)
    assert await manager.commit_status("s", error.commit_id) == "unknown"


async def test_a_store_that_was_never_reached_stored_nothing(make_manager: MakeManager) -> None:
    manager = make_manager(Deaf, lease_s=1)
    store = before(manager, Deaf)
    store.is_unreachable = True
    assert type(await raised_by(turn(manager, 1))) is StoreUnavailableError
    store.is_unreachable = False
    assert await stored(manager) == NOTHING


async def test_a_turn_left_too_far_behind_names_a_commit_that_commit_status_takes(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async def broken() -> None:
        async with manager.open("s") as session:
            await fill(session, "lost")
            await elsewhere.unlock("s", force=True)
            for n in range(70):
                await asyncio.create_task(turn(elsewhere, n), context=alone())

    await turn(manager, "first")
    error = await raised_by(broken())
    assert isinstance(error, CommitUnknownError)
    assert await manager.commit_status("s", error.commit_id) == "unknown"


@pytest.mark.parametrize("commit_id", ["", "x", "1-2", "1-zz-zz", "a-00-00", "1--", None])
async def test_commit_status_refuses_what_is_no_commit(commit_id: Any) -> None:
    error = await raised_by(SessionManager(MemoryStore()).commit_status("s", commit_id))
    assert isinstance(error, SessionError)
    assert error.code == "INVALID_COMMIT_ID"


async def test_an_error_of_the_body_is_raised_though_the_lease_cannot_be_given_up(make_manager: MakeManager) -> None:
    manager = make_manager(lambda inner: Failing(inner, "release"))

    async def fail() -> None:
        async with manager.open("s"):
            raise Fault

    with pytest.raises(Fault):
        await fail()


async def test_an_error_that_no_store_should_raise_ends_the_turn_and_frees_the_session(
    make_manager: MakeManager,
) -> None:
    with pytest.raises(OSError, match="a broken store"):
        await turn(make_manager(lambda inner: Failing(inner, "commit")), 1)
    await turn(make_manager(wait_s=0), 2)
    assert await stored(make_manager()) == filled(2)


# -------------------------------------------------------------------------------------------- beside a running turn


async def test_a_snapshot_beside_a_running_turn_shows_what_is_stored(manager: SessionManager) -> None:
    await turn(manager, 1)
    async with manager.open("s") as session:
        await fill(session, 2)
        async with manager.read("s") as snapshot:
            assert await everything(snapshot) == filled(1)
            assert snapshot is not current_session()


async def test_a_snapshot_has_copies_of_its_own(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("value", [1])
        await session.log("log").append([{"n": 1}])
        shared = (await session.log("log").read())[0]
    async with manager.read("s") as one, manager.read("s") as two:
        first, second = (await one.log("log").read())[0], (await two.log("log").read())[0]
        assert first is not second
        assert first is not shared
        first["n"] = 2
        one.get("value").append(2)
        assert (await two.log("log").read(), two.get("value")) == ([{"n": 1}], [1])


async def test_a_part_first_read_after_a_commit_is_a_conflict_not_a_mixture(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    await turn(manager, 1)
    async with elsewhere.read("s") as snapshot:
        assert snapshot.get("value") == 1
        await turn(manager, 2)
        with pytest.raises(SessionConflictError):
            await snapshot.log("log").read()
    async with elsewhere.read("s", logs={("default", "log"): None}) as snapshot:
        await turn(manager, 3)
        assert (snapshot.get("value"), await snapshot.log("log").read()) == (2, [1, 2])


async def test_a_blind_append_waits_for_a_turn_of_another(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        await session.log("log").append([1])
        appending = asyncio.create_task(elsewhere.append("s", "default", "log", [2]), context=alone())
        await waiters(elsewhere, "s", 1)
        await session.log("log").append([3])
    await appending
    assert (await stored(manager))["log"] == [1, 3, 2]


async def test_a_blind_append_inside_a_turn_is_part_of_it(manager: SessionManager) -> None:
    async def fail() -> None:
        async with manager.open("s") as session:
            await manager.append("s", "default", "log", [1])
            assert await session.log("log").read() == [1]
            raise Fault

    with pytest.raises(Fault):
        await fail()
    assert await manager.get("s") is None


async def test_blind_appends_take_one_round_trip_and_keep_batches_whole(make_manager: MakeManager) -> None:
    manager = make_manager(Counting)
    store = before(manager, Counting)
    for _ in range(3):
        await manager.append("s", "default", "log", [1, 2])
    assert store.calls == {"commit": 3}
    await asyncio.gather(*(other.append("s", "default", "log", ["a", "b"]) for other in (manager, make_manager()) * 4))
    items = (await stored(manager))["log"]
    assert items == [1, 2] * 3 + ["a", "b"] * 8


async def test_a_blind_append_is_stored_once_though_its_reply_is_lost(make_manager: MakeManager) -> None:
    manager = make_manager(lambda inner: LosingReplies(inner, 1))
    await manager.append("s", "default", "log", [1, 2])
    await manager.append("s", "default", "log", [3])
    assert (await stored(manager))["log"] == [1, 2, 3]


async def test_deleting_takes_effect_on_a_running_turn(manager: SessionManager, elsewhere: SessionManager) -> None:
    await turn(manager, 1)

    async def deleted_under_way() -> None:
        async with manager.open("s") as session:
            await fill(session, 2)
            assert await elsewhere.delete("s") is True

    with pytest.raises(SessionNotFoundError):
        await deleted_under_way()
    assert await manager.get("s") is None
    assert await stored(manager) == NOTHING


async def test_a_turn_over_a_session_deleted_and_made_again_conflicts(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    await turn(manager, 1)

    async def replaced_under_way() -> None:
        async with manager.open("s") as session:
            await fill(session, 2)
            await elsewhere.delete("s")
            await asyncio.create_task(turn(elsewhere, "new"), context=alone())

    with pytest.raises(SessionConflictError):
        await replaced_under_way()
    assert await stored(manager) == filled("new")


async def test_an_expired_session_is_as_if_it_had_never_been(make_manager: MakeManager) -> None:
    clock = FakeClock()
    manager = make_manager(clock=clock)
    await turn(manager, 1)
    clock.advance(604_801)
    assert await manager.get("s") is None
    async with manager.open("s") as session:
        assert await everything(session) == NOTHING
        assert session.revision == 0


# --------------------------------------------------------------------------------------------------------- the cache


async def test_two_processes_that_alternate_always_see_the_last_turn(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    expected: list[int] = []
    for n in range(30):
        async with (manager, elsewhere)[n % 2].open("s") as session:
            log = session.log("log")
            assert await log.read() == expected
            assert session.get("seen", default=-1) == n - 1
            if n % 5 == 4:
                await log.clear()
                expected.clear()
            elif n % 3 == 2:
                assert await log.pop() == expected.pop()
            await log.append([n])
            expected.append(n)
            session.set("seen", n)


async def test_a_session_made_again_is_not_taken_for_the_cached_one(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    for what in ("old", "new"):
        await elsewhere.delete("s")
        async with elsewhere.open("s", metadata={"by": what}) as session:
            await fill(session, what)
        for other in (manager, elsewhere):
            assert await stored(other) == filled(what)
            async with other.open("s") as session:
                assert await everything(session) == filled(what)


async def test_what_a_caller_does_to_items_reaches_nobody(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        await session.log("log").append([{"role": "user", "parts": [1]}, {"role": "assistant", "parts": []}])
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda item: item.update(role="changed"),
        lambda item: item["parts"].append(object()),
        lambda item: item["parts"].append(item),
        dict.clear,
        lambda item: item.update(parts=[1.0]),
        lambda item: item.update(parts=[True]),
    ]
    for change in changes:
        async with manager.open("s") as session:
            items = await session.log("log").read()
            assert items == [{"role": "user", "parts": [1]}, {"role": "assistant", "parts": []}]
            assert type(items[0]["parts"][0]) is int
            change(items[0])
            items.append("mine")
            assert await session.log("log").read(limit=2) == [
                {"role": "user", "parts": [1]},
                {"role": "assistant", "parts": []},
            ]


async def test_a_warm_turn_is_two_round_trips_and_carries_what_is_new(make_manager: MakeManager) -> None:
    manager = make_manager(Counting)
    store = before(manager, Counting)
    async with manager.open("s") as session:
        session.set("big", "x" * 1000)
        await session.log("log").append(list(range(100)))
    store.calls.clear()
    for n in range(3):
        async with manager.open("s") as session:
            assert len(await session.log("log").read()) == 100 + n
            assert session.get("big")
            await session.log("log").append([n])
    assert store.calls == {"open": 3, "commit": 3}
    for answer in store.answers[-3:]:
        assert answer.values == {}
        assert [read.items for read in answer.logs] == [[]]


async def test_another_process_learns_only_what_is_new(make_manager: MakeManager) -> None:
    manager = make_manager(Counting)
    store = before(manager, Counting)
    other = make_manager()
    async with other.open("s") as session:
        session.namespace("a").set("x", 1)
        session.namespace("b").set("x", 1)
        await session.log("log").append(list(range(50)))
    async with manager.read("s", logs={("default", "log"): 10}):
        pass
    async with other.open("s") as session:
        session.namespace("b").set("x", 2)
        await session.log("log").append(["new"])
    async with manager.open("s") as session:
        assert (session.namespace("a").get("x"), session.namespace("b").get("x")) == (1, 2)
        assert await session.log("log").read(limit=3) == [48, 49, "new"]
        assert await session.log("log").count() == 51
    answer = store.answers[1]
    assert list(answer.values) == ["b"]
    assert [len(read.items) for read in answer.logs] == [1]


async def test_logs_asked_for_come_with_the_session(make_manager: MakeManager) -> None:
    await turn(make_manager(), 1)
    manager = make_manager(Counting)
    store = before(manager, Counting)
    async with manager.open("s", logs={("default", "log"): None, ("never", "there"): 5}) as session:
        assert await session.log("log").read() == [1]
        assert await session.namespace("never").log("there").read() == []
    assert store.calls == {"open": 1, "commit": 1}


async def test_the_cache_is_bounded_by_count_and_bytes() -> None:
    counting = Counting(MemoryStore())
    settings = Settings(cache=CacheSettings(size=2, max_bytes=100_000), turn=TurnSettings())
    manager = SessionManager(counting.store, settings=settings)

    async def is_warm(session_id: str) -> bool:
        async with manager.read(session_id):
            return counting.opens[-1]["known"] is not None

    for name in "abc":
        async with manager.open(name) as session:
            session.set("x", name)
    assert not await is_warm("a")
    assert await is_warm("c")
    assert not await is_warm("b")
    async with manager.open("large") as session:
        session.set("x", b"x" * 100_000)
    assert not await is_warm("large")
    for name in "de":
        async with manager.open(name) as session:
            session.set("x", b"x" * 60_000)
    assert not await is_warm("d")
    async with manager.read("large") as session:
        assert session.get("x") == b"x" * 100_000


async def test_a_commit_not_certain_is_not_cached(make_manager: MakeManager) -> None:
    manager, other = make_manager(), make_manager()
    await turn(manager, 1)
    await turn(other, 2)
    await manager.append("s", "default", "log", ["blind"])  # over a cache that is behind
    assert (await stored(manager))["log"] == [1, 2, "blind"]
    assert await stored(manager) == await stored(other)
