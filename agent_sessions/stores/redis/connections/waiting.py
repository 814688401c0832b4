"""How a waiting turn is woken: one subscription for each event loop, made when somebody first has to wait.

The waiter's ticket stands in the session's hash and names the loop's channel; whoever gives the lease up publishes the
next waiter's name there. A message is only a hint to ask again: a lost one costs a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from agent_sessions.stores.redis.connections.node import hang_up

ASK_AGAIN_S = 1.0
"""A waiter asks again so often without being woken, which also keeps its place in the queue."""

_IDLE_S = 30.0
"""A subscription that nobody needed for so long is given up."""

_REFUSED_S = 30.0
"""After Redis refused the subscription (a user without channels), it is not asked again for so long."""

_SUBSCRIBE_S = 2.0


class Wakeups:
    """The waiters of one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[AbstractConnection]], channel: bytes) -> None:
        self._connect = connect
        self._channel = channel
        self._connection: AbstractConnection | None = None
        self._listener: asyncio.Task[None] | None = None
        self._subscribing = asyncio.Lock()
        self._refused_until = 0.0
        self._woken: dict[str, asyncio.Event] = {}
        self._ask_at: dict[str, float] = {}

    @property
    def channel(self) -> bytes:
        """The channel, if messages on it arrive here; else nothing."""
        return self._channel if self._listener is not None and not self._listener.done() else b""

    def expect(self, owner: str) -> None:
        """A ticket of this owner is about to be queued: a message from now on is for it."""
        self._woken.setdefault(owner, asyncio.Event())

    def refused(self, owner: str, again_ms: int) -> None:
        """The owner stands in the queue; after so long the lease may be free without a message."""
        self.expect(owner)
        self._ask_at[owner] = asyncio.get_running_loop().time() + again_ms / 1000

    def forget(self, owner: str) -> None:
        """The owner waits no longer."""
        self._woken.pop(owner, None)
        self._ask_at.pop(owner, None)

    async def wait(self, owner: str, seconds: float) -> None:
        """Return when woken, or when it is time to ask again."""
        timeout = min(seconds, ASK_AGAIN_S)
        ask_at = self._ask_at.get(owner)
        if ask_at is not None:
            # The server counts whole milliseconds: a little later the lease is over for it too.
            timeout = min(timeout, max(ask_at - asyncio.get_running_loop().time(), 0.0) + 0.002)
        woken = self._woken.get(owner)
        if woken is None:
            await asyncio.sleep(max(timeout, 0.0))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(woken.wait(), timeout)
        woken.clear()

    async def listen(self) -> bool:
        """Make sure that messages arrive; False if Redis refuses, or can't be reached, for now."""
        async with self._subscribing:
            if self.channel:
                return True
            loop = asyncio.get_running_loop()
            if loop.time() < self._refused_until:
                return False
            connection: Any = None
            try:
                connection = await self._connect()
                async with asyncio.timeout(_SUBSCRIBE_S):
                    await connection.send_command(b"SUBSCRIBE", self._channel)
                    await connection.read_response()
            except (RedisError, OSError, TimeoutError) as error:
                if connection is not None:
                    await hang_up(connection)
                refused = isinstance(error, ResponseError)
                self._refused_until = loop.time() + (_REFUSED_S if refused else ASK_AGAIN_S)
                return False
            except BaseException:
                if connection is not None:
                    await hang_up(connection)
                raise
            self._connection = connection
            # In a context of its own: whose turn happened to be the first to wait is nobody's business here.
            self._listener = loop.create_task(self._listen(connection), context=Context())
            return True

    async def _listen(self, connection: AbstractConnection) -> None:
        try:
            while True:
                message = await connection.read_response(timeout=_IDLE_S, disconnect_on_error=False)
                if message is not None:
                    self._deliver(message)
                elif self._woken:
                    await connection.send_command(b"PING")
                else:
                    return
        except (RedisError, OSError):
            pass
        finally:
            # Waiters ask again, and the first of them subscribes anew.
            self._listener = self._connection = None
            for woken in self._woken.values():
                woken.set()
            await hang_up(connection)

    def _deliver(self, message: object) -> None:
        if isinstance(message, list) and len(message) == 3 and message[0] == b"message":
            woken = self._woken.get(message[2].decode("utf-8", "surrogatepass"))
            if woken is not None:
                woken.set()

    async def aclose(self) -> None:
        """Stop listening."""
        listener = self._listener
        if listener is not None:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener

    def connections(self) -> list[AbstractConnection]:
        """What is open."""
        return [self._connection] if self._connection is not None else []
