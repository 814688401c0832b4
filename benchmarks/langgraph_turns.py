"""A LangGraph turn: one node, two messages. The published savers beside ours."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph_checkpoint_plainredis import AsyncRedisSaver

from agent_sessions import Runner, SessionManager
from agent_sessions.stores.redis import RedisStore
from agent_sessions_langgraph import SessionSaver

from .measure import Rival, Server, compare, promise, table

MARKS = [10, 50, 200, 500]
AT = 200


def graph(saver: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("bot", lambda state: {"messages": [AIMessage("z" * 300)]})
    builder.add_edge(START, "bot")
    return builder.compile(checkpointer=saver)


def question(turn: int) -> dict[str, Any]:
    return {"messages": [HumanMessage(f"question {turn} " + "x" * 120)]}


def graph_turn(saver: Any, name: str, **options: Any) -> Callable[[int], Awaitable[None]]:
    compiled, config = graph(saver), {"configurable": {"thread_id": name}}

    async def turn(number: int) -> None:
        await compiled.ainvoke(question(number), config, **options)

    return turn


def session_turn(saver: SessionSaver, name: str) -> Callable[[int], Awaitable[None]]:
    run = graph_turn(saver, name, durability="exit")

    async def turn(number: int) -> None:
        async with saver.turn(name):
            await run(number)

    return turn


def runner_turn(runner: Runner, name: str) -> Callable[[int], Awaitable[None]]:
    compiled = graph(None)

    async def turn(number: int) -> None:
        await runner.run(compiled, name, question(number))

    return turn


async def run(url: str) -> None:
    server, store = Server(url), RedisStore.from_url(url)
    client = redis.asyncio.Redis.from_url(url)
    manager = SessionManager(store)
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncSqliteSaver.from_conn_string(str(Path(folder) / "peer.db")) as sqlite:
            rivals = [
                Rival("no checkpointer", lambda name: graph_turn(None, name), on_server=False),
                Rival("InMemorySaver", lambda name: graph_turn(InMemorySaver(), name), on_server=False),
                Rival("langgraph-checkpoint-sqlite", lambda name: graph_turn(sqlite, name), on_server=False),
                Rival("langgraph-checkpoint-plainredis", lambda name: graph_turn(AsyncRedisSaver(client), name)),
                Rival("agent-sessions, Runner", lambda name: runner_turn(Runner(manager), f"runner-{name}")),
                Rival(
                    "agent-sessions, SessionSaver.turn", lambda name: session_turn(SessionSaver(manager), f"t{name}")
                ),
                Rival("agent-sessions, SessionSaver alone", lambda name: graph_turn(SessionSaver(manager), name)),
            ]
            rows = await compare(rivals, MARKS, server)
    table("A LangGraph turn (Redis, where not said otherwise), ms", rows, MARKS)
    _, memory, on_sqlite, plainredis, *ours = rows
    for row in ours:
        times = [rival.ms[AT] / row.ms[AT] for rival in (plainredis, on_sqlite)]
        figure = f"{times[0]:.1f} and {times[1]:.1f} times"
        promise(f"{row.name}, at turn {AT}: 4 times plainredis and sqlite", figure, min(times) >= 4)
        faster = memory.ms[AT] / row.ms[AT]
        promise(f"{row.name}, at turn {AT}: faster than InMemorySaver", f"{faster:.1f} times", faster > 1)
        growth = row.sent[AT] / row.sent[MARKS[0]]
        promise(f"{row.name}: bytes sent at turn {AT} ≤ 2 times turn {MARKS[0]}", f"{growth:.2f} times", growth <= 2)
    await client.aclose()
    await store.aclose()
