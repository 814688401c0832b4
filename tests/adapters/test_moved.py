"""Conversations that are copied to another store, or another session, go on there with their frameworks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Runner as AgentsRunner
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from agent_sessions import MemoryStore, Runner, SessionManager
from agent_sessions.migration import migrate
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions_langgraph import AgentStore, SessionSaver
from agent_sessions_openai import OpenAISession

from .graphs import agent, chat, on, said, texts
from .openai_agents import says, scripted, seen
from .openai_agents import texts as texts_of

Moved = Callable[[], Awaitable[tuple[SessionManager, str]]]


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[SessionManager]:
    store = SQLiteStore(tmp_path / "origin.db", synchronous="normal")
    yield SessionManager(store)
    await store.aclose()


@pytest.fixture(params=["redis", "imported", "forked"])
async def moved(request: pytest.FixtureRequest, origin: SessionManager) -> AsyncIterator[Moved]:
    """Bring the session `s` elsewhere: the manager and the id that it has there."""
    stores: list[Any] = []

    async def move() -> tuple[SessionManager, str]:
        if request.param == "forked":
            return origin, (await origin.fork("s", "forked")).session_id
        if request.param == "imported":
            manager = SessionManager(MemoryStore())
            return manager, (await manager.import_(await origin.export("s"))).session_id
        from agent_sessions.stores.redis import RedisStore

        stores.append(RedisStore.from_url(request.getfixturevalue("redis_url")))
        assert (await migrate(origin.store, stores[0])).is_complete
        return SessionManager(stores[0]), "s"

    yield move
    for store in stores:
        await store.aclose()


async def test_a_conversation_of_the_openai_sdk_goes_on(origin: SessionManager, moved: Moved) -> None:
    await AgentsRunner.run(scripted(says("one")), "first", session=OpenAISession("s", manager=origin))
    manager, session_id = await moved()
    answering = scripted(says("two"))

    await AgentsRunner.run(answering, "second", session=OpenAISession(session_id, manager=manager))

    assert texts_of(seen(answering)) == ["first", "one", "second"]
    session = OpenAISession(session_id, manager=manager)
    assert texts_of(await session.get_items()) == ["first", "one", "second", "two"]
    await session.pop_item()
    assert texts_of(await session.get_items()) == ["first", "one", "second"]


async def test_both_frameworks_go_on_in_one_session(origin: SessionManager, moved: Moved) -> None:
    for number in range(3):
        await Runner(origin).run(scripted(says(f"o{number}")), "s", f"hello {number}")
        await Runner(origin).run(agent([], f"l{number}"), "s", f"hello {number}")
    manager, session_id = await moved()
    openai = scripted(says("o3"))

    await Runner(manager).run(openai, session_id, "hello 3")
    run = await Runner(manager).run(agent([], "l3"), session_id, "hello 3")

    history = [text for number in range(4) for text in (f"hello {number}", f"o{number}")]
    assert texts_of(seen(openai)) == history[:-1]
    assert texts(run.raw) == [text for number in range(4) for text in (f"hello {number}", f"l{number}")]


async def test_a_thread_has_its_whole_history(origin: SessionManager, moved: Moved) -> None:
    graph = chat(checkpointer=SessionSaver(origin))
    for number in range(3):
        await graph.ainvoke(said(str(number)), on())
    before = [state.values async for state in graph.aget_state_history(on())]
    manager, session_id = await moved()
    graph = chat(checkpointer=SessionSaver(manager))

    after = [state async for state in graph.aget_state_history(on(session_id))]
    done = await graph.ainvoke(said("3"), on(session_id))

    assert [state.values for state in after] == before
    assert texts(done) == [text for number in range(4) for text in (str(number), f"re: {number}")]
    again = await graph.ainvoke(None, after[-2].config)  # from the start of the first run
    assert texts(again)[0] == "0"


def asking(manager: SessionManager) -> Any:
    """A graph whose node asks twice, so that all answers are writes to one checkpoint."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [f"{interrupt('one?')} {interrupt('two?')} {interrupt('three?')}"]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    return graph.compile(checkpointer=SessionSaver(manager))


async def test_a_thread_that_waits_for_answers_takes_them_in_their_order(origin: SessionManager, moved: Moved) -> None:
    for _ in range(20):  # so that what is written elsewhere has a smaller number in the store
        async with origin.open("s") as session:
            session.update("n", lambda n: n + 1, default=0)
    await asking(origin).ainvoke(said("go"), on())
    await asking(origin).ainvoke(Command(resume="a"), on())
    manager, session_id = await moved()
    graph = asking(manager)

    [waiting] = (await graph.aget_state(on(session_id))).interrupts
    await graph.ainvoke(Command(resume="b"), on(session_id))
    done = await asking(manager).ainvoke(Command(resume="c"), on(session_id))

    assert waiting.value == "two?"
    assert texts(done)[-1] == "a b c"


async def test_what_agents_remember_comes_along(origin: SessionManager) -> None:
    memory = AgentStore(origin)
    for number in range(30):
        await memory.aput(("users", "ann"), f"k{number}", {"n": number})
    target = SessionManager(MemoryStore())

    assert (await migrate(origin.store, target.store)).is_complete

    found = await AgentStore(target).asearch(("users",), limit=50)
    assert {item.key: item.value["n"] for item in found} == {f"k{number}": number for number in range(30)}
