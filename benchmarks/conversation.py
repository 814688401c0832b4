"""A conversation turn: read the history, add four items. Redis and SQLite peers of the OpenAI Agents SDK beside us."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from agents import SQLiteSession
from agents.extensions.memory import RedisSession

from agent_sessions import SessionManager, Settings
from agent_sessions.settings import CacheSettings
from agent_sessions.stores.encryption import EncryptedStore, Keyring
from agent_sessions.stores.redis import RedisStore
from agent_sessions_openai import OpenAISession

from .measure import Rival, Row, Server, compare, promise, table

MARKS = [10, 100, 500, 1000]
LOG = ("openai", "items")
AT_ONCE = 64


def items(turn: int) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"question {turn} " + "x" * 120},
        {"type": "function_call", "call_id": f"c{turn}", "name": "lookup", "arguments": json.dumps({"q": turn})},
        {"type": "function_call_output", "call_id": f"c{turn}", "output": "y" * 400},
        {"role": "assistant", "content": [{"type": "output_text", "text": "z" * 300}]},
    ]


def our_turn(manager: SessionManager, session_id: str) -> Callable[[int], Awaitable[None]]:
    async def turn(number: int) -> None:
        async with manager.open(session_id, logs={LOG: None}) as session:
            log = session.namespace(LOG[0]).log(LOG[1])
            await log.read()
            await log.append(items(number))

    return turn


def session_turn(session: Any) -> Callable[[int], Awaitable[None]]:
    async def turn(number: int) -> None:
        await session.get_items()
        await session.add_items(items(number))

    return turn


def redis_session(name: str, url: str) -> RedisSession:
    return RedisSession.from_url(name, url=url, ttl=604_800)


def bare_turn(client: redis.asyncio.Redis, name: str) -> Callable[[int], Awaitable[None]]:
    async def turn(number: int) -> None:
        for raw in await client.lrange(name, 0, -1):
            json.loads(raw)
        pipeline = client.pipeline(transaction=True)
        pipeline.rpush(name, *[json.dumps(item) for item in items(number)])
        pipeline.expire(name, 604_800)
        await pipeline.execute()

    return turn


async def run(url: str) -> None:
    server, store = Server(url), RedisStore.from_url(url)
    bare_client = redis.asyncio.Redis.from_url(url)
    with tempfile.TemporaryDirectory() as folder:
        warm, alone = SessionManager(store), SessionManager(store)
        no_cache = Settings(cache=CacheSettings(size=0))
        cold = SessionManager(store, settings=no_cache)
        encrypted = EncryptedStore(store, Keyring([secrets.token_urlsafe(32)]))
        sealed, sealed_cold = SessionManager(encrypted), SessionManager(encrypted, settings=no_cache)
        rivals = {
            "bare": Rival("bare redis-py, LRANGE + MULTI RPUSH", lambda name: bare_turn(bare_client, name)),
            "peer": Rival("openai-agents RedisSession", lambda name: session_turn(redis_session(name, url))),
            "ours": Rival("agent-sessions, a turn", lambda name: our_turn(warm, f"warm-{name}")),
            "drop-in": Rival(
                "agent-sessions, OpenAISession alone",
                lambda name: session_turn(OpenAISession(f"alone-{name}", manager=alone)),
            ),
            "cold": Rival(
                "agent-sessions, cold: no cache",
                lambda name: our_turn(cold, f"cold-{name}"),
            ),
            "sealed": Rival("agent-sessions, encrypted", lambda name: our_turn(sealed, f"sealed-{name}")),
            "sealed cold": Rival(
                "agent-sessions, encrypted, cold: no cache",
                lambda name: our_turn(sealed_cold, f"sealed-cold-{name}"),
            ),
            "sqlite": Rival(
                "openai-agents SQLiteSession, for scale",
                lambda name: session_turn(SQLiteSession(name, Path(folder) / "peer.db")),
                on_server=False,
            ),
        }
        rows = dict(zip(rivals, await compare(list(rivals.values()), MARKS, server), strict=True))
    table("A conversation turn on Redis, ms", list(rows.values()), MARKS)
    _promises(rows)
    await _many_at_once(url, store)
    await bare_client.aclose()
    await store.aclose()


def _promises(rows: dict[str, Row]) -> None:
    ours, peer, bare, cold = rows["ours"], rows["peer"], rows["bare"], rows["cold"]
    new = sum(len(json.dumps(item, separators=(",", ":"))) for item in items(500))
    faster = peer.ms[500] / ours.ms[500]
    promise("warm at turn 500 ≥ 10 × faster than RedisSession", f"{faster:.1f} ×", faster >= 10)
    growth = ours.ms[1000] / ours.ms[10]
    promise("turn 1000 ≤ 2.5 × turn 10", f"{growth:.2f} ×", growth <= 2.5)
    start = ours.ms[10] / bare.ms[10]
    promise("at turn 10 not slower than bare redis-py", f"{start:.2f} × its time", start <= 1)
    colder = peer.ms[500] / cold.ms[500]
    promise("cold at turn 500 ≥ 2 × faster than RedisSession", f"{colder:.1f} ×", colder >= 2)
    promise("2 round trips a warm turn", f"{ours.commands[500]}", ours.commands[500] == 2)
    both, most = ours.sent[500] + ours.received[500], round(1.5 * new + 700)
    promise(f"bytes of a warm turn at 500 ≤ 1.5 × {new} + 700", f"{both} of {most}", both <= most)


async def _many_at_once(url: str, store: RedisStore) -> None:
    """64 sessions in one process: turns a second beside redis-py doing the same with the same bytes."""
    turns = 30
    manager = SessionManager(store)
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=16, timeout=None)
    client = redis.asyncio.Redis(connection_pool=pool)

    async def ours(index: int) -> None:
        turn = our_turn(manager, f"many-{index}")
        for number in range(turns):
            await turn(number)

    async def bare(index: int) -> None:
        name, known = f"bare-{index}", 0
        for number in range(turns):
            known += len(await client.lrange(name, known, -1))
            pipeline = client.pipeline(transaction=True)
            pipeline.rpush(name, *[json.dumps(item) for item in items(number)])
            pipeline.expire(name, 604_800)
            await pipeline.execute()

    rates = {}
    for name, work in (("bare", bare), ("ours", ours), ("bare", bare), ("ours", ours)):
        begun = time.perf_counter()
        await asyncio.gather(*(work(index) for index in range(AT_ONCE)))
        rates[name] = AT_ONCE * turns / (time.perf_counter() - begun)
    await client.aclose()
    await pool.disconnect()
    share = rates["ours"] / rates["bare"]
    promise(
        "64 sessions at once ≥ half of bare redis-py",
        f"{share:.2f} ({rates['ours']:,.0f} and {rates['bare']:,.0f} turns/s)",
        share >= 0.5,
    )
