"""What each event loop uses to talk to Redis: connections of its own, and its place for wake-ups.

redis-py makes and authenticates the connections; its clients and pools, which cost as much time as Redis needs for a
turn, and give a cluster up sooner than a failover takes, are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from random import sample
from secrets import token_hex
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, TryAgainError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.per_loop import PerLoop
from agent_sessions.stores.redis.connections.failures import NoPrimaryError, is_broken, unavailable, will_pass
from agent_sessions.stores.redis.connections.node import Node, abandon, hang_up
from agent_sessions.stores.redis.connections.servers import Address, Command, Servers
from agent_sessions.stores.redis.connections.waiting import Wakeups
from agent_sessions.stores.redis.scripts import Script

logger = logging.getLogger("agent_sessions")

_FIRST_PAUSES_S = (0.0, 0.05)
"""A connection that breaks is replaced and the command sent again, after these pauses. Every script may be."""

_NEXT_PAUSE_S = 0.1
"""After those, while servers are changing places."""

_ASKING_S = 1.0
"""A server that is asked who has what gets so long to answer: another one may know as well."""

_CLOSING_S = 2.0

_SLOWEST_LINE = 1 << 20
"""Bytes a second: what is large to send may take so much longer than the time-out."""


class Settings(NamedTuple):
    """How the connections of a store are made, and how long they may take."""

    servers: Servers
    make_connection: Callable[[Address], AbstractConnection]
    max_connections: int
    """The most that one event loop has to one server."""
    connect_timeout_s: float
    timeout_s: float
    seen: set[Address]
    """The servers that were looked at."""


class _Replies(NamedTuple):
    replies: list[Any]
    by: Address
    maybe_done: bool
    """Whether the same was sent before, and no answer came."""


class LoopClient:
    """What one event loop uses."""

    def __init__(self, settings: Settings, channel: bytes) -> None:
        self._settings = settings
        self._servers = settings.servers
        self._nodes: dict[Address, Node] = {}
        self._finding_out: asyncio.Task[None] | None = None
        self.wakeups = Wakeups(self._connected_somewhere, channel)

    # ------------------------------------------------------------------------------------------------- what is asked

    async def run(self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes]) -> Any:
        """Run a script. Redis may have forgotten it (a restart, SCRIPT FLUSH): then its text is sent along."""
        return (await self._run(script, keys, argv, ())).replies[0]

    async def run_and_wait(
        self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes], replicas: int, timeout_s: float
    ) -> tuple[Any, int]:
        """Run a script, and return its reply when so many replicas have it, or the time is over; and how many have."""
        wait = (b"WAIT", b"%d" % replicas, b"%d" % (timeout_s * 1000))
        found = await self._run(script, keys, argv, (wait,), timeout_s)
        reply, reached = found.replies
        if isinstance(reached, Exception):
            raise self._unavailable(reached, found.by, maybe_done=True) from reached
        return reply, reached

    async def run_beside(
        self, script: Script, keys: Sequence[bytes], argv: Sequence[bytes], commands: Sequence[Command]
    ) -> tuple[Any, list[Any]]:
        """Run a script, and reading commands after it, in one round trip and at one moment."""
        arguments = (b"%d" % len(keys), *keys, *argv)
        for call in ((b"EVALSHA", script.sha, *arguments), (b"EVAL", script.text, *arguments)):
            found = await self._exchange([(b"MULTI",), call, *commands, (b"EXEC",)], keys[0])
            *queued, done = found.replies
            if isinstance(done, Exception):
                raise self._refused(next((reply for reply in queued if isinstance(reply, Exception)), done), found)
            if not isinstance(done[0], NoScriptError):
                break
        for reply in done:
            if isinstance(reply, Exception):
                raise self._refused(reply, found)
        return done[0], done[1:]

    async def query(self, commands: Sequence[Command]) -> list[Any]:
        """Send reading commands, each to where its key is, and return their replies; raise the first error."""
        by_server: dict[Address | None, list[int]] = {}
        for place, command in enumerate(commands):
            by_server.setdefault(self._servers.of(command[1]), []).append(place)
        replies: list[Any] = [None] * len(commands)

        async def ask(places: list[int]) -> None:
            some = [commands[place] for place in places]
            found = await self._exchange(some, some[0][1], follows=len(by_server) == 1 and len(some) == 1)
            for place, reply in zip(places, found.replies, strict=True):
                if isinstance(reply, AskError) or (isinstance(reply, Exception) and will_pass(reply)):
                    found = await self._exchange([commands[place]], commands[place][1])
                    reply = found.replies[0]
                if isinstance(reply, Exception):
                    raise self._refused(reply, found)
                replies[place] = reply

        await asyncio.gather(*map(ask, by_server.values()))
        return replies

    async def query_at(self, address: Address, commands: Sequence[Command]) -> list[Any]:
        """Send reading commands to one server, and return their replies; raise the first error."""
        found = await self._exchange(commands, b"", at=address)
        for reply in found.replies:
            if isinstance(reply, Exception):
                raise self._refused(reply, found)
        return found.replies

    async def servers(self) -> list[Address]:
        """All that take writes."""
        if not self._servers.all:
            await self._exchange([(b"PING",)], b"")
        return self._servers.all

    async def _run(
        self,
        script: Script,
        keys: Sequence[bytes],
        argv: Sequence[bytes],
        after: Sequence[Command],
        extra_s: float = 0.0,
    ) -> _Replies:
        arguments = (b"%d" % len(keys), *keys, *argv)
        found = await self._exchange([(b"EVALSHA", script.sha, *arguments), *after], keys[0], extra_s=extra_s)
        if isinstance(found.replies[0], NoScriptError):
            before = found.maybe_done
            found = await self._exchange([(b"EVAL", script.text, *arguments), *after], keys[0], extra_s=extra_s)
            found = found._replace(maybe_done=before or found.maybe_done)
        if isinstance(found.replies[0], Exception):
            raise self._refused(found.replies[0], found)
        return found

    # ------------------------------------------------------------------------------------------------- the way there

    async def _exchange(
        self,
        commands: Sequence[Command],
        key: bytes,
        *,
        at: Address | None = None,
        follows: bool = True,
        extra_s: float = 0.0,
    ) -> _Replies:
        """Send commands in one piece to where a key is and return their replies, errors of single ones among them.

        While servers are changing places it is sent again. What is redirected then, is redirected as a whole, unless
        `follows` is false.
        """
        packed, number = _pack(commands), len(commands)
        timeout_s = self._settings.timeout_s + len(packed) / _SLOWEST_LINE + extra_s
        stays_put, begun = not self._servers.patience_s, time.monotonic()
        pauses: Iterator[float] | None = None
        maybe_done, asks = False, None
        while True:
            address, sent = asks or at or self._servers.of(key), False
            try:
                if address is None:
                    raise NoPrimaryError(f"no primary of {self._servers.where} is known")
                node = self._node(address)
                place = node.take()
                try:
                    wire = place.wire
                    if wire is None:
                        wire = await asyncio.shield(place.opening)
                    sent = True
                    if asks is None:
                        replies = await wire.exchange(packed, number, timeout_s)
                    else:
                        _, *replies = await wire.exchange(_ASKING + packed, number + 1, timeout_s)
                finally:
                    node.give_back(place)
            except (RedisError, OSError) as error:
                trouble, maybe_done = error, maybe_done or sent
            else:
                passing = None if stays_put or not follows else next(filter(_is_passing, replies), None)
                if passing is None:
                    return _Replies(replies, address, maybe_done)
                trouble = passing
            pauses = pauses or _pauses(begun + self._servers.patience_s)
            pause = next(pauses, None)
            if pause is None or not (is_broken(trouble) if stays_put else _is_passing(trouble)):
                raise self._unavailable(trouble, address, maybe_done=maybe_done) from trouble
            asks = None
            if isinstance(trouble, AskError) and address is not None:
                asks = self._redirected(trouble, key, address)
            elif not isinstance(trouble, TryAgainError):
                try:
                    await self._look_around(address)
                except (RedisError, OSError) as error:
                    raise self._unavailable(error, None, maybe_done=maybe_done) from error
                if at is not None and at not in self._servers.all:
                    raise self._unavailable(trouble, at, maybe_done=maybe_done) from trouble
            await asyncio.sleep(pause)

    def _redirected(self, error: AskError, key: bytes, by: Address) -> Address | None:
        """Note where a key has moved to; or, while it is only about to, return who is to be asked this once."""
        to = self._servers.resolved(error.host, error.port, by)
        if not isinstance(error, MovedError):
            return to
        self._servers.moved(key, to)
        self._start_finding_out(None)  # it seldom moves alone
        return None

    async def _look_around(self, missed: Address | None) -> None:
        """Find out who has what by now."""
        if missed is not None and (node := self._nodes.get(missed)) is not None:
            node.drop_idle()
        with contextlib.suppress(NoPrimaryError):  # the next try tells
            await asyncio.shield(self._start_finding_out(missed))

    def _start_finding_out(self, missed: Address | None) -> asyncio.Task[None]:
        """Ask around who has what by now, unless that is being done."""
        task = self._finding_out
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._find_out(missed), context=Context())
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._finding_out = task
        return task

    async def _find_out(self, missed: Address | None) -> None:
        await self._servers.find_out(self._ask, missed)
        for address in self._nodes.keys() - set(self._servers.all):
            self._nodes.pop(address).close()

    async def _ask(self, address: Address, command: Command) -> Any:
        node = self._node(address)
        place = node.take()
        try:
            async with asyncio.timeout(min(_ASKING_S, self._settings.timeout_s)):
                wire = await asyncio.shield(place.opening)
                (reply,) = await wire.exchange(_pack([command]), 1, self._settings.timeout_s)
        finally:
            node.give_back(place)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = Node(lambda: self._connected(address), self._settings.max_connections)
            self._nodes[address] = node
        return node

    def _refused(self, error: Exception, found: _Replies) -> StoreUnavailableError:
        """What an error among the replies means: this time nothing was done."""
        refused = self._unavailable(error, found.by, maybe_done=found.maybe_done)
        refused.__cause__ = error
        return refused

    def _unavailable(self, error: Exception, address: Address | None, *, maybe_done: bool) -> StoreUnavailableError:
        return unavailable(error, self._servers.where if address is None else str(address), maybe_done=maybe_done)

    # ------------------------------------------------------------------------------------------------- connections

    async def _connected(self, address: Address) -> AbstractConnection:
        connection = await self._just_connected(address)
        if address in self._settings.seen:
            return connection
        self._settings.seen.add(address)
        await _warn_of_eviction(connection, address)
        if connection.is_connected:
            return connection
        return await self._just_connected(address)  # refused: whoever uses it next is told why

    async def _just_connected(self, address: Address) -> AbstractConnection:
        connection: Any = self._settings.make_connection(address)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.timeout_s):
                await connection.connect()
                await self._servers.check(connection)
        except TimeoutError:
            await hang_up(connection)
            raise RedisTimeoutError("no answer") from None
        except BaseException:
            await hang_up(connection)
            raise
        return connection  # type: ignore[no-any-return]

    async def _connected_somewhere(self) -> AbstractConnection:
        """A connection for messages, which reach every server that takes writes."""
        servers = await self.servers()
        *others, last = sample(servers, len(servers))
        for address in others:
            with contextlib.suppress(RedisError, OSError):
                return await self._just_connected(address)
        return await self._just_connected(last)

    async def aclose(self) -> None:
        """Close everything; what is under way comes to its end."""
        await self.wakeups.aclose()
        ending: list[asyncio.Future[Any]] = []
        if self._finding_out is not None and self._finding_out.cancel():
            ending.append(self._finding_out)
        for node in self._nodes.values():
            ending += node.close()
        if ending:
            await asyncio.wait(ending, timeout=_CLOSING_S)
        await asyncio.sleep(0)  # transports close at the loop's next pass

    def abandon(self) -> None:
        """Close the sockets of a loop that is closed and can close nothing any more."""
        for node in self._nodes.values():
            node.abandon()
        for connection in self.wakeups.connections():
            abandon(connection)


def _pauses(end: float) -> Iterator[float]:
    """How long to wait before each further try."""
    yield from _FIRST_PAUSES_S
    while time.monotonic() < end:
        yield _NEXT_PAUSE_S


def _is_passing(reply: object) -> bool:
    """Whether this is said by servers that are changing places."""
    return isinstance(reply, Exception) and (isinstance(reply, AskError) or will_pass(reply))


async def _warn_of_eviction(connection: Any, address: Address) -> None:
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


_ASKING = _pack([(b"ASKING",)])


class Clients(PerLoop[LoopClient]):
    """The clients of a store."""

    def __init__(self, settings: Settings, make_channel: Callable[[str], bytes]) -> None:
        super().__init__(lambda: LoopClient(settings, make_channel(token_hex(8))))
