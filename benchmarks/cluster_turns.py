"""A conversation turn on a Redis Cluster of three nodes, beside the same on one server."""

from __future__ import annotations

import redis

from agent_sessions import SessionManager
from agent_sessions.stores.redis import RedisStore

from .conversation import MARKS, our_turn
from .measure import Rival, compare, promise, table
from .servers import redis_cluster

TURNS = 20


async def run(url: str) -> None:
    with redis_cluster() as ports:
        stores = [RedisStore.from_url(url), RedisStore.from_url(f"redis://127.0.0.1:{ports[0]}", cluster=True)]
        alone, cluster = map(SessionManager, stores)
        rows = await compare(
            [
                Rival("agent-sessions, one server", lambda name: our_turn(alone, f"alone-{name}")),
                Rival("agent-sessions, three nodes", lambda name: our_turn(cluster, f"cluster-{name}")),
            ],
            MARKS,
        )
        table("A conversation turn on a Redis Cluster, ms", rows, MARKS)
        turn = our_turn(cluster, "counted")
        await turn(0)
        before = _scripts(ports)
        for number in range(TURNS):
            await turn(number + 1)
        requests = (_scripts(ports) - before) / TURNS
        promise("3 requests a warm turn, two of them at once", f"{requests:g}", requests == 3)
        for store in stores:
            await store.aclose()


def _scripts(ports: list[int]) -> int:
    """How many scripts the nodes were asked for."""
    calls = 0
    for port in ports:
        with redis.Redis(port=port) as client:
            calls += client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls
