"""`AgentStore`: LangGraph's long-term memory over each backend."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langgraph.config import get_store
from langgraph.graph import MessagesState
from langgraph.prebuilt import InjectedStore, ToolNode
from langgraph.runtime import Runtime
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)

from agent_sessions import MemoryStore, Runner, SessionManager
from agent_sessions.errors import FormatTooNewError, InvalidError, SerializationError
from agent_sessions.stores.base import EntryRange, Wanted
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore
from agent_sessions_langgraph.store import items
from tests.support import Before

from .agent_stores import INDEX, MakeStore, embed, index_of, keys
from .agent_stores import elsewhere as elsewhere
from .agent_stores import make_store as make_store
from .agent_stores import open_backend as open_backend
from .agent_stores import store as store
from .graphs import chat, one_node, texts

USER = ("memories", "ada")
MINUTE = 60


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(make_store: MakeStore, clock: FakeClock) -> AgentStore:
    return make_store(clock=clock)


@pytest.fixture
def in_memory() -> AgentStore:
    return AgentStore(SessionManager(MemoryStore()))


# ---------------------------------------------------------------------------------------------------- items


async def test_what_is_put_is_there_for_all(store: AgentStore, elsewhere: AgentStore) -> None:
    assert await store.aget(USER, "likes") is None
    await store.aput(USER, "likes", {"food": "pizza", "n": [1, {"deep": None}]})

    item = await elsewhere.aget(USER, "likes")
    assert item is not None
    assert (item.namespace, item.key, item.value) == (USER, "likes", {"food": "pizza", "n": [1, {"deep": None}]})
    assert await elsewhere.aget(USER, "other") is None
    assert await elsewhere.aget(("memories",), "likes") is None


async def test_an_item_is_deleted_for_all(store: AgentStore, elsewhere: AgentStore) -> None:
    await store.aput(USER, "likes", {"food": "pizza"})
    await elsewhere.adelete(USER, "likes")
    await elsewhere.adelete(USER, "never there")
    assert await store.aget(USER, "likes") is None
    assert await store.asearch(USER) == []


async def test_times_are_those_of_the_store(timed: AgentStore, clock: FakeClock) -> None:
    made = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    await timed.aput(USER, "likes", {"food": "pizza"})
    clock.advance(90)
    await timed.aput(USER, "likes", {"food": "pasta"})
    (item,) = await timed.asearch(USER)
    assert (item.created_at, item.updated_at) == (made, made + timedelta(seconds=90))

    await timed.adelete(USER, "likes")
    await timed.aput(USER, "likes", {"food": "pasta"})
    item = await timed.aget(USER, "likes")  # type: ignore[assignment]
    assert item.created_at == made + timedelta(seconds=90)


ODD = [
    "",
    " ",
    "a.b",
    "=x",
    "~x",
    "*",
    "a/b",
    "\0",
    "a\nb",
    "{}",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "x" * 400,
    "x" * 401,
    "x" * 5_000,
    "x" * 5_000 + "y",
    "é" * 201,
]


async def test_odd_keys_and_labels_are_kept_apart(store: AgentStore, elsewhere: AgentStore) -> None:
    labels = [odd for odd in ODD if odd and "." not in odd and "\0" not in odd]
    await store.abatch([PutOp(("odd",), key, {"key": key}) for key in ODD])
    await store.abatch([PutOp(("labels", label, "x"), "k", {"label": label}) for label in labels])

    assert sorted(keys(await elsewhere.asearch(("odd",), limit=100))) == sorted(ODD)
    for key in ODD:
        assert (await elsewhere.aget(("odd",), key)).value == {"key": key}  # type: ignore[union-attr]
    for label in labels:
        assert [item.namespace for item in await elsewhere.asearch(("labels", label))] == [("labels", label, "x")]
    listed = await elsewhere.alist_namespaces(prefix=("labels",))
    assert sorted(listed) == sorted(("labels", label, "x") for label in labels)


async def test_values_come_back_exactly_or_are_refused(in_memory: AgentStore) -> None:
    value = {"when": datetime(2026, 1, 2, tzinfo=UTC), "much": Decimal("1.10"), "pair": (1, 2), "many": {1, 2}}
    await in_memory.aput(USER, "exact", value)
    item = await in_memory.aget(USER, "exact")
    assert item is not None
    assert item.value == value
    assert [type(one) for one in item.value.values()] == [datetime, Decimal, tuple, set]

    @dataclasses.dataclass
    class Unregistered:
        x: int

    await in_memory.aput(USER, "first", {"n": 1})
    with pytest.raises(SerializationError) as refused:
        await in_memory.abatch([PutOp(USER, "first", {"n": 2}), PutOp(USER, "bad", {"deep": [Unregistered(1)]})])
    assert refused.value.field == "value.deep[0]"
    assert (await in_memory.aget(USER, "first")).value == {"n": 1}  # type: ignore[union-attr]
    with pytest.raises(InvalidError):
        await in_memory.aput(USER, "list", [1])  # type: ignore[arg-type]


async def test_what_is_handed_out_is_the_callers_own(in_memory: AgentStore) -> None:
    given: dict[str, Any] = {"list": [1]}
    await in_memory.aput(USER, "k", given)
    given["list"].append(2)
    for _ in range(2):
        item = await in_memory.aget(USER, "k")
        assert item is not None
        assert item.value == {"list": [1]}
        item.value["list"].append(3)


async def test_large_batches_and_values(store: AgentStore) -> None:
    await store.abatch([PutOp(("many",), f"k{n:04}", {"n": n}) for n in range(1_100)])
    await store.aput(("large",), "k", {"text": "x" * 2**21})
    found = await store.asearch(("many",), limit=2_000)
    assert [item.value["n"] for item in found] == list(range(1_099, -1, -1))
    assert len(await store.asearch(("many",), limit=2_000, filter={"n": {"$lt": 700}})) == 700
    assert len((await store.aget(("large",), "k")).value["text"]) == 2**21  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "namespace", [(), ("langgraph",), ("langgraph", "x"), ("a.b",), ("a", ""), ("a", 5), ("a\0",), ("\ud800",)]
)
async def test_names_that_langgraph_refuses_are_refused(in_memory: AgentStore, namespace: Any) -> None:
    with pytest.raises(InvalidNamespaceError):
        await in_memory.aput(namespace, "k", {})
    with pytest.raises(InvalidNamespaceError):
        await in_memory.abatch([PutOp(namespace, "k", {})])
    with pytest.raises(InvalidNamespaceError):
        in_memory.put(namespace, "k", {})
    if "langgraph" in namespace or not namespace:
        assert await in_memory.aget(namespace, "k") is None
        await in_memory.adelete(namespace, "k")
        assert await in_memory.asearch(namespace) == []
    else:
        for op in (
            GetOp(namespace, "k"),
            SearchOp(namespace),
            ListNamespacesOp((MatchCondition("prefix", namespace),)),
        ):
            with pytest.raises(InvalidNamespaceError):
                await in_memory.abatch([op])


async def test_wrong_keys_and_operations_are_refused(in_memory: AgentStore) -> None:
    with pytest.raises(InvalidError, match="INVALID_KEY"):
        await in_memory.aput(USER, "\ud800", {})
    with pytest.raises(InvalidError, match="INVALID_KEY"):
        await in_memory.abatch([GetOp(USER, 5)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown operation"):
        await in_memory.abatch(["get"])  # type: ignore[list-item]
    await in_memory.aput(USER, "k", {})
    with pytest.raises(ValueError, match="match type"):
        await in_memory.abatch([ListNamespacesOp((MatchCondition("infix", ("a",)),))])  # type: ignore[arg-type]


async def test_tenants_share_nothing(make_store: MakeStore) -> None:
    mine, theirs = make_store(), make_store(tenant="acme")
    await mine.aput(USER, "k", {"of": "mine"})
    await theirs.aput(USER, "k", {"of": "theirs"})
    assert (await mine.aget(USER, "k")).value == {"of": "mine"}  # type: ignore[union-attr]
    assert [item.value["of"] for item in await theirs.asearch(())] == ["theirs"]
    await theirs.adelete(USER, "k")
    assert await theirs.alist_namespaces() == []
    assert await mine.alist_namespaces() == [USER]


# ---------------------------------------------------------------------------------------------------- batches


async def test_a_batch_reads_before_it_writes_and_the_last_put_counts(store: AgentStore) -> None:
    await store.aput(USER, "k", {"n": 0})
    results = await store.abatch(
        [
            PutOp(USER, "k", {"n": 1}),
            GetOp(USER, "k"),
            PutOp(("other",), "x", {"n": 5}),
            SearchOp(("memories",)),
            PutOp(USER, "k", {"n": 2}),
            PutOp(USER, "gone", {"n": 3}),
            ListNamespacesOp(),
            PutOp(USER, "gone", None),
            GetOp(("other",), "x"),
        ]
    )
    put, got, _, searched, _, _, listed, _, absent = results
    assert put is None
    assert absent is None
    assert got.value == searched[0].value == {"n": 0}  # type: ignore[union-attr, index]
    assert listed == [USER]
    assert [item.value for item in await store.asearch(USER)] == [{"n": 2}]
    assert await store.alist_namespaces() == [USER, ("other",)]


async def test_an_empty_batch(in_memory: AgentStore) -> None:
    assert await in_memory.abatch([]) == in_memory.batch([]) == []


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


# ---------------------------------------------------------------------------------------------------- sync


def test_the_sync_half_in_threads_without_an_event_loop(tmp_path: Any) -> None:
    from agent_sessions.stores.sqlite import SQLiteStore

    backend = SQLiteStore(tmp_path / "items.db")
    store = AgentStore(SessionManager(backend), index=INDEX)
    store.put(USER, "k", {"text": "a"}, ttl=5)
    workers = [threading.Thread(target=store.put, args=(USER, f"k{n}", {"text": "ab"})) for n in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert store.get(USER, "k").value == {"text": "a"}  # type: ignore[union-attr]
    assert len(store.search(("memories",), limit=100)) == 17
    assert store.search(("memories",), query="a")[0].key == "k"
    store.delete(USER, "k")
    assert store.get(USER, "k") is None
    assert store.list_namespaces() == [USER]
    asyncio.run(backend.aclose())


async def test_the_sync_half_inside_a_running_loop(store: AgentStore) -> None:
    store.put(USER, "k", {"n": 1})
    assert (await store.aget(USER, "k")).value == store.get(USER, "k").value == {"n": 1}  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------- graphs


class State(TypedDict):
    said: str


async def test_a_graph_reaches_its_store(store: AgentStore, elsewhere: AgentStore) -> None:
    async def remember(state: State, runtime: Runtime[None]) -> State:
        assert isinstance(runtime.store, BaseStore)
        await runtime.store.aput(USER, "said", {"text": state["said"]})
        found = await get_store().aget(USER, "said")
        assert found is not None
        return {"said": found.value["text"].upper()}

    def remember_sync(state: State, *, store: BaseStore) -> State:
        store.put(USER, "said sync", {"text": state["said"]})
        return {"said": get_store().search(USER)[0].value["text"]}

    assert await one_node(State, remember, store=store).ainvoke({"said": "hi"}) == {"said": "HI"}
    graph = one_node(State, remember_sync, store=store)
    assert await graph.ainvoke({"said": "yo"}) == {"said": "yo"}
    assert await asyncio.to_thread(graph.invoke, {"said": "hey"}) == {"said": "hey"}
    assert sorted(keys(await elsewhere.asearch(()))) == ["said", "said sync"]


async def test_a_tool_reaches_the_store(in_memory: AgentStore) -> None:
    async def recall(key: str, store: Annotated[Any, InjectedStore()]) -> str:
        """Recall something."""
        item = await store.aget(USER, key)
        return str(item.value["text"])

    await in_memory.aput(USER, "likes", {"text": "pizza"})
    call = {"name": "recall", "args": {"key": "likes"}, "id": "1", "type": "tool_call"}
    graph = one_node(MessagesState, ToolNode([recall]), store=in_memory)
    state = await graph.ainvoke({"messages": [AIMessage("", tool_calls=[call])]})
    assert texts(state)[-1] == "pizza"


async def test_from_the_environment_all_share_one() -> None:
    namespace = ("test_from_the_environment_all_share_one",)
    await AgentStore().aput(namespace, "k", {"n": 1})
    assert AgentStore().get(namespace, "k").value == {"n": 1}  # type: ignore[union-attr]
    async with SessionManager.from_env() as manager:
        assert keys(await AgentStore(manager).asearch(namespace)) == ["k"]


async def test_inside_a_run_of_a_tenant_items_are_that_tenants() -> None:
    manager = SessionManager(MemoryStore())
    store = AgentStore(manager)

    async def remember(state: MessagesState) -> dict[str, Any]:
        await store.aput(USER, "said", {"text": texts(state)[-1]})
        await asyncio.to_thread(store.put, USER, "in a thread", {})
        return {"messages": [AIMessage("ok")]}

    await Runner(manager).run(chat(remember, store=store), "s", "of acme", tenant_id="acme")
    assert await store.asearch(()) == []
    assert len(await AgentStore(manager.for_tenant("acme")).asearch(())) == 2
    async with manager.for_tenant("acme").open("s"):
        assert len(await store.asearch(())) == 2
        assert await AgentStore(manager.for_tenant("other")).asearch(()) == []


async def test_a_turn_that_fails_takes_no_item_back(in_memory: AgentStore) -> None:
    async def fail(state: MessagesState) -> dict[str, Any]:
        await in_memory.aput(USER, "said", {"text": texts(state)[-1]})
        raise ZeroDivisionError

    runner = Runner(SessionManager(MemoryStore()))
    with pytest.raises(ZeroDivisionError):
        await runner.run(chat(fail, store=in_memory), "s", "hi")
    assert keys(await in_memory.asearch(())) == ["said"]
