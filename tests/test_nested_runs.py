"""Runs inside turns and runs: whose conversation they go on with, in which order, from which thread."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent_sessions import Runner, Session, SessionManager, Settings, SyncSession, skill
from agent_sessions.errors import InvalidError
from agent_sessions.runs.adapters import Call, Outcome
from agent_sessions.settings import TurnSettings
from agent_sessions.testing import FakeClock
from tests.fixtures import MakeManager, make_manager, manager
from tests.support import alone, until

__all__ = ["make_manager", "manager"]


class Fault(Exception):
    """What an agent may raise."""


class Notes:
    """A hook that keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def before_run(self, call: Call) -> Outcome | None:
        self.calls.append(call)
        return None

    async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
        return outcome

    def threads(self) -> list[str]:
        return [call.thread for call in self.calls]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def runner(manager: SessionManager, notes: Notes) -> Runner:
    return Runner(manager, hooks=[notes])


async def writes(prompt: str, session: Session) -> str:
    """An agent that stores what it is told, and says so."""
    session.set("value", prompt)
    await session.log("said").append([prompt])
    return f"stored {prompt}"


async def value(manager: SessionManager, name: str = "value", session_id: str = "s") -> Any:
    async with manager.read(session_id) as session:
        return session.get(name)


class OneAtATime:
    """An agent that fails if it runs twice at once."""

    def __init__(self) -> None:
        self._inside: list[str] = []

    async def __call__(self, prompt: str, session: Session) -> None:
        assert self._inside == []
        self._inside.append(prompt)
        await asyncio.sleep(0.002)
        self._inside.remove(prompt)


# ---------------------------------------------------------------------------------------------------- conversations


async def test_what_a_skill_runs_on_its_session_is_a_child_with_a_conversation_of_its_own(
    runner: Runner, notes: Notes, manager: SessionManager
) -> None:
    @skill
    async def delegate(session: Session) -> str:
        return str((await runner.run(writes, session, "inner")).output)

    async def outer(prompt: str, session: Session) -> list[str]:
        answers = [await delegate(), await delegate()]  # type: ignore[call-arg]
        assert session.get("value") == "inner"
        assert await asyncio.create_task(value(manager), context=alone()) is None
        return answers

    run = await runner.run(outer, "s", "hi")
    assert run.output == ["stored inner"] * 2
    children = [one for one in await runner.activations("s") if one.activation_id != run.activation_id]
    assert [(one.parent_activation_id, one.status) for one in children] == [(run.activation_id, "COMPLETE")] * 2
    assert notes.threads()[0] == "outer"
    assert set(notes.threads()[1:]) == {f"writes@{one.activation_id}" for one in children}
    assert [call.is_child for call in notes.calls] == [False, True, True]


async def test_what_a_skill_runs_on_another_session_is_a_turn_of_its_own(
    runner: Runner, notes: Notes, manager: SessionManager
) -> None:
    @skill
    async def delegate() -> None:
        await runner.run(writes, "other", "inner")

    async def outer(prompt: str, session: Session) -> str:
        await delegate()
        assert await value(manager, session_id="other") == "inner"  # stored by now
        raise Fault

    with pytest.raises(Fault):
        await runner.run(outer, "s", "hi")
    assert [(call.thread, call.is_child) for call in notes.calls] == [("outer", False), ("writes", False)]
    assert await value(manager, session_id="other") == "inner"
    assert await manager.get("s") is None
    [inner], [failed] = await runner.activations("other"), await runner.activations("s")
    assert inner.parent_activation_id == failed.activation_id


async def test_what_an_agent_runs_outside_of_skills_goes_on_with_its_usual_conversation(
    runner: Runner, notes: Notes
) -> None:
    async def again(prompt: str, session: Session) -> str:
        return "leaf" if prompt == "deep" else str((await runner.run(again, session, "deep")).output)

    async def outer(prompt: str, session: Session) -> str:
        return str((await runner.run(again, session, prompt)).output)

    assert (await runner.run(outer, "s", "hi")).output == "leaf"
    assert notes.threads()[:2] == ["outer", "again"]
    assert notes.threads()[2].startswith("again@")  # it is in the middle of its own


