"""The connections of one event loop to one server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from redis.asyncio.connection import AbstractConnection

from agent_sessions.stores.redis.connections.wire import Wire

Connect = Callable[[], Awaitable[AbstractConnection]]


class Place:
    """A connection, made or in the making, and how many exchanges are on it."""

    def __init__(self, opening: asyncio.Task[Wire]) -> None:
        self.opening = opening
        self.load = 0

    @property
    def wire(self) -> Wire | None:
        """The connection, if it is made."""
        if not self.opening.done() or self.opening.cancelled() or self.opening.exception() is not None:
            return None
        return self.opening.result()

    @property
    def is_usable(self) -> bool:
        """Whether it is open, or may yet be."""
        wire = self.wire
        return not self.opening.done() if wire is None else not wire.is_closed


class Node:
    """A server, and what is open to it."""

    def __init__(self, connect: Connect, max_connections: int) -> None:
        self._connect = connect
        self._max_connections = max_connections
        self._places: list[Place] = []
        self._closed = False

    def take(self) -> Place:
        """An idle connection, else a new one, else, when there are as many as may be, the one with the least to do.

        Who takes it gives it back.
        """
        for place in self._places:
            if not place.load and place.is_usable:
                place.load = 1
                return place
        self._places = [place for place in self._places if place.is_usable]
        best = min(self._places, key=lambda place: place.load, default=None)
        if best is None or len(self._places) < self._max_connections:
            # In a context of its own: who happened to need it first is nobody's business there.
            opening = asyncio.get_running_loop().create_task(self._opened(), context=Context())
            opening.add_done_callback(lambda task: task.cancelled() or task.exception())
            best = Place(opening)
            self._places.append(best)
        best.load += 1
        return best

    def give_back(self, place: Place) -> None:
        """What was taken for one exchange."""
        place.load -= 1
        if self._closed and (late := place.wire) is not None:
            late.leave()

    async def _opened(self) -> Wire:
        return Wire(await self._connect())

    def drop_idle(self) -> None:
        """What lay idle while a connection broke is likely broken as well."""
        for place in self._places:
            if place.load == 0 and (wire := place.wire) is not None:
                wire.abort()

    def close(self) -> list[asyncio.Future[Any]]:
        """Close everything; what is under way comes to its end. Return what to wait for."""
        self._closed = True
        places, self._places = self._places, []
        ending: list[asyncio.Future[Any]] = []
        for place in places:
            if (wire := place.wire) is not None:
                wire.leave()
                ending.append(wire.closed)
            elif place.load == 0 and place.opening.cancel():
                ending.append(place.opening)
        return ending

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        for place in self._places:
            if (wire := place.wire) is not None:
                abandon(wire.connection)


async def hang_up(connection: AbstractConnection) -> None:
    """Close a connection at once. TLS says good-bye at length, for which a loop that is about to end has no time."""
    raw: Any = connection
    writer = getattr(raw, "_writer", None)
    if writer is not None:
        writer.transport.abort()
    await raw.disconnect(nowait=True)


def abandon(connection: AbstractConnection) -> None:
    """Close a connection's socket without its loop, and without a warning later on."""
    raw: Any = connection
    with contextlib.suppress(Exception):
        transport: Any = getattr(getattr(raw, "_writer", None), "transport", None)
        socket = getattr(transport, "_sock", None)
        if socket is not None:
            socket.close()
            transport._sock, transport._closing = None, True
        raw._reader = raw._writer = None
