"""Many processes that run one graph on one session."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agent_sessions import Settings
from agent_sessions_langgraph import SessionSaver
from tests.faults import graph_runs, victims

PROCESSES, RUNS = 8, 25


@pytest.mark.parametrize("work", [graph_runs.run_through_the_runner, graph_runs.run_alone])
async def test_eight_processes_lose_no_message_of_one_thread(backend: Settings, work: Any) -> None:
    runs = victims.fewer(backend, RUNS)
    workers = [victims.start(work, backend, "talk", worker, runs) for worker in range(PROCESSES)]
    for process in workers:
        process.join()

    assert [process.exitcode for process in workers] == [0] * PROCESSES
    manager = victims.manager_of(backend)
    found = await SessionSaver(manager, thread="chat").aget_tuple({"configurable": {"thread_id": "talk"}})
    await manager.store.aclose()
    assert found is not None
    messages = found.checkpoint["channel_values"]["messages"]
    assert [message.type for message in messages] == ["human", "ai"] * (PROCESSES * runs)
    questions = [message.text for message in messages[::2]]
    assert [message.text for message in messages[1::2]] == [f"re: {question}" for question in questions]
    assert Counter(questions) == {f"{worker}-{run}": 1 for worker in range(PROCESSES) for run in range(runs)}
    for worker in range(PROCESSES):
        own = [question for question in questions if question.startswith(f"{worker}-")]
        assert own == [f"{worker}-{run}" for run in range(runs)]
