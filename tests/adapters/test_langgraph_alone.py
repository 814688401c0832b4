"""Graphs with `SessionSaver` under LangGraph's own `invoke`: runs that race, travel in time, pause and nest."""

from __future__ import annotations

import asyncio
import operator
import random
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt

from agent_sessions import SessionManager, SyncSessionManager
from agent_sessions.errors import SessionConflictError
from agent_sessions_langgraph import SessionSaver

from .graphs import chat, on, one_node, reply_sync, said, texts

DURABILITIES = ["sync", "async", "exit"]


@pytest.fixture
def saver(manager: SessionManager) -> SessionSaver:
    return SessionSaver(manager)


# ---------------------------------------------------------------------------------------------------- racing runs


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("before", [0, 1])
async def test_of_racing_runs_the_turns_that_succeed_are_kept(
    saver: SessionSaver, durability: Any, before: int
) -> None:
    graph = chat(checkpointer=saver)
    for _ in range(before):
        await graph.ainvoke(said("0"), on(), durability=durability)

    racing = [graph.ainvoke(said(str(one)), on(), durability=durability) for one in range(1, 5)]
    ended = await asyncio.gather(*racing, return_exceptions=True)

    kept = texts((await graph.aget_state(on())).values)
    won = [texts(one) for one in ended if isinstance(one, dict)]
    assert all(isinstance(one, dict | SessionConflictError) for one in ended)
    assert len(won) >= 1
    assert all(kept[: len(one)] == one for one in won)
    if durability == "exit":  # else a run that is told on its way leaves its first steps, as any that fails
        assert len(kept) == 2 * (before + len(won))


async def test_racing_updates_of_the_state_lose_nothing_silently(saver: SessionSaver) -> None:
    graph = chat(checkpointer=saver)
    await graph.ainvoke(said("0"), on())

    updates = [graph.aupdate_state(on(), said(f"u{one}"), as_node="reply") for one in range(4)]
    ended = await asyncio.gather(*updates, return_exceptions=True)

    kept = texts((await graph.aget_state(on())).values)
    assert all(isinstance(one, dict | SessionConflictError) for one in ended)
    assert len(kept) == 2 + sum(isinstance(one, dict) for one in ended)


async def test_a_turn_makes_runs_wait(saver: SessionSaver) -> None:
    graph = chat(checkpointer=saver)

    async def one(place: int) -> None:
        async with saver.turn("s"):
            await graph.ainvoke(said(str(place)), on())

    await asyncio.gather(*(one(place) for place in range(3)))

    assert len(texts((await graph.aget_state(on())).values)) == 6


async def test_runs_of_one_thread_that_race_inside_a_turn_are_told(saver: SessionSaver) -> None:
    graph = chat(checkpointer=saver)
    async with saver.turn("s"):
        racing = [graph.ainvoke(said(str(one)), on(), durability="exit") for one in range(2)]
        ended = await asyncio.gather(*racing, return_exceptions=True)

    assert sorted(type(one).__name__ for one in ended) == ["SessionConflictError", "dict"]
    assert len(texts((await graph.aget_state(on())).values)) == 2


async def test_a_turn_that_raises_stores_nothing_of_its_runs(saver: SessionSaver, manager: SessionManager) -> None:
    graph = chat(checkpointer=saver)

    async def failing() -> None:
        async with saver.turn("s"):
            await graph.ainvoke(said("1"), on())
            assert len(texts((await graph.aget_state(on())).values)) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    assert (await graph.aget_state(on())).values == {}
    assert await manager.get("s") is None


async def test_a_run_whose_thread_is_deleted_meanwhile_is_told(saver: SessionSaver) -> None:
    async def deleting(state: MessagesState) -> dict[str, Any]:
        await saver.adelete_thread("s")
        return {"messages": [AIMessage("?")]}

    await chat(checkpointer=saver).ainvoke(said("0"), on())
    with pytest.raises(SessionConflictError):
        await chat(deleting, checkpointer=saver).ainvoke(said("1"), on(), durability="sync")


# ---------------------------------------------------------------------------------------------------- time travel


async def test_time_travel_is_no_conflict(saver: SessionSaver) -> None:
    graph = chat(checkpointer=saver)
    for text in ("1", "2"):
        await graph.ainvoke(said(text), on())
    history = [one async for one in graph.aget_state_history(on())]
    after_one = next(one for one in history if len(texts(one.values)) == 2)

    forked = await graph.ainvoke(said("fork"), after_one.config)
    assert texts(forked) == ["1", "re: 1", "fork", "re: fork"]

    replayed = [one async for one in graph.aget_state_history(on()) if one.next == ("reply",)][-1]
    assert texts(await graph.ainvoke(None, replayed.config)) == ["1", "re: 1"]

    updated = await graph.aupdate_state(after_one.config, said("edit"), as_node="reply")
    assert texts((await graph.aget_state(updated)).values) == ["1", "re: 1", "edit"]
    assert texts((await graph.aget_state(on())).values) == ["1", "re: 1", "edit"]

    await graph.aupdate_state(after_one.config, None, as_node="__copy__")
    assert texts(await graph.ainvoke(said("3"), on())) == ["1", "re: 1", "3", "re: 3"]


