"""A conversation turn on SQLite: the sessions of the OpenAI Agents SDK beside us, and listings among many sessions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession

from agent_sessions import SessionManager
from agent_sessions.stores.base import Commit, Key
from agent_sessions.stores.sqlite import SQLiteStore

from .conversation import MARKS, our_turn, session_turn
from .measure import Rival, compare, promise, table

MANY = 100_000


async def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await _turns(Path(folder))
        await _listings(Path(folder))


async def _turns(folder: Path) -> None:
    """The peers' files are in WAL mode with SQLite's own `synchronous`, which is FULL, as is our default."""
    full, normal = SQLiteStore(folder / "full.db"), SQLiteStore(folder / "normal.db", synchronous="normal")
    warm, light = SessionManager(full), SessionManager(normal)
    opened: list[AsyncSQLiteSession] = []

    def async_session(name: str) -> Any:
        opened.append(AsyncSQLiteSession(name, folder / "async.db"))
        return opened[-1]

    rivals = {
        "peer": Rival(
            "openai-agents SQLiteSession (FULL)",
            lambda name: session_turn(SQLiteSession(name, folder / "peer.db")),
            on_server=False,
        ),
        "async": Rival(
            "openai-agents AsyncSQLiteSession (FULL)", lambda name: session_turn(async_session(name)), on_server=False
        ),
        "ours": Rival("agent-sessions, a turn (FULL)", lambda name: our_turn(warm, name), on_server=False),
        "normal": Rival("agent-sessions, a turn (NORMAL)", lambda name: our_turn(light, name), on_server=False),
    }
    rows = dict(zip(rivals, await compare(list(rivals.values()), MARKS), strict=True))
    for session in opened:
        await session.close()
    await full.aclose()
    await normal.aclose()
    table("A conversation turn on SQLite, ms", list(rows.values()), MARKS)
    ours = rows["ours"].ms
    for name, peer in (("SQLiteSession", rows["peer"].ms), ("AsyncSQLiteSession", rows["async"].ms)):
        faster = peer[500] / ours[500]
        promise(f"warm at turn 500 ≥ 10 × faster than {name}", f"{faster:.1f} ×", faster >= 10)
    growth = ours[1000] / ours[10]
    promise("turn 1000 ≤ 2.5 × turn 10", f"{growth:.2f} ×", growth <= 2.5)


async def _listings(folder: Path) -> None:
    """The first page, a page in the middle, and the count, among very many sessions."""
    store = SQLiteStore(folder / "many.db", synchronous="normal")
    for number in range(MANY):
        commit = Commit(number.to_bytes(8), owner="", expected=None, ttl_ms=604_800_000, belongs_to=f"u{number % 1000}")
        await store.commit(Key("t", "session", f"s{number}"), commit)
    middle = (await store.find("t", "session", limit=MANY // 2)).next
    print(f"\nListings among {MANY:,} sessions")
    page = await _best(lambda: store.find("t", "session", limit=50))
    promise("first page ≤ 10 ms", f"{page:.2f} ms", page <= 10)
    page = await _best(lambda: store.find("t", "session", limit=50, cursor=middle))
    promise("a page in the middle ≤ 10 ms", f"{page:.2f} ms", page <= 10)
    count = await _best(lambda: store.count("t", "session"))
    promise("count ≤ 5 ms", f"{count:.2f} ms", count <= 5)
    await store.aclose()


async def _best(work: Callable[[], Awaitable[object]]) -> float:
    taken = []
    for _ in range(20):
        begun = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - begun) * 1000)
    return min(taken)