@pytest.mark.parametrize("name", ["", "x" * 101, "é" * 51], ids=["empty", "long", "long in bytes"])
async def test_a_conversation_of_a_wrong_name_is_refused(name: str, runner: Runner, manager: SessionManager) -> None:
    with pytest.raises(InvalidError) as refused:
        await runner.run(writes, "s", "hi", conversation=name)
    assert refused.value.field == "conversation"
    assert await manager.get("s") is None


async def test_the_longest_conversation_and_the_longest_name_of_an_agent_are_kept_apart(
    runner: Runner, notes: Notes
) -> None:
    await runner.run(writes, "s", "hi", conversation="é" * 50)
    agents = [functools.wraps(writes)(lambda *given: writes(*given)) for _ in range(2)]
    for number, agent in enumerate(agents):
        agent.__name__ = "é" * 60 + str(number)
        await runner.run(agent, "s", "hi")
    assert notes.threads()[0] == "é" * 50
    assert len({*notes.threads()}) == 3
    assert all(len(thread.encode()) <= 100 for thread in notes.threads())


# ---------------------------------------------------------------------------------------------------- side by side


async def test_runs_of_one_conversation_in_one_turn_follow_one_another(runner: Runner, manager: SessionManager) -> None:
    agent = OneAtATime()
    async with manager.open("s"):
        await asyncio.gather(*(runner.run(agent, "s", str(n)) for n in range(8)))


async def test_runs_of_several_conversations_in_one_turn_run_at_once(runner: Runner, manager: SessionManager) -> None:
    entered: list[str] = []
    all_in = asyncio.Event()

    async def agent(prompt: str, session: Session) -> None:
        entered.append(prompt)
        if len(entered) == 4:
            all_in.set()
        await all_in.wait()

    async with manager.open("s"), asyncio.timeout(30):
        await asyncio.gather(*(runner.run(agent, "s", "", conversation=str(n)) for n in range(4)))


async def test_runs_of_one_conversation_from_threads_of_one_turn_follow_one_another(
    runner: Runner, manager: SessionManager
) -> None:
    agent = OneAtATime()
    async with manager.open("s"), asyncio.timeout(30):
        await asyncio.gather(*(asyncio.to_thread(runner.run_sync, agent, "s", str(n)) for n in range(4)))
    assert [one.status for one in await runner.activations("s")] == ["COMPLETE"] * 4


async def test_sync_skills_in_threads_run_agents_in_the_turn_of_their_run(
    runner: Runner, manager: SessionManager
) -> None:
    @skill
    def delegate(number: int, session: SyncSession) -> str:
        run = runner.run_sync(writes, session.id, str(number), conversation="shared")
        session.update("delegated", lambda n: n + 1, default=0)
        return str(run.output)

    async def outer(prompt: str, session: Session) -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(delegate, n) for n in range(8)))  # type: ignore[call-arg]

    async with asyncio.timeout(30):
        run = await runner.run(outer, "s", "hi")
    assert run.output == [f"stored {n}" for n in range(8)]
    async with manager.read("s") as session:
        assert session.get("delegated") == 8
        assert sorted(await session.log("said").read()) == sorted("01234567")


