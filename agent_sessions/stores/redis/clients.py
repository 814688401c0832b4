"""Connections to Redis: clients of their own for each event loop, and what their errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    ConnectionError,
    ExecAbortError,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.redis.scripts import Script
from agent_sessions.stores.redis.waiting import Wakeups

Command = tuple[bytes | int, ...]

_CLOSING_S = 2.0


class LoopClient:
    """What one event loop uses: a client, and its place for wake-ups."""

    def __init__(self, client: Redis, pool: ConnectionPool, *, owned: bool, channel: bytes) -> None:
        self._client: Any = client
        self._pool = pool
        self._owned = owned
        # More turns at once than connections wait for one, instead of failing.
        self._gate = asyncio.Semaphore(client.connection_pool.max_connections)
        self.wakeups = Wakeups(pool.make_connection, channel)

    async def run(self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes]) -> Any:
        """Run a script. Redis may have forgotten it (a restart, SCRIPT FLUSH): then its text is sent along."""
        async with self._gate:
            try:
                return await self._client.execute_command("EVALSHA", script.sha, len(keys), *keys, *argv)
            except NoScriptError:
                pass
            except (RedisError, OSError) as error:
                raise unavailable(error) from error
            try:
                return await self._client.execute_command("EVAL", script.text, len(keys), *keys, *argv)
            except (RedisError, OSError) as error:
                raise unavailable(error) from error

    async def run_beside(
        self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes], commands: Sequence[Command]
    ) -> tuple[Any, list[Any]]:
        """Run a script, and reading commands after it, in one round trip and at one moment."""
        for call in (("EVALSHA", script.sha), ("EVAL", script.text)):
            reply, *read = await self.pipeline([(*call, len(keys), *keys, *argv), *commands], transaction=True)
            if not isinstance(reply, NoScriptError):
                break
        for answer in (reply, *read):
            if isinstance(answer, Exception):
                raise unavailable(answer) from answer
        return reply, read

    async def pipeline(self, commands: Sequence[tuple[Any, ...]], *, transaction: bool = False) -> list[Any]:
        """Run commands in one round trip; errors of single ones stand in their places."""
        async with self._gate:
            try:
                pipeline = self._client.pipeline(transaction=transaction)
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute(raise_on_error=False))
            except (RedisError, OSError) as error:
                raise unavailable(error) from error

    async def aclose(self) -> None:
        """Close what was opened here."""
        await self.wakeups.aclose()
        if self._owned:
            await self._pool.aclose()

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        self.wakeups.abandon()
        if not self._owned:
            return
        for connection in (*self._pool._available_connections, *self._pool._in_use_connections):
            abandon(connection)


class Clients:
    """The clients of a store, one for each running event loop, made when first needed there.

    A client given by the user serves the first loop that uses it; other loops get copies of it. A child process
    never touches what its parent opened: also closing it there would disturb the parent.
    """

    def __init__(
        self,
        make_pool: Callable[[], ConnectionPool],
        make_channel: Callable[[str], bytes],
        *,
        given: Redis | None = None,
    ) -> None:
        self._make_pool = make_pool
        self._make_channel = make_channel
        self._given = given
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
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(closing, _CLOSING_S)
            else:
                client.abandon()

    def _make(self, loop: asyncio.AbstractEventLoop) -> LoopClient:
        with self._lock:
            for closed in [other for other in self._by_loop if other.is_closed()]:
                self._by_loop.pop(closed).abandon()
            given, self._given = self._given, None
            pool = self._make_pool()
            client = given or Redis(connection_pool=pool)
            made = LoopClient(client, pool, owned=given is None, channel=self._make_channel(token_hex(8)))
            self._by_loop[loop] = made
            return made

    def _forget_the_parents(self) -> None:
        self._inherited += [self._by_loop, self._given]
        self._by_loop, self._given = {}, None
        self._lock = threading.Lock()
        self._pid = os.getpid()


def abandon(connection: AbstractConnection) -> None:
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

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "Redis refused the password or user name"),
    (MaxConnectionsError, "all connections to Redis are in use"),
    (BusyLoadingError, "Redis is still loading its data"),
    (TimeoutError, "Redis did not answer in time"),
    (ConnectionError, "Redis can't be reached"),
    (OutOfMemoryError, "Redis is out of memory (maxmemory is reached); nothing was stored"),
    (ReadOnlyError, "this Redis is a read-only replica; connect to the primary"),
    (NoPermissionError, "the Redis user has no permission for a command or key that the store needs"),
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
    "MOVED": "this Redis is a node of a cluster, which this store does not support",
    "CROSSSLOT": "this Redis is a node of a cluster, which this store does not support",
    "CLUSTERDOWN": "the Redis cluster is down",
    "WRONGTYPE": "a key under the store's prefix is used by something else",
    "READONLY": "this Redis is a read-only replica; connect to the primary",
    "MASTERDOWN": "this Redis is a replica whose primary is down",
    "EXECABORT": "Redis refused the transaction",
}


def unavailable(error: Exception) -> StoreUnavailableError:
    """What an error of the client means. Its own text, which may carry arguments, stays in the cause."""
    if isinstance(error, ExecAbortError) and error.__cause__ is not None and error.__cause__ is not error:
        return unavailable(error.__cause__) if isinstance(error.__cause__, Exception) else _named("EXECABORT")
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return StoreUnavailableError(reason)
    code = str(error).split(" ", 1)[0] if isinstance(error, ResponseError) else type(error).__name__
    return _named(code)


def _named(code: str) -> StoreUnavailableError:
    return StoreUnavailableError(_CODES.get(code, f"Redis answered with an error ({code})"))
