"""Counting milliseconds, round trips and bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import redis

WINDOW = 15
ROUNDS = 2


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
    """Who takes part: a name, what makes its turn for a session of that name, and whether it talks to the server."""

    name: str
    start: Callable[[str], Callable[[int], Awaitable[object]]]
    on_server: bool = True


async def compare(rivals: list[Rival], marks: list[int], server: Server | None = None) -> list[Row]:
    """Run all turns of each rival, one rival after the other, and all of that twice.

    At each mark: the median time of the turns around it, in the better of the two rounds (whatever else the machine
    does can only make it worse), and the traffic of one turn.
    """
    rows = [Row(rival.name) for rival in rivals]
    for attempt in range(ROUNDS):
        for rival, row in zip(rivals, rows, strict=True):
            turn, taken = rival.start(f"session-{attempt}"), []
            for number in range(1, marks[-1] + WINDOW // 2 + 1):
                if server is not None and rival.on_server and number - 1 in marks:
                    traffic = await server.during(lambda turn=turn, number=number: turn(number))
                    row.commands[number - 1], row.sent[number - 1], row.received[number - 1] = traffic
                    continue
                begun = time.perf_counter()
                await turn(number)
                taken.append((time.perf_counter() - begun) * 1000)
            for mark in marks:
                median = statistics.median(taken[max(0, mark - 1 - WINDOW // 2) : mark + WINDOW // 2])
                row.ms[mark] = min(median, row.ms.get(mark, median))
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
    print(f"  {'kept  ' if kept else 'MISSED'} {text}: {figure}", flush=True)
