"""Runs of graphs in other processes."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from agent_sessions import Runner, Settings
from agent_sessions.errors import SessionConflictError
from agent_sessions_langgraph import SessionSaver
from tests.faults.victims import manager_of


async def reply(state: MessagesState) -> dict[str, Any]:
    """Answers the last message, after others had their chance."""
    await asyncio.sleep(0.001)
    return {"messages": [AIMessage(f"re: {state['messages'][-1].text}")]}


def chat(**compiled: Any) -> Any:
    """A graph that answers."""
    return StateGraph(MessagesState).add_node("reply", reply).add_edge(START, "reply").compile(name="chat", **compiled)


def run_through_the_runner(backend: Settings, session_id: str, worker: int, runs: int) -> None:
    """So many runs of one graph, one after another."""

    async def work() -> None:
        manager = manager_of(backend)
        runner, graph = Runner(manager), chat()
        for number in range(runs):
            await runner.run(graph, session_id, f"{worker}-{number}")
        await manager.store.aclose()

    asyncio.run(work())


def run_alone(backend: Settings, session_id: str, worker: int, runs: int) -> None:
    """The same with LangGraph's own call, each conflict repeated."""

    async def work() -> None:
        manager = manager_of(backend)
        graph = chat(checkpointer=SessionSaver(manager, thread="chat"))
        config: Any = {"configurable": {"thread_id": session_id}}
        for number in range(runs):
            while True:
                try:
                    question = {"messages": [HumanMessage(f"{worker}-{number}")]}
                    await graph.ainvoke(question, config, durability="exit")
                    break
                except SessionConflictError:
                    continue
        await manager.store.aclose()

    asyncio.run(work())
