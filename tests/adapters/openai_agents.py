"""Agents of the OpenAI Agents SDK with scripted models, and how to look at what became of their conversations."""

from __future__ import annotations

from itertools import count
from typing import Any

from agents import Agent, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from agent_sessions import Event, Runner, SessionManager

set_tracing_disabled(True)

_numbers = count()


def says(text: str) -> list[Any]:
    """A model's step: the answer."""
    return [assistant_message(text, item_id=f"msg_{next(_numbers)}")]


def calls(tool: str, *arguments: dict[str, Any]) -> list[Any]:
    """A model's step: calls of a tool, with the ids `{tool}-0`, `{tool}-1`, ..."""
    return [function_call(tool, given, call_id=f"{tool}-{index}") for index, given in enumerate(arguments)]


def scripted(*steps: Any, name: str = "helper", **options: Any) -> Agent[Any]:
    return Agent(name, model=ScriptedModel(steps), **options)


def model_of(agent: Agent[Any]) -> ScriptedModel:
    assert isinstance(agent.model, ScriptedModel)
    return agent.model


def seen(agent: Agent[Any]) -> list[Any]:
    """What the model was given last."""
    last = model_of(agent).last_call
    assert last is not None
    return last.input


async def stored(manager: SessionManager, session_id: str, log: str = "items") -> list[Any]:
    async with manager.read(session_id) as session:
        return await session.namespace("openai").log(log).read()


def texts(items: list[Any]) -> list[str]:
    """What was said, and what tools answered."""
    return [_text(item) for item in items if item.get("type") != "function_call"]


def _text(item: Any) -> str:
    said = item["output"] if "output" in item else item["content"]
    return said if isinstance(said, str) else said[0]["text"]


def assert_every_call_is_answered(items: list[Any]) -> None:
    asked = [item["call_id"] for item in items if item.get("type") == "function_call"]
    answered = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    assert sorted(asked) == sorted(answered)


class Broken(Exception):
    """What scripted models raise."""


async def told_by(runner: Runner, agent: Agent[Any], session_id: str = "s") -> list[Event]:
    async with runner.stream(agent, session_id, "go") as events:
        return [event async for event in events]
