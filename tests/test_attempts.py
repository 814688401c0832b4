"""`SessionManager.attempt`: a turn on a session as the process has seen it last, in one round trip."""

from __future__ import annotations

import asyncio

import pytest

from agent_sessions import SessionManager, SyncSessionManager
from agent_sessions.errors import SessionConflictError, SessionNotFoundError
from tests.fixtures import MakeManager
from tests.fixtures import elsewhere as elsewhere
from tests.fixtures import make_manager as make_manager
from tests.fixtures import manager as manager
from tests.support import Counting, alone, before


async def test_an_attempt_is_one_commit(make_manager: MakeManager) -> None:
    manager = make_manager(Counting)
    async with manager.open("s") as session:
        session.set("count", 1)
    counting = before(manager, Counting)
    counting.calls.clear()

    for _ in range(2):
        async with manager.attempt("s") as session:
            session.set("count", session.get("count") + 1)

    assert dict(counting.calls) == {"commit": 2}
    async with manager.read("s") as session:
        assert session.get("count") == 3


async def test_an_attempt_on_what_has_changed_stores_nothing(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    with pytest.raises(SessionConflictError):
        async with manager.attempt("s"):
            raise AssertionError("nobody has seen it")
    async with manager.open("s") as session:
        session.set("who", "we")
    async with elsewhere.open("s") as session:
        session.set("who", "they")

    with pytest.raises(SessionConflictError):
        await _set(manager, "we again")

    async with manager.read("s") as session:
        assert session.get("who") == "they"


async def test_an_attempt_neither_waits_for_a_turn_nor_breaks_it(
    manager: SessionManager, elsewhere: SessionManager
) -> None:
    async with manager.open("s") as session:
        session.set("who", "we")
    async with elsewhere.open("s") as theirs:
        theirs.set("who", "they")
        attempt = asyncio.create_task(_set(manager, "we again"), context=alone())
        with pytest.raises(SessionConflictError):
            await attempt

    async with manager.read("s") as session:
        assert session.get("who") == "they"


async def test_an_attempt_makes_no_session_again(manager: SessionManager, elsewhere: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("who", "we")
    await elsewhere.delete("s")

    with pytest.raises(SessionNotFoundError):
        await _set(manager, "we again")


async def test_an_attempt_that_raises_stores_nothing_and_joins_a_turn(manager: SessionManager) -> None:
    async with manager.open("s") as outer:
        outer.set("count", 1)
        async with manager.attempt("s") as inner:
            assert inner is outer
    with pytest.raises(ZeroDivisionError):
        await _set(manager, "nobody", fail=True)

    async with manager.open("s") as session:
        assert session.get("who") is None


async def test_an_attempt_works_without_async(manager: SessionManager) -> None:
    blocking = SyncSessionManager(manager=manager)

    def work() -> None:
        with blocking.open("s") as session:
            session.set("count", 1)
        with blocking.attempt("s") as session:
            session.set("count", 2)
            with blocking.open("s") as joined:
                assert joined.get("count") == 2

    await asyncio.to_thread(work)
    async with manager.read("s") as stored:
        assert stored.get("count") == 2
        assert stored.revision == 2


async def _set(manager: SessionManager, who: str, *, fail: bool = False) -> None:
    async with manager.attempt("s") as session:
        session.set("who", who)
        if fail:
            raise ZeroDivisionError
