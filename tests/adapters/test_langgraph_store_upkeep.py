"""How items of `AgentStore` expire, what is kept of them, and what they cost."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    ListNamespacesOp,
    PutOp,
    SearchOp,
)

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import FormatTooNewError, InvalidError
from agent_sessions.stores.base import EntryRange, Wanted
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore
from agent_sessions_langgraph.store import items
from tests.support import Before

from .agent_stores import INDEX, MakeStore, keys
from .agent_stores import clock as clock
from .agent_stores import in_memory as in_memory
from .agent_stores import make_store as make_store
from .agent_stores import open_backend as open_backend
from .agent_stores import timed as timed

USER = ("memories", "ada")
MINUTE = 60


# ---------------------------------------------------------------------------------------------------- expiry


async def test_an_item_expires_when_it_was_not_used_for_its_time(timed: AgentStore, clock: FakeClock) -> None:
    await timed.aput(USER, "short", {"n": 1}, ttl=10)
    await timed.aput(USER, "long", {"n": 2}, ttl=30)
    await timed.aput(USER, "ever", {"n": 3})
    clock.advance(9 * MINUTE)
    assert await timed.aget(USER, "short") is not None
    clock.advance(9 * MINUTE)
    assert await timed.aget(USER, "short", refresh_ttl=False) is not None
    clock.advance(1 * MINUTE)
    assert await timed.aget(USER, "short", refresh_ttl=False) is None
    assert keys(await timed.asearch(USER, refresh_ttl=False)) == ["ever", "long"]
    clock.advance(11 * MINUTE)
    assert keys(await timed.asearch(USER, filter={"n": {"$gt": 0}})) == ["ever"]


async def test_a_search_refreshes_what_it_returns(timed: AgentStore, clock: FakeClock) -> None:
    await timed.aput(USER, "seen", {"n": 1}, ttl=10)
    await timed.aput(USER, "not seen", {"n": 2}, ttl=10)
    clock.advance(6 * MINUTE)
    assert keys(await timed.asearch(USER, filter={"n": 1})) == ["seen"]
    clock.advance(6 * MINUTE)
    assert keys(await timed.asearch(USER)) == ["seen"]


async def test_a_put_starts_the_time_anew(timed: AgentStore, clock: FakeClock) -> None:
    await timed.aput(USER, "k", {}, ttl=10)
    clock.advance(6 * MINUTE)
    await timed.aget(USER, "k")
    await timed.aput(USER, "k", {"now": "for ever"})
    clock.advance(60 * MINUTE)
    assert await timed.aget(USER, "k") is not None
    await timed.aput(USER, "k", {}, ttl=1)
    clock.advance(1 * MINUTE)
    assert await timed.aget(USER, "k") is None


async def test_the_ttl_of_sessions_is_not_that_of_items(timed: AgentStore, clock: FakeClock) -> None:
    await timed.aput(USER, "k", {})
    clock.advance(400 * 86_400)
    assert keys(await timed.asearch(())) == ["k"]
    assert await timed.alist_namespaces() == [USER]


async def test_ttl_configured(make_store: MakeStore, clock: FakeClock) -> None:
    store = make_store(clock=clock, ttl={"default_ttl": 10, "refresh_on_read": False})
    await store.aput(USER, "default", {})
    await store.aput(USER, "ever", {}, ttl=None)
    clock.advance(6 * MINUTE)
    await store.aget(USER, "default")
    await store.asearch(USER)
    clock.advance(4 * MINUTE)
    assert keys(await store.asearch(USER)) == ["ever"]


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e9])
async def test_a_ttl_that_is_none_is_refused(in_memory: AgentStore, ttl: float) -> None:
    with pytest.raises(InvalidError, match="INVALID_TTL"):
        await in_memory.aput(USER, "k", {}, ttl=ttl)


async def test_a_namespace_whose_items_expired_is_not_listed(timed: AgentStore, clock: FakeClock) -> None:
    await timed.abatch([PutOp(("short", str(n)), "k", {}, ttl=5) for n in range(3)])
    await timed.aput(("short", "1"), "kept", {})
    await timed.aput(("short", "2"), "a", {}, ttl=5)
    clock.advance(4 * MINUTE)
    await timed.aget(("short", "2"), "k")
    clock.advance(4 * MINUTE)
    assert await timed.alist_namespaces() == [("short", "1"), ("short", "2")]
    clock.advance(4 * MINUTE)
    assert await timed.alist_namespaces() == [("short", "1")]
    await timed.aput(("short", "2"), "k", {}, ttl=5)
    assert await timed.alist_namespaces() == [("short", "1"), ("short", "2")]


async def test_what_has_expired_is_removed_by_later_puts() -> None:
    clock = FakeClock()
    backend = MemoryStore(clock)
    store = AgentStore(SessionManager(backend), index=INDEX)
    for n in range(20):
        await store.aput(USER, f"k{n}", {"text": "a" * 1_000}, ttl=5)
    clock.advance(4 * MINUTE)
    await store.asearch(USER, limit=20)
    full = await bytes_kept(backend)
    clock.advance(6 * MINUTE)
    for _ in range(3):
        await store.aput(USER, "k", {"text": "a"})
    assert await bytes_kept(backend) < full / 20


async def test_namespaces_whose_items_expired_are_removed_as_others_come() -> None:
    clock = FakeClock()
    backend = MemoryStore(clock)
    store = AgentStore(SessionManager(backend))
    for n in range(200):
        await store.aput(("threads", str(n)), "k", {"text": "a" * 100}, ttl=5)
        clock.advance(1 * MINUTE)
    assert await bytes_kept(backend) < 50 * 400


async def entries_kept(backend: MemoryStore) -> AsyncIterator[bytes]:
    """What there is in the collections of all keys."""
    for key in (await backend.scan(limit=1_000)).keys:
        parts = (await backend.open(key)).collections
        opened = await backend.open(key, wanted=Wanted(ranges=[EntryRange(part) for part in parts]))
        for found in opened.ranges:
            for _, data in found:
                yield data


async def bytes_kept(backend: MemoryStore) -> int:
    return sum([len(data) async for data in entries_kept(backend)])


# ---------------------------------------------------------------------------------------------------- cost and bytes


class Counted(Before):
    """Counts round trips."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.count = 0

    async def open(self, key: Any, **asked: Any) -> Any:
        self.count += 1
        return await super().open(key, **asked)

    async def commit(self, key: Any, commit: Any) -> Any:
        self.count += 1
        return await super().commit(key, commit)


