"""Counting milliseconds, round trips and bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import redis

WINDOW = 21


@dataclass
class Row:
    """One rival's figures, by turn."""

    name: str
    ms: dict[int, float] = field(default_factory=dict)
    commands: dict[int, int] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)


class Server:
    """What Redis itself says of the traffic."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def _snapshot(self) -> list[int]:
        stats = self._client.info("stats")
        calls = sum(entry["calls"] for name, entry in self._client.info("commandstats").items() if _is_sent(name))
        return [calls, stats["total_net_input_bytes"], stats["total_net_output_bytes"]]

    async def during(self, work: Callable[[], Awaitable[object]]) -> tuple[int, int, int]:
        """Commands that clients sent (those inside scripts not counted), bytes sent to and received from Redis."""
        first, before = self._snapshot(), self._snapshot()  # what lies between these two is the asking itself
        await work()
        after = self._snapshot()
        commands, sent, received = (c - b - (b - a) for a, b, c in zip(first, before, after, strict=True))
        return commands, sent, received


def _is_sent(name: str) -> bool:
    return name.removeprefix("cmdstat_") in {"evalsha", "eval", "multi", "exec", "lrange", "get", "set", "info", "ping"}


@dataclass
class Rival:
    """Who takes part in a race: a name, a turn to run, and whether it talks to the server."""

    name: str
    turn: Callable[[int], Awaitable[object]]
    on_server: bool = True


async def race(rivals: list[Rival], marks: list[int], server: Server) -> list[Row]:
    """Run everybody's turn 1, then everybody's turn 2, and so on: whatever disturbs the machine disturbs all alike.

    At each mark: the median time of the turns around it, and the traffic of one turn.
    """
    rows = [Row(rival.name) for rival in rivals]
    times: list[list[float]] = [[] for _ in rivals]
    for number in range(1, marks[-1] + WINDOW // 2 + 1):
        for rival, row, taken in zip(rivals, rows, times, strict=True):
            if rival.on_server and number - 1 in marks:
                traffic = await server.during(lambda rival=rival, number=number: rival.turn(number))
                row.commands[number - 1], row.sent[number - 1], row.received[number - 1] = traffic
                taken.append(taken[-1])
                continue
            begun = time.perf_counter()
            await rival.turn(number)
            taken.append((time.perf_counter() - begun) * 1000)
    for row, taken in zip(rows, times, strict=True):
        for mark in marks:
            around = taken[max(0, mark - 1 - WINDOW // 2) : mark + WINDOW // 2]
            row.ms[mark] = statistics.median(around)
    return rows


def table(title: str, rows: list[Row], marks: list[int]) -> None:
    print(f"\n{title}")
    print(f"{'':44}" + "".join(f"turn {mark:<6}" for mark in marks) + "   sent / received at the last, bytes")
    for row in rows:
        times = "".join(f"{row.ms[mark]:<11.3f}" for mark in marks)
        last = marks[-1]
        traffic = f"   {row.sent[last]:>8,} / {row.received[last]:,}" if row.sent else ""
        print(f"{row.name:44}{times}{traffic}", flush=True)


def promise(text: str, figure: str, kept: bool) -> None:
    print(f"  {'kept  ' if kept else 'BROKEN'} {text}: {figure}", flush=True)
