"""What is kept of runs, and counts of messages: as long as the session, and for nobody else."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from agent_sessions import AuthContext, MemoryStore, Runner, Session, SessionManager, Settings
from agent_sessions.errors import ForbiddenError, SessionNotFoundError
from agent_sessions.testing import FakeClock
from tests.lifecycle.conftest import Everywhere
from tests.support import alone

DAY = 86_400.0


async def answer(prompt: str, session: Session) -> str:
    await session.log("said", messages=True).append([prompt, "re"])
    return f"re: {prompt}"


@pytest.mark.parametrize("by", ["session", "user"])
async def test_a_run_whose_session_is_deleted_meanwhile_leaves_nothing(everywhere: Everywhere, by: str) -> None:
    manager, other = everywhere(), everywhere()

    async def erase() -> None:
        await (other.delete("s") if by == "session" else other.delete_user("ann"))

    async def agent(prompt: str, session: Session) -> str:
        await asyncio.create_task(erase(), context=alone())
        return await answer(prompt, session)

    runner = Runner(manager)
    first = await runner.run(answer, "s", "of-ann", user_id="ann")
    with pytest.raises(SessionNotFoundError):
        await runner.run(agent, "s", "also of-ann", user_id="ann")

    assert await other.get("s") is None
    assert await runner.get_activation(first.activation_id) is None
    assert await runner.activations("s") == []


@pytest.mark.parametrize(
    ("session", "after"),
    [
        ({"ttl": 60}, 60),
        ({"ttl": "30d"}, 30 * DAY),
        ({"policy": {"absolute_timeout": 60, "retention": 60}}, 120),
        ({"ttl": 0}, 7 * DAY),  # as configured: it is not known how long this one will last
    ],
)
async def test_the_record_of_a_run_lasts_as_long_as_its_session(session: dict[str, Any], after: float) -> None:
    clock = FakeClock()
    manager = SessionManager(MemoryStore(clock))
    runner = Runner(manager)
    opened = manager.create if "policy" in session else partial(manager.create, policy={"end_after": None})
    await opened(session_id="s", **session)
    run = await runner.run(answer, "s", "hi")
    clock.advance(after - 0.001)
    assert await runner.get_activation(run.activation_id) is not None
    assert await manager.get("s") is not None
    clock.advance(0.001)
    assert await runner.get_activation(run.activation_id) is None
    assert (await manager.get("s") is None) == (session != {"ttl": 0})


async def test_the_records_of_anothers_runs_are_refused_where_ownership_is_enforced() -> None:
    manager = SessionManager(MemoryStore(), settings=Settings(enforce_ownership=True))
    runner = Runner(manager)
    with manager.acting_as(AuthContext(user_id="ann")):
        run = await runner.run(answer, "s", "of ann")
    with manager.acting_as(AuthContext(user_id="eve")):
        with pytest.raises(ForbiddenError):
            await runner.run(answer, "s", "of eve")
        with pytest.raises(ForbiddenError):
            await runner.get_activation(run.activation_id)
        with pytest.raises(ForbiddenError):
            await runner.activations("s")
    with manager.acting_as(AuthContext(user_id="ann")):
        assert [one.activation_id for one in await runner.activations("s")] == [run.activation_id]
        assert await runner.get_activation(run.activation_id) is not None


async def test_messages_are_counted_whichever_way_they_come(everywhere: Everywhere) -> None:
    manager, other = everywhere(), everywhere()
    said: list[Any] = ["x", "y"]
    await manager.append("s", "default", "said", said, messages=True)
    await asyncio.gather(*(one.append("s", "default", "said", said, messages=True) for one in (manager, other)))
    await Runner(other).run(answer, "s", "hi")
    async with manager.open("s", commit="step") as session:
        log = session.log("said", messages=True)
        await log.pop()
        await log.append(said)
        session.count_messages(10)
    record = await other.get("s")
    assert record is not None
    assert record.message_count == 19
    [listed] = (await other.list()).sessions
    assert listed.message_count == 19
    async with manager.open("s") as session:
        await session.log("said", messages=True).clear()
    assert (await manager.end("s")).message_count == 10