@pytest.mark.parametrize("size", [10, 2_000])
async def test_the_cost_of_an_operation_does_not_grow_with_the_namespace(size: int) -> None:
    backend = Counted(MemoryStore())
    store = AgentStore(SessionManager(backend.store))
    await store.abatch([PutOp(USER, str(n), {"n": n}) for n in range(size)])
    costs = []
    for op in (
        PutOp(USER, "1", {"n": 0}),
        PutOp(USER, "new", {"n": 0}),
        GetOp(USER, "1"),
        SearchOp(USER, limit=5),
        ListNamespacesOp(),
    ):
        backend.count = 0
        await store.abatch([op])
        costs.append(backend.count)
    assert costs == [2, 2, 1, 3, 2]

    backend.count = 0
    await store.abatch([PutOp(USER, str(n), {"n": n}) for n in range(100)])
    await store.abatch([GetOp(USER, str(n)) for n in range(100)])
    assert backend.count == 3


async def test_items_are_encrypted_where_sessions_are() -> None:
    from agent_sessions.stores.encryption import EncryptedStore, Keyring

    backend = MemoryStore()
    store = AgentStore(SessionManager(EncryptedStore(backend, Keyring([b64encode(b"k" * 32).decode()]))), index=INDEX)
    await store.aput(USER, "k", {"text": "abba", "secret": "hush"}, ttl=5)
    assert [item.value["secret"] for item in await store.asearch(USER, query="b")] == ["hush"]
    assert "hush" in str((await store.aget(USER, "k")).value)  # type: ignore[union-attr]
    kept = [data async for data in entries_kept(backend)]
    assert kept
    assert not any(b"hush" in data or b"memories" in data for data in kept)


async def test_an_item_of_a_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch, in_memory: AgentStore) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(items, "FORMAT", 2)
        await in_memory.aput(USER, "k", {"n": 1})
    with pytest.raises(FormatTooNewError):
        await in_memory.aget(USER, "k")
