"""What many processes do at the same moment: importable, so that a fork server can start them warm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from agent_sessions import SessionManager, Settings
from agent_sessions.errors import SessionError
from tests.faults import victims


def all_at_once(processes: int, backend: Settings, work: Callable[[SessionManager], Awaitable[str]]) -> list[str]:
    """What each of so many processes answers, which all start on it when the last of them is ready."""
    barrier = victims.barrier(processes)
    pipes = [victims.pipe() for _ in range(processes)]
    started = [victims.start(_take_part, backend, work, barrier, answer) for _, answer in pipes]
    answers = [answer.recv() for answer, _ in pipes]
    for process in started:
        process.join()
    return answers


def _take_part(
    backend: Settings, work: Callable[[SessionManager], Awaitable[str]], barrier: Any, answer: Connection
) -> None:
    async def main() -> str:
        manager = victims.manager_of(backend)
        await manager.count()  # connected
        barrier.wait()
        try:
            return await work(manager)
        except SessionError as error:
            return error.code
        finally:
            await manager.store.aclose()

    answer.send(asyncio.run(main()))


async def get_or_create(manager: SessionManager) -> str:
    """Ask for the one session of a user."""
    return (await manager.get_or_create("new")).session_id


async def create_five(manager: SessionManager) -> str:
    """Make five more sessions for a user, at once."""
    made = await asyncio.gather(*(manager.create("u") for _ in range(5)), return_exceptions=True)
    return " ".join(one.code if isinstance(one, SessionError) else "made" for one in made)


async def expire(manager: SessionManager) -> str:
    """End what has run out; tell which."""
    return " ".join((await manager.expire_idle(max_age=0)).session_ids)
