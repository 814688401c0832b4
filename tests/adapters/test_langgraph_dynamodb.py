"""Long chats on DynamoDB, where an item has 400 KB."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import HumanMessage

from agent_sessions import Runner, SessionManager
from agent_sessions_langgraph import SessionSaver, chunks
from tests.dynamodb import DynamoDB

from .graphs import chat, on, texts


async def test_a_chat_of_two_thousand_messages_costs_the_same_a_turn_as_a_short_one(dynamodb: DynamoDB) -> None:
    meter = dynamodb.meter()
    store = dynamodb.store(make_session=meter.make_session)
    runner, graph = Runner(SessionManager(store)), chat()

    async def talked(messages: int) -> int:
        """The write units of a run that is given so many messages of 2 KB."""
        meter.reset()
        given = [HumanMessage("x" * 2048) for _ in range(messages)]
        await runner.run(graph, "s", {"messages": given})
        return int(meter.write_units)

    await talked(1)
    first = [await talked(1) for _ in range(32)]
    await talked(1_902)
    last = [await talked(1) for _ in range(32)]

    assert sum(last) < 1.2 * sum(first)
    assert sorted(last)[16] <= sorted(first)[16] + 2
    chunks.cache.clear()
    elsewhere = dynamodb.store()
    found = await SessionSaver(SessionManager(elsewhere), thread="chat").aget_tuple(on())
    assert found is not None
    values: Any = found.checkpoint["channel_values"]
    assert len(texts(values)) == 2 * 65 + 1_903
    for one in (store, elsewhere):
        await one.aclose()
