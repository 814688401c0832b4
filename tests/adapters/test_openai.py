"""Agents of the OpenAI Agents SDK under our runner: the SDK's own code, with scripted models."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from agents import (
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    RunContextWrapper,
    function_tool,
)
from agents import Runner as SDKRunner
from agents.testing import function_call

from agent_sessions import Runner, Session, SessionManager, SyncSession, skill
from agent_sessions.errors import InvalidError
from agent_sessions_openai import OpenAISession

from .openai_agents import (
    Broken,
    assert_every_call_is_answered,
    calls,
    says,
    scripted,
    seen,
    stored,
    texts,
)

# ---------------------------------------------------------------------------------------------------- conversations


async def test_the_second_run_knows_what_the_first_one_said(runner: Runner, manager: SessionManager) -> None:
    agent = scripted(says("Hello Ada"), says("You are Ada"))

    first = await runner.run(agent, "s", "I am Ada")
    second = await runner.run(agent, "s", "Who am I?")

    assert (first.output, second.output, second.status) == ("Hello Ada", "You are Ada", "COMPLETE")
    assert second.raw.final_output == "You are Ada"
    assert texts(seen(agent)) == ["I am Ada", "Hello Ada", "Who am I?"]
    assert texts(await stored(manager, "s")) == ["I am Ada", "Hello Ada", "Who am I?", "You are Ada"]


async def test_the_sdks_own_runner_goes_on_where_ours_stopped(runner: Runner, manager: SessionManager) -> None:
    agent = scripted(says("one"), says("two"), says("three"))

    await runner.run(agent, "s", "1")
    await SDKRunner.run(agent, "2", session=OpenAISession("s", manager=manager))
    await runner.run(agent, "s", "3")

    assert texts(await stored(manager, "s")) == ["1", "one", "2", "two", "3", "three"]


async def test_input_may_be_the_sdks_items(runner: Runner, manager: SessionManager) -> None:
    await runner.run(scripted(says("ok")), "s", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])

    assert texts(await stored(manager, "s")) == ["a", "b", "ok"]


async def test_a_named_conversation_is_apart(runner: Runner, manager: SessionManager) -> None:
    agent = scripted(says("main"), says("aside"))

    await runner.run(agent, "s", "1")
    await runner.run(agent, "s", "2", conversation="side")

    assert texts(await stored(manager, "s")) == ["1", "main"]
    assert texts(await stored(manager, "s", "items/side")) == ["2", "aside"]
    aside = OpenAISession("s", manager=manager, conversation="side")
    assert await aside.get_items() == await stored(manager, "s", "items/side")


async def test_one_agent_serves_fifty_sessions_at_once(runner: Runner, manager: SessionManager) -> None:
    async def echo(call: Any) -> Any:
        await asyncio.sleep(0.001)
        return says(f"heard {call.input[-1]['content']} after {len(call.input)}")

    agent = scripted(*[{"responder": echo}] * 100)

    for round_ in range(2):
        runs = await asyncio.gather(*(runner.run(agent, f"s{n}", f"{round_}-{n}") for n in range(50)))
        assert [run.output for run in runs] == [f"heard {round_}-{n} after {2 * round_ + 1}" for n in range(50)]
    for n in range(50):
        said = texts(await stored(manager, f"s{n}"))
        assert said == [f"0-{n}", f"heard 0-{n} after 1", f"1-{n}", f"heard 1-{n} after 3"]


async def test_agents_that_hand_off_share_the_conversation(runner: Runner, manager: SessionManager) -> None:
    expert = scripted(says("I am the expert"), says("Still the expert"), name="expert")
    triage = scripted([function_call("transfer_to_expert", {}, call_id="h")], name="triage", handoffs=[expert])

    run = await runner.run(triage, "s", "Help")
    await runner.run(expert, "s", "More")

    assert run.output == "I am the expert"
    assert_every_call_is_answered(await stored(manager, "s"))
    assert "I am the expert" in texts(seen(expert))


async def test_context_reaches_tools_as_it_is(runner: Runner) -> None:
    given = []

    @function_tool
    async def look(context: RunContextWrapper[Any]) -> str:
        given.append(context.context)
        return "seen"

    mine = object()
    await runner.run(scripted(calls("look", {}), says("ok"), tools=[look]), "s", "go", context=mine)

    assert given == [mine]


async def test_a_drop_in_for_a_session_is_refused_with_the_reason(runner: Runner, manager: SessionManager) -> None:
    with pytest.raises(InvalidError) as error:
        await runner.run(scripted(says("x")), OpenAISession("other", manager=manager), "hi")  # type: ignore[arg-type]

    assert error.value.code == "INVALID_SESSION_ID"


async def test_options_are_the_sdks_own(runner: Runner) -> None:
    @function_tool
    def again() -> str:
        return "again"

    agent = scripted(calls("again", {}), calls("again", {}), tools=[again])
    with pytest.raises(MaxTurnsExceeded):
        await runner.run(agent, "s", "loop", max_turns=1)


# ---------------------------------------------------------------------------------------------------- skills


async def test_skills_get_their_session_and_models_never_see_it(runner: Runner, manager: SessionManager) -> None:
    @skill
    async def add(item: str, session: Session, session_id: str) -> str:
        session.update("cart", lambda cart: [*cart, item], default=[])
        return session_id

    @skill
    def add_later(item: str, session: SyncSession) -> str:
        session.namespace("shop").log("later").append([item])
        return session.id

    tools = [function_tool(add), function_tool(add_later)]
    for tool in tools:
        assert list(tool.params_json_schema["properties"]) == ["item"]
    step = calls("add", {"item": "tea"}) + calls("add_later", {"item": "milk"})

    await runner.run(scripted(step, says("done"), tools=tools), "shop-1", "buy")

    assert texts(await stored(manager, "shop-1")) == ["buy", "shop-1", "shop-1", "done"]
    async with manager.read("shop-1") as session:
        assert session.get("cart") == ["tea"]
        assert await session.namespace("shop").log("later").read() == ["milk"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_eight_parallel_skills_all_count(kind: str, runner: Runner, manager: SessionManager) -> None:
    @skill
    async def tick(session: Session) -> str:
        await asyncio.sleep(0.001)
        session.update("ticks", lambda ticks: ticks + 1, default=0)
        return "ok"

    @skill
    def tock(session: Session) -> str:
        time.sleep(0.001)
        session.update("ticks", lambda ticks: ticks + 1, default=0)
        return "ok"

    tool = function_tool(tick if kind == "async" else tock)
    await runner.run(scripted(calls(tool.name, *[{}] * 8), says("done"), tools=[tool]), "s", "go")

    async with manager.read("s") as session:
        assert session.get("ticks") == 8


async def test_a_sub_agent_in_a_skill_joins_the_turn_and_keeps_to_itself(
    runner: Runner, manager: SessionManager
) -> None:
    expert = scripted(says("42"), name="expert")

    @skill
    async def ask(question: str, session: Session) -> str:
        run = await runner.run(expert, session.id, question)
        session.set("answered_by", run.activation_id)
        return str(run.output)

    parent = scripted(calls("ask", {"question": "Why?"}), says("It is 42"), tools=[function_tool(ask)])
    run = await runner.run(parent, "s", "Ask the expert")

    items = await stored(manager, "s")
    assert texts(items) == ["Ask the expert", "42", "It is 42"]
    assert_every_call_is_answered(items)
    async with manager.read("s") as session:
        assert session.revision == 1
        child = session.get("answered_by")
        children = await session.namespace("openai").collection("children").range()
    assert [key for key, _ in children] == [f"expert@{child}/{number:08}" for number in range(2)]
    assert texts([item for _, item in children]) == ["Why?", "42"]
    activation = await runner.get_activation(child)
    assert activation is not None
    assert (activation.parent_activation_id, activation.status) == (run.activation_id, "COMPLETE")


async def test_a_sub_agents_conversation_is_read_and_taken_back_like_any(manager: SessionManager) -> None:
    from agent_sessions_openai.session import ChildItems

    async with manager.open("s") as session:
        items: Any = ChildItems(session, "expert@1")
        assert await items.get_items() == []
        await items.add_items([{"n": 0}, {"n": 1}, {"n": 2}])
        assert await items.get_items(2) == [{"n": 1}, {"n": 2}]
        assert await items.get_items(0) == []
        assert await items.pop_item() == {"n": 2}
        await items.add_items([{"n": 3}])
        assert await items.get_items() == [{"n": 0}, {"n": 1}, {"n": 3}]
        assert await ChildItems(session, "expert@2").get_items() == []
        await items.clear_session()
        assert await items.pop_item() is None
    async with manager.read("s") as session:
        assert await session.namespace("openai").collection("children").range() == []


# ---------------------------------------------------------------------------------------------------- failures


async def trip(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


async def test_a_model_that_fails_leaves_nothing(runner: Runner, manager: SessionManager) -> None:
    @skill
    def note(session: Session) -> str:
        session.set("note", "written")
        return "ok"

    agent = scripted(calls("note", {}), Broken(), says("recovered"), tools=[function_tool(note)])
    with pytest.raises(Broken):
        await runner.run(agent, "s", "first")

    assert await stored(manager, "s") == []
    async with manager.read("s") as session:
        assert session.get("note") is None
    await runner.run(agent, "s", "second")
    assert texts(seen(agent)) == ["second"]


async def test_a_guardrail_that_trips_leaves_nothing(runner: Runner, manager: SessionManager) -> None:
    agent = scripted(says("x"), input_guardrails=[InputGuardrail(trip)])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await runner.run(agent, "s", "bad")

    assert await stored(manager, "s") == []


async def test_what_steps_have_stored_stays(runner: Runner, manager: SessionManager) -> None:
    @function_tool
    def look() -> str:
        return "looked"

    agent = scripted(calls("look", {}), Broken(), says("on"), tools=[look])
    with pytest.raises(Broken):
        await runner.run(agent, "s", "first", commit="step")

    assert texts(await stored(manager, "s")) == ["first", "looked"]
    await runner.run(agent, "s", "second")
    assert texts(await stored(manager, "s")) == ["first", "looked", "second", "on"]
