"""Many processes on one session."""

from __future__ import annotations

from collections import Counter
from typing import Any

from agent_sessions import Settings
from agent_sessions_openai import OpenAISession
from tests.faults import victims

PROCESSES = 16


async def test_sixteen_processes_lose_no_update_of_one_counter(backend: Settings) -> None:
    turns = victims.fewer(backend, 50)
    workers = [victims.start(victims.count_up, backend, "shared", turns) for _ in range(PROCESSES)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0] * PROCESSES
    manager = victims.manager_of(backend)
    async with manager.read("shared") as session:
        assert session.get("count") == PROCESSES * turns
    await manager.store.aclose()


async def test_sixteen_processes_add_whole_batches_to_one_conversation(backend: Settings) -> None:
    batches = victims.fewer(backend, 25)
    workers = [victims.start(victims.add_batches, backend, "talk", worker, batches) for worker in range(PROCESSES)]
    for process in workers:
        process.join()
    manager = victims.manager_of(backend)
    items: list[Any] = await OpenAISession("talk", manager=manager).get_items()
    await manager.store.aclose()
    whole = [items[at : at + victims.BATCH] for at in range(0, len(items), victims.BATCH)]
    named = [(batch[0]["worker"], batch[0]["batch"]) for batch in whole]
    for batch, (worker, number) in zip(whole, named, strict=True):
        assert batch == [{"worker": worker, "batch": number, "item": item} for item in range(victims.BATCH)]
    assert Counter(named) == {(worker, number): 1 for worker in range(PROCESSES) for number in range(batches)}
    for worker in range(PROCESSES):
        assert [number for who, number in named if who == worker] == list(range(batches))
