"""`AgentStore`: LangGraph's long-term memory over each backend."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
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
from agent_sessions.errors import InvalidError, SerializationError
from agent_sessions.testing import FakeClock
from agent_sessions_langgraph import AgentStore

from .agent_stores import INDEX, MakeStore, keys
from .agent_stores import clock as clock
from .agent_stores import elsewhere as elsewhere
from .agent_stores import in_memory as in_memory
from .agent_stores import make_store as make_store
from .agent_stores import open_backend as open_backend
from .agent_stores import store as store
from .agent_stores import timed as timed
from .graphs import chat, one_node, texts

USER = ("memories", "ada")
MINUTE = 60


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
