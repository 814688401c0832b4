"""Teaches the runner the OpenAI Agents SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agents import (
    Runner,
    RunResult,
    RunResultStreaming,
    RunState,
    StreamEvent,
    ToolApprovalItem,
)

from agent_sessions.errors import InvalidError
from agent_sessions.runs.adapters import Call, Event, Outcome, Pending

from .session import NAMESPACE, ChildItems, TurnItems, log_name

NOT_APPROVED = "Tool execution was not approved."


class OpenAIAdapter:
    """Runs agents of the SDK with its own `Runner`. All agents of a session share a conversation, as handoffs do.

    Options are those of `agents.Runner.run`: `run_config`, `max_turns`, `hooks`, `error_handlers`.
    """

    framework = NAMESPACE

    def agent_name(self, agent: Any) -> str:
        """The agent's name."""
        return str(agent.name)

    def thread(self, agent: Any, conversation: str | None) -> str:
        """The conversation, whoever talks."""
        return conversation or ""

    def logs(self, thread: str) -> Sequence[str]:
        """The conversation's log."""
        return (log_name(thread),)

    async def run(self, call: Call) -> Outcome:
        """Run the agent. The input is a text, the SDK's list of items, or a `RunState` of the caller's own."""
        return await self._ran(call, call.input)

    async def stream(self, call: Call) -> AsyncIterator[Event | Outcome]:
        """Run the agent and yield pieces of text, and tools as they start and end."""
        result = Runner.run_streamed(call.agent, call.input, **_options(call))
        tools: dict[str, str] = {}
        try:
            async for event in result.stream_events():
                told = _told(event, tools)
                if told is not None:
                    yield told
        finally:
            await _cancelled(result)
        yield _outcome(result)

    async def resume(self, call: Call, state: Any, decisions: Any) -> Outcome:
        """Decide on the pending tool calls and go on.

        `decisions` is True or False for all of them, or a mapping from `Pending.id` to True, False or
        `{"approve": False, "message": "why"}`; what it leaves out stays pending. Or a `RunState`, decided on already.
        """
        if isinstance(decisions, RunState):
            return await self._ran(call, decisions)
        restored = await RunState.from_json(call.agent, json.loads(state), context_deserializer=lambda _: call.context)
        _decide(restored, decisions)
        return await self._ran(call, restored)

    async def abandon(self, call: Call, state: Any) -> None:
        """Answer every open tool call in the conversation: it was not approved."""
        items = _items(call)
        closing = _closing(await items.get_items())
        await items.add_items(closing)

    async def _ran(self, call: Call, input: Any) -> Outcome:
        return _outcome(await Runner.run(call.agent, input, **_options(call)))


def _items(call: Call) -> TurnItems | ChildItems:
    if call.is_child:
        return ChildItems(call.session, call.thread)
    return TurnItems(call.session, log_name(call.thread))


def _options(call: Call) -> dict[str, Any]:
    return {**call.options, "context": call.context, "session": _items(call)}


# ---------------------------------------------------------------------------------------------------- how a run ended


def _outcome(result: RunResult | RunResultStreaming) -> Outcome:
    if not result.interruptions:
        return Outcome(result.final_output, raw=result)
    pending = tuple(
        Pending(item.call_id or "", tool=item.name, payload=_arguments(item)) for item in result.interruptions
    )
    return Outcome(None, raw=result, pending=pending, state=_state(result))


def _arguments(item: ToolApprovalItem) -> Any:
    try:
        return None if item.arguments is None else json.loads(item.arguments)
    except ValueError:
        return item.arguments


def _state(result: RunResult | RunResultStreaming) -> str:
    """The run's state as JSON text, which keeps what the SDK wrote to the letter, without the caller's context."""
    state = result.to_state().to_json(context_serializer=lambda _: {})
    return json.dumps(_without_context(state))


