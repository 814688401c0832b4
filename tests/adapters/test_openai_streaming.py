"""Streamed runs of the OpenAI Agents SDK."""

from __future__ import annotations

import asyncio

import pytest
from agents import (
    function_tool,
)

from agent_sessions import Runner, SessionManager

from .openai_agents import (
    Broken,
    calls,
    model_of,
    says,
    scripted,
    stored,
    texts,
    told_by,
)


async def test_a_stream_tells_texts_and_tools_and_is_stored_at_its_end(runner: Runner, manager: SessionManager) -> None:
    @function_tool
    def look(where: str) -> str:
        return "nothing there"

    agent = scripted(calls("look", {"where": "a"}, {"where": "b"}), says("Nothing."), tools=[look])
    told = []
    async with runner.stream(agent, "s", "Look around") as events:
        async for event in events:
            told.append((event.type, event.tool or event.text))
            last = event
            if event.type == "done":
                assert texts(await stored(manager, "s")) == [
                    "Look around",
                    "nothing there",
                    "nothing there",
                    "Nothing.",
                ]

    starts, ends = [("tool_start", "look")] * 2, [("tool_end", "look")] * 2
    assert [kind for kind in told if kind[0].startswith("tool")] == starts + ends
    assert "".join(text for kind, text in told if kind == "text" and text) == "Nothing."
    assert told[-1][0] == "done"
    assert last.run.output == "Nothing."
    assert last.raw.final_output == "Nothing."


async def test_who_leaves_a_stream_early_cancels_the_sdks_run(runner: Runner, manager: SessionManager) -> None:
    ended = asyncio.Event()

    @function_tool
    async def slow() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return "late"

    agent = scripted(calls("slow", {}), says("never"), tools=[slow])
    async with runner.stream(agent, "s", "go") as events:
        async for event in events:
            assert event.type == "tool_start"
            await asyncio.sleep(0.05)
            break

    assert ended.is_set()
    assert await stored(manager, "s") == []
    assert model_of(agent).remaining_steps == 1


async def test_who_leaves_while_events_wait_cancels_the_sdks_run_too(runner: Runner, manager: SessionManager) -> None:
    ended = asyncio.Event()
    tool_started = asyncio.Event()

    @function_tool
    async def slow() -> str:
        tool_started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return "late"

    pieces = [piece for _ in range(200) for piece in says("piece")]  # more than the run may be ahead
    agent = scripted(pieces + calls("slow", {}), says("never"), tools=[slow])
    before = asyncio.all_tasks()
    async with asyncio.timeout(30), runner.stream(agent, "s", "go") as events:
        await anext(events)
        await tool_started.wait()

    assert ended.is_set()
    assert asyncio.all_tasks() == before
    assert await stored(manager, "s") == []


async def test_a_stream_that_fails_raises_and_leaves_nothing(runner: Runner, manager: SessionManager) -> None:
    with pytest.raises(Broken):
        await told_by(runner, scripted(Broken()))

    assert await stored(manager, "s") == []
