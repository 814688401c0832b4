"""Which server has a key: the one there is, the one that sentinels name, or one of a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from redis.asyncio.connection import AbstractConnection

Command = Sequence[bytes]


class Address(NamedTuple):
    """Where a server is. A socket in the file system has port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


Ask = Callable[[Address, Command], Awaitable[Any]]
"""Send one command to a server and return its reply. Raises a RedisError or an OSError."""


class Servers(Protocol):
    """The servers of a store, as far as they are known. All event loops share what is known."""

    patience_s: float
    """A command that meets servers about to change their places is not given up before so long."""

    @property
    def all(self) -> list[Address]:
        """Those that take writes: every key is on one of them."""
        ...

    @property
    def where(self) -> str:
        """Where Redis is, for people: no password, no user."""
        ...

    def of(self, key: bytes) -> Address | None:
        """Who has a key; None: somebody has to be asked first."""
        ...

    async def find_out(self, ask: Ask, missed: Address | None) -> None:
        """Ask around who has what by now, `missed`, which failed, last.

        Raises:
            NoPrimaryError: Nobody could tell, for now.
        """
        ...

    def resolved(self, host: str, port: int, by: Address) -> Address:
        """The address of a server as another one spells it."""
        ...

    def moved(self, key: bytes, to: Address) -> None:
        """Note who has a key."""
        ...

    async def check(self, connection: AbstractConnection) -> None:
        """Look at a connection just made; raise if it leads to the wrong server."""
        ...


class OneServer:
    """One server, always the same."""

    patience_s = 0.0

    def __init__(self, address: Address) -> None:
        self._address = address
        self.all = [address]
        self.where = str(address)

    def of(self, key: bytes) -> Address:
        """See `Servers.of`."""
        return self._address

    async def find_out(self, ask: Ask, missed: Address | None) -> None:
        """See `Servers.find_out`."""

    def resolved(self, host: str, port: int, by: Address) -> Address:
        """See `Servers.resolved`."""
        return Address(host, port)

    def moved(self, key: bytes, to: Address) -> None:
        """See `Servers.moved`."""

    async def check(self, connection: AbstractConnection) -> None:
        """See `Servers.check`."""