async def test_naming_the_latest_checkpoint_is_as_good_as_naming_none(saver: SessionSaver) -> None:
    await chat(checkpointer=saver).ainvoke(said("0"), on())
    all_are_running = asyncio.Barrier(3)

    async def waiting(state: MessagesState) -> dict[str, Any]:
        await all_are_running.wait()
        return {"messages": [AIMessage("ok")]}

    graph = chat(waiting, checkpointer=saver)
    latest = (await graph.aget_state(on())).config
    racing = [graph.ainvoke(said(str(one)), latest, durability="exit") for one in range(3)]
    ended = await asyncio.gather(*racing, return_exceptions=True)

    assert sorted(type(one).__name__ for one in ended) == ["SessionConflictError", "SessionConflictError", "dict"]
    assert len(texts((await graph.aget_state(on())).values)) == 4


async def test_metadata_has_no_marks_of_ours(saver: SessionSaver) -> None:
    graph = chat(checkpointer=saver)
    await graph.ainvoke(said("1"), on(tenant="acme"))
    oldest = [one async for one in graph.aget_state_history(on())][-1]
    await graph.ainvoke(said("2"), oldest.config)

    for one in [one async for one in saver.alist(on())]:
        assert {name for name in one.metadata if name.startswith("_")} == set()
    assert (await saver.aget_tuple(oldest.config)).metadata["tenant"] == "acme"  # type: ignore[union-attr, typeddict-item]


# ---------------------------------------------------------------------------------------------------- interrupts


async def asking(state: MessagesState) -> dict[str, Any]:
    answer = interrupt({"really": state["messages"][-1].text})
    return {"messages": [AIMessage(f"you said {answer}")]}


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_an_interrupt_is_answered_in_another_process(saver: SessionSaver, store: Any, durability: Any) -> None:
    paused = await chat(asking, checkpointer=saver).ainvoke(said("1"), on(), durability=durability)
    assert paused["__interrupt__"][0].value == {"really": "1"}

    elsewhere = chat(asking, checkpointer=SessionSaver(SessionManager(store)))
    ended = await elsewhere.ainvoke(Command(resume="yes"), on(), durability=durability)

    assert texts(ended) == ["1", "you said yes"]
    assert (await elsewhere.aget_state(on())).next == ()


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_of_two_answers_to_one_interrupt_one_counts(saver: SessionSaver, durability: Any) -> None:
    both_are_answering = asyncio.Barrier(2)

    async def answering(state: MessagesState) -> dict[str, Any]:
        answer = interrupt("?")
        await both_are_answering.wait()
        return {"messages": [AIMessage(f"you said {answer}")]}

    graph = chat(answering, checkpointer=saver)
    await graph.ainvoke(said("1"), on())

    answers = [graph.ainvoke(Command(resume=one), on(), durability=durability) for one in ("yes", "no")]
    ended = await asyncio.gather(*answers, return_exceptions=True)

    won = [one for one in ended if not isinstance(one, SessionConflictError)]
    assert len(won) == 1
    assert len(texts((await graph.aget_state(on())).values)) == 2


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("kept", [None, True])
async def test_an_interrupt_in_a_subgraph_is_answered(
    saver: SessionSaver, store: Any, durability: Any, kept: Any
) -> None:
    def parent(over: SessionSaver) -> Any:
        return chat(chat(asking, checkpointer=kept), checkpointer=over)

    graph = parent(saver)
    await graph.ainvoke(said("1"), on(), durability=durability)
    state = await graph.aget_state(on(), subgraphs=True)
    assert state.tasks[0].state.next == ("reply",)

    elsewhere = parent(SessionSaver(SessionManager(store)))
    ended = await elsewhere.ainvoke(Command(resume="yes"), on(), durability=durability)
    assert texts(ended) == ["1", "you said yes"]

    again = await elsewhere.ainvoke(said("2"), on(), durability=durability)
    assert again["__interrupt__"]
    assert texts(await graph.ainvoke(Command(resume="no"), on(), durability=durability))[-1] == "you said no"


# ---------------------------------------------------------------------------------------------------- wide and deep


