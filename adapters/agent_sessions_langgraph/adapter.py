"""Teaches the runner LangGraph."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.constants import END
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt
from msgspec import Struct, field

from agent_sessions import Event, Pending
from agent_sessions.errors import InvalidError
from agent_sessions.runs.adapters import Call, Outcome

from .keys import NAMESPACE
from .messages import answer, as_input, open_tool_calls, text_of
from .saver import SessionSaver, TurnSaver
from .serde import StrictSerializer, allowing_types_of

BREAKPOINT = "breakpoint"
"""The id of what a run waits for that stopped at a breakpoint of the graph: nothing but to go on."""

_INTERRUPT = "__interrupt__"
_ABANDONED = "Not carried out: the run was given up."

_serializers: WeakKeyDictionary[Any, SerializerProtocol] = WeakKeyDictionary()


class LangGraphAdapter:
    """Runs compiled graphs. Each graph goes on with a thread of its own in the session, which has the graph's name.

    A text is given to the graph as a `HumanMessage`, if its input has `messages`, else as it is; other inputs are the
    graph's own. The output is the text of the answer, if the state has `messages`, else the state; `raw` is the state.

    A run that pauses waits for a decision on each interrupt, or, at a breakpoint, for `breakpoint: True`.

    Options are those of `graph.astream`: `config`, `durability`, `interrupt_before`, `subgraphs`, ... With
    `version="v2"` the raw part of an event is LangGraph's typed one, and the state an object of its schema. A run that
    is stored as a whole saves one checkpoint at its end (`durability="exit"`), one with `commit="step"` each of them
    before it goes on (`durability="sync"`). In a stream, what comes of further modes (`stream_mode`) is an event of the
    type `other`.
    """

    framework = NAMESPACE

    def agent_name(self, agent: Any) -> str:
        """The graph's name."""
        return str(_graph(agent).get_name())

    def thread(self, agent: Any, conversation: str | None) -> str:
        """The graph's name, and the conversation: different graphs share none."""
        name = self.agent_name(agent).replace("%", "%25").replace("/", "%2F")
        return name if conversation is None else f"{name}/{conversation}"

    def logs(self, thread: str) -> Sequence[str]:
        """None: a thread is no log."""
        return ()

    async def run(self, call: Call) -> Outcome:
        """Run the graph to its end, or to an interrupt."""
        return await _ran(call, as_input(call.agent, call.input))

    async def stream(self, call: Call) -> AsyncIterator[Event | Outcome]:
        """Run the graph and yield pieces of the messages of its models, and tools as they start and end."""
        progress = _Progress()
        tools: dict[str, str] = {}
        given = as_input(call.agent, call.input)
        asked = _asked_for(call)
        async for part in _parts(call, given, {"messages", "tools", "updates", "values"} | asked):
            progress.note(part)
            event = _told(part, tools)
            if event is not None:
                yield event
            elif part.mode in asked:
                yield Event("other", raw=part.raw)
        yield progress.outcome()

    async def resume(self, call: Call, state: Any, decisions: Any) -> Outcome:
        """Go on with `Command(resume=decisions)`.

        `decisions` is True or False for every pending interrupt, a mapping from `Pending.id` to what `interrupt()`
        shall return, that value itself if only one is pending, or a `Command`.
        """
        return await _ran(call, _resumption(list(state), decisions))

    async def abandon(self, call: Call, state: Any) -> None:
        """Drop the tasks that wait, and answer the tool calls that are open: they were not carried out."""
        graph, config = _bound(call), _config(call)
        paused = await graph.aget_state(config)
        await graph.aupdate_state(config, None, as_node=END)
        values = (await graph.aget_state(config)).values
        closing = [ToolMessage(_ABANDONED, tool_call_id=one, status="error") for one in open_tool_calls(values)]
        if closing and paused.next:
            await graph.aupdate_state(config, {"messages": closing}, as_node=paused.next[0])


class _Part(NamedTuple):
    """A piece of LangGraph's stream."""

    ns: tuple[str, ...]
    mode: str
    payload: Any
    raw: Any


