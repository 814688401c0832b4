"""One connection to Redis that many commands are on at once.

redis-py makes the connection: address, TLS, user, database. From then on commands are written as they come, those of
one pass of the event loop in one piece, and replies are handed out in the order of the commands, as Redis answers them
(https://redis.io/docs/latest/develop/use/pipelining/). None of our commands blocks the server, so none waits long for
the one before it; but for WAIT, whose users want to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis
from msgspec import Struct, field
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError


class _Exchange(Struct):
    """Commands that were sent together, and the replies that have come."""

    number: int
    answered: asyncio.Future[list[Any]]
    deadline: asyncio.TimerHandle
    replies: list[Any] = field(default_factory=list)


class Wire(asyncio.Protocol):
    """Takes a connection of redis-py's over, which has just been made."""

    def __init__(self, connection: AbstractConnection) -> None:
        raw: Any = connection
        self._connection = raw
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = raw._writer.transport
        self._former: asyncio.BaseProtocol = self._transport.get_protocol()
        self._replies = hiredis.Reader(replyError=raw._parser.parse_error)
        self._pending: deque[_Exchange] = deque()
        self._unsent: list[bytes] = []
        self._leaving = False
        self.is_closed = False
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when it is."""
        self._transport.set_protocol(self)

    @property
    def connection(self) -> AbstractConnection:
        """What redis-py made."""
        connection: AbstractConnection = self._connection
        return connection

    def exchange(self, packed: bytes, number: int, timeout_s: float) -> asyncio.Future[list[Any]]:
        """Send so many commands; the future is of their replies, errors among them as they are.

        When they have not come in time, the connection is of no use to anybody any more.
        """
        answered: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.is_closed or self._leaving:
            answered.set_exception(RedisConnectionError("the connection is closed"))
            return answered
        deadline = self._loop.call_later(timeout_s, self._give_up, answered)
        self._pending.append(_Exchange(number, answered, deadline))
        if len(self._pending) == 1:
            self._transport.write(packed)
        else:
            if not self._unsent:
                self._loop.call_soon(self._send)
            self._unsent.append(packed)
        return answered

    def leave(self) -> None:
        """Close, once what is under way has come to its end: whoever waits for a reply gets it."""
        self._leaving = True
        if all(exchange.answered.done() for exchange in self._pending):
            self._transport.abort()  # TLS would take its time

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _give_up(self, answered: asyncio.Future[list[Any]]) -> None:
        if not answered.done():
            answered.set_exception(RedisTimeoutError("no answer"))
        self.abort()

    def _send(self) -> None:
        packed, self._unsent = b"".join(self._unsent), []
        if not self.is_closed:
            self._transport.write(packed)

    # ------------------------------------------------------------------------------------------------- the protocol

    def data_received(self, data: bytes) -> None:
        """Hand replies out."""
        try:
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                self._take(reply)
        except (hiredis.ProtocolError, IndexError):  # no Redis, or an answer that nobody asked for
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell all who wait."""
        self.is_closed = True
        self.closed.set_result(None)
        for exchange in self._pending:
            exchange.deadline.cancel()
            if not exchange.answered.done():
                exchange.answered.set_exception(RedisConnectionError("the connection was lost"))
        self._pending.clear()
        self._former.connection_lost(error)
        self._connection._reader = self._connection._writer = None  # it has nothing left to close, or to warn of

    def eof_received(self) -> bool:
        """The server closes: so do we."""
        return False

    def _take(self, reply: Any) -> None:
        exchange = self._pending[0]
        exchange.replies.append(reply)
        if len(exchange.replies) < exchange.number:
            return
        self._pending.popleft()
        exchange.deadline.cancel()
        if not exchange.answered.done():  # cancelled: nobody waits for it any more
            exchange.answered.set_result(exchange.replies)
        if self._leaving and not self._pending:
            self._transport.abort()
