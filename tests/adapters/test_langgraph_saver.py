"""`SessionSaver` as a checkpointer: its contract, in both halves, its threads, and what it stores."""

from __future__ import annotations

import asyncio
import operator
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from agent_sessions import SessionManager
from agent_sessions.errors import InvalidError, SerializationError, SessionNotFoundError
from agent_sessions_langgraph import SessionSaver

from .graphs import chat, on, one_node, said, texts

on_every_store = pytest.mark.parametrize("store", ["memory", "sqlite", "redis", "dynamodb"], indirect=True)


@pytest.fixture
def saver(manager: SessionManager) -> SessionSaver:
    return SessionSaver(manager)


# ---------------------------------------------------------------------------------------------------- the contract


@on_every_store
async def test_it_passes_langgraphs_conformance_suite(manager: SessionManager) -> None:
    @checkpointer_test(name="SessionSaver")
    async def savers() -> AsyncIterator[SessionSaver]:
        yield SessionSaver(manager)

    report = await validate(savers)

    assert report.passed_all(), report.to_dict()


class Halves:
    """A saver's sync half, as if it were the async one: its calls come from other threads, as LangGraph's do."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver

    async def aput(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.saver.put, *args)

    async def aput_writes(self, *args: Any) -> None:
        await asyncio.to_thread(self.saver.put_writes, *args)

    async def aget_tuple(self, config: Any) -> Any:
        return await asyncio.to_thread(self.saver.get_tuple, config)

    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.to_thread(self.saver.delete_thread, thread_id)

    async def alist(self, config: Any, **options: Any) -> AsyncIterator[CheckpointTuple]:
        for found in await asyncio.to_thread(lambda: list(self.saver.list(config, **options))):
            yield found


def checkpoint(place: int, values: dict[str, Any], versions: dict[str, Any]) -> Any:
    return {
        "v": 4,
        "id": f"1f{place:06d}-0000-6000-8000-000000000000",
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {"node": {"a": 1}},
        "updated_channels": None,
    }


async def filled(saver: Any) -> None:
    """Checkpoints in two namespaces, with values that come, stay and go, and writes in every order."""
    one = checkpoint(1, {"a": [1], "b": None}, {"a": "1.0", "b": 1, "c": 1})
    first = await saver.aput(on(checkpoint_ns=""), one, {"source": "input", "step": -1}, {"a": "1.0", "b": 1, "c": 1})
    await saver.aput_writes(first, [("a", "late"), ("b", b"\x00")], "task-2", "~b")
    await saver.aput_writes(first, [("a", "early"), ("__interrupt__", 1)], "task-9", "~a")
    await saver.aput_writes(first, [("a", "ignored"), ("__interrupt__", 2), ("d", "third")], "task-9", "~a")
    two = checkpoint(2, {"a": [1], "b": {"x": 1}}, {"a": "1.0", "b": 2, "c": 1})
    second = await saver.aput(first, two, {"source": "loop", "step": 0, "who": "x\x00y"}, {"b": 2})
    await saver.aput_writes(second, [("__error__", "boom")], "task-1")
    three = checkpoint(3, {"b": {"x": 1}}, {"a": "2.0", "b": 2, "c": 1})
    await saver.aput(second, three, {"source": "loop", "step": 1}, {"a": "2.0"})
    child = checkpoint(4, {"a": "child"}, {"a": 1.5})
    await saver.aput(on(checkpoint_ns="sub:1|x"), child, {"source": "loop", "step": 0}, {"a": 1.5})


def plain(found: CheckpointTuple | None) -> Any:
    if found is None:
        return None
    keys = ("thread_id", "checkpoint_ns", "checkpoint_id")
    config = {key: found.config["configurable"].get(key) for key in keys}
    return found._replace(config={"configurable": config})


async def seen(saver: Any) -> list[Any]:
    """Everything that can be asked."""
    ids = [checkpoint(place, {}, {})["id"] for place in range(1, 5)]
    tuples = [await saver.aget_tuple(on(checkpoint_ns="", checkpoint_id=one)) for one in ids]
    tuples += [await saver.aget_tuple(on()), await saver.aget_tuple(on(checkpoint_ns="sub:1|x"))]
    tuples += [await saver.aget_tuple(on("other")), await saver.aget_tuple(on(checkpoint_ns="none"))]
    questions: list[dict[str, Any]] = [
        {},
        {"limit": 2},
        {"limit": 0},
        {"filter": {"source": "loop"}},
        {"filter": {"source": "loop", "step": 1}, "limit": 1},
        {"before": on(checkpoint_id=ids[2])},
        {"before": on(checkpoint_id=ids[2]), "limit": 1},
    ]
    for question in questions:
        for where in (on(), on(checkpoint_ns=""), on(checkpoint_ns="sub:1|x"), on("other")):
            tuples += [found async for found in saver.alist(where, **question)]
    tuples += [found async for found in saver.alist(on(checkpoint_ns="", checkpoint_id=ids[1]))]
    return [plain(found) for found in tuples]


@on_every_store
@pytest.mark.parametrize("half", ["async", "sync"])
async def test_both_halves_answer_as_the_in_memory_saver_does(saver: SessionSaver, half: str) -> None:
    ours: Any = saver if half == "async" else Halves(saver)
    theirs = InMemorySaver()
    await filled(ours)
    await filled(theirs)

    assert await seen(ours) == await seen(theirs)

    await ours.adelete_thread("s")
    await theirs.adelete_thread("s")
    assert await seen(ours) == await seen(theirs)


async def test_the_halves_read_what_the_other_one_wrote_inside_a_turn_too(
    saver: SessionSaver, manager: SessionManager
) -> None:
    theirs = InMemorySaver()
    await filled(theirs)
    async with manager.open("s"):
        await filled(Halves(saver))
        inside = await seen(saver)
    assert inside == await seen(Halves(saver)) == await seen(theirs)


async def test_many_checkpoints_are_listed_page_by_page(saver: SessionSaver) -> None:
    config = on(checkpoint_ns="")
    for place in range(50):
        config = await saver.aput(config, checkpoint(place, {"a": place}, {"a": place}), {"step": place}, {"a": place})

    found = [one.checkpoint["channel_values"]["a"] async for one in saver.alist(on(checkpoint_ns=""))]
    odd = [one async for one in saver.alist(on(checkpoint_ns=""), filter={"step": 3})]

    assert found == list(range(50))[::-1]
    assert [one.metadata["step"] for one in odd] == [3]


async def test_versions_rise_as_strings(saver: SessionSaver) -> None:
    versions = [saver.get_next_version(None, None)]
    for _ in range(12):
        versions.append(saver.get_next_version(versions[-1], None))

    assert versions == sorted(versions)
    assert saver.get_next_version(3, None) > saver.get_next_version(2, None)


async def test_copies_share_the_sessions(saver: SessionSaver) -> None:
    await chat(checkpointer=saver).ainvoke(said("hi"), on())

    copied = saver.with_allowlist({("somewhere", "Type")})

    assert copied is not saver
    assert await copied.aget_tuple(on()) is not None


async def test_all_threads_are_listed_without_a_config(saver: SessionSaver) -> None:
    for thread_id in ("a", "b"):
        for text in ("1", "2"):
            await chat(checkpointer=saver).ainvoke(said(text), on(thread_id), durability="exit")

    listed = [one.config["configurable"]["thread_id"] async for one in saver.alist(None)]
    assert sorted(listed) == ["a", "a", "b", "b"]
    assert len([one async for one in saver.alist(None, limit=3)]) == 3
    assert len(await asyncio.to_thread(lambda: list(saver.list(None, filter={"source": "loop"})))) == 4


# ---------------------------------------------------------------------------------------------------- threads


async def test_a_thread_goes_on_in_another_process(saver: SessionSaver, store: Any) -> None:
    await chat(checkpointer=saver).ainvoke(said("1"), on())

    elsewhere = SessionSaver(SessionManager(store))
    state = await chat(checkpointer=elsewhere).ainvoke(said("2"), on())

    assert texts(state) == ["1", "re: 1", "2", "re: 2"]


async def test_deleting_a_thread_leaves_the_session(saver: SessionSaver, manager: SessionManager) -> None:
    async with manager.open("s") as session:
        session.set("name", "Ada")
    await chat(checkpointer=saver).ainvoke(said("1"), on())
    await chat(checkpointer=SessionSaver(manager, thread="aside")).ainvoke(said("2"), on())

    await saver.adelete_thread("s")
    await saver.adelete_thread("never")

    async with manager.open("s", create=False) as session:
        assert session.get("name") == "Ada"
        assert session.namespaces() == ["default"]
    with pytest.raises(SessionNotFoundError):
        async with manager.open("never", create=False):
            pass


async def test_threads_of_one_session_are_apart(saver: SessionSaver, manager: SessionManager) -> None:
    names = ["", "a", "a/b", "a%2Fb", "x" * 300, "x" * 301, "🎒" * 50, "🎒" * 51]
    graphs = [chat(checkpointer=SessionSaver(manager, thread=name)) for name in names]
    for place, graph in enumerate(graphs):
        await graph.ainvoke(said(str(place)), on())

    states = [(await graph.aget_state(on())).values for graph in graphs]

    assert [texts(state)[0] for state in states] == [str(place) for place in range(len(names))]
    assert all(len(texts(state)) == 2 for state in states)


@pytest.mark.parametrize("thread_id", ["a:b/c|d%2F{e}", "../..", "🎒" * 256, "ключ", "x" * 256, " padded "])
async def test_thread_ids_may_be_hostile(saver: SessionSaver, thread_id: str) -> None:
    graph = chat(checkpointer=saver)

    await graph.ainvoke(said("1"), on(thread_id))
    await graph.ainvoke(said("other"), on(thread_id[:-1] + "!"))

    assert texts((await graph.aget_state(on(thread_id))).values) == ["1", "re: 1"]
    assert len([one async for one in graph.aget_state_history(on(thread_id))]) == 3


async def test_namespaces_and_channels_may_be_hostile(saver: SessionSaver) -> None:
    names = ["a/b", "a", "a%2Fb", "/", "%", "x" * 400, "x" * 401, "ü" * 100]
    for place, ns in enumerate(names):
        for channel in names:
            values = {channel: f"{ns}{channel}"}
            one = checkpoint(place, values, {channel: 1})
            await saver.aput(on(checkpoint_ns=ns), one, {}, {channel: 1})

    for ns in names:
        found = await saver.aget_tuple(on(checkpoint_ns=ns))
        assert found is not None
        assert found.checkpoint["channel_values"] == {names[-1]: f"{ns}{names[-1]}"}


async def test_a_thread_id_that_is_no_text_is_taken_as_text(saver: SessionSaver) -> None:
    graph, some = chat(checkpointer=saver), uuid.uuid4()

    await graph.ainvoke(said("1"), on(7))
    await graph.ainvoke(said("2"), on(some))

    assert texts((await graph.aget_state(on("7"))).values)[0] == "1"
    assert texts((await graph.aget_state(on(some))).values)[0] == "2"
    assert (await saver.aget_tuple(on(7)) or 0) != 0


async def test_a_config_without_thread_is_refused(saver: SessionSaver) -> None:
    with pytest.raises(InvalidError) as refused:
        await chat(checkpointer=saver).ainvoke(said("1"), {"configurable": {"user": 1}})
    assert refused.value.code == "INVALID_THREAD_ID"


# ---------------------------------------------------------------------------------------------------- serialization


class Order(BaseModel):
    item: str


class Cart(TypedDict):
    orders: Annotated[list[Order], operator.add]


def shopping(_: Cart) -> dict[str, list[Order]]:
    return {"orders": [Order(item="tea")]}


async def test_stored_data_makes_no_objects_but_those_allowed(manager: SessionManager) -> None:
    graph = one_node(Cart, shopping, checkpointer=SessionSaver(manager))
    await graph.ainvoke({"orders": []}, on())

    with pytest.raises(SerializationError, match="Order") as refused:
        await graph.aget_state(on())
    assert "allowed_types" in refused.value.message

    allowing = one_node(Cart, shopping, checkpointer=SessionSaver(manager, allowed_types=[Order]))
    assert (await allowing.ainvoke({"orders": []}, on()))["orders"] == [Order(item="tea"), Order(item="tea")]


async def test_bytes_are_stored_as_the_users_serializer_makes_them(manager: SessionManager) -> None:
    class Marking(JsonPlusSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            kind, data = super().dumps_typed(obj)
            return f"{kind}+mark", b"!" + data

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            assert data[0].endswith("+mark")
            assert data[1].startswith(b"!")
            return super().loads_typed((data[0].removesuffix("+mark"), data[1][1:]))

    graph = chat(checkpointer=SessionSaver(manager, serde=Marking()))

    await graph.ainvoke(said("1"), on())

    assert texts(await graph.ainvoke(said("2"), on())) == ["1", "re: 1", "2", "re: 2"]


async def test_what_the_environment_configures_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AK_SESSION__TTL", "1234")
    session_id = str(uuid.uuid4())

    await chat(checkpointer=SessionSaver()).ainvoke(said("1"), on(session_id))

    assert texts(await chat(checkpointer=SessionSaver()).ainvoke(said("2"), on(session_id)))[0] == "1"
    assert await SessionManager.from_env().get(session_id) is not None