class _Progress(Struct, eq=False):
    """What a stream has told of how the run ends."""

    state: Any = None
    interrupts: dict[str, Interrupt] = field(default_factory=dict)
    is_paused: bool = False

    def note(self, part: _Part) -> None:
        if part.mode == "values" and not part.ns:
            self.state = part.payload
        elif part.mode == "updates" and isinstance(part.payload, dict) and _INTERRUPT in part.payload:
            self.is_paused = self.is_paused or not part.ns
            self.interrupts.update({one.id: one for one in part.payload[_INTERRUPT]})

    def outcome(self) -> Outcome:
        if isinstance(self.state, dict):
            self.state.pop(_INTERRUPT, None)
        if not self.is_paused:
            return Outcome(answer(self.state), self.state)
        pending = [Pending(one.id, payload=one.value) for one in self.interrupts.values()] or [Pending(BREAKPOINT)]
        return Outcome(None, self.state, tuple(pending), state=[one.id for one in pending])


async def _ran(call: Call, given: Any) -> Outcome:
    progress = _Progress()
    async for part in _parts(call, given, {"updates", "values"}):
        progress.note(part)
    return progress.outcome()


def _asked_for(call: Call) -> set[str]:
    """The stream modes that the caller wants to see."""
    modes = call.options.get("stream_mode") or ()
    return {modes} if isinstance(modes, str) else set(modes)


async def _parts(call: Call, given: Any, modes: set[str]) -> AsyncIterator[_Part]:
    options = {name: value for name, value in call.options.items() if name not in ("config", "stream_mode")}
    # The turn stores all or nothing, so that checkpoints on the way to its end would only cost.
    options.setdefault("durability", "exit" if call.commit == "turn" else "sync")
    if call.context is not None:
        options["context"] = call.context
    has_namespaces, is_typed = bool(options.get("subgraphs")), options.get("version") == "v2"
    streaming = _bound(call).astream(given, _config(call), stream_mode=sorted(modes), **options)
    async with aclosing(streaming) as chunks:
        async for chunk in chunks:
            if is_typed:
                ns, mode, payload = chunk["ns"], chunk["type"], chunk["data"]
            else:
                ns, mode, payload = chunk if has_namespaces else ((), *chunk)
            yield _Part(ns, mode, payload, chunk)


def _told(part: _Part, tools: dict[str, str]) -> Event | None:
    if part.mode == "messages":
        text = text_of(part.payload[0])
        return Event("text", text=text, raw=part.raw) if text else None
    if part.mode != "tools":
        return None
    call_id = part.payload["tool_call_id"]
    if part.payload["event"] == "tool-started":
        tools[call_id] = part.payload["tool_name"]
        return Event("tool_start", tool=tools[call_id], raw=part.raw)
    if part.payload["event"] in ("tool-finished", "tool-error"):
        return Event("tool_end", tool=tools.pop(call_id, None), raw=part.raw)
    return None


def _resumption(pending: list[str], decisions: Any) -> Command[Any] | None:
    if isinstance(decisions, Command):
        return decisions
    if pending == [BREAKPOINT]:
        if decisions is not True and decisions != {BREAKPOINT: True}:
            raise InvalidError(
                "DECISIONS", "at a breakpoint a run can go on (True) or be given up (abandon=True)", field="decisions"
            )
        return None
    if isinstance(decisions, bool):
        return Command(resume=dict.fromkeys(pending, decisions))
    if isinstance(decisions, Mapping) and decisions.keys() <= set(pending):
        return Command(resume=dict(decisions))
    if len(pending) > 1:
        raise InvalidError("DECISIONS", f"{len(pending)} decisions are pending: give each by its id", field="decisions")
    return Command(resume={pending[0]: decisions})


def _bound(call: Call) -> Any:
    """The graph, with the call's session for a checkpointer. The caller's graph stays as it is."""
    bound = copy.copy(_graph(call.agent))
    bound.checkpointer = TurnSaver(
        call.session, call.thread, _serializer(call.agent), frozenset(bound.nodes), counted=not call.is_child
    )
    return bound


def _serializer(graph: Any) -> SerializerProtocol:
    """That of the graph's own `SessionSaver`, else LangGraph's; the types of the graph's state are allowed."""
    made = _serializers.get(graph)
    if made is None:
        own = graph.checkpointer
        given = own.serde if isinstance(own, SessionSaver) else StrictSerializer()
        made = _serializers[graph] = allowing_types_of(graph, given)
    return made


def _config(call: Call) -> RunnableConfig:
    given = cast(RunnableConfig, call.options.get("config") or {})
    configurable = {**given.get("configurable", {}), "thread_id": call.session.id}
    return {**given, "configurable": configurable}


def _graph(agent: Any) -> Any:
    if isinstance(agent, Pregel):
        return agent
    what = type(agent).__name__
    remedy = "compile it first" if hasattr(agent, "compile") else "give a compiled graph"
    raise InvalidError("AGENT", f"a {what} can't be run: {remedy}", field="agent")
