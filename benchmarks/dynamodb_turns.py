"""A conversation turn on DynamoDB: requests and units, which is what a turn costs there, and milliseconds on DynamoDB
Local, which say nothing of AWS."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent_sessions import SessionManager, Settings
from agent_sessions.settings import CacheSettings
from agent_sessions.stores.dynamodb import DynamoDBStore
from tests.dynamodb_local import CREDENTIALS, JAR, Meter, dynamodb_local

from .conversation import our_turn
from .measure import promise

MARKS = [10, 100, 500]
WINDOW = 15


@dataclass
class Cost:
    """What one turn took."""

    requests: int
    written: int
    index: int
    read: float
    ms: float


async def run() -> None:
    if not JAR.exists() or shutil.which("java") is None:
        print("\nA conversation turn on DynamoDB: left out, since DynamoDB Local is not installed")
        return
    os.environ.update(CREDENTIALS)
    with dynamodb_local() as port:
        meter = Meter(port, "benchmark")
        url = f"http://127.0.0.1:{port}"
        store = DynamoDBStore("benchmark", endpoint_url=url, create_table=True, make_session=meter.make_session)
        warm = SessionManager(store)
        cold = SessionManager(store, settings=Settings(cache=CacheSettings(size=0)))
        costs = await _turns(our_turn(warm, "session"), our_turn(cold, "session"), meter)
        await store.aclose()
    _table(costs)
    at_10, at_500 = costs["warm"][10], costs["warm"][500]
    promise("2 requests a warm turn, nothing read", f"{at_500.requests}, {at_500.read}", at_500.requests == 2)
    written = (at_10.written + at_10.index, at_500.written + at_500.index)
    promise("write units the same at turn 10 and 500", f"{written[0]} and {written[1]}", written[0] == written[1])


async def _turns(
    warm: Callable[[int], Awaitable[None]], cold: Callable[[int], Awaitable[None]], meter: Meter
) -> dict[str, dict[int, Cost]]:
    """All turns by a process that knows the session; at each mark, one more by a process that does not."""
    costs: dict[str, dict[int, Cost]] = {"warm": {}, "cold": {}}
    taken: list[float] = []
    number = 0
    for mark in MARKS:
        while number < mark - 1:
            number += 1
            taken.append(await _milliseconds(warm, number))
        costs["warm"][mark] = await _cost(warm, mark, meter, statistics.median(taken[-WINDOW:]))
        costs["cold"][mark] = await _cost(cold, mark + 1, meter, None)
        await warm(mark + 2)  # sees what the other has done
        number = mark + 2
    return costs


async def _cost(turn: Callable[[int], Awaitable[None]], number: int, meter: Meter, ms: float | None) -> Cost:
    meter.reset()
    taken = await _milliseconds(turn, number)
    requests = sum(meter.requests.values())
    return Cost(requests, meter.write_units, meter.index_units, meter.read_units, taken if ms is None else ms)


async def _milliseconds(turn: Callable[[int], Awaitable[None]], number: int) -> float:
    begun = time.perf_counter()
    await turn(number)
    return (time.perf_counter() - begun) * 1000


def _table(costs: dict[str, dict[int, Cost]]) -> None:
    print("\nA conversation turn on DynamoDB (units by the documented rule; ms on DynamoDB Local)")
    print(f"{'':24}{'':12}{'requests':>10}{'written':>10}{'index':>10}{'read':>10}{'ms':>10}")
    for name, by_mark in costs.items():
        for mark, cost in by_mark.items():
            label = f"agent-sessions, {name}" if mark == MARKS[0] else ""
            figures = "".join(f"{figure:>10g}" for figure in (cost.requests, cost.written, cost.index, cost.read))
            print(f"{label:24}turn {mark:<7}{figures}{cost.ms:>10.1f}", flush=True)
