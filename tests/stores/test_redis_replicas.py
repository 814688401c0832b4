"""`WAIT`: what is written counts as stored only when replicas have it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from agent_sessions import SessionManager, Settings
from agent_sessions.errors import CommitUnknownError, SessionConflictError, StoreUnavailableError
from agent_sessions.settings import RedisSettings, TurnSettings
from agent_sessions.stores.base import ABSENT, Amend, LogChange
from agent_sessions.stores.redis import RedisStore
from tests.redis_cluster import wait_until
from tests.redis_server import RedisServer

from .redis_turns import EVERYTHING, KEY, LOG, change, everything


@pytest.fixture
async def servers(start_redis: Callable[..., RedisServer]) -> tuple[RedisServer, RedisServer]:
    """A primary and its replica."""
    primary = start_redis("--repl-diskless-sync-delay", "0")
    replica = start_redis("--replicaof", f"127.0.0.1 {primary.port}")
    wait_until(lambda: bool(primary.raw("ROLE")[2]))
    return primary, replica


def waiting_store(server: RedisServer, timeout_s: float) -> RedisStore:
    redis = RedisSettings(url=server.url, wait_replicas=1, wait_timeout_s=timeout_s)
    return RedisStore.from_settings(Settings(type="redis", redis=redis))


@pytest.fixture
async def store(servers: tuple[RedisServer, RedisServer]) -> AsyncIterator[RedisStore]:
    """It waits as long as a replica may take."""
    store = waiting_store(servers[0], 10)
    yield store
    await store.aclose()


@pytest.fixture
async def hasty(servers: tuple[RedisServer, RedisServer]) -> AsyncIterator[RedisStore]:
    """It does not wait for one that is frozen."""
    store = waiting_store(servers[0], 0.1)
    yield store
    await store.aclose()


async def test_what_is_stored_is_on_the_replica(store: RedisStore, servers: tuple[RedisServer, RedisServer]) -> None:
    for number in range(1, 20):
        await store.commit(KEY, change(logs={LOG: LogChange(append=[b"x"])}))
        assert int(servers[1].command("HGET", "ak:sessions:s{default/s-1}", "v")) == number


async def test_a_commit_that_no_replica_has_is_told_and_sent_again(
    store: RedisStore, hasty: RedisStore, servers: tuple[RedisServer, RedisServer]
) -> None:
    commit = everything(expected=ABSENT)
    servers[1].freeze()
    for _ in range(3):  # also when it is there already: what counts is the replica
        with pytest.raises(StoreUnavailableError, match="of 1 replicas only 0") as raised:
            await hasty.commit(KEY, commit)
        assert raised.value.maybe_done
    servers[1].thaw()
    assert (await store.commit(KEY, commit)).repeated
    assert servers[1].command("EXISTS", "ak:sessions:s{default/s-1}") == 1
    assert (await store.open(KEY, wanted=EVERYTHING)).logs[0].items == [b"hi", b"ho"]


async def test_an_end_and_a_deletion_wait_for_the_replica_too(
    store: RedisStore, hasty: RedisStore, servers: tuple[RedisServer, RedisServer]
) -> None:
    await store.commit(KEY, everything())
    end, deletion = Amend(id=os.urandom(8), end=True), os.urandom(8)
    writes: list[Callable[[RedisStore], Awaitable[object]]] = [
        lambda store: store.amend(KEY, end),
        lambda store: store.amend(KEY, Amend(id=os.urandom(8), end=True)),  # it has ended, but not for the replica
        lambda store: store.delete(KEY, deletion),
    ]
    for write in writes:
        servers[1].freeze()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="of 1 replicas only 0"):
                await write(hasty)
        servers[1].thaw()
        assert await write(store)
    assert servers[1].command("EXISTS", "ak:sessions:s{default/s-1}") == 0


async def test_a_refused_commit_is_refused_whatever_replicas_do(
    store: RedisStore, hasty: RedisStore, servers: tuple[RedisServer, RedisServer]
) -> None:
    await store.commit(KEY, change())
    servers[1].freeze()
    with pytest.raises(SessionConflictError):
        await hasty.commit(KEY, change(expected=ABSENT))
    servers[1].thaw()


async def test_a_turn_that_no_replica_gets_is_unknown_until_one_does(
    store: RedisStore, hasty: RedisStore, servers: tuple[RedisServer, RedisServer]
) -> None:
    servers[1].freeze()
    with pytest.raises(CommitUnknownError) as raised:
        async with SessionManager(hasty, settings=Settings(turn=TurnSettings(lease_s=0.5))).open("s-1") as session:
            session.set("a", 1)
    servers[1].thaw()
    manager = SessionManager(store)
    assert await manager.commit_status("s-1", raised.value.commit_id) == "stored"
    async with manager.open("s-1") as session:
        assert session.get("a") == 1


async def test_turns_at_once_wait_for_the_replica_together(
    store: RedisStore, servers: tuple[RedisServer, RedisServer]
) -> None:
    keys = [KEY._replace(id=f"{number}") for number in range(50)]
    await asyncio.gather(*(store.commit(key, change()) for key in keys))
    assert len(servers[1].command("KEYS", "ak:sessions:s{*}")) == 50


async def test_a_redis_that_refuses_to_wait_is_reported(servers: tuple[RedisServer, RedisServer]) -> None:
    servers[0].command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-wait")
    store = RedisStore.from_url(servers[0].url.replace("//", "//app:pw@"), wait_replicas=1)
    with pytest.raises(StoreUnavailableError, match="no permission"):
        await store.commit(KEY, change())
    await store.aclose()
