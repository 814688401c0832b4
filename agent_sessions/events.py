"""Telling the application what happens to sessions."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .errors import InvalidError
from .stores.base import Key

logger = logging.getLogger("agent_sessions")

EventType = Literal["created", "touched", "ended", "deleted", "turn_committed", "turn_discarded"]


@dataclass(frozen=True)
class SessionEvent:
    """Something that happened to a session. It carries no content."""

    type: EventType
    session_id: str
    tenant_id: str
    user_id: str | None = None
    revision: int | None = None
    """After a commit."""
    reason: str | None = None
    """Of an end."""


Listener: TypeAlias = Callable[[SessionEvent], Awaitable[None] | None]


class Listeners:
    """Who wants to hear of it, in this process. What a listener raises is logged, and fails nothing."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Listener, str | None]] = []
        self._running: set[asyncio.Future[None]] = set()

    def add(self, listener: Listener, tenant_id: str | None) -> Callable[[], None]:
        """Tell a listener from now on, of one tenant or of all (None); returns what ends that."""
        if not callable(listener):
            raise InvalidError("LISTENER", "a listener must be a function or a coroutine function", field="listener")
        added = (listener, tenant_id)
        self._listeners.append(added)
        return lambda: self._listeners.remove(added) if added in self._listeners else None

    def tell(
        self,
        type: EventType,
        key: Key,
        *,
        user_id: str | None = None,
        revision: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Tell all of them. A coroutine runs beside what goes on here."""
        if not self._listeners:
            return
        event = SessionEvent(type, key.id, key.tenant, user_id, revision, reason)
        for listener, tenant_id in list(self._listeners):
            if tenant_id not in (None, key.tenant):
                continue
            try:
                answer = listener(event)
                if inspect.isawaitable(answer):
                    running = asyncio.ensure_future(answer)
                    self._running.add(running)
                    running.add_done_callback(self._done)
            except (Exception, asyncio.CancelledError) as error:  # a listener's own cancellation is no reason to stop
                _log(event, error)

    def _done(self, running: asyncio.Future[None]) -> None:
        self._running.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            logger.warning("a listener to session events failed (%s)", type(error).__name__)


def _log(event: SessionEvent, error: BaseException) -> None:
    logger.warning("a listener to %r of session %r failed (%s)", event.type, event.session_id, type(error).__name__)
