"""A process dies in the middle of its turns."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from agent_sessions import Settings, SyncSession, SyncSessionManager
from tests.faults import victims

AT_ONCE, KILLS_EACH = 8, 25
LEASE_S = 0.3
SLACK_S = 2.0
"""Two cores for nine busy processes: what the machine may take beside the lease."""


def test_two_hundred_kills_leave_whole_turns_only(backend: Settings) -> None:
    backend, kills_each = victims.with_lease(backend, LEASE_S), victims.fewer(backend, KILLS_EACH)
    manager = victims.manager_of(backend)

    def kill_again_and_again(index: int) -> list[float]:
        return [_kill_once(backend, SyncSessionManager(manager=manager), f"s{index}") for _ in range(kills_each)]

    with ThreadPoolExecutor(AT_ONCE) as threads:
        waits = [wait for some in threads.map(kill_again_and_again, range(AT_ONCE)) for wait in some]
    SyncSessionManager(manager=manager).close()
    assert len(waits) == AT_ONCE * kills_each
    assert max(waits) <= LEASE_S + SLACK_S


def _kill_once(backend: Settings, manager: SyncSessionManager, session_id: str) -> float:
    """Kill a process at work; check what it left, and return how long the next turn had to wait."""
    said, says = victims.pipe()
    victim = victims.start(victims.run_until_killed, backend, session_id, says)
    says.close()
    acknowledged = said.recv()
    time.sleep(random.random() * 0.03)  # not for luck: the moment is what is tried
    victim.kill()
    victim.join()
    try:
        while said.poll():
            acknowledged = said.recv()
    except EOFError:
        pass
    with manager.read(session_id) as session:
        turns = _whole_turns(session)
    assert acknowledged <= turns <= acknowledged + 1
    begun = time.monotonic()
    with manager.open(session_id) as session:
        waited = time.monotonic() - begun
        assert _whole_turns(session) == turns
    return waited


def _whole_turns(session: SyncSession) -> int:
    """How many turns the session holds; every part of it must say the same."""
    turns = session.get("turns")
    items = session.namespace("openai").log("items").read()
    entries = session.namespace("langgraph").collection("checkpoints").range()
    assert [item["turn"] for item in items] == [number for number in range(1, turns + 1) for _ in range(2)]
    assert [entry["turn"] for _, entry in entries] == list(range(1, turns + 1))
    return int(turns)
