"""What the adapter knows of graphs that talk in messages."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.serde.types import _DeltaSnapshot

MESSAGES = "messages"
"""The channel that has them."""


def as_input(graph: Any, given: Any) -> Any:
    """A text as the graph takes it; anything else as it is."""
    if not isinstance(given, str) or not _takes_messages(graph):
        return given
    return {MESSAGES: [HumanMessage(given)]}


def answer(state: Any) -> Any:
    """The text that a run has answered with: the last one of a model or tool since the input; else the state."""
    messages = _messages(state)
    if messages is None:
        return state
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            break
        if isinstance(message, AIMessage | ToolMessage) and message.text:
            return str(message.text)
    return ""


def text_of(message: Any) -> str:
    """The text of a piece of a model's answer; none of a tool's, or of what people said."""
    return str(message.text) if isinstance(message, AIMessage | AIMessageChunk) else ""


def open_tool_calls(state: Any) -> list[str]:
    """The ids of the last model's tool calls that have no result."""
    messages = _messages(state) or []
    answered = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call["id"] for call in message.tool_calls if call["id"] and call["id"] not in answered]
    return []


def count_in(checkpoint: Checkpoint) -> int | None:
    """How many messages a checkpoint has; None: it does not say, as one of a delta channel between its snapshots."""
    if MESSAGES not in checkpoint["channel_versions"]:
        return 0
    held = checkpoint["channel_values"].get(MESSAGES)
    messages = held.value if isinstance(held, _DeltaSnapshot) else held
    return None if messages is None else len(messages) if isinstance(messages, list) else 0


def _messages(state: Any) -> list[Any] | None:
    messages = state.get(MESSAGES) if isinstance(state, dict) else getattr(state, MESSAGES, None)
    return messages if isinstance(messages, list) else None


def _takes_messages(graph: Any) -> bool:
    builder = getattr(graph, "builder", None)
    if builder is None:  # of the functional API, or made of channels
        return False
    return MESSAGES in builder.schemas.get(builder.input_schema, {})
