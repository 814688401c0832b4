"""Masters of a Redis Cluster die in the middle of turns, and their replicas take over."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from agent_sessions import SessionError, SessionManager, Settings
from agent_sessions.settings import TurnSettings
from agent_sessions.stores.redis import RedisStore
from tests.redis_cluster import RedisCluster, wait_until

TURNS, KILLS, LEFT_TO_THE_CLUSTER = 2_000, 20, 4
SESSIONS = 16


class Told(Struct):
    """What the turns on a session were told, in order."""

    stored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


async def test_masters_die_twenty_times_in_two_thousand_turns(start_cluster: Callable[..., RedisCluster]) -> None:
    cluster = start_cluster(replicas=1)
    quick, safe = manager_of(cluster), manager_of(cluster, wait_replicas=1)
    told = {f"s{number}": Told() for number in range(SESSIONS)}
    managers = {id: (quick, safe)[number % 2] for number, id in enumerate(told)}
    over = asyncio.Event()
    running = [asyncio.create_task(run_turns(managers[id], id, told[id], over)) for id in told]
    try:
        await asyncio.to_thread(kill_masters, cluster)
        while sum(len(one.stored) for one in told.values()) < TURNS:  # noqa: ASYNC110 - they count themselves
            await asyncio.sleep(0.05)
    finally:
        over.set()
        await asyncio.gather(*running)

    fresh = manager_of(cluster)
    for id, one in told.items():
        stored = await whole_turns(fresh, id)
        assert set(stored) <= {*one.stored, *one.unknown}
        lost = [turn for turn in one.stored if turn not in stored]
        assert [turn for turn in stored if turn in one.stored] == [turn for turn in one.stored if turn in stored]
        if managers[id] is safe:
            assert lost == [], "a turn was lost that a replica had"
        # Of the others, replication was behind by some when their master died.
        assert len(stored) > len(one.stored) / 2
        async with fresh.open(id):
            pass
    assert {record.id for record in (await fresh.store.find("default", "session")).found} == told.keys()
    assert await fresh.store.count("default", "session") == SESSIONS
    for manager in (quick, safe, fresh):
        await manager.store.aclose()


def manager_of(cluster: RedisCluster, **options: Any) -> SessionManager:
    store = RedisStore.from_url(cluster.url, cluster=True, startup_nodes=cluster.startup_nodes, **options)
    return SessionManager(store, settings=Settings(turn=TurnSettings(lease_s=5)))


async def run_turns(manager: SessionManager, id: str, told: Told, over: asyncio.Event) -> None:
    """Turn after turn. Each names itself, and the one that it found."""
    while not over.is_set():
        turn = secrets.token_hex(4)
        try:
            async with manager.open(id, logs={("chain", "turns"): None}) as session:
                log = session.namespace("chain").log("turns")
                found = await log.read()
                await log.append([{"turn": turn, "after": found[-1]["turn"] if found else None}])
                session.set("turns", len(found) + 1)
                await session.namespace("chain").collection("entries").put(f"{len(found):06}", turn)
            told.stored.append(turn)
        except SessionError as error:
            assert error.code in ("STORE_UNAVAILABLE", "COMMIT_UNKNOWN", "SESSION_BUSY", "SESSION_CONFLICT"), error
            told.unknown.append(turn)
        await asyncio.sleep(random.random() * 0.01)


async def whole_turns(manager: SessionManager, id: str) -> list[str]:
    """The turns that a session holds; every part of it must say the same, and each must have seen the one before."""
    async with manager.read(id) as session:
        items = await session.namespace("chain").log("turns").read()
        entries = await session.namespace("chain").collection("entries").range()
        turns: list[str] = [item["turn"] for item in items]
        assert session.get("turns") == len(turns)
    assert [item["after"] for item in items] == [None, *turns][: len(turns)]
    assert [turn for _, turn in entries] == turns
    return turns


def kill_masters(cluster: RedisCluster) -> None:
    """Kill a master, let its replica take over, and start it again as a replica of that."""
    for number in range(KILLS):
        kill_master(cluster, takes_over=number % (KILLS // LEFT_TO_THE_CLUSTER) != 0)


def kill_master(cluster: RedisCluster, *, takes_over: bool) -> None:
    victim = random.choice(cluster.masters())
    replica = cluster.replica_of(victim)
    victim.kill()
    if takes_over:
        replica.raw("CLUSTER", "FAILOVER", "TAKEOVER")  # left to themselves the others need seconds
    wait_until(lambda: replica in cluster.masters())
    time.sleep(random.random() * 0.1)  # not for luck: the moment is what is tried
    victim.start()
    cluster.wait_until_whole()
