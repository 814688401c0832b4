"""One run of an agent, from its activation's start to its end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Protocol

from msgspec import Struct

from ..auth import acting
from ..background import finished
from ..errors import InvalidError, RunPausedError, SessionError, TurnClosedError
from ..identifiers import MAX_CONVERSATION_BYTES, check_conversation, check_id
from ..manager import SessionManager
from ..session import Session
from ..stores.base import Row
from ..turns.turn import CommitMode
from .activations import Activation, Activations, ActivationStatus, Started, bounded
from .adapters import Adapter, Call, Outcome, Pending, adapter_for
from .context import Running, conversation_of, current_run, is_in_skill, running

PAUSED = "paused"
"""The value, in the framework's namespace, that keeps paused runs by thread."""


@dataclass(frozen=True)
class Run:
    """How a run ended."""

    output: Any = field(repr=False)
    """The agent's answer; None of a paused run."""
    session_id: str
    activation_id: str
    status: ActivationStatus
    """COMPLETE or PAUSED."""
    raw: Any = field(default=None, repr=False)
    """The framework's own result."""
    pending: tuple[Pending, ...] = ()
    """The decisions that a paused run waits for."""


class StreamForgottenError(TurnClosedError):
    """Nobody took the events of a stream."""


class Hook(Protocol):
    """Code around every run of a runner, inside its turn."""

    async def before_run(self, call: Call) -> Outcome | None:
        """May change the call, or answer in the agent's place."""
        ...

    async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
        """May answer something else. Hooks come in the opposite order here."""
        ...


class Request(Struct, kw_only=True):
    """What a caller asks of the runner; see `Runner.run`."""

    agent: Any
    session: str | Session | None
    input: Any
    user_id: str | None = None
    conversation: str | None = None
    context: Any = None
    metadata: Mapping[str, Any] | None = None
    wait_s: float | None = None
    commit: CommitMode = "turn"
    options: dict[str, Any] = {}


class Execution:
    """A run inside its turn. Who opened it does the work and sets the outcome."""

    outcome: Outcome

    def __init__(self, adapter: Adapter, call: Call, activation: Activation, hooks: Sequence[Hook]) -> None:
        self.adapter = adapter
        self.call = call
        self._activation = activation
        self._hooks = hooks
        self._namespace = call.session.namespace(adapter.framework)
        self._turn = call.session._open_turn()

    @property
    def is_stored(self) -> bool:
        """Whether the turn that it was part of is over and stored."""
        return self._turn.is_stored

    @property
    def stored_row(self) -> Row | None:
        """The session as its turn has left it."""
        return self._turn.image.row

    async def work(self, run: Callable[[Call], Awaitable[Outcome]]) -> None:
        """Run the agent, with the hooks around it."""
        outcome: Outcome | None = None
        for hook in self._hooks:
            outcome = await hook.before_run(self.call)
            if outcome is not None:
                break
        if outcome is None:
            outcome = await run(self.call)
        for hook in reversed(self._hooks):
            outcome = await hook.after_run(self.call, outcome)
        self.outcome = outcome

    async def settle(self, *, abandon: bool) -> None:
        """Before a new input: refuse it on a paused thread, or give the paused run up."""
        paused = self._paused_runs().get(self.call.thread)
        if paused is None:
            return
        if not abandon:
            raise RunPausedError(
                f"activation {paused['activation_id']} of this conversation waits for a decision: resume it with "
                "`runner.resume(agent, session, decisions)`, or give it up with `abandon=True`"
            )
        await self.adapter.abandon(self.call, paused["state"])

    def paused_state(self) -> Any:
        """What the adapter kept of the thread's paused run."""
        paused = self._paused_runs().get(self.call.thread)
        if paused is None:
            raise InvalidError(
                "DECISIONS",
                f"no run of agent {self.call.agent_name!r} is paused in this conversation",
                field="decisions",
            )
        return paused["state"]

    def remember_pause(self) -> None:
        """Keep in the session what a paused run needs, and forget what this run has settled."""
        if self.call.is_child and self.outcome.pending:
            raise RunPausedError(
                f"{self.call.agent_name!r} waits for a decision inside another run, where nobody could resume it: "
                "run it by itself, or as the framework's own sub-agent, so that the outer run pauses"
            )
        paused = self._paused_runs()
        settled = paused.pop(self.call.thread, None)
        if self.outcome.pending:
            paused[self.call.thread] = {
                "activation_id": self._activation.activation_id,
                "agent_name": self._activation.agent_name,
                "state": self.outcome.state,
                "pending": [[one.id, one.tool, one.payload] for one in self.outcome.pending],
            }
        elif settled is None:
            return
        self._namespace.set(PAUSED, paused) if paused else self._namespace.delete(PAUSED)

    def result(self) -> Run:
        """The run as the caller gets it."""
        return Run(
            output=self.outcome.output,
            session_id=self._activation.session_id,
            activation_id=self._activation.activation_id,
            status=self._activation.status,
            raw=self.outcome.raw,
            pending=self.outcome.pending,
        )

    def _paused_runs(self) -> dict[str, dict[str, Any]]:
        return dict(self._namespace.get(PAUSED, {}))


