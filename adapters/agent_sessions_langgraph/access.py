"""How the checkpointer gets at its sessions: in the turn that is open, or in a short one of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from agent_sessions import Session, SessionManager
from agent_sessions.errors import CommitTooLargeError, SessionConflictError, SessionNotFoundError
from agent_sessions.stores.base import Key

T = TypeVar("T")

_READ_ATTEMPTS = 5

Work = Callable[[Session, bool], Awaitable[None]]


class _Change:
    """A change that somebody waits for."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.is_done = False
        self.error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        """It is stored, or never will be."""
        self.is_done, self.error = True, error


class _Queue:
    """The changes of one session that wait, from one event loop. Who gets the lock stores them all."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting: list[_Change] = []


class Access:
    """The sessions of a manager, or the one session of a turn.

    Args:
        manager: None: `SessionManager.from_env()`, as it is at the first call.
        turn: All calls belong to this turn, whichever session they name.
    """

    def __init__(self, manager: SessionManager | None, turn: Session | None = None) -> None:
        self._manager = manager
        self._turn = turn
        self._queues: WeakValueDictionary[tuple[int, str], _Queue] = WeakValueDictionary()
        self._lock = threading.Lock()

    @property
    def manager(self) -> SessionManager:
        """Where the sessions are."""
        if self._manager is None:
            self._manager = SessionManager.from_env()
        return self._manager

    def key(self, session_id: str) -> Key:
        """The address of a session."""
        tenant = self.manager.tenant_id if self._turn is None else self._turn.tenant_id
        return Key(tenant, "session", session_id if self._turn is None else self._turn.id)

    def joined(self, session_id: str) -> Session | None:
        """The session, if this is inside a turn on it."""
        return self._turn or self.manager.joined(session_id)

    async def read(self, session_id: str, work: Callable[[Session, bool], Awaitable[T]]) -> T:
        """Read from a session as it is at one moment. `work` is told whether it has the session for itself alone."""
        session = self.joined(session_id)
        if session is not None:
            return await work(session, False)
        for _ in range(_READ_ATTEMPTS):
            try:
                async with self.manager.read(session_id) as snapshot:
                    return await work(snapshot, True)
            except SessionConflictError:
                continue  # another run has stored something between two reads
        async with self.manager.open(session_id) as session:
            return await work(session, True)

    async def write(self, session_id: str, work: Work) -> None:
        """Change a session. What comes while another change is on its way to the store is stored together after it."""
        session = self.joined(session_id)
        if session is not None:
            await work(session, False)
            return
        queue, change = self._queue(session_id), _Change(work)
        queue.waiting.append(change)
        try:
            async with queue.lock:
                if not change.is_done:
                    await self._write_all(session_id, queue)
        finally:
            queue.waiting = [one for one in queue.waiting if one is not change]
        if change.error is not None:
            raise change.error

    def _queue(self, session_id: str) -> _Queue:
        # Of this loop alone: blocking one, by a sync call, must not block another.
        name = (id(asyncio.get_running_loop()), session_id)
        with self._lock:
            return self._queues.setdefault(name, _Queue())

    async def _write_all(self, session_id: str, queue: _Queue) -> None:
        """Store all changes that wait, in one turn if they are not too large for one."""
        changes, queue.waiting = queue.waiting, []
        try:
            if not await self._write_together(session_id, changes):
                for change in changes:
                    await self._write_together(session_id, [change])
        finally:  # those that are not done, if this was cancelled, are the next one's
            queue.waiting = [*(change for change in changes if not change.is_done), *queue.waiting]

    async def _write_together(self, session_id: str, changes: list[_Change]) -> bool:
        """Store changes in one turn, and end them. Returns False if they are too many for one."""
        try:
            try:
                async with self.manager.attempt(session_id) as session:
                    errors = [await _error_of(change.work(session, True)) for change in changes]
                    if any(errors):
                        raise _UncertainError
            except (_UncertainError, SessionConflictError, SessionNotFoundError):  # it counts what the lease shows
                async with self.manager.open(session_id) as session:
                    errors = [await _error_of(change.work(session, True)) for change in changes]
        except CommitTooLargeError as error:
            if len(changes) > 1:
                return False
            errors = [error]
        except Exception as error:
            errors = [error for _ in changes]
        for change, its_own in zip(changes, errors, strict=True):
            change.end(its_own)
        return True

    async def ids(self) -> list[str]:
        """The ids of all sessions of the tenant; in a turn that all calls belong to, of its session."""
        if self._turn is not None:
            return [self._turn.id]
        found: dict[str, None] = {}
        cursor = None
        while True:
            page = await self.manager.store.scan(limit=500, cursor=cursor)
            found |= {
                key.id: None for key in page.keys if key.kind == "session" and key.tenant == self.manager.tenant_id
            }
            cursor = page.next
            if cursor is None:
                return list(found)


class _UncertainError(Exception):
    """A change failed on what was seen last, which may not be what is stored."""


async def _error_of(work: Awaitable[None]) -> Exception | None:
    try:
        await work
    except Exception as error:
        return error
    return None
