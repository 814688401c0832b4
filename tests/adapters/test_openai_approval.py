"""Runs of the OpenAI Agents SDK that pause until a person has decided."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agents import (
    Agent,
    RunContextWrapper,
    RunState,
    function_tool,
)

from agent_sessions import MemoryStore, Runner, SessionManager, current_session
from agent_sessions.errors import InvalidError, RunPausedError

from .openai_agents import (
    assert_every_call_is_answered,
    calls,
    model_of,
    says,
    scripted,
    seen,
    stored,
    texts,
    told_by,
)


@function_tool(needs_approval=True)
async def delete(path: str) -> str:
    return f"deleted {path} of {current_session().id}"


def cautious(*steps: Any, **options: Any) -> Agent[Any]:
    return scripted(*steps, tools=[delete], **options)


async def test_a_paused_run_goes_on_in_another_process(store: Any) -> None:
    before = Runner(SessionManager(store))
    secret = {"connection": object(), "password": "hunter2"}
    run = await before.run(cautious(calls("delete", {"path": "/a"})), "s", "Clean up", context=secret)

    assert (run.status, run.output) == ("PAUSED", None)
    assert [(one.id, one.tool, one.payload) for one in run.pending] == [("delete-0", "delete", {"path": "/a"})]

    manager = SessionManager(store)
    agent = cautious(says("Clean now"))
    resumed = await Runner(manager).resume(agent, "s", True)

    assert (resumed.status, resumed.output) == ("COMPLETE", "Clean now")
    items = await stored(manager, "s")
    assert texts(items) == ["Clean up", "deleted /a of s", "Clean now"]
    assert_every_call_is_answered(items)
    with pytest.raises(InvalidError, match="INVALID_DECISIONS"):
        await Runner(manager).resume(agent, "s", True)


async def test_the_callers_context_is_never_stored_and_given_anew(runner: Runner, manager: SessionManager) -> None:
    given = []

    @function_tool(needs_approval=True)
    async def look(context: RunContextWrapper[Any]) -> str:
        given.append(context.context)
        return "seen"

    first = scripted(calls("look", {}), tools=[look])
    await runner.run(first, "s", "go", context={"password": "hunter2", "client": object()})
    async with manager.read("s") as session:
        assert "hunter2" not in repr(session.namespace("openai").get("paused"))

    mine = object()
    await runner.resume(scripted(says("ok"), tools=[look]), "s", True, context=mine)

    assert given == [mine]


async def test_decisions_may_differ_and_come_one_by_one(runner: Runner, manager: SessionManager) -> None:
    await runner.run(cautious(calls("delete", {"path": "/a"}, {"path": "/b"}, {"path": "/c"})), "s", "Clean up")
    agent = cautious(says("Did what I could"))

    partly = await runner.resume(agent, "s", {"delete-0": True, "delete-1": {"approve": False, "message": "keep /b"}})
    assert [one.id for one in partly.pending] == ["delete-2"]
    whole = await runner.resume(agent, "s", {"delete-2": False})

    assert whole.output == "Did what I could"
    answers = {item["call_id"]: item["output"] for item in await stored(manager, "s") if "output" in item}
    assert answers["delete-0"] == "deleted /a of s"
    assert answers["delete-1"] == "keep /b"
    assert "not approved" in answers["delete-2"]


async def test_a_run_state_decided_on_by_the_sdks_own_means_is_taken(runner: Runner) -> None:
    first = cautious(calls("delete", {"path": "/a"}))
    run = await runner.run(first, "s", "Clean up")
    model_of(first).enqueue(says("Clean"))
    state: RunState[Any, Any] = run.raw.to_state()
    state.approve(state.get_interruptions()[0])

    assert (await runner.resume(first, "s", state)).output == "Clean"


@pytest.mark.parametrize("decisions", ["yes", {"unknown": True}, {"delete-0": "maybe"}, None])
async def test_a_wrong_decision_is_refused_and_the_run_stays_paused(runner: Runner, decisions: Any) -> None:
    await runner.run(cautious(calls("delete", {"path": "/a"})), "s", "Clean up")
    agent = cautious(says("Clean"))

    with pytest.raises(InvalidError) as error:
        await runner.resume(agent, "s", decisions)

    assert error.value.code == "INVALID_DECISIONS"
    assert (await runner.resume(agent, "s", True)).output == "Clean"


async def test_new_input_is_refused_while_a_run_is_paused(runner: Runner, manager: SessionManager) -> None:
    await runner.run(cautious(calls("delete", {"path": "/a"})), "s", "Clean up")
    before = await stored(manager, "s")
    agent = cautious(says("Other things"))

    with pytest.raises(RunPausedError):
        await runner.run(agent, "s", "Something else")
    assert await stored(manager, "s") == before

    await runner.run(agent, "s", "Something else", abandon=True)
    items = await stored(manager, "s")
    assert texts(items) == ["Clean up", "Tool execution was not approved.", "Something else", "Other things"]
    assert_every_call_is_answered(items)
    assert seen(agent) == items[:-1]


async def test_a_stream_that_pauses_says_so_last(runner: Runner) -> None:
    told = await told_by(runner, cautious(calls("delete", {"path": "/a"})))

    assert told[-1].type == "paused"
    assert [one.id for one in told[-1].run.pending] == ["delete-0"]
    assert (await runner.resume(cautious(says("Clean")), "s", True)).output == "Clean"


async def test_a_pause_inside_an_agent_as_tool_is_decided_on_by_its_own_call(runner: Runner) -> None:
    given = []

    @function_tool(needs_approval=True)
    async def look(context: RunContextWrapper[Any]) -> str:
        given.append(context.context)
        return "seen"

    def parent(*steps: Any, inner: list[Any]) -> Agent[Any]:
        expert = scripted(*inner, name="expert", tools=[look])
        return scripted(*steps, tools=[expert.as_tool("ask_expert", "Asks the expert")])

    before = parent(calls("ask_expert", {"input": "?"}), inner=[calls("look", {})])
    run = await runner.run(before, "s", "Ask", context={"password": "hunter2"})
    assert [one.id for one in run.pending] == ["look-0"]

    after = parent(says("All seen"), inner=[says("seen")])
    mine = object()
    resumed = await runner.resume(after, "s", {"look-0": True}, context=mine)

    assert resumed.output == "All seen"
    assert given == [mine]


def test_half_an_emoji_does_not_lose_a_run() -> None:
    runner = Runner(SessionManager(MemoryStore()))
    half = json.loads('"\\ud83d"')
    agent = cautious(says(half) + calls("delete", {"path": "/a"}), says("ok"))
    runner.run_sync(agent, "s", half)

    run = runner.resume_sync(agent, "s", False)

    assert run.output == "ok"
    assert texts(seen(agent))[:2] == [half, half]
