"""Connections to Redis: a set of their own for each event loop, and what their errors mean.

A command is written and its reply read on a connection that nobody else uses meanwhile. redis-py makes, authenticates
and parses the connections; its client and pool, which cost as much time as Redis needs for a turn, are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
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
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.redis.scripts import Script
from agent_sessions.stores.redis.waiting import Wakeups

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


class LoopClient:
    """What one event loop uses: its connections, and its place for wake-ups."""

    def __init__(self, settings: Settings, channel: bytes) -> None:
        self._settings = settings
        self._idle: list[AbstractConnection] = []
        self._busy: set[AbstractConnection] = set()
        self._closed = False
        # More turns at once than connections wait for one, instead of failing.
        self._gate = asyncio.Semaphore(settings.max_connections)
        self.wakeups = Wakeups(self._connected, channel)

    async def run(self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes]) -> Any:
        """Run a script. Redis may have forgotten it (a restart, SCRIPT FLUSH): then its text is sent along."""
        arguments = (b"%d" % len(keys), *keys, *argv)
        (reply,) = await self.exchange([(b"EVALSHA", script.sha, *arguments)])
        if isinstance(reply, NoScriptError):
            (reply,) = await self.exchange([(b"EVAL", script.text, *arguments)])
        if isinstance(reply, Exception):
            raise unavailable(reply) from reply
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
                raise unavailable(error) from error
            if not isinstance(done[0], NoScriptError):
                break
        for reply in done:
            if isinstance(reply, Exception):
                raise unavailable(reply) from reply
        return done[0], done[1:]

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one piece and return their replies; errors of single ones stand in their places."""
        packed = _pack(commands)
        async with self._gate:
            for pause in _PAUSES_S:
                try:
                    return await self._exchange(packed, len(commands))
                except (AuthenticationError, AuthorizationError) as error:
                    raise unavailable(error) from error
                except (RedisConnectionError, OSError):
                    await self._drop_idle()
                    await asyncio.sleep(pause)
                except RedisError as error:
                    raise unavailable(error) from error
            try:
                return await self._exchange(packed, len(commands))
            except (RedisError, OSError) as error:
                raise unavailable(error) from error

    async def _exchange(self, packed: list[bytes], number: int) -> list[Any]:
        connection: Any = self._idle.pop() if self._idle else await self._connected()
        self._busy.add(connection)
        try:
            async with asyncio.timeout(self._settings.timeout_s + sum(map(len, packed)) / _SLOWEST_LINE):
                await connection.send_packed_command(packed, check_health=False)
                replies = [await _reply(connection) for _ in range(number)]
        except BaseException as error:
            # Also when cancelled: a reply that is still to come must not be taken for another command's.
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("no answer") from None
            raise
        finally:
            self._busy.discard(connection)
        if self._closed:
            await connection.disconnect()
        else:
            self._idle.append(connection)
        return replies

    async def _connected(self) -> AbstractConnection:
        connection: Any = self._settings.make_connection()
        self._busy.add(connection)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.timeout_s):
                await connection.connect()
        except TimeoutError:
            await connection.disconnect(nowait=True)
            raise RedisTimeoutError("no answer") from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._busy.discard(connection)
        return connection  # type: ignore[no-any-return]

    async def _drop_idle(self) -> None:
        """What lay idle while a connection broke is likely broken as well."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close everything; what is under way comes to its end."""
        self._closed = True
        await self.wakeups.aclose()
        while self._idle:
            await self._idle.pop().disconnect()

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        for connection in (*self._idle, *self._busy, *self.wakeups.connections()):
            _abandon(connection)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _pack(commands: Sequence[Command]) -> list[bytes]:
    packed = []
    for command in commands:
        packed.append(b"*%d\r\n" % len(command))
        for word in command:
            packed += (b"$%d\r\n" % len(word), word, b"\r\n")
    return packed


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


def unavailable(error: Exception) -> StoreUnavailableError:
    """What an error of the client means. Its own text, which may carry arguments, stays in the cause."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return StoreUnavailableError(reason)
    # redis-py cuts off the codes it knows a class for; then the first word is a part of a sentence.
    code = str(error).split(" ", 1)[0]
    return StoreUnavailableError(
        _CODES.get(code, f"Redis answered with an error ({code if code.isupper() else 'ERR'})")
    )
