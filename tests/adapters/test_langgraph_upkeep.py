"""Deleting, pruning and copying threads, in both halves; and the history of delta channels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState
from langgraph.types import Command, interrupt

from agent_sessions import Runner, SessionManager
from agent_sessions.errors import InvalidError, SessionNotFoundError
from agent_sessions_langgraph import SessionSaver

from .graphs import chat, on, one_node, said, stored, texts

Do = Callable[..., Awaitable[Any]]

on_every_store = pytest.mark.parametrize("store", ["memory", "sqlite", "redis", "dynamodb"], indirect=True)


@pytest.fixture
def saver(manager: SessionManager) -> SessionSaver:
    return SessionSaver(manager)


@pytest.fixture(params=["async", "sync"])
def do(request: pytest.FixtureRequest, saver: SessionSaver) -> Do:
    """Calls a method of the saver by its name, in one of its halves."""

    async def call(name: str, *args: Any, **options: Any) -> Any:
        if request.param == "async":
            return await getattr(saver, f"a{name}")(*args, **options)
        return await asyncio.to_thread(getattr(saver, name), *args, **options)

    return call


async def ids(saver: BaseCheckpointSaver[Any], thread_id: str = "s") -> list[tuple[str, str]]:
    configs = [one.config["configurable"] async for one in saver.alist(on(thread_id))]
    return [(config["checkpoint_ns"], config["checkpoint_id"]) for config in configs]


async def entries(manager: SessionManager, session_id: str = "s") -> list[str]:
    """The keys of everything that is stored of LangGraph beside its values."""
    async with manager.read(session_id) as session:
        return [key for key, _ in await session.namespace("langgraph").collection("checkpoints").range()]


async def asking(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"you said {interrupt('?')}")]}


# ---------------------------------------------------------------------------------------------------- pruning


@on_every_store
async def test_pruning_keeps_the_latest_state(saver: SessionSaver, do: Do, manager: SessionManager, store: Any) -> None:
    graph = chat(checkpointer=saver)
    for turn in range(20):
        await graph.ainvoke(said(str(turn)), on())
    before = await saver.aget_tuple(on())

    await do("prune", ["s", "never"])

    assert before is not None
    assert await saver.aget_tuple(on()) == before
    elsewhere = SessionSaver(SessionManager(store))
    assert await elsewhere.aget_tuple(on()) == before
    assert len(await ids(saver)) == 1
    left = len(await entries(manager))
    assert left < 30
    await graph.ainvoke(said("more"), on(), durability="exit")
    assert len(texts((await graph.aget_state(on())).values)) == 42
    with pytest.raises(SessionNotFoundError):
        async with manager.open("never", create=False):
            pass

    await do("prune", ["s"])
    assert len(await entries(manager)) <= left + 1  # nothing piles up
    await do("prune", ["s"], strategy="delete")
    assert await entries(manager) == []
    with pytest.raises(InvalidError):
        await do("prune", ["s"], strategy="keep_some")


async def test_pruning_leaves_an_interrupt_to_be_answered(saver: SessionSaver, do: Do) -> None:
    graph = chat(chat(asking), checkpointer=saver)
    await chat(chat(), checkpointer=saver).ainvoke(said("0"), on())
    await graph.ainvoke(said("1"), on())

    await do("prune", ["s"])

    assert texts(await graph.ainvoke(Command(resume="yes"), on())) == ["0", "re: 0", "1", "you said yes"]


async def test_pruning_leaves_other_graphs_of_the_session_alone(
    saver: SessionSaver, do: Do, manager: SessionManager
) -> None:
    runner = Runner(manager)
    for name in ("a", "b"):
        for text in ("1", "2"):
            await runner.run(chat(name=name), "s", text)

    await do("prune", ["s"])

    for name in ("a", "b"):
        assert await stored(manager, "s", name) == ["1", "re: 1", "2", "re: 2"]


def extended(held: list[Any], new: Any) -> list[Any]:
    return [*held, *(item for one in new for item in one)]


class Deltas(TypedDict):
    items: Annotated[list[Any], DeltaChannel(extended, snapshot_frequency=5)]


def counting(saver: Any) -> Any:
    return one_node(Deltas, lambda state: {"items": [len(state["items"])]}, checkpointer=saver)


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("runs", [1, 2, 3, 4, 7])
async def test_pruning_keeps_what_delta_channels_are_rebuilt_from(
    saver: SessionSaver, do: Do, durability: Any, runs: int
) -> None:
    graph = counting(saver)
    for run in range(runs):
        await graph.ainvoke({"items": [f"{run}"]}, on(), durability=durability)
    before = (await graph.aget_state(on())).values
    count = len(await ids(saver))

    await do("prune", ["s"])

    assert (await graph.aget_state(on())).values == before
    after = (await graph.ainvoke({"items": ["more"]}, on(), durability=durability))["items"]
    assert after == [*before["items"], "more", len(before["items"]) + 1]
    assert runs < 7 or len(await ids(saver)) < count


# ---------------------------------------------------------------------------------------------------- delta channels


@on_every_store
async def test_the_history_of_delta_channels_is_that_of_the_in_memory_saver(saver: SessionSaver, do: Do) -> None:
    theirs = InMemorySaver()
    seen = []
    for over in (saver, theirs):
        graph = counting(over)
        for run in range(4):
            await graph.ainvoke({"items": [f"{run}"]}, on())
        past = [one async for one in graph.aget_state_history(on())]
        await graph.ainvoke({"items": ["fork"]}, past[5].config)
        await graph.aupdate_state(on(), {"items": ["by hand"]}, as_node="reply")
        configs = [one.config async for one in graph.aget_state_history(on())]
        ask: Any = do if over is saver else theirs.aget_delta_channel_history
        args: list[Any] = ["get_delta_channel_history"] if over is saver else []
        histories = [await ask(*args, config=one, channels=["items", "none"]) for one in [*configs, on()]]
        assert await ask(*args, config=on("other"), channels=["items"]) == {"items": {"writes": []}}
        seen.append([(_values(one["items"]), _values(one["none"])) for one in histories])

    assert seen[0] == seen[1]
    assert any("seed" in one for one, _ in seen[0])


def _values(history: Any) -> dict[str, Any]:
    return {**history, "writes": [value for _, _, value in history["writes"]]}


# ---------------------------------------------------------------------------------------------------- deleting


@on_every_store
async def test_the_checkpoints_of_runs_are_deleted_wherever_they_are(
    saver: SessionSaver, do: Do, manager: SessionManager
) -> None:
    graph = chat(chat(), checkpointer=saver)
    for thread_id in ("s", "t"):
        for text in ("1", "2", "3"):
            await graph.ainvoke(said(text), {**on(thread_id), "metadata": {"run_id": f"run/{text}"}})
    await chat(checkpointer=saver).ainvoke(said("unnamed"), on("u"))
    everything = len(await entries(manager))

    await do("delete_for_runs", ["run/3", "run/none"])

    for thread_id in ("s", "t"):
        assert texts((await graph.aget_state(on(thread_id))).values) == ["1", "re: 1", "2", "re: 2"]
        left = [one.metadata["run_id"] async for one in saver.alist(on(thread_id))]
        assert set(left) == {"run/1", "run/2"}
    assert len(await ids(saver, "u")) == 3
    await do("delete_for_runs", ["run/1", "run/2"])
    assert await entries(manager) == []
    assert everything > 10
    assert (await graph.aget_state(on())).values == {}
    assert texts(await graph.ainvoke(said("anew"), on())) == ["anew", "re: anew"]


async def test_deleting_runs_of_another_tenant_is_impossible(saver: SessionSaver, manager: SessionManager) -> None:
    theirs = SessionSaver(manager.for_tenant("acme"))
    for over in (saver, theirs):
        await chat(checkpointer=over).ainvoke(said("1"), {**on(), "metadata": {"run_id": "r"}})

    await theirs.adelete_for_runs(["r"])

    assert len(await ids(saver)) == 3
    assert await ids(theirs) == []


# ---------------------------------------------------------------------------------------------------- copying


async def test_a_copy_goes_on_by_itself(saver: SessionSaver, do: Do) -> None:
    graph = chat(chat(asking), checkpointer=saver)
    await chat(chat(), checkpointer=saver).ainvoke(said("0"), on())
    await graph.ainvoke(said("1"), on())
    before = await ids(saver)

    await do("copy_thread", "s", "copy")
    await do("copy_thread", "never", "nowhere")

    assert await ids(saver, "copy") == before
    assert await ids(saver, "nowhere") == []
    assert texts(await graph.ainvoke(Command(resume="no"), on("copy")))[-1] == "you said no"
    assert await ids(saver) == before
    assert texts(await graph.ainvoke(Command(resume="yes"), on()))[-1] == "you said yes"


@on_every_store
async def test_a_copy_is_repeated_without_harm(saver: SessionSaver, do: Do) -> None:
    graph = chat(checkpointer=saver)
    await graph.ainvoke(said("1"), on())
    await do("copy_thread", "s", "copy")
    await graph.ainvoke(said("2"), on())

    await do("copy_thread", "s", "copy")
    assert texts((await graph.aget_state(on("copy"))).values) == ["1", "re: 1", "2", "re: 2"]
    await graph.ainvoke(said("3"), on("copy"))
    await do("copy_thread", "s", "copy")

    assert texts((await graph.aget_state(on("copy"))).values)[-1] == "re: 3"


async def test_a_paused_run_is_copied_as_it_is(manager: SessionManager, saver: SessionSaver) -> None:
    runner = Runner(manager)
    await runner.run(chat(asking), "s", "1")

    await saver.acopy_thread("s", "copy")

    assert (await runner.resume(chat(asking), "copy", "yes")).output == "you said yes"
    assert (await runner.resume(chat(asking), "s", "no")).output == "you said no"


async def test_a_large_state_is_copied_in_several_turns(
    saver: SessionSaver, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_sessions_langgraph.upkeep._BATCH_BYTES", 2_000)
    graph = chat(checkpointer=saver)
    for turn in range(5):
        await graph.ainvoke(said(f"{turn}" + "x" * 500), on())

    await saver.acopy_thread("s", "copy")

    assert await ids(saver, "copy") == await ids(saver)
    assert (await graph.aget_state(on("copy"))).values == (await graph.aget_state(on())).values
    record = await manager.get("copy")
    assert record is not None
    assert record.revision > 3


# ---------------------------------------------------------------------------------------------------- inside a turn


async def test_upkeep_inside_a_turn_is_part_of_it(saver: SessionSaver) -> None:
    graph = chat(checkpointer=saver)
    for text in ("1", "2"):
        await graph.ainvoke(said(text), on())
    before = await ids(saver)

    async def failing() -> None:
        async with saver.turn("s"):
            await graph.ainvoke(said("3"), on())
            await saver.aprune(["s"])
            assert len(await ids(saver)) == 1
            assert len(texts((await graph.aget_state(on())).values)) == 6
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    assert await ids(saver) == before