def _without_context(state: Any) -> Any:
    """The state with the context emptied, that of nested runs too: it may hold secrets, and `resume` gets one anew."""
    if isinstance(state, list):
        return [_without_context(part) for part in state]
    if not isinstance(state, dict):
        return state
    dropped: dict[str, Any] = {"context": {}} if "context_meta" in state else {}
    return {name: _without_context(part) for name, part in {**state, **dropped}.items()}


# ---------------------------------------------------------------------------------------------------- events


def _told(event: StreamEvent, tools: dict[str, str]) -> Event | None:
    """What is told of an event of the SDK's. `tools` collects the names of the tools that were called."""
    if event.type == "raw_response_event":
        if event.data.type != "response.output_text.delta":
            return None
        return Event("text", text=event.data.delta, raw=event)
    if event.type != "run_item_stream_event":
        return None
    call = getattr(event.item, "raw_item", None)
    if event.name == "tool_called":
        tool = _field(call, "name") or str(_field(call, "type")).removesuffix("_call")
        tools[_call_id(call)] = tool
        return Event("tool_start", tool=tool, raw=event)
    if event.name == "tool_output":
        return Event("tool_end", tool=tools.get(_call_id(call)), raw=event)
    return None


async def _cancelled(result: RunResultStreaming) -> None:
    """Stop the run, if it has not ended, and wait until it has: it must not outlive its turn."""
    task = result.run_loop_task
    if task is not None and not task.done():
        result.cancel()
        await asyncio.wait({task})


# ---------------------------------------------------------------------------------------------------- approval


def _decide(state: RunState[Any, Any], decisions: Any) -> None:
    pending = state.get_interruptions()
    ids = {item.call_id for item in pending}
    if isinstance(decisions, bool):
        decisions = dict.fromkeys(ids, decisions)
    if not isinstance(decisions, Mapping) or not decisions.keys() <= ids:
        raise InvalidError(
            "DECISIONS",
            "decisions must be True, False, or a mapping from the ids of pending decisions "
            f"({', '.join(map(str, sorted(map(str, ids))))}) to one each",
            field="decisions",
        )
    for item in pending:
        if item.call_id in decisions:
            _decide_one(state, item, decisions[item.call_id])


def _decide_one(state: RunState[Any, Any], item: ToolApprovalItem, decision: Any) -> None:
    match decision:
        case True | {"approve": True}:
            state.approve(item)
        case False | {"approve": False}:
            state.reject(item, rejection_message=decision.get("message") if isinstance(decision, dict) else None)
        case _:
            raise InvalidError(
                "DECISIONS",
                f"the decision on {item.call_id} must be True, False or {{'approve': ..., 'message': ...}}",
                field="decisions",
            )


def _closing(items: Sequence[Any]) -> list[Any]:
    """An answer for each call among these items that has none."""
    answered = {_call_id(item) for item in items if str(item.get("type")).endswith("_output")}
    answered |= {item["approval_request_id"] for item in items if item.get("type") == "mcp_approval_response"}
    open_calls = [item for item in items if _call_id(item) not in answered]
    return [answer for item in open_calls if (answer := _answer(item)) is not None]


def _answer(item: Any) -> dict[str, Any] | None:
    """What the SDK writes for a call that was rejected."""
    call_id = item.get("call_id")
    match item.get("type"):
        case "function_call" | "custom_tool_call" as kind:
            return {"type": f"{kind}_output", "call_id": call_id, "output": NOT_APPROVED}
        case "apply_patch_call":
            return {
                "type": "apply_patch_call_output",
                "call_id": call_id,
                "status": "failed",
                "output": NOT_APPROVED,
            }
        case "shell_call":
            output = {"stdout": "", "stderr": NOT_APPROVED, "outcome": {"type": "exit", "exit_code": 1}}
            return {"type": "shell_call_output", "call_id": call_id, "output": [output]}
        case "mcp_approval_request":
            return {"type": "mcp_approval_response", "approval_request_id": item.get("id"), "approve": False}
        case _:
            return None


def _call_id(item: Any) -> str:
    return str(_field(item, "call_id") or _field(item, "id"))


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
