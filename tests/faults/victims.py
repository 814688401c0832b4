"""What runs in other processes: importable, so that a fork server can start it warm."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from agent_sessions import SessionManager, Settings
from agent_sessions.settings import TurnSettings
from agent_sessions.stores import open_store
from agent_sessions_openai import OpenAISession

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.faults.victims",
        "tests.faults.crowds",
        "tests.faults.graph_runs",
        "agent_sessions.stores.dynamodb",
        "agent_sessions.stores.redis",
        "agent_sessions.stores.sqlite",
    ]
)

BATCH = 3


def start(work: Callable[..., Any], *args: Any) -> multiprocessing.process.BaseProcess:
    """Start `work(*args)` in a process of its own. The fork server has no AWS credentials: they come along."""
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = _context.Process(target=_work, args=(credentials, work, *args), daemon=True)
    process.start()
    return process


def _work(credentials: dict[str, str], work: Callable[..., Any], *args: Any) -> None:
    os.environ.update(credentials)
    work(*args)


def fewer(backend: Settings, times: int) -> int:
    """How often to do something. DynamoDB Local, which wants as much of the machine as all others together, has less to
    do."""
    return times // 5 if backend.type == "dynamodb" else times


def pipe() -> tuple[Connection, Connection]:
    return _context.Pipe(duplex=False)


def barrier(parties: int) -> Any:
    """A point that so many processes leave together."""
    return _context.Barrier(parties)


def with_lease(backend: Settings, seconds: float) -> Settings:
    """The same backend, with leases of another length."""
    return backend.model_copy(update={"turn": TurnSettings(lease_s=seconds)})


def manager_of(backend: Settings) -> SessionManager:
    return SessionManager(open_store(backend), settings=backend)


def count_up(backend: Settings, session_id: str, turns: int) -> None:
    """Read a counter, dawdle, write it back; so many times."""

    async def work() -> None:
        manager = manager_of(backend)
        for _ in range(turns):
            async with manager.open(session_id) as session:
                count = session.get("count", 0)
                await asyncio.sleep(random.random() * 0.002)
                session.set("count", count + 1)
        await manager.store.aclose()

    asyncio.run(work())


def add_batches(backend: Settings, session_id: str, worker: int, batches: int) -> None:
    """Add batches to one conversation, as the SDK's own runner would."""

    async def work() -> None:
        manager = manager_of(backend)
        session = OpenAISession(session_id, manager=manager)
        for batch in range(batches):
            items: list[Any] = [{"worker": worker, "batch": batch, "item": item} for item in range(BATCH)]
            await session.add_items(items)
            await asyncio.sleep(random.random() * 0.002)
        await manager.store.aclose()

    asyncio.run(work())


def run_until_killed(backend: Settings, session_id: str, done: Connection) -> None:
    """Turn after turn, each of which changes a value, a log and a collection; says which are committed."""

    async def work() -> None:
        manager = manager_of(backend)
        while True:
            async with manager.open(session_id) as session:
                number = session.get("turns", 0) + 1
                session.set("turns", number)
                await session.namespace("openai").log("items").append([{"turn": number, "text": "x" * 2000}] * 2)
                await session.namespace("langgraph").collection("checkpoints").put(f"{number:06}", {"turn": number})
            done.send(number)

    asyncio.run(work())