@asynccontextmanager
async def executing(manager: SessionManager, hooks: Sequence[Hook], request: Request) -> AsyncIterator[Execution]:
    """Open the turn of a run and write its activation beside it; commit, and finish the activation, at the end.

    The activation is there before the turn is committed: so whoever deletes the session afterwards finds both.
    """
    adapter = adapter_for(request.agent)
    parent = current_run()
    activation = _started(manager, adapter, request, parent)
    thread, is_child = _thread(adapter, request, activation, parent)
    activations = Activations(manager)
    opening = manager.open(
        activation.session_id if request.session is None else request.session,
        user_id=request.user_id,
        metadata=request.metadata,
        wait_s=request.wait_s,
        commit=request.commit,
        logs={(adapter.framework, name): None for name in adapter.logs(thread)},
    )
    is_inside = manager.joined(activation.session_id) is not None
    starting = await _starting(activations, activation, manager.store.never_waits)
    execution: Execution | None = None
    seen: Row | None = None
    has_stored = False
    try:
        async with opening as session:
            seen, activation.user_id = session._open_turn().image.row, session.user_id
            call = Call(
                agent=request.agent,
                agent_name=activation.agent_name,
                session=session,
                input=request.input,
                thread=thread,
                is_child=is_child,
                activation_id=activation.activation_id,
                commit=session._open_turn().mode,
                context=request.context,
                options=request.options,
            )
            execution = Execution(adapter, call, activation, hooks)
            async with conversation_of(session, adapter.framework, thread, manager.patience(request.wait_s)):
                with running(Running(activation, adapter.framework, thread, parent)):
                    yield execution
                execution.remember_pause()
            activation.status = "PAUSED" if execution.outcome.pending else "COMPLETE"
            activation.response, cut = bounded(execution.outcome.output)
            activation.cut = activation.cut or cut
            await asyncio.shield(starting)
        has_stored = not is_inside
    except BaseException as error:
        cancelled = isinstance(error, asyncio.CancelledError | StreamForgottenError)
        if not cancelled or execution is None or not execution.is_stored:  # else its commit went on to its end
            activation.status = "CANCELLED" if cancelled else "FAILED"
            activation.error = error.code if isinstance(error, SessionError) else type(error).__name__
        raise
    finally:
        if parent is None and execution is not None:
            execution.call.session.volatile.clear()
        activation.end = datetime.now(UTC)
        stored = execution.stored_row if execution is not None and has_stored else None
        await finished(lambda: _finish(activations, activation, starting, has_stored, stored or seen))


async def _starting(activations: Activations, activation: Activation, never_waits: bool) -> asyncio.Future[Started]:
    """Write the activation beside the opening of the turn; right now, if that never waits."""
    if not never_waits:
        return asyncio.ensure_future(activations.start(activation))
    started: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
    started.set_result(await activations.start(activation))
    return started


async def _finish(
    activations: Activations,
    activation: Activation,
    starting: asyncio.Future[Started],
    has_stored: bool,
    seen: Row | None,
) -> None:
    started = await asyncio.shield(starting)
    if has_stored:
        await activations.finish(activation, started, seen)
    else:
        await activations.settle(activation, started, seen)


def _started(manager: SessionManager, adapter: Adapter, request: Request, parent: Running | None) -> Activation:
    activation_id = str(uuid.uuid4())
    given = activation_id if request.session is None else request.session
    payload, cut = bounded(request.input)
    return Activation(
        activation_id=activation_id,
        session_id=given.id if isinstance(given, Session) else check_id(given, "session_id"),
        tenant_id=manager.tenant_id,
        agent_name=adapter.agent_name(request.agent),
        framework=adapter.framework,
        status="RUNNING",
        start=datetime.now(UTC),
        user_id=acting(manager.store).user_id if request.user_id is None else check_id(request.user_id, "user_id"),
        parent_activation_id=None if parent is None else parent.activation.activation_id,
        payload=payload,
        cut=cut,
    )


def _thread(adapter: Adapter, request: Request, activation: Activation, parent: Running | None) -> tuple[str, bool]:
    """The conversation that a run goes on with, and whether it belongs to this run alone.

    What a skill runs, and what would write into a conversation that a run above it is in the middle of, gets its own.
    """
    conversation = request.conversation
    thread = _short(adapter.thread(request.agent, None if conversation is None else check_conversation(conversation)))
    above = _runs_above(parent, activation)
    in_the_middle = any((run.framework, run.thread) == (adapter.framework, thread) for run in above)
    if in_the_middle or (above and is_in_skill() and conversation is None):
        return _short(f"{_short(activation.agent_name, 60)}@{activation.activation_id}"), True
    return thread, False


def _runs_above(run: Running | None, activation: Activation) -> list[Running]:
    """The runs that this one is part of, on the same session; the innermost must be on it."""
    above = []
    while run is not None and _session_of(run.activation) == _session_of(activation):
        above.append(run)
        run = run.parent
    return above


def _session_of(activation: Activation) -> tuple[str, str]:
    return activation.tenant_id, activation.session_id


def _short(text: str, most: int = MAX_CONVERSATION_BYTES) -> str:
    """A name as it is, or, if it is too long for one, its beginning and a hash of all of it."""
    raw = text.encode()
    if len(raw) <= most:
        return text
    return f"{raw[: most - 17].decode(errors='ignore')}#{blake2b(raw, digest_size=8).hexdigest()}"
