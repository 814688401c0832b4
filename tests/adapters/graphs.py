"""Graphs with scripted models, and a look at what is stored of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agent_sessions import SessionManager
from agent_sessions_langgraph import SessionSaver


class Scripted(GenericFakeChatModel):
    """Answers what the script says, streamed word by word; tool calls too."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Iterator[Any]:
        message = self._generate(messages).generations[0].message
        for piece in _pieces(message):
            chunk = ChatGenerationChunk(message=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(str(piece.text), chunk=chunk)
            yield chunk


def _pieces(message: Any) -> list[AIMessageChunk]:
    if message.tool_calls:
        chunks = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=place)
            for place, call in enumerate(message.tool_calls)
        ]
        return [AIMessageChunk(content="", tool_call_chunks=chunks)]
    words = str(message.text).split(" ")
    return [AIMessageChunk(content=word if place == 0 else f" {word}") for place, word in enumerate(words)]


def calls(*named: tuple[str, dict[str, Any]]) -> AIMessage:
    """A model's answer that calls tools."""
    return AIMessage(
        "",
        tool_calls=[{"name": name, "args": args, "id": f"{name}-{place}"} for place, (name, args) in enumerate(named)],
    )


def agent(tools: list[Callable[..., Any]], *script: AIMessage | str, name: str = "shop", **compiled: Any) -> Any:
    """A graph of a model and its tools, in turn."""
    model = Scripted(messages=iter(script))

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", ask)
    graph.add_node("tools", ToolNode([tool(one) for one in tools]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(name=name, **compiled)


async def reply(state: MessagesState) -> dict[str, Any]:
    """Answers, after others had their chance."""
    await asyncio.sleep(0.005)
    return {"messages": [AIMessage(f"re: {state['messages'][-1].text}")]}


def reply_sync(state: MessagesState) -> dict[str, Any]:
    """`reply`, in a sync node."""
    return {"messages": [AIMessage(f"re: {state['messages'][-1].text}")]}


def chat(node: Any = reply, *, name: str = "chat", **compiled: Any) -> Any:
    """A graph of one node that answers."""
    return one_node(MessagesState, node, name=name, **compiled)


def one_node(schema: Any, node: Any, *, name: str = "graph", **compiled: Any) -> Any:
    """A graph of one node."""
    graph = StateGraph(schema)
    graph.add_node("reply", node)
    graph.add_edge(START, "reply")
    graph.add_edge("reply", END)
    return graph.compile(name=name, **compiled)


def on(thread_id: Any = "s", **configurable: Any) -> Any:
    """The config of a thread."""
    return {"configurable": {"thread_id": thread_id, **configurable}}


def said(text: str) -> dict[str, list[BaseMessage]]:
    """A message as a graph's input."""
    return {"messages": [HumanMessage(text)]}


def texts(state: Any) -> list[str]:
    """What the messages of a state say."""
    return [str(message.text) for message in state.get("messages", [])]


async def stored(manager: SessionManager, session_id: str, thread: str = "chat") -> list[str]:
    """The messages that a graph run by the runner has left in a session."""
    saver = SessionSaver(manager, thread=thread)
    found = await saver.aget_tuple(on(session_id))
    return [] if found is None else texts(found.checkpoint["channel_values"])
