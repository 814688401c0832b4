"""Connections to Redis: a few of their own for each event loop, and what their errors mean.

redis-py makes and authenticates them; its client and pool, which cost as much time as Redis needs for a turn, are left
out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from secrets import token_hex
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.redis.scripts import Script
from agent_sessions.stores.redis.waiting import Wakeups
from agent_sessions.stores.redis.wire import Wire

logger = logging.getLogger("agent_sessions")

Command = Sequence[bytes]

_PAUSES_S = (0.0, 0.05)
"""A connection that breaks is replaced and the command sent again, after these pauses. Every script may be."""

_CLOSING_S = 2.0

_SLOWEST_LINE = 1 << 20
"""Bytes a second: what is large to send may take so much longer than the time-out."""


class Settings(NamedTuple):
    """How the connections of a store are made, and how long they may take."""

    make_connection: Callable[[], AbstractConnection]
    max_connections: int
    connect_timeout_s: float
    timeout_s: float
    address: str
    """Where Redis is, for people: no password, no user."""
    seen: list[bool]
    """Not empty once a connection was made: the server was looked at."""


class _Place:
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


class LoopClient:
    """What one event loop uses: its connections, and its place for wake-ups."""

    def __init__(self, settings: Settings, channel: bytes) -> None:
        self._settings = settings
        self._places: list[_Place] = []
        self._closed = False
        self.wakeups = Wakeups(self._connected, channel)

    async def run(self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes]) -> Any:
        """Run a script. Redis may have forgotten it (a restart, SCRIPT FLUSH): then its text is sent along."""
        arguments = (b"%d" % len(keys), *keys, *argv)
        (reply,) = await self.exchange([(b"EVALSHA", script.sha, *arguments)])
        if isinstance(reply, NoScriptError):
            (reply,) = await self.exchange([(b"EVAL", script.text, *arguments)])
        if isinstance(reply, Exception):
            raise self.unavailable(reply) from reply
        return reply

    async def run_beside(
        self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes], commands: Sequence[Command]
    ) -> tuple[Any, list[Any]]:
        """Run a script, and reading commands after it, in one round trip and at one moment."""
        arguments = (b"%d" % len(keys), *keys, *argv)
        for call in ((b"EVALSHA", script.sha, *arguments), (b"EVAL", script.text, *arguments)):
            *queued, done = await self.exchange([(b"MULTI",), call, *commands, (b"EXEC",)])
            if isinstance(done, Exception):
                error = next((reply for reply in queued if isinstance(reply, Exception)), done)
                raise self.unavailable(error) from error
            if not isinstance(done[0], NoScriptError):
                break
        for reply in done:
            if isinstance(reply, Exception):
                raise self.unavailable(reply) from reply
        return done[0], done[1:]

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one piece and return their replies; raise the first error."""
        replies = await self.exchange(commands) if commands else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.unavailable(reply) from reply
        return replies

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one piece and return their replies; errors of single ones stand in their places."""
        packed, maybe_done = _pack(commands), False
        for pause in (*_PAUSES_S, None):
            place = self._place()
            place.load += 1
            try:
                wire = place.wire
                if wire is None:
                    wire = await asyncio.shield(place.opening)
                maybe_done = True
                timeout_s = self._settings.timeout_s + len(packed) / _SLOWEST_LINE
                return await wire.exchange(packed, len(commands), timeout_s)
            except (RedisError, OSError) as error:
                if pause is None or not _may_pass(error):
                    raise self.unavailable(error, maybe_done=maybe_done) from error
            finally:
                place.load -= 1
                if self._closed and (late := place.wire) is not None:
                    late.leave()
            self._drop_idle()
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def unavailable(self, error: Exception, *, maybe_done: bool = True) -> StoreUnavailableError:
        """What an error of a reply, or of a connection, means."""
        text = f"{_reason(error)} ({self._settings.address})"  # its own, which may carry arguments, stays in the cause
        return StoreUnavailableError(text, maybe_done=maybe_done)

    def _place(self) -> _Place:
        """An idle connection, else a new one, else, when there are as many as may be, the one with the least to do."""
        self._places = [place for place in self._places if place.is_usable]
        best = min(self._places, key=lambda place: place.load, default=None)
        if best is not None and (best.load == 0 or len(self._places) >= self._settings.max_connections):
            return best
        # In a context of its own: who happened to need it first is nobody's business there.
        opening = asyncio.get_running_loop().create_task(self._opened(), context=Context())
        opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        place = _Place(opening)
        self._places.append(place)
        return place

    async def _opened(self) -> Wire:
        connection = await self._connected()
        if not self._settings.seen:
            self._settings.seen.append(True)
            await _warn_of_eviction(connection, self._settings.address)
            if not connection.is_connected:  # refused: whoever uses it next is told why
                connection = await self._connected()
        return Wire(connection)

    async def _connected(self) -> AbstractConnection:
        connection: Any = self._settings.make_connection()
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.timeout_s):
                await connection.connect()
        except TimeoutError:
            await connection.disconnect(nowait=True)
            raise RedisTimeoutError("no answer") from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection  # type: ignore[no-any-return]

    def _drop_idle(self) -> None:
        """What lay idle while a connection broke is likely broken as well."""
        for place in self._places:
            if place.load == 0 and (wire := place.wire) is not None:
                wire.abort()

    async def aclose(self) -> None:
        """Close everything; what is under way comes to its end."""
        self._closed = True
        await self.wakeups.aclose()
        places, self._places = self._places, []
        for place in places:
            if place.load == 0 and not place.opening.done():
                place.opening.cancel()
            elif (wire := place.wire) is not None:
                wire.leave()
        await asyncio.sleep(0)  # transports close at the loop's next pass

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        wires = [wire for place in self._places if (wire := place.wire) is not None]
        for connection in (*(wire.connection for wire in wires), *self.wakeups.connections()):
            _abandon(connection)


async def _warn_of_eviction(connection: Any, address: str) -> None:
    """Tell the log when this Redis may throw parts of sessions away."""
    try:
        await connection.send_command("INFO", "memory")
        lines = (await connection.read_response()).decode().splitlines()
    except (RedisError, UnicodeDecodeError):
        return  # a user who may not ask; if the connection broke, its first use tells
    memory = dict(line.split(":", 1) for line in lines if ":" in line)
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory", "0") != "0" and policy != "noeviction":
        logger.warning(
            "Redis at %s evicts keys when its memory is full (maxmemory-policy %s): parts of sessions may be lost, "
            "which turns then report as STATE_LOST. Set maxmemory-policy to noeviction.",
            address,
            policy,
        )


def _pack(commands: Sequence[Command]) -> bytes:
    packed = []
    for command in commands:
        packed.append(b"*%d\r\n" % len(command))
        for word in command:
            packed += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(packed)


class Clients:
    """The clients of a store, one for each running event loop, made when first needed there.

    A child process never touches what its parent opened: also closing it there would disturb the parent.
    """

    def __init__(self, settings: Settings, make_channel: Callable[[str], bytes]) -> None:
        self._settings = settings
        self._make_channel = make_channel
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopClient] = {}
        self._inherited: list[object] = []

    def current(self) -> LoopClient:
        """The running loop's."""
        if self._pid != os.getpid():
            self._forget_the_parents()
        loop = asyncio.get_running_loop()
        found = self._by_loop.get(loop)
        return found if found is not None else self._make(loop)

    async def detach(self) -> None:
        """Close the running loop's."""
        if self._pid != os.getpid():
            self._forget_the_parents()
        found = self._by_loop.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.aclose()

    async def aclose(self) -> None:
        """Close all, on whichever loop they are."""
        await self.detach()
        with self._lock:
            others = list(self._by_loop.items())
            self._by_loop.clear()
        for loop, client in others:
            if loop.is_running():
                closing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.aclose(), loop))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(closing, _CLOSING_S)
            else:
                client.abandon()

    def _make(self, loop: asyncio.AbstractEventLoop) -> LoopClient:
        with self._lock:
            for closed in [other for other in self._by_loop if other.is_closed()]:
                self._by_loop.pop(closed).abandon()
            made = LoopClient(self._settings, self._make_channel(token_hex(8)))
            self._by_loop[loop] = made
            return made

    def _forget_the_parents(self) -> None:
        self._inherited.append(self._by_loop)
        self._by_loop = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()


