"""What the library gives its users for their tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent_sessions import MemoryStore, Runner, Session, SessionManager
from agent_sessions.testing import FakeClock, ScriptedAgent


async def test_a_scripted_agent_takes_a_step_in_each_run() -> None:
    async def count(prompt: str, session: Session) -> int:
        result: int = session.update("count", lambda n: n + 1, default=0)
        return result

    agent = ScriptedAgent("hello", count, lambda prompt, session: prompt.upper(), ValueError("no"), name="helper")
    runner = Runner(SessionManager(MemoryStore()))
    assert [(await runner.run(agent, "s", prompt)).output for prompt in "abc"] == ["hello", 1, "C"]
    with pytest.raises(ValueError, match="no"):
        await runner.run(agent, "s", "d")
    with pytest.raises(AssertionError, match="over after 4 runs"):
        await runner.run(agent, "s", "e")
    assert agent.prompts == ["a", "b", "c", "d", "e"]
    assert {activation.agent_name for activation in await runner.activations("s")} == {"helper"}


async def test_a_session_is_gone_when_the_clock_says_so() -> None:
    clock = FakeClock()
    manager = SessionManager(MemoryStore(clock=clock))
    async with manager.open("s") as session:
        session.set("key", 1)
    clock.advance(7 * 24 * 3600 - 1)
    assert await manager.get("s") is not None
    clock.advance(1)
    assert await manager.get("s") is None


def test_clock_and_agent_need_no_test_library() -> None:
    code = "import agent_sessions.testing, sys; assert not {'pytest', 'hypothesis'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
