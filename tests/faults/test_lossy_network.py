"""Requests reach the store, answers get lost."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from agent_sessions import SessionError, SessionManager, Settings
from agent_sessions.errors import CommitUnknownError, StoreUnavailableError
from agent_sessions.settings import TurnSettings
from agent_sessions.stores.base import Amend, Commit, Key
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.stores.redis import RedisStore
from tests.faults.proxy import Fault, LossyProxy
from tests.redis_cluster import RedisCluster

SESSIONS, TURNS_EACH, AMENDMENTS_EACH = 8, 125, 20


@pytest.mark.parametrize("fault", ["drop the reply", "close the connection"])
async def test_a_thousand_turns_are_each_stored_once_or_reported(redis_url: str, fault: Fault) -> None:
    direct = SessionManager(RedisStore.from_url(redis_url))
    async with LossyProxy(redis_url, fault) as proxy:
        await _lose(RedisStore.from_url(proxy.url, timeout_s=0.1), direct, TURNS_EACH)
    assert proxy.lost > 100


@pytest.mark.parametrize("fault", ["drop the reply", "close the connection"])
async def test_turns_on_a_cluster_likewise(redis_cluster: RedisCluster, fault: Fault) -> None:
    redis_cluster.flush()
    direct = SessionManager(RedisStore.from_url(redis_cluster.url, cluster=True))
    async with AsyncExitStack() as stack:
        proxies = {
            node.port: await stack.enter_async_context(LossyProxy(node.url, fault)) for node in redis_cluster.nodes
        }
        remap = {port: urlsplit(proxy.url).port or 0 for port, proxy in proxies.items()}
        url = proxies[redis_cluster.nodes[0].port].url
        store = RedisStore.from_url(
            url,
            cluster=True,
            address_remap=lambda address: (address[0], remap[address[1]]),
            connect_timeout_s=0.1,
            timeout_s=0.1,
        )
        await _lose(store, direct, TURNS_EACH // 2)
    assert sum(proxy.lost for proxy in proxies.values()) > 100
    assert await direct.store.count("default", "session") == SESSIONS
    await direct.store.aclose()


@pytest.mark.parametrize("fault", ["drop the reply", "close the connection"])
@pytest.mark.parametrize("where", ["one server", "cluster"])
async def test_amendments_are_each_applied_once_and_listed_so(
    request: pytest.FixtureRequest, where: str, fault: Fault
) -> None:
    is_cluster = where == "cluster"
    if is_cluster:
        request.getfixturevalue("redis_cluster").flush()
    url = request.getfixturevalue("redis_cluster").url if is_cluster else request.getfixturevalue("redis_url")
    direct = RedisStore.from_url(url, cluster=is_cluster)
    keys = [Key("default", "session", f"s{index}") for index in range(SESSIONS)]
    for key in keys:
        commit = Commit(id=os.urandom(8), owner="us", expected=None, lifetime=Lifetime(idle_ms=60_000))
        await direct.commit(key, commit)
    async with AsyncExitStack() as stack:
        nodes = request.getfixturevalue("redis_cluster").nodes if is_cluster else []
        urls = [node.url for node in nodes] or [url]
        proxies = [await stack.enter_async_context(LossyProxy(one, fault)) for one in urls]
        remap = {urlsplit(one).port: urlsplit(proxy.url).port or 0 for one, proxy in zip(urls, proxies, strict=True)}
        options: dict[str, Any] = {"address_remap": lambda address: (address[0], remap[address[1]])}
        options = {"cluster": True, **options} if is_cluster else {}
        store = RedisStore.from_url(proxies[0].url, connect_timeout_s=0.1, timeout_s=0.1, **options)

        async def amend(key: Key) -> None:
            for number in range(AMENDMENTS_EACH):
                await _persistently(store, key, Amend(id=os.urandom(8), counters={"n": 1}, activity=number % 2 == 0))
            await _persistently(store, key, Amend(id=os.urandom(8), end=True))

        await asyncio.gather(*(amend(key) for key in keys))
        await store.aclose()
    for key in keys:
        row = (await direct.open(key)).row
        assert row is not None
        assert row.counters == {"n": AMENDMENTS_EACH}
    assert {found.id for found in (await direct.find("default", "session", status="ended")).found} == {
        key.id for key in keys
    }
    assert await direct.count("default", "session", status="active") == 0
    await direct.aclose()


async def _persistently(store: RedisStore, key: Key, amend: Amend) -> None:
    while True:
        with suppress(StoreUnavailableError):
            await store.amend(key, amend)
            return


async def _lose(store: RedisStore, direct: SessionManager, turns_each: int) -> None:
    """Run turns over a store that loses replies, and look at what has become of them over another one."""
    manager = SessionManager(store, settings=Settings(turn=TurnSettings(lease_s=2)))
    told = await asyncio.gather(*(_turns(manager, direct, f"s{index}", turns_each) for index in range(SESSIONS)))
    await store.aclose()
    for index, (stored, failed) in enumerate(told):
        assert len(stored) + len(failed) == turns_each
        async with direct.read(f"s{index}") as session:
            turns = [item["turn"] for item in await session.namespace("openai").log("items").read()]
            assert session.get("turns") == len(turns)
        assert len(turns) == len(set(turns)), "a turn was applied twice"
        assert set(turns) == stored, "a turn was lost, or one that failed is stored"
        assert turns == sorted(turns)
    await direct.store.aclose()


async def _turns(
    manager: SessionManager, direct: SessionManager, session_id: str, turns_each: int
) -> tuple[set[int], set[int]]:
    """Run turns; return which are stored and which are not. Of one that nobody can tell, ask its commit."""
    stored: set[int] = set()
    failed: set[int] = set()
    for turn in range(turns_each):
        try:
            async with manager.open(session_id) as session:
                session.update("turns", lambda count: count + 1, default=0)
                await session.namespace("openai").log("items").append([{"turn": turn}])
            stored.add(turn)
        except CommitUnknownError as error:
            status = await direct.commit_status(session_id, error.commit_id)
            assert status != "unknown"
            (stored if status == "stored" else failed).add(turn)
        except SessionError as error:
            assert error.code in ("STORE_UNAVAILABLE", "SESSION_BUSY")
            failed.add(turn)
    return stored, failed
