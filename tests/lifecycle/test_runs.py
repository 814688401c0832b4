"""Runs and counts of messages on sessions that are deleted, on every store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_sessions import Runner, Session
from agent_sessions.errors import SessionNotFoundError
from tests.lifecycle.conftest import Everywhere
from tests.support import alone


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
