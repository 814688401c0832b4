"""What runs in other processes: importable, so that a fork server can start it warm."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from agent_sessions import SessionManager, Settings
from agent_sessions.settings import TurnSettings
from agent_sessions.stores.redis import RedisStore
from agent_sessions_openai import OpenAISession

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.victims"])

BATCH = 3


def start(work: Callable[..., Any], *args: Any) -> multiprocessing.process.BaseProcess:
    """Start `work(*args)` in a process of its own."""
    process = _context.Process(target=work, args=args, daemon=True)
    process.start()
    return process


def pipe() -> tuple[Connection, Connection]:
    return _context.Pipe(duplex=False)


def manager_of(url: str, prefix: str, lease_s: float = 30.0) -> SessionManager:
    return SessionManager(
        RedisStore.from_url(url, prefix=prefix), settings=Settings(turn=TurnSettings(lease_s=lease_s))
    )


def count_up(url: str, prefix: str, session_id: str, turns: int) -> None:
    """Read a counter, dawdle, write it back; so many times."""

    async def work() -> None:
        manager = manager_of(url, prefix)
        for _ in range(turns):
            async with manager.open(session_id) as session:
                count = session.get("count", 0)
                await asyncio.sleep(random.random() * 0.002)
                session.set("count", count + 1)
        await manager.store.aclose()

    asyncio.run(work())


def add_batches(url: str, prefix: str, session_id: str, worker: int, batches: int) -> None:
    """Add batches to one conversation, as the SDK's own runner would."""

    async def work() -> None:
        manager = manager_of(url, prefix)
        session = OpenAISession(session_id, manager=manager)
        for batch in range(batches):
            items: list[Any] = [{"worker": worker, "batch": batch, "item": item} for item in range(BATCH)]
            await session.add_items(items)
            await asyncio.sleep(random.random() * 0.002)
        await manager.store.aclose()

    asyncio.run(work())


def run_until_killed(url: str, prefix: str, session_id: str, lease_s: float, done: Connection) -> None:
    """Turn after turn, each of which changes a value, a log and a collection; says which are committed."""

    async def work() -> None:
        manager = manager_of(url, prefix, lease_s)
        while True:
            async with manager.open(session_id) as session:
                number = session.get("turns", 0) + 1
                session.set("turns", number)
                await session.namespace("openai").log("items").append([{"turn": number, "text": "x" * 2000}] * 2)
                await session.namespace("langgraph").collection("checkpoints").put(f"{number:06}", {"turn": number})
            done.send(number)

    asyncio.run(work())