def _abandon(connection: AbstractConnection) -> None:
    """Close a connection's socket without its loop, and without a warning later on."""
    with contextlib.suppress(Exception):
        writer: Any = getattr(connection, "_writer", None)
        transport: Any = getattr(writer, "transport", None)
        socket = getattr(transport, "_sock", None)
        if socket is not None:
            socket.close()
            transport._sock, transport._closing = None, True
        connection._reader = connection._writer = None


# --------------------------------------------------------------------------------------------------- errors

_CLUSTER = "this Redis is a node of a cluster, which this store does not support"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "Redis refused the user name and password, or wants them"),
    (BusyLoadingError, "Redis is still loading its data"),
    (RedisTimeoutError, "Redis did not answer in time"),
    (RedisConnectionError, "Redis can't be reached"),
    (OutOfMemoryError, "Redis is out of memory (maxmemory is reached); nothing was stored"),
    (ReadOnlyError, "this Redis is a read-only replica; connect to the primary"),
    (NoPermissionError, "the Redis user has no permission for a command or key that the store needs"),
    (ClusterCrossSlotError, _CLUSTER),
    (AskError, _CLUSTER),
    (ClusterDownError, "the Redis cluster is down"),
    (ClusterError, "the Redis cluster gave no answer"),
    (OSError, "Redis can't be reached"),
)
_CODES = {
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis refused the password or user name",
    "OOM": "Redis is out of memory (maxmemory is reached); nothing was stored",
    "LOADING": "Redis is still loading its data",
    "MISCONF": "Redis can't save to its disk and refuses writes",
    "NOREPLICAS": "Redis has too few replicas and refuses writes",
    "BUSY": "Redis is busy with a script",
    "WRONGTYPE": "a key under the store's prefix is used by something else",
    "READONLY": "this Redis is a read-only replica; connect to the primary",
    "MASTERDOWN": "this Redis is a replica whose primary is down",
    "EXECABORT": "Redis refused the transaction",
}


def _reason(error: Exception) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    # redis-py cuts off the codes it knows a class for; then the first word is a part of a sentence.
    code = str(error).split(" ", 1)[0]
    return _CODES.get(code, f"Redis answered with an error, {code if code.isupper() else 'ERR'}")


def _may_pass(error: Exception) -> bool:
    """Whether trying again on another connection may help."""
    refused = isinstance(error, AuthenticationError | AuthorizationError)
    return isinstance(error, RedisConnectionError | OSError) and not refused
