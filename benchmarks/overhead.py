"""What we add: our runner around a scripted OpenAI agent, and the import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import agents
from agents.testing import ScriptedModel, assistant_message

from agent_sessions import MemoryStore, Runner, SessionManager

from .measure import promise

ROUNDS = 300


def _agent() -> agents.Agent:
    return agents.Agent("assistant", model=ScriptedModel([[assistant_message("hello there")] for _ in range(ROUNDS)]))


async def of_the_runner() -> None:
    agents.set_tracing_disabled(True)
    runner, own, wrapped = Runner(SessionManager(MemoryStore())), _agent(), _agent()
    alone, ours = [], []
    for number in range(ROUNDS):
        session_id = f"s{number}"  # new each time: a conversation that grows would be read by one of them only
        begun = time.perf_counter()
        await agents.Runner.run(own, "hi")
        between = time.perf_counter()
        await runner.run(wrapped, session_id, "hi")
        alone.append(between - begun)
        ours.append(time.perf_counter() - between)
    bare, with_us = statistics.median(alone[50:]), statistics.median(ours[50:])
    over = with_us / bare - 1
    print("\nOur runner around a scripted OpenAI agent, in memory, beside the SDK's own without a session, ms")
    print(f"{'SDK alone':44}{bare * 1000:.3f}\n{'agent-sessions':44}{with_us * 1000:.3f}")
    promise("≤ 5 % over", f"{over:+.1%}", over <= 0.05)


def of_the_import() -> None:
    ours, base = [], []
    for _ in range(9):
        base.append(_seconds("import pydantic_settings, anyio, msgspec"))
        ours.append(_seconds("import agent_sessions"))
    ratio = statistics.median(ours) / statistics.median(base)
    print("\nThe import, beside that of pydantic_settings, anyio and msgspec, ms")
    print(f"{'these three':44}{statistics.median(base) * 1000:.0f}")
    print(f"{'agent_sessions':44}{statistics.median(ours) * 1000:.0f}")
    promise("≤ 2 ×", f"{ratio:.2f} ×", ratio <= 2)


def _seconds(statement: str) -> float:
    code = f"import time; begun = time.perf_counter(); {statement}; print(time.perf_counter() - begun)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