async def test_a_run_cancelled_while_another_of_its_conversation_is_on_lets_the_next_one_in(
    runner: Runner, manager: SessionManager
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def agent(prompt: str, session: Session) -> str:
        entered.set()
        await go_on.wait()
        return prompt

    async def all_begun() -> bool:
        return len(await runner.activations("s")) == 3

    async with manager.open("s"), asyncio.timeout(30):
        first = asyncio.create_task(runner.run(agent, "s", "first"))
        await entered.wait()
        second, third = (asyncio.create_task(runner.run(agent, "s", prompt)) for prompt in ("second", "third"))
        await until(all_begun)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go_on.set()
        assert [(await one).output for one in (first, third)] == ["first", "third"]


# ----------------------------------------------------------------------------------------------------- a short life


def short_lived(make_manager: MakeManager, clock: FakeClock) -> SessionManager:
    return SessionManager(make_manager(clock=clock).store, settings=Settings(ttl=1, turn=TurnSettings(lease_s=30)))


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
@pytest.mark.parametrize("commit", ["turn", "step"])
async def test_a_session_of_a_short_ttl_does_not_go_while_a_run_is_on(
    commit: Any, is_new: bool, make_manager: MakeManager
) -> None:
    clock = FakeClock()
    manager = short_lived(make_manager, clock)
    runner = Runner(manager)

    async def slow(prompt: str, session: Session) -> None:
        for _ in range(3):
            await session.log("said").append([prompt])
            clock.advance(5)

    if not is_new:
        await runner.run(writes, "s", "first")
    await runner.run(slow, "s", "slow", commit=commit)
    async with manager.read("s") as session:
        assert await session.log("said").read() == ["first"] * (not is_new) + ["slow"] * 3
    clock.advance(2)
    assert await manager.get("s") is None


# ------------------------------------------------------------------------------------------------ finding adapters


@pytest.mark.parametrize(
    ("made", "wanted", "others"),
    [
        ("lambda prompt, session: 'ok'", "", "agents langgraph agent_sessions_openai agent_sessions_langgraph"),
        (
            "__import__('agents').Agent('a', model=__import__('agents.testing').testing.ScriptedModel("
            "[[__import__('agents.testing').testing.assistant_message('ok')]]))",
            "agent_sessions_openai",
            "langgraph agent_sessions_langgraph",
        ),
        (
            "__import__('langgraph.func').func.entrypoint()(lambda said: 'ok')",
            "agent_sessions_langgraph",
            "agents agent_sessions_openai",
        ),
    ],
    ids=["function", "openai", "langgraph"],
)
def test_only_the_framework_of_the_agent_is_imported(made: str, wanted: str, others: str) -> None:
    script = f"""
import asyncio, sys
from agent_sessions import MemoryStore, Runner, SessionManager
assert not set(sys.modules) & set("agents langgraph agent_sessions_openai agent_sessions_langgraph".split())
agent = {made}
run = asyncio.run(Runner(SessionManager(MemoryStore())).run(agent, "s", "hi"))
assert run.output == "ok", run
assert set("{wanted}".split()) <= set(sys.modules)
assert not set(sys.modules) & set("{others}".split())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def async_agent(prompt: str, session: Session) -> str:
    session.set("value", prompt)
    return f"re: {prompt}"


async def generator_agent(prompt: str, session: Session) -> AsyncIterator[str]:
    session.set("value", prompt)
    yield "re: "
    yield prompt


class AsyncObject:
    async def __call__(self, prompt: str, session: Session) -> str:
        return await async_agent(prompt, session)

    async def method(self, prompt: str, session: Session) -> str:
        return await async_agent(prompt, session)


class GeneratorObject:
    async def __call__(self, prompt: str, session: Session) -> AsyncIterator[str]:
        async for text in generator_agent(prompt, session):
            yield text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "async": async_agent,
    "generator": generator_agent,
    "async object": AsyncObject(),
    "async method": AsyncObject().method,
    "generator object": GeneratorObject(),
    "partial": functools.partial(async_agent),
    "partial generator": functools.partial(generator_agent),
    "returns an awaitable": lambda prompt, session: async_agent(prompt, session),
}


@pytest.mark.parametrize("agent", FUNCTIONS.values(), ids=FUNCTIONS.keys())
async def test_any_kind_of_function_is_an_agent(
    agent: Callable[..., Any], runner: Runner, manager: SessionManager
) -> None:
    run = await runner.run(agent, "s", "hi")
    assert (run.output, run.status) == ("re: hi", "COMPLETE")
    assert await value(manager) == "hi"
    async with runner.stream(agent, "s", "again") as stream:
        events = [event async for event in stream]
    assert "".join(event.text or "" for event in events) == "re: again"
    assert (events[-1].type, events[-1].run.output) == ("done", "re: again")
    assert await value(manager) == "again"
