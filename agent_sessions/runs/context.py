"""Which run, and which skill call, the code that asks is part of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from msgspec import Struct

from ..errors import SessionBusyError
from ..session import Session
from ..turns.gate import Gate
from .activations import Activation, SkillCall


class Running(Struct, eq=False):
    """A run in progress."""

    activation: Activation
    framework: str
    thread: str
    parent: Running | None


_running: ContextVar[Running | None] = ContextVar("agent_sessions_run", default=None)
_in_skill: ContextVar[bool] = ContextVar("agent_sessions_skill", default=False)
_thread_gates: WeakKeyDictionary[Session, dict[tuple[str, str], Gate]] = WeakKeyDictionary()


def current_run() -> Running | None:
    """The innermost run that this code is part of."""
    return _running.get()


def is_in_skill() -> bool:
    """Whether this code is part of a skill call of the innermost run."""
    return _in_skill.get()


@asynccontextmanager
async def conversation_of(session: Session, framework: str, thread: str, wait_s: float) -> AsyncIterator[None]:
    """Let the runs of one conversation in one turn follow on one another, also from several event loops.

    Raises:
        SessionBusyError: The one before has not ended in time. Perhaps it waits, further down, for this one.
    """
    gate = _thread_gates.setdefault(session, {}).setdefault((framework, thread), Gate())
    try:
        async with asyncio.timeout(wait_s):
            await gate.__aenter__()
    except TimeoutError:
        raise SessionBusyError(
            f"another run of this conversation in the same turn of session {session.id!r} has not ended within "
            f"{wait_s:g} s. If each of the two waits for the other, give one a conversation of its own."
        ) from None
    try:
        yield
    finally:
        await gate.__aexit__()


@contextmanager
def running(run: Running) -> Iterator[None]:
    """Make it the innermost run of this context."""
    run_token, skill_token = _running.set(run), _in_skill.set(False)
    try:
        yield
    finally:
        _in_skill.reset(skill_token)
        _running.reset(run_token)


@contextmanager
def observed_skill(name: str) -> Iterator[None]:
    """Record a skill call in the activation of the innermost run, if there is one."""
    run = _running.get()
    if run is None:
        yield
        return
    call = SkillCall(name, start=datetime.now(UTC))
    run.activation.skills.append(call)
    token = _in_skill.set(True)
    try:
        yield
        call.status = "COMPLETE"
    except asyncio.CancelledError:
        call.status = "CANCELLED"
        raise
    except BaseException:
        call.status = "FAILED"
        raise
    finally:
        call.end = datetime.now(UTC)
        _in_skill.reset(token)
