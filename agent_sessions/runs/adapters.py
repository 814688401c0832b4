"""The adapter protocol: what teaches the runner one framework. And how the adapter of an agent is found."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol

from anyio import to_thread
from msgspec import Struct, field

from ..errors import InvalidError
from ..session import Session
from ..stores.base import Discreet
from ..turns.turn import CommitMode

ENTRY_POINTS = "agent_sessions.adapters"


class Call(Discreet, Struct, kw_only=True):
    """One run of an agent, as an adapter gets it."""

    agent: Any
    agent_name: str
    session: Session
    """The session of the turn. Everything written to it is committed, or discarded, by the runner."""
    input: Any
    """Text, or whatever the framework itself takes."""
    thread: str
    """Which conversation of the framework this is: what `Adapter.thread` made of it. Parts are named after it."""
    is_child: bool = False
    """Whether this is a run inside another one: its thread belongs to this run alone, and nobody goes on with it."""
    activation_id: str
    commit: CommitMode = "turn"
    """Whether all is stored at the end, or each write by itself."""
    context: Any = None
    """What the caller gives the framework for its tools."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the framework's own run function."""


class Pending(Discreet, Struct, frozen=True):
    """A decision that a paused run waits for."""

    id: str
    tool: str | None = None
    payload: Any = None
    """What is to be decided on: a tool's arguments, an interrupt's value."""


class Outcome(Discreet, Struct, frozen=True):
    """How a run ended."""

    output: Any
    raw: Any = None
    """The framework's own result."""
    pending: tuple[Pending, ...] = ()
    """Not empty: the run is paused."""
    state: Any = None
    """What the adapter needs to resume a paused run; stored in the session."""


EventType = Literal["text", "tool_start", "tool_end", "other", "paused", "done"]


class Event(Discreet, Struct, frozen=True):
    """Something that happens during a streamed run."""

    type: EventType
    text: str | None = None
    """Of `text`: the next piece of the answer."""
    tool: str | None = None
    """Of `tool_start` and `tool_end`: the tool's name."""
    raw: Any = None
    """The framework's own event; of `other`, what the caller has asked the framework for and is none of the rest."""
    run: Any = None
    """Of `paused` and `done`: the finished `Run`, which is stored by then."""


class Adapter(Protocol):
    """One framework. Adapters keep no state: one instance serves all runs at once."""

    framework: str
    """Its name, which is also the namespace of its state."""

    def agent_name(self, agent: Any) -> str:
        """The name of an agent, for activations and threads."""
        ...

    def thread(self, agent: Any, conversation: str | None) -> str:
        """The name of the conversation that an agent goes on with; empty for the framework's main one.

        Agents that share a conversation have the same one. At most 100 bytes of UTF-8 are kept.
        """
        ...

    def logs(self, thread: str) -> Sequence[str]:
        """The logs of its namespace to load with the session, in the same round trip."""
        ...

    async def run(self, call: Call) -> Outcome:
        """Run the agent to its end, or until it pauses. An exception of the agent's is let through as it is."""
        ...

    def stream(self, call: Call) -> AsyncIterator[Event | Outcome]:
        """Run the agent and yield what happens; last of all, the outcome."""
        ...

    async def resume(self, call: Call, state: Any, decisions: Any) -> Outcome:
        """Go on with a run that paused with this state. `decisions` is as the framework's users know it."""
        ...

    async def abandon(self, call: Call, state: Any) -> None:
        """Close what a paused run left open in its conversation, so that a new input can follow."""
        ...


def adapter_for(agent: Any) -> Adapter:
    """The adapter of the framework that the agent's class comes from. Only that one is imported.

    Adapters are entry points of the group `agent_sessions.adapters`, named after the framework's top-level module.

    Raises:
        InvalidError: `INVALID_AGENT`: it belongs to no known framework and can't be called either.
    """
    known, problem = _entry_points(), None
    for cls in type(agent).__mro__:
        entry_point = known.get(cls.__module__.partition(".")[0])
        if entry_point is not None:
            try:
                return _load(entry_point)
            except ImportError as error:  # a package of the user's own may have a framework's name
                problem = error
    if callable(agent):
        return CallableAdapter()
    what = f"{type(agent).__module__}.{type(agent).__qualname__}"
    if problem is not None:
        raise InvalidError("AGENT", f"the adapter for {what} can't be imported: {problem}", field="agent") from problem
    raise InvalidError(
        "AGENT",
        f"{what} is no agent of a framework that is known here ({', '.join(sorted(known)) or 'none is installed'}), "
        "and no callable (prompt, session)",
        field="agent",
    )


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINTS)}


@cache
def _load(entry_point: EntryPoint) -> Adapter:
    adapter: Adapter = entry_point.load()()
    return adapter


class CallableAdapter:
    """An agent that is just a function `(prompt, session)`: sync, async, or a generator of texts."""

    framework = "callable"

    def agent_name(self, agent: Any) -> str:
        """The function's name."""
        return str(getattr(agent, "__name__", type(agent).__name__))

    def thread(self, agent: Any, conversation: str | None) -> str:
        """The function's own affair; the name only keeps runs apart."""
        return conversation or self.agent_name(agent)

    def logs(self, thread: str) -> Sequence[str]:
        """None: a function loads what it needs."""
        return ()

    async def run(self, call: Call) -> Outcome:
        """Call the function; a sync one runs in a thread, so that it does not hold the event loop up."""
        if _is_async_generator(call.agent):
            return Outcome("".join([text async for text in call.agent(call.input, call.session)]))
        return Outcome(await _called(call.agent, call.input, call.session))

    async def stream(self, call: Call) -> AsyncIterator[Event | Outcome]:
        """Yield the texts of a generator as they come; what a function returns, at once."""
        if not _is_async_generator(call.agent):
            outcome = await self.run(call)
            if isinstance(outcome.output, str):
                yield Event("text", text=outcome.output)
            yield outcome
            return
        texts = []
        async with aclosing(call.agent(call.input, call.session)) as answer:
            async for text in answer:
                texts.append(text)
                yield Event("text", text=text, raw=text)
        yield Outcome("".join(texts))

    async def resume(self, call: Call, state: Any, decisions: Any) -> Outcome:
        """A function never pauses."""
        raise InvalidError("AGENT", "a function does not pause, so it can't be resumed", field="agent")

    async def abandon(self, call: Call, state: Any) -> None:
        """A function never pauses: nothing is left open."""


def _is_async_generator(function: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(type(function).__call__)


async def _called(function: Callable[..., Any], *args: Any) -> Any:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return await function(*args)
    result = await to_thread.run_sync(function, *args)
    if inspect.isgenerator(result):
        return await to_thread.run_sync(_joined, result)
    return await result if inspect.isawaitable(result) else result


def _joined(texts: Iterable[Any]) -> str:
    return "".join(texts)
