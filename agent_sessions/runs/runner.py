"""The runner: runs an agent of any framework inside a turn of its session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from ..background import call
from ..errors import InvalidError
from ..manager import SessionManager
from ..session import Session
from ..turns.turn import CommitMode
from .activations import Activation, Activations
from .adapters import Call, Event, Outcome
from .execution import Hook, Request, Run, executing
from .streaming import stepped, streamed

T = TypeVar("T")


class Runner:
    """Runs agents of any framework, each run a turn of its session.

    Args:
        manager: Where the sessions are. None: `SessionManager.from_env()`, asked anew at each run.
        hooks: Code around every run.
    """

    def __init__(self, manager: SessionManager | None = None, *, hooks: Sequence[Hook] = ()) -> None:
        self._manager = manager
        self._hooks = tuple(hooks)

    async def run(
        self,
        agent: Any,
        session: str | Session | None,
        input: Any,
        *,
        user_id: str | None = None,
        tenant_id: str | None = None,
        conversation: str | None = None,
        context: Any = None,
        metadata: Mapping[str, Any] | None = None,
        wait_s: float | None = None,
        commit: CommitMode = "turn",
        abandon: bool = False,
        **framework_options: Any,
    ) -> Run:
        """Run an agent once. Its session's changes are stored when it ends or pauses; if it raises, none are.

        Inside another run, or a turn, on the same session, this is part of that turn.

        Args:
            agent: An agent of any framework that is installed, or a function `(prompt, session)`, sync or async.
            session: Its id, or a `Session`. None: a new session whose id is the activation's.
            input: Text, or the framework's own input.
            user_id: The user that a new session belongs to. Of an existing one it must be the same.
            tenant_id: The session's tenant; None: the manager's.
            conversation: The name of another conversation of the same framework in the session.
            context: Passed to the framework for its tools.
            metadata: What to merge into the session's metadata.
            wait_s: Seconds to wait while another turn has the session; None: as configured.
            commit: `turn`: a crash in mid-run stores nothing of it. `step`: what the framework has written stays.
            abandon: Give a paused run of this conversation up, instead of refusing with `RUN_PAUSED`.
            framework_options: Passed to the framework's own run function.

        Raises:
            SessionError: As `SessionManager.open`; `RUN_PAUSED`; `INVALID_AGENT`.
            Exception: What the agent raised, as it is.
        """
        request = Request(
            agent=agent,
            session=session,
            input=input,
            user_id=user_id,
            conversation=conversation,
            context=context,
            metadata=metadata,
            wait_s=wait_s,
            commit=commit,
            options=framework_options,
        )
        async with executing(self._for(tenant_id), self._hooks, request) as execution:
            await execution.settle(abandon=abandon)
            await execution.work(execution.adapter.run)
        return execution.result()

    async def resume(
        self,
        agent: Any,
        session: str | Session,
        decisions: Any,
        *,
        user_id: str | None = None,
        tenant_id: str | None = None,
        conversation: str | None = None,
        context: Any = None,
        wait_s: float | None = None,
        commit: CommitMode = "turn",
        **framework_options: Any,
    ) -> Run:
        """Go on with a paused run, in any process.

        `decisions` is True or False for every pending decision, a mapping from `Pending.id` to one each, or what the
        framework itself takes. The other arguments are those of `run`.

        Raises:
            InvalidError: `INVALID_DECISIONS`: no run of this conversation is paused.
        """
        request = Request(
            agent=agent,
            session=session,
            input=decisions,
            user_id=user_id,
            conversation=conversation,
            context=context,
            wait_s=wait_s,
            commit=commit,
            options=framework_options,
        )
        async with executing(self._for(tenant_id), self._hooks, request) as execution:
            state = execution.paused_state()

            async def resumed(call: Call) -> Outcome:
                return await execution.adapter.resume(call, state, decisions)

            await execution.work(resumed)
        return execution.result()

    @asynccontextmanager
    async def stream(
        self,
        agent: Any,
        session: str | Session | None,
        input: Any,
        *,
        user_id: str | None = None,
        tenant_id: str | None = None,
        conversation: str | None = None,
        context: Any = None,
        metadata: Mapping[str, Any] | None = None,
        wait_s: float | None = None,
        commit: CommitMode = "turn",
        abandon: bool = False,
        **framework_options: Any,
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Run an agent and get what happens as it happens: `async with runner.stream(...) as events`.

        The last event is `done` or `paused`; by then everything is stored, and `event.run` is the run. Whoever
        leaves the block earlier cancels the run, and nothing of it is stored. Arguments and errors as for `run`.
        """
        request = Request(
            agent=agent,
            session=session,
            input=input,
            user_id=user_id,
            conversation=conversation,
            context=context,
            metadata=metadata,
            wait_s=wait_s,
            commit=commit,
            options=framework_options,
        )
        manager = self._for(tenant_id)
        execution = executing(manager, self._hooks, request)
        patience_s = manager.settings.turn.lease_s
        async with streamed(execution, abandon=abandon, patience_s=patience_s) as events:
            yield events

    # ------------------------------------------------------------------------------------------------ activations

    async def get_activation(self, activation_id: str, *, tenant_id: str | None = None) -> Activation | None:
        """The record of a run, or None. A run whose process died is ABANDONED once its lease has run out."""
        manager = self._for(tenant_id)
        return await Activations(manager).get(manager.tenant_id, activation_id)

    async def activations(self, session_id: str, *, limit: int = 100, tenant_id: str | None = None) -> list[Activation]:
        """The last runs of a session, at most 100 of them are kept; the newest first."""
        manager = self._for(tenant_id)
        return await Activations(manager).of_session(manager.tenant_id, session_id, limit)

    # ------------------------------------------------------------------------------------------------ without async

    def run_sync(self, agent: Any, session: str | Session | None, input: Any, **options: Any) -> Run:
        """`run`, blocking, with the same arguments. The agent runs in this thread."""
        return self._blocking("run", self.run(agent, session, input, **options))

    def resume_sync(self, agent: Any, session: str | Session, decisions: Any, **options: Any) -> Run:
        """`resume`, blocking, with the same arguments."""
        return self._blocking("resume", self.resume(agent, session, decisions, **options))

    @contextmanager
    def stream_sync(
        self, agent: Any, session: str | Session | None, input: Any, **options: Any
    ) -> Iterator[Iterator[Event]]:
        """`stream`, blocking, with the same arguments. The agent runs in this thread while an event is waited for."""
        _refuse_running_loop("stream")
        with asyncio.Runner() as own:
            streaming = self.stream(agent, session, input, **options)
            events = own.run(streaming.__aenter__())
            try:
                yield stepped(own, events)
            finally:
                own.run(streaming.__aexit__(None, None, None))
                own.run(self._for(None).store.detach())

    def get_activation_sync(self, activation_id: str, *, tenant_id: str | None = None) -> Activation | None:
        """`get_activation`, blocking."""
        return call(lambda: self.get_activation(activation_id, tenant_id=tenant_id))

    def activations_sync(self, session_id: str, *, limit: int = 100, tenant_id: str | None = None) -> list[Activation]:
        """`activations`, blocking."""
        return call(lambda: self.activations(session_id, limit=limit, tenant_id=tenant_id))

    # ------------------------------------------------------------------------------------------------ inside

    def _for(self, tenant_id: str | None) -> SessionManager:
        manager = self._manager or SessionManager.from_env()
        return manager if tenant_id is None else manager.for_tenant(tenant_id)

    def _blocking(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        try:
            _refuse_running_loop(name)
        except InvalidError:
            work.close()
            raise

        async def all_of_it() -> T:
            try:
                return await work
            finally:
                await self._for(None).store.detach()

        return asyncio.run(all_of_it())


def _refuse_running_loop(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidError(
        "CONTEXT", f"{name}_sync can't be called while an event loop runs in this thread: await {name}", field=name
    )