class Wide(TypedDict):
    items: Annotated[list[int], operator.add]


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_what_parallel_tasks_wrote_is_not_done_again_after_a_failure(
    saver: SessionSaver, durability: Any
) -> None:
    done: list[int] = []
    broken = True

    async def work(item: int) -> dict[str, list[int]]:
        if broken and item == 3:
            await asyncio.sleep(0.02)
            raise ZeroDivisionError
        done.append(item)
        return {"items": [item]}

    graph: Any = StateGraph(Wide)
    graph.add_node("start", lambda _: {})
    graph.add_node("work", work)
    graph.add_edge(START, "start")
    graph.add_conditional_edges("start", lambda _: [Send("work", one) for one in range(6)], ["work"])
    graph.add_edge("work", END)
    compiled = graph.compile(checkpointer=saver)
    with pytest.raises(ZeroDivisionError):
        await compiled.ainvoke({"items": []}, on(), durability=durability)
    broken = False

    state = await compiled.ainvoke(None, on(), durability=durability)

    assert state["items"] == list(range(6))
    assert sorted(done) == list(range(6))


def extended(held: list[Any], new: Any) -> list[Any]:
    return [*held, *(item for one in new for item in one)]


class Deltas(TypedDict):
    items: Annotated[list[Any], DeltaChannel(extended, snapshot_frequency=3)]


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.filterwarnings("ignore")
async def test_delta_channels_are_rebuilt_as_in_memory(saver: SessionSaver, durability: Any) -> None:
    async def count(state: Deltas) -> dict[str, list[Any]]:
        return {"items": [len(state["items"])]}

    results = []
    for over in (saver, InMemorySaver()):
        graph = one_node(Deltas, count, checkpointer=over)
        runs = [await graph.ainvoke({"items": [f"{one}"]}, on(), durability=durability) for one in range(6)]
        history = [one async for one in graph.aget_state_history(on())]
        forked = await graph.ainvoke({"items": ["fork"]}, history[3].config, durability=durability)
        results.append((runs, [one.values for one in history], forked, (await graph.aget_state(on())).values))

    assert results[0] == results[1]
    assert results[0][0][-1]["items"][-2:] == ["5", 11]


async def test_a_subgraph_is_seen_in_history(saver: SessionSaver) -> None:
    theirs = InMemorySaver()
    histories = []
    for over in (saver, theirs):
        random.seed(1)
        graph = chat(chat(reply_sync), checkpointer=over)
        for text in ("1", "2"):
            await graph.ainvoke(said(text), on())
        history = [one async for one in graph.aget_state_history(on())]
        inner = [task.state for one in history for task in one.tasks if task.state]
        states = [await graph.aget_state(one) for one in inner]
        histories.append(([texts(one.values) for one in history], [texts(one.values) for one in states]))

    assert histories[0] == histories[1]
    assert histories[0][1] == [["1", "re: 1", "2", "re: 2"], ["1", "re: 1"]]


# ---------------------------------------------------------------------------------------------------- sync graphs


async def test_sync_runs_work_alone_and_inside_a_turn(saver: SessionSaver, manager: SessionManager) -> None:
    graph = chat(reply_sync, checkpointer=saver)

    def alone() -> Any:
        graph.invoke(said("1"), on())
        return graph.invoke(said("2"), on())

    def inside() -> Any:
        with SyncSessionManager(manager=manager).open("s") as session:
            session.set("seen", True)
            graph.invoke(said("3"), on())
            return graph.invoke(said("4"), on())

    def failing() -> None:
        with saver.turn_sync("s"):
            graph.invoke(said("5"), on())
            raise ZeroDivisionError

    assert len(texts(await asyncio.to_thread(alone))) == 4
    before = await manager.get("s")
    assert len(texts(await asyncio.to_thread(inside))) == 8
    after = await manager.get("s")
    assert before is not None
    assert after is not None
    assert after.revision == before.revision + 1
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(failing)
    assert len(texts((await graph.aget_state(on())).values)) == 8


async def test_racing_sync_runs_lose_nothing_silently(saver: SessionSaver) -> None:
    graph = chat(reply_sync, checkpointer=saver)

    racing = [asyncio.to_thread(graph.invoke, said(str(one)), on()) for one in range(3)]
    ended = await asyncio.gather(*racing, return_exceptions=True)

    kept = texts((await graph.aget_state(on())).values)
    won = [texts(one) for one in ended if isinstance(one, dict)]
    assert all(isinstance(one, dict | SessionConflictError) for one in ended)
    assert len(won) >= 1
    assert all(kept[: len(one)] == one for one in won)


def test_a_sync_program_needs_no_event_loop() -> None:
    from agent_sessions import MemoryStore

    manager = SessionManager(MemoryStore())
    graph = chat(reply_sync, checkpointer=SessionSaver(manager))

    graph.invoke(said("1"), on())

    assert texts(graph.invoke({"messages": [HumanMessage("2")]}, on())) == ["1", "re: 1", "2", "re: 2"]
    assert len(list(graph.get_state_history(on()))) == 6
