"""What a search in `AgentStore` finds: by filter, by meaning; and which namespaces there are."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.store.base import (
    PutOp,
)

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import InvalidError, SerializationError
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore

from .agent_stores import INDEX, MakeStore, embed, index_of, keys
from .agent_stores import clock as clock
from .agent_stores import elsewhere as elsewhere
from .agent_stores import in_memory as in_memory
from .agent_stores import make_store as make_store
from .agent_stores import open_backend as open_backend
from .agent_stores import store as store
from .agent_stores import timed as timed

USER = ("memories", "ada")
MINUTE = 60


# ---------------------------------------------------------------------------------------------------- search


async def test_a_search_lists_the_newest_first(timed: AgentStore, clock: FakeClock) -> None:
    for name in ("a", "b", "c"):
        await timed.aput((*USER, name), f"{name}1", {})
        await timed.aput(("memories", "bob"), f"{name}2", {})
        clock.advance(1)
    await timed.aput((*USER, "a"), "a1", {"again": True})

    assert keys(await timed.asearch(())) == ["a1", "c2", "c1", "b2", "b1", "a2"]
    assert keys(await timed.asearch(USER)) == ["a1", "c1", "b1"]
    assert keys(await timed.asearch(("memories", "bob"), limit=2)) == ["c2", "b2"]
    assert keys(await timed.asearch(("memories",), limit=2, offset=3)) == ["b2", "b1"]
    assert keys(await timed.asearch(("memories",), filter={}, offset=5)) == ["a2"]
    assert await timed.asearch(("memories",), limit=0) == []
    assert await timed.asearch(("mem",)) == await timed.asearch(("memories", "ad")) == []


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"kind": "a"}, "02"),
        ({"n": {"$eq": 1}}, "1"),
        ({"n": {"$ne": 1}}, "0234"),
        ({"n": {"$gt": 0}}, "12"),
        ({"n": {"$gte": 0, "$lt": 2}}, "01"),
        ({"n": {"$lte": 1}}, "01"),
        ({"n": {"$gt": "1"}}, "2"),
        ({"kind": {"$gt": "a"}}, "1"),
        ({"missing": None}, "01234"),
        ({"kind": "a", "n": {"$gt": 1}}, "2"),
        ({"deep": {"x": 1}}, "3"),
        ({"deep": {"x": {"$gt": 0}}}, "3"),
        ({"list": [1, {"y": 2}]}, "4"),
        ({"list": [1]}, ""),
    ],
)
async def test_filters(in_memory: AgentStore, filter: dict[str, Any], expected: str) -> None:
    values: list[dict[str, Any]] = [
        {"kind": "a", "n": 0},
        {"kind": "b", "n": 1},
        {"kind": "a", "n": 2},
        {"deep": {"x": 1, "z": 0}},
        {"list": [1, {"y": 2, "z": 0}]},
    ]
    for place, value in enumerate(values):
        await in_memory.aput(USER, str(place), value)
    found = await in_memory.asearch(("memories",), filter=filter)
    assert "".join(sorted(keys(found))) == expected


async def test_an_unknown_operator_is_an_error(in_memory: AgentStore) -> None:
    await in_memory.aput(USER, "k", {"n": 1})
    with pytest.raises(ValueError, match=r"Unsupported operator: \$near"):
        await in_memory.asearch(USER, filter={"n": {"$near": 1}})


async def test_a_query_finds_the_nearest(make_store: MakeStore) -> None:
    store = make_store(index=INDEX)
    await store.aput(USER, "a", {"text": "aaa"})
    await store.aput(USER, "ab", {"text": "ab", "n": 1})
    await store.aput(("memories", "bob"), "b", {"text": "bbbb", "n": 1})
    await store.aput(USER, "not indexed", {"text": "aaaa"}, index=False)
    await store.aput(USER, "without text", {"n": 2})
    await store.aput(USER, "other field", {"text": "dd", "title": "aaab"}, index=["title"])

    found = await store.asearch(("memories",), query="a")
    assert keys(found) == ["a", "other field", "ab", "b", "without text", "not indexed"]
    assert [None if item.score is None else round(item.score, 3) for item in found] == [1, 0.949, 0.707, 0, None, None]
    assert keys(await store.asearch(("memories",), query="a", filter={"n": 1})) == ["ab", "b"]
    assert keys(await store.asearch(("memories",), query="a", limit=2, offset=1)) == ["other field", "ab"]
    assert keys(await store.asearch(USER, query="b", limit=1)) == ["ab"]

    await store.aput(USER, "a", {"text": "c"})
    await store.aput(USER, "ab", {"text": "ab"}, index=False)
    await store.adelete(USER, "other field")
    found = await store.asearch(USER, query="a")
    assert [(item.key, item.score) for item in found] == [
        ("a", 0.0),
        ("ab", None),
        ("without text", None),
        ("not indexed", None),
    ]


async def test_of_several_texts_of_an_item_the_nearest_counts(in_memory: AgentStore, make_store: MakeStore) -> None:
    store = make_store(index={**INDEX, "fields": ["title", "parts[*].text"]})
    await store.aput(USER, "k", {"title": "d", "parts": [{"text": "b"}, {"text": "aaa"}]})
    await store.aput(USER, "same", {"title": "d", "parts": [{"text": "d"}]})
    (first, second) = await store.asearch(USER, query="a")
    assert (first.key, round(first.score or 0, 6), second.score) == ("k", 1, 0)

    whole = AgentStore(SessionManager(MemoryStore()), index=index_of())
    await whole.aput(USER, "k", {"a": "a", "x": "c"})
    assert (await whole.asearch(USER, query="c"))[0].score == pytest.approx(1 / 5**0.5)


async def test_without_an_index_a_query_is_a_plain_search(in_memory: AgentStore) -> None:
    await in_memory.aput(USER, "k", {"text": "a"}, index=["text"])
    assert [(item.key, item.score) for item in await in_memory.asearch(USER, query="a")] == [("k", None)]


async def test_what_another_embedder_made_does_not_compare() -> None:
    manager = SessionManager(MemoryStore())
    await AgentStore(manager, index=INDEX).aput(USER, "k", {"text": "a"})
    other: Any = {"dims": 2, "embed": lambda texts: [[1.0, 0.0] for _ in texts], "fields": ["text"]}
    assert [item.score for item in await AgentStore(manager, index=other).asearch(USER, query="a")] == [None]
    await AgentStore(manager).aput(USER, "k", {"text": "b"})
    assert [item.score for item in await AgentStore(manager, index=INDEX).asearch(USER, query="a")] == [None]


@pytest.mark.parametrize("made", [[[1.0]], [[1.0] * 4, [1.0] * 4], [], [[]]])
async def test_an_embedder_that_breaks_its_word_is_an_error(made: Any) -> None:
    store = AgentStore(SessionManager(MemoryStore()), index=index_of(dims=4, fields=["text"], embed=lambda texts: made))
    with pytest.raises(InvalidError, match="INVALID_INDEX"):
        await store.aput(USER, "k", {"text": "a"})
    assert await store.aget(USER, "k") is None


async def test_what_is_not_json_is_not_embedded_as_a_whole() -> None:
    store = AgentStore(SessionManager(MemoryStore()), index=index_of())
    with pytest.raises(SerializationError, match="fields"):
        await store.aput(USER, "k", {"when": datetime.now(UTC)})
    await store.aput(USER, "k", {"when": datetime.now(UTC), "text": "a"}, index=["text"])
    assert (await store.asearch(USER, query="a"))[0].score == pytest.approx(1)


async def test_embedders_async_and_sync() -> None:
    async def embed_async(texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return embed(texts)

    threads: list[int] = []

    def embed_here(texts: list[str]) -> list[list[float]]:
        threads.append(threading.get_ident())
        return embed(texts)

    store = AgentStore(SessionManager(MemoryStore()), index=index_of(dims=4, fields=["text"], embed=embed_async))
    await store.aput(USER, "k", {"text": "a"})
    assert (await store.asearch(USER, query="a"))[0].score == 1
    with pytest.raises(ValueError, match="async function"):
        store.search(USER, query="a")

    store = AgentStore(SessionManager(MemoryStore()), index=index_of(dims=4, fields=["text"], embed=embed_here))
    store.put(USER, "k", {"text": "a"})
    assert store.search(USER, query="a")[0].score == 1
    assert set(threads) == {threading.get_ident()}  # never the library's own thread


# ---------------------------------------------------------------------------------------------------- namespaces


async def test_namespaces_are_listed_by_what_they_begin_and_end_with(store: AgentStore) -> None:
    namespaces = [
        ("a", "b", "c"),
        ("a", "b", "d", "e"),
        ("a", "b", "d", "i"),
        ("a", "b", "f"),
        ("a", "c", "f"),
        ("a!",),
        ("b", "x", "f"),
    ]
    await store.abatch([PutOp(namespace, "k", {}) for namespace in namespaces])

    assert await store.alist_namespaces() == sorted(namespaces)
    assert await store.alist_namespaces(prefix=("a", "b")) == namespaces[:4]
    assert await store.alist_namespaces(prefix=("a", "b"), max_depth=3) == [
        ("a", "b", "c"),
        ("a", "b", "d"),
        ("a", "b", "f"),
    ]
    assert await store.alist_namespaces(suffix=("f",)) == [("a", "b", "f"), ("a", "c", "f"), ("b", "x", "f")]
    assert await store.alist_namespaces(prefix=("a", "*", "f")) == [("a", "b", "f"), ("a", "c", "f")]
    assert await store.alist_namespaces(prefix=("*", "x")) == [("b", "x", "f")]
    assert await store.alist_namespaces(suffix=("*", "f"), prefix=("b",)) == [("b", "x", "f")]
    assert await store.alist_namespaces(limit=2, offset=1) == sorted(namespaces)[1:3]
    assert await store.alist_namespaces(max_depth=1, limit=2, offset=1) == [("a!",), ("b",)]
    assert await store.alist_namespaces(prefix=("a", "b", "c", "d")) == await store.alist_namespaces(limit=0) == []


async def test_a_namespace_without_items_is_not_listed(store: AgentStore, elsewhere: AgentStore) -> None:
    await store.aput(USER, "k", {})
    await store.aput((*USER, "below"), "k", {})
    await elsewhere.adelete(USER, "k")
    assert await store.alist_namespaces() == [(*USER, "below")]
    await store.aput(USER, "k", {"again": True})
    assert await elsewhere.alist_namespaces() == [USER, (*USER, "below")]
    assert len(await elsewhere.asearch(USER)) == 2
