"""A user of Redis who may do what the store needs, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_sessions.errors import SessionError, StoreUnavailableError
from agent_sessions.stores.base import ABSENT, Amend, CollectionChange, EntryRange, Known, LogChange, Part, Wanted
from agent_sessions.stores.lifetime import Lifetime
from agent_sessions.stores.redis import RedisStore
from tests.redis_cluster import RedisCluster
from tests.redis_server import RedisServer

from .redis_turns import CART, CHECKPOINTS, EVERYTHING, KEY, LOG, change, everything, lease, start_turn

GUIDE = Path(__file__).parents[2] / "docs/guides/redis.md"


def rule(title: str) -> list[str]:
    """The words of a rule in the guide: what a user may do."""
    found = re.search(rf'```text title="{title}"\n(.*?)```', GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return found[1].split()


def user(name: str, *words: str) -> tuple[str, ...]:
    return ("ACL", "SETUSER", name, "reset", "on", ">pw", *words)


MANY_CHANGES: dict[str, Any] = {
    "values": {CART: None, Part("a", "b"): b"1"},
    "logs": {LOG: LogChange(pop=1, append=[b"x"]), Part("new", "log"): LogChange(append=[b"1"])},
    "collections": {CHECKPOINTS: CollectionChange(delete_prefixes=["a"], entries={"c": b"C", "b": None})},
    "fields": {"status": None},
}


async def do_everything(store: RedisStore, other: RedisStore) -> None:
    """All operations, in such a way that every command of every script is called."""
    created = await store.commit(KEY, everything(belongs_to="ann", hold_ms=1000))
    assert (await store.open(KEY, wanted=EVERYTHING)).entries == [b"A"]
    await store.open(KEY, wanted=EVERYTHING, known=Known(created.version, b""), lease=lease("us"))
    async with asyncio.TaskGroup() as waiting:
        granted = waiting.create_task(start_turn(other, "them"))
        while (await store.open(KEY)).waiters == 0:  # noqa: ASYNC110 - it is Redis that tells
            await asyncio.sleep(0.005)
        await store.renew(KEY, "us", 900_000)
        await store.commit(KEY, change(**MANY_CHANGES, ttl_ms=None))
    assert granted.result().granted
    backward = Wanted(ranges=[EntryRange(CHECKPOINTS, reverse=True)])
    assert (await store.open(KEY, wanted=backward, known=Known(created.version, b""))).values == {
        "shop": {},
        "a": {"b": b"1"},
    }
    assert await other.unlock(KEY) is not None
    await store.release(KEY, "us")
    await store.commit_status(KEY, created.version.commit_id, since=ABSENT)
    await store.commit(KEY._replace(id="gone"), change(ttl_ms=1))
    await store.commit(KEY._replace(id="next"), change())
    assert len((await store.find("default", "session")).found) >= 2
    over = Lifetime(idle_ms=0, end_ms=0, ttl_ms=60_000)
    await store.amend(KEY._replace(id="next"), Amend(id=os.urandom(8), lifetime=over, fields={"a": b"1", "b": None}))
    assert len((await store.run_out("default", "session")).found) == 1
    assert len((await store.find("default", "session", status="ended")).found) == 1
    assert await store.count("default", "session", belongs_to="ann") == 1
    cursor = None
    while (page := await store.scan(cursor=cursor)).next is not None:
        cursor = page.next
    assert await store.delete(KEY, os.urandom(8))


def denied(servers: Sequence[RedisServer]) -> set[str]:
    """What the servers refused."""
    entries = [entry for server in servers for entry in server.raw("ACL", "LOG")]
    return {entry[entry.index(b"object") + 1].decode() for entry in entries}


async def test_the_rule_in_the_guide_is_enough(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    server.command(*user("app", *rule("one server")))
    url = server.url.replace("//", "//app:pw@")
    store, other = RedisStore.from_url(url), RedisStore.from_url(url)
    await do_everything(store, other)
    assert denied([server]) == set()
    abroad = RedisStore.from_url(url, prefix="other:")
    with pytest.raises(StoreUnavailableError, match="no permission") as raised:
        await abroad.commit(KEY, change())
    assert not raised.value.maybe_done
    for one in (store, other, abroad):
        await one.aclose()


async def test_no_word_of_the_rule_is_too_much(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    words = rule("one server")
    url = server.url.replace("//", "//app:pw@")
    superfluous = set()
    for word in words:
        if not word.startswith("+"):
            continue
        server.command(*user("app", *(other for other in words if other != word)))
        server.command("ACL", "LOG", "RESET")
        server.command("FLUSHALL")
        server.command("SCRIPT", "FLUSH")
        store, other = RedisStore.from_url(url), RedisStore.from_url(url)
        with contextlib.suppress(SessionError, TimeoutError, ExceptionGroup, AssertionError):
            async with asyncio.timeout(2):
                await do_everything(store, other)
        for one in (store, other):
            await one.aclose()
        if word[1:] not in denied([server]):
            superfluous.add(word)
    assert superfluous == {"+ping"}  # which is sent after half a minute of waiting


async def test_on_a_cluster_it_takes_these_in_addition(redis_cluster: RedisCluster) -> None:
    redis_cluster.flush()
    for node in redis_cluster.nodes:
        node.command(*user("app", *rule("one server"), *rule("a cluster")))
        node.command("ACL", "LOG", "RESET")
    url = redis_cluster.url.replace("//", "//app:pw@")
    store, other = (RedisStore.from_url(url, cluster=True) for _ in range(2))
    await do_everything(store, other)
    assert denied(redis_cluster.nodes) == set()
    for one in (store, other):
        await one.aclose()
    for node in redis_cluster.nodes:
        node.command("ACL", "DELUSER", "app")
