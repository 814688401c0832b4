"""`message_count` in the record of a session: the messages of all frameworks, whichever way they come and go."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from agents import Runner as SDKRunner
from langchain_core.messages import AnyMessage, RemoveMessage
from langgraph.channels import DeltaChannel
from langgraph.graph.message import REMOVE_ALL_MESSAGES

from agent_sessions import Runner, Session, SessionManager, SyncSessionManager, current_session, skill
from agent_sessions.errors import InvalidError, SessionConflictError
from agent_sessions_langgraph import SessionSaver
from agent_sessions_openai import OpenAISession
from tests.support import Counting, LosingReplies, alone

from .graphs import agent, calls, chat, on, one_node, said
from .openai_agents import Broken, says, scripted

on_each_store = pytest.mark.parametrize("store", ["memory", "sqlite", "redis"], indirect=True)


def user(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


async def counted(manager: SessionManager, session_id: str = "s") -> int:
    record = await manager.get(session_id, strict=True)
    assert record is not None
    return record.message_count


# ------------------------------------------------------------------------------------------------------ OpenAI Agents


@on_each_store
async def test_each_item_of_the_openai_sdk_is_one(manager: SessionManager) -> None:
    session = OpenAISession("s", manager=manager)
    await session.add_items(user("1", "2", "3"))
    assert await counted(manager) == 3
    await session.pop_item()
    assert await counted(manager) == 2
    await SDKRunner.run(scripted(says("hello")), "hi", session=session)
    assert await counted(manager) == 4
    await OpenAISession("s", manager=manager, conversation="other").add_items(user("x"))
    await session.clear_session()
    await session.clear_session()
    assert await session.pop_item() is None
    assert await counted(manager) == 1


@on_each_store
async def test_what_is_added_taken_off_and_cleared_in_a_turn_counts_once_it_is_stored(manager: SessionManager) -> None:
    session = OpenAISession("s", manager=manager)
    await session.add_items(user("1", "2"))
    async with manager.open("s"):
        await session.add_items(user("3", "4"))
        await session.pop_item()
        assert await counted(manager) == 2
    assert await counted(manager) == 3
    async with manager.open("s"):
        await session.add_items(user("5"))
        await session.clear_session()
        await session.add_items(user("6"))
    assert await counted(manager) == 1


async def test_an_item_that_only_json_can_store_is_counted_once(manager: SessionManager) -> None:
    await OpenAISession("s", manager=manager).add_items(user("half of a pair: \ud83d", "whole"))
    assert await counted(manager) == 2


@on_each_store
async def test_appends_at_once_are_all_counted(manager: SessionManager) -> None:
    sessions = [OpenAISession("s", manager=manager) for _ in range(8)]
    await asyncio.gather(*(session.add_items(user("1", "2")) for session in sessions))
    assert await counted(manager) == 16


# ---------------------------------------------------------------------------------------------------------- LangGraph


def joined(state: list[Any], writes: Any) -> list[Any]:
    return [*state, *(message for write in writes for message in write)]


class Deltas(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(joined, snapshot_frequency=4)]


@on_each_store
@pytest.mark.parametrize("durability", ["exit", "async"])
async def test_each_message_of_a_graph_is_one(manager: SessionManager, durability: Any) -> None:
    graph = chat(checkpointer=SessionSaver(manager))
    for turn in range(1, 4):
        await graph.ainvoke(said("hi"), on(), durability=durability)
        assert await counted(manager) == 2 * turn


async def test_messages_that_are_removed_or_replaced_are_counted_as_they_stand(manager: SessionManager) -> None:
    graph = chat(checkpointer=SessionSaver(manager))
    for _ in range(3):
        await graph.ainvoke(said("hi"), on())
    messages = (await graph.aget_state(on())).values["messages"]

    await graph.aupdate_state(on(), {"messages": [RemoveMessage(messages[0].id), RemoveMessage(messages[1].id)]})
    assert await counted(manager) == 4
    await graph.aupdate_state(on(), {"messages": [messages[2].model_copy(update={"content": "changed"})]})
    assert await counted(manager) == 4
    await graph.aupdate_state(on(), {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES)]})
    assert await counted(manager) == 0


async def test_going_on_from_an_older_checkpoint_counts_what_the_thread_then_has(manager: SessionManager) -> None:
    graph = chat(checkpointer=SessionSaver(manager))
    for _ in range(3):
        await graph.ainvoke(said("hi"), on())
    older = [one async for one in graph.aget_state_history(on()) if len(one.values.get("messages", ())) == 2]
    await graph.ainvoke(said("again"), older[0].config)
    assert await counted(manager) == 4


async def test_threads_of_a_session_add_up_and_are_taken_off_with_it(manager: SessionManager) -> None:
    savers = [SessionSaver(manager, thread=name) for name in ("a", "b")]
    for saver in savers:
        await chat(checkpointer=saver).ainvoke(said("hi"), on())
    await OpenAISession("s", manager=manager).add_items(user("x"))
    assert await counted(manager) == 5

    await savers[0].acopy_thread("s", "copy")
    await savers[0].acopy_thread("s", "copy")
    assert await counted(manager, "copy") == 4
    await savers[0].aprune(["s"])
    assert await counted(manager) == 5
    await savers[0].adelete_thread("s")
    await savers[0].adelete_thread("s")
    assert await counted(manager) == 1


async def test_deleting_the_latest_run_counts_what_is_left(manager: SessionManager) -> None:
    saver = SessionSaver(manager)
    graph = chat(checkpointer=saver)
    for run_id in ("r1", "r2"):
        await graph.ainvoke(said("hi"), {**on(), "metadata": {"run_id": run_id}})
    assert await counted(manager) == 4
    await saver.adelete_for_runs(["r2"])
    assert await counted(manager) == 2
    await saver.adelete_for_runs(["r1"])
    assert await counted(manager) == 0


async def test_of_a_delta_channel_its_snapshots_are_counted(manager: SessionManager) -> None:
    graph = one_node(Deltas, lambda state: said("re"), checkpointer=SessionSaver(manager))
    told = []
    for _ in range(6):
        await graph.ainvoke(said("hi"), on())
        told.append(await counted(manager))
    assert told == [0, 4, 4, 8, 8, 12]


async def test_a_graph_without_messages_counts_none(manager: SessionManager) -> None:
    class Sum(TypedDict):
        total: int

    graph = one_node(Sum, lambda state: {"total": state["total"] + 1}, checkpointer=SessionSaver(manager))
    assert await graph.ainvoke({"total": 1}, on()) == {"total": 2}
    assert await counted(manager) == 0


# ---------------------------------------------------------------------------------------------------------- the runner


@on_each_store
async def test_runs_of_both_frameworks_count_in_one_session(manager: SessionManager, runner: Runner) -> None:
    await runner.run(scripted(says("hello")), "s", "hi")
    await runner.run(chat(), "s", "hi")
    await runner.run(chat(), "s", "hi", commit="step")
    await runner.run(scripted(says("hello")), "s", "hi", commit="step")
    assert await counted(manager) == 8


async def test_what_child_runs_say_among_themselves_is_not_counted(manager: SessionManager, runner: Runner) -> None:
    @skill
    async def ask(question: str, session: Session) -> str:
        """Ask the others."""
        one = await runner.run(scripted(says("openai"), name="other"), session, question)
        two = await runner.run(chat(name="another"), session, question)
        return f"{one.output} {two.output}"

    await runner.run(agent([ask], calls(("ask", {"question": "who?"})), "done"), "s", "hi")
    assert await counted(manager) == 4  # the question, the call, its result, the answer


async def test_a_run_that_fails_counts_nothing(manager: SessionManager, runner: Runner) -> None:
    async def failing(state: Any) -> Any:
        raise Broken

    await runner.run(chat(), "s", "hi")
    for broken in (chat(failing), scripted(Broken(), name="broken")):
        with pytest.raises(Broken):
            await runner.run(broken, "s", "hi")
    assert await counted(manager) == 2


@on_each_store
async def test_a_run_whose_replies_are_lost_counts_once(store: Any) -> None:
    manager = SessionManager(LosingReplies(store, 3).store)
    for framework in (scripted(says("a")), chat()):
        await Runner(manager).run(framework, "s", "hi")
    await OpenAISession("s", manager=manager).add_items(user("x"))
    assert await counted(SessionManager(store)) == 5


async def test_a_run_that_was_overtaken_and_is_repeated_counts_once(store: Any) -> None:
    manager, other = SessionManager(store), SessionManager(store)

    async def overtake() -> None:
        await other.unlock("s", force=True)
        async with other.open("s"):
            pass

    async def overtaken(state: Any) -> Any:
        if current_session().get("seen") is None and not repeats:
            repeats.append(1)
            await asyncio.create_task(overtake(), context=alone())
        return said("re")

    repeats: list[int] = []
    with pytest.raises(SessionConflictError):
        await Runner(manager).run(chat(overtaken), "s", "hi")
    assert await counted(other) == 0
    await Runner(manager).run(chat(overtaken), "s", "hi")
    assert await counted(other) == 2


async def test_counting_asks_the_store_for_nothing_more(store: Any) -> None:
    counting = Counting(store)
    manager = SessionManager(counting.store)
    await OpenAISession("s", manager=manager).add_items(user("1"))
    async with manager.open("s"):
        pass
    counting.calls.clear()
    await OpenAISession("s", manager=manager).add_items(user("2"))
    await OpenAISession("s", manager=manager).clear_session()
    await Runner(manager).run(chat(), "s", "hi")
    assert counting.calls == {"commit": 3, "open": 2}


# ------------------------------------------------------------------------------------------------------ by hand


@on_each_store
async def test_others_count_by_a_log_or_by_hand(manager: SessionManager) -> None:
    async with manager.open("s") as session:
        log = session.namespace("own").log("items", messages=True)
        await log.append(["a", "b", "c"])
        await log.pop()
        await session.log("not messages").append(["x"])
        session.count_messages(3)
        session.count_messages(-1)
    assert await counted(manager) == 4
    await manager.append("s", "own", "items", ["d"], messages=True)
    await manager.append("s", "own", "others", ["e"])
    assert await counted(manager) == 5
    async with manager.open("s") as session:
        with pytest.raises(InvalidError):
            session.count_messages("1")  # type: ignore[arg-type]
    assert await counted(manager) == 5


async def test_a_turn_that_is_discarded_counts_nothing(manager: SessionManager) -> None:
    async def clear_and_break() -> None:
        async with manager.open("s") as session:
            await session.log("items", messages=True).clear()
            session.count_messages(7)
            raise Broken

    await manager.append("s", "default", "items", ["a", "b"], messages=True)
    with pytest.raises(Broken):
        await clear_and_break()
    assert await counted(manager) == 2


def test_the_same_without_async(tmp_path: Any) -> None:
    from agent_sessions.stores.sqlite import SQLiteStore

    manager = SessionManager(SQLiteStore(tmp_path / "s.db"))
    with SyncSessionManager(manager=manager).open("s") as session:
        log = session.log("items", messages=True)
        log.append(["a", "b"])
        log.clear()
        log.append(["c"])
        session.namespace("other").log("items", messages=True).append(["d"])
        session.count_messages(2)
    SyncSessionManager(manager=manager).append("s", "default", "items", ["e"], messages=True)
    record = SyncSessionManager(manager=manager).get("s")
    assert record is not None
    assert record.message_count == 5


@on_each_store
async def test_a_fork_an_export_and_the_summary_have_the_count(manager: SessionManager, runner: Runner) -> None:
    await runner.run(chat(), "s", "hi")
    await runner.run(scripted(says("hello")), "s", "hi")
    assert (await manager.fork("s", "fork")).message_count == 4
    document = await manager.export("s")
    await manager.delete("s")
    assert (await manager.import_(document)).message_count == 4
    await runner.run(chat(), "fork", "more")
    assert (await manager.end("fork")).message_count == 6
