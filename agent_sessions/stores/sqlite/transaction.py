"""What the work of one operation is given."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agent_sessions.stores.base import Key


class Waiter(NamedTuple):
    """An owner that waits for its turn on an event loop of this process."""

    key: Key
    owner: str
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Future[None]


class Transaction:
    """A transaction, its one moment, and what is to be done after it."""

    __slots__ = ("_connection", "buried", "handed_over", "now", "waiting")

    def __init__(self, connection: sqlite3.Connection, now: int) -> None:
        self._connection = connection
        self.now = now
        self.handed_over: set[str] = set()
        """Owners that were given a lease without asking: if they wait in this process, they are woken directly."""
        self.waiting: list[Waiter] = []
        """Those to wake when it is their turn."""
        self.buried = False
        """Whether a key was taken away whose parts are still there."""

    def one(self, sql: str, *arguments: Any) -> tuple[Any, ...] | None:
        """The first row of a query."""
        row: tuple[Any, ...] | None = self._connection.execute(sql, arguments).fetchone()
        return row

    def all(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Every row of a query."""
        return self._connection.execute(sql, arguments).fetchall()

    def named(self, sql: str, arguments: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Every row of a query whose arguments have names."""
        return self._connection.execute(sql, arguments).fetchall()

    def run(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        """Carry a statement out."""
        return self._connection.execute(sql, arguments)

    def run_each(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Carry a statement out for each of these rows."""
        if rows:
            self._connection.executemany(sql, rows)
