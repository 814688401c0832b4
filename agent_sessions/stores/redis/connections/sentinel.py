"""Redis Sentinel: the sentinels name the primary (https://redis.io/docs/latest/develop/reference/sentinel-clients/)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from agent_sessions.stores.redis.connections.failures import NoPrimaryError, WrongServersError, will_pass
from agent_sessions.stores.redis.connections.node import hang_up
from agent_sessions.stores.redis.connections.servers import Address, Ask

_ASKING_S = 1.0
"""A sentinel gets so long to answer: another one may know as well."""


class Sentinels:
    """The primary of a service, as the sentinels named it last."""

    def __init__(
        self,
        sentinels: Sequence[Address],
        service_name: str,
        patience_s: float,
        make_connection: Callable[[Address], AbstractConnection],
    ) -> None:
        self.patience_s = patience_s
        self._sentinels = list(dict.fromkeys(sentinels))
        self._service_name = service_name
        self._make_connection = make_connection
        self._primary: Address | None = None

    @property
    def all(self) -> list[Address]:
        """See `Servers.all`."""
        return [self._primary] if self._primary is not None else []

    @property
    def where(self) -> str:
        """See `Servers.where`."""
        return f"the Redis service {self._service_name!r} of the sentinels {', '.join(map(str, self._sentinels))}"

    def of(self, key: bytes) -> Address | None:
        """See `Servers.of`."""
        return self._primary

    async def find_out(self, ask: Ask, missed: Address | None) -> None:
        """See `Servers.find_out`. A sentinel that still names the primary that failed may not have noticed yet."""
        failure: Exception | None = None
        still_named = False
        for sentinel in self._sentinels:
            try:
                named = await self._named_by(sentinel)
            except (RedisError, OSError) as error:
                failure = error
                continue
            if named is None:
                failure = WrongServersError(f"the sentinels know no service {self._service_name!r}")
            elif named == missed:
                still_named = True
            else:
                self._primary = named
                self._sentinels = [sentinel, *(other for other in self._sentinels if other != sentinel)]
                return
        if still_named:
            self._primary = missed
            return
        if failure is not None and not will_pass(failure):
            raise failure
        raise NoPrimaryError(f"no sentinel names the primary of {self.where}") from failure

    async def _named_by(self, sentinel: Address) -> Address | None:
        connection: Any = self._make_connection(sentinel)
        try:
            async with asyncio.timeout(_ASKING_S):
                await connection.connect()
                await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service_name)
                reply = await connection.read_response()
        finally:
            await hang_up(connection)
        return Address(reply[0].decode(), int(reply[1])) if reply else None

    def resolved(self, host: str, port: int, by: Address) -> Address:
        """See `Servers.resolved`."""
        return Address(host, port)

    def moved(self, key: bytes, to: Address) -> None:
        """See `Servers.moved`."""

    async def check(self, connection: AbstractConnection) -> None:
        """See `Servers.check`. One that comes back is a primary for a moment, in its own eyes or the sentinels'."""
        raw: Any = connection
        await raw.send_command("ROLE")
        role, *_ = await raw.read_response()
        if role != b"master":
            raise NoPrimaryError(f"the primary of {self._service_name!r} that the sentinels name is a replica by now")
