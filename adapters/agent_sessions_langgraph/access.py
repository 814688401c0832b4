"""How the checkpointer gets at its sessions: in the turn that is open, or in a short one of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from agent_sessions import Session, SessionManager
from agent_sessions.errors import SessionConflictError, SessionNotFoundError
from agent_sessions.stores.base import Key
from agent_sessions.turns.gate import Gate

T = TypeVar("T")

_READ_ATTEMPTS = 5


_gates: WeakValueDictionary[Key, Gate] = WeakValueDictionary()
_lock = threading.Lock()


class Access:
    """The sessions of a manager, or the one session of a turn.

    Args:
        manager: None: `SessionManager.from_env()`, as it is at the first call.
        turn: All calls belong to this turn, whichever session they name.
    """

    def __init__(self, manager: SessionManager | None, turn: Session | None = None) -> None:
        self._manager = manager
        self._turn = turn

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

    async def write(self, session_id: str, work: Callable[[Session, bool], Awaitable[None]]) -> None:
        """Change a session."""
        session = self.joined(session_id)
        if session is not None:
            await work(session, False)
            return
        async with _gate(self.key(session_id)):  # so that calls of one run don't get into each other's way
            try:
                async with self.manager.attempt(session_id) as session:
                    await work(session, True)
                    return
            except (SessionConflictError, SessionNotFoundError):
                pass  # whatever it was: it counts what is found with the lease
            async with self.manager.open(session_id) as session:
                await work(session, True)

    async def ids(self) -> list[str]:
        """The ids of all sessions of the tenant."""
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


def _gate(key: Key) -> Gate:
    with _lock:
        return _gates.setdefault(key, Gate())


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # whoever held it is not in this process
    _gates.clear()


os.register_at_fork(after_in_child=_after_fork)
