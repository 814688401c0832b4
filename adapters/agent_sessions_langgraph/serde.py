"""LangGraph's serializer, with no constructors called but those that are allowed."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agent_sessions.errors import SerializationError

_blocked: ContextVar[list[str] | None] = ContextVar("agent_sessions_langgraph_blocked", default=None)


class StrictSerializer(JsonPlusSerializer):
    """`JsonPlusSerializer` that calls constructors of LangGraph's safe types and of the types given, of no others.

    The default one calls whatever the stored bytes name (CVE-2026-28277). LangGraph's own strict mode hands out a type
    that it blocks as the raw data it was made of; this one raises `SerializationError`, so that no state changes its
    shape unnoticed.
    """

    def __init__(self, allowed_types: Iterable[type] = ()) -> None:
        super().__init__(allowed_msgpack_modules=tuple(allowed_types) or None)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        blocked: list[str] = []
        token = _blocked.set(blocked)
        try:
            value = super().loads_typed(data)
        finally:
            _blocked.reset(token)
        if blocked:
            raise SerializationError(
                f"a checkpoint holds a {blocked[0]}, which may not be constructed from stored data. If it is yours, "
                "allow it: SessionSaver(allowed_types=[...])"
            )
        return value


def _note_blocked(event: SerdeEvent) -> None:
    blocked = _blocked.get()
    if blocked is not None and event["kind"].endswith("_blocked"):
        blocked.append(f"{event['module']}.{event['name']}")


register_serde_event_listener(_note_blocked)


def allowing_types_of(graph: Any, serde: SerializerProtocol) -> SerializerProtocol:
    """The serializer, with the types that the graph's schemas name allowed; another one than LangGraph's as it is."""
    if not isinstance(serde, JsonPlusSerializer):
        return serde
    try:  # LangGraph's own collector of types; it has no public name
        from langgraph._internal._serde import build_serde_allowlist
    except ImportError:
        return serde
    builder = getattr(graph, "builder", None)
    schemas = [] if builder is None else [*builder.schemas, *(node.input_schema for node in builder.nodes.values())]
    return serde.with_msgpack_allowlist(build_serde_allowlist(schemas=schemas, channels=dict(graph.channels)))
