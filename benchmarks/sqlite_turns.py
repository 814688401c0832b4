"""A conversation turn on SQLite: the sessions of the OpenAI Agents SDK beside us."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents import SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession

from agent_sessions import SessionManager
from agent_sessions.stores.sqlite import SQLiteStore

from .conversation import AT_ONCE, MARKS, our_turn, session_turn
from .measure import Rival, compare, promise, table

SOME_TURNS = 30


class NormalSQLiteSession(SQLiteSession):
    """The peer without the wait for the disk."""

    @staticmethod
    def _configure_connection(connection: sqlite3.Connection) -> None:
        SQLiteSession._configure_connection(connection)
        connection.execute("PRAGMA synchronous = NORMAL")


async def run() -> None:
    """With FULL, which is the default of all, a turn waits for the disk once; with NORMAL it does not."""
    with tempfile.TemporaryDirectory() as folder:
        await _turns(Path(folder))


async def _turns(folder: Path) -> None:
    stores = [SQLiteStore(folder / "full.db"), SQLiteStore(folder / "normal.db", synchronous="normal")]
    full, normal = map(SessionManager, stores)
    opened: list[AsyncSQLiteSession] = []

    def async_session(name: str) -> AsyncSQLiteSession:
        opened.append(AsyncSQLiteSession(name, folder / "async.db"))
        return opened[-1]

    def rival(name: str, turn: Callable[[str], Callable[[int], Awaitable[None]]]) -> Rival:
        return Rival(name, turn, on_server=False)

    rivals = {
        "peer": rival(
            "openai-agents SQLiteSession, FULL", lambda name: session_turn(SQLiteSession(name, folder / "peer.db"))
        ),
        "async": rival("openai-agents AsyncSQLiteSession, FULL", lambda name: session_turn(async_session(name))),
        "ours": rival("agent-sessions, a turn, FULL", lambda name: our_turn(full, name)),
        "peer normal": rival(
            "openai-agents SQLiteSession, NORMAL",
            lambda name: session_turn(NormalSQLiteSession(name, folder / "peer-normal.db")),
        ),
        "ours normal": rival("agent-sessions, a turn, NORMAL", lambda name: our_turn(normal, name)),
    }
    rows = dict(zip(rivals, await compare(list(rivals.values()), MARKS), strict=True))
    table("A conversation turn on SQLite, ms", list(rows.values()), MARKS)
    for peer, ours, text in (
        ("peer normal", "ours normal", "SQLiteSession, both NORMAL"),
        ("peer", "ours", "SQLiteSession, both FULL"),
        ("async", "ours", "AsyncSQLiteSession, both FULL"),
    ):
        faster = rows[peer].ms[500] / rows[ours].ms[500]
        promise(f"warm at turn 500 ≥ 10 × faster than {text}", f"{faster:.1f} ×", faster >= 10)
    growth = rows["ours"].ms[1000] / rows["ours"].ms[10]
    promise("turn 1000 ≤ 2.5 × turn 10", f"{growth:.2f} ×", growth <= 2.5)
    await _many_at_once(folder, full)
    for session in opened:
        await session.close()
    for store in stores:
        await store.aclose()


async def _many_at_once(folder: Path, manager: SessionManager) -> None:
    """64 sessions in one process: turns that end together share the wait for the disk."""
    rates: dict[str, float] = {}
    for _ in range(2):
        for name, start in (
            ("peer", lambda name: session_turn(SQLiteSession(name, folder / "peer.db"))),
            ("ours", lambda name: our_turn(manager, name)),
        ):
            sessions = [start(f"many-{name}-{index}-{len(rates)}") for index in range(AT_ONCE)]
            begun = time.perf_counter()
            await asyncio.gather(*(_some_turns(turn) for turn in sessions))
            rates[name] = max(rates.get(name, 0), AT_ONCE * SOME_TURNS / (time.perf_counter() - begun))
    print(f"  {AT_ONCE} sessions at once, FULL: {rates['ours']:,.0f} turns/s, SQLiteSession {rates['peer']:,.0f}")


async def _some_turns(turn: Callable[[int], Awaitable[None]]) -> None:
    for number in range(SOME_TURNS):
        await turn(number)
