"""The agents of the demo: code for the real SDKs, on scripted models that answer from what they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from agents import Agent, function_tool, set_tracing_disabled
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from agents.testing.model import ModelCall
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agent_sessions import Runner, Session, current_session, skill

Tell = Callable[[str, str], None]
"""Called with what happens: who, and what."""

WISHES = {"Two evening tickets, please.": ("evening ticket", 2), "And a programme.": ("programme", 1)}
PRICES = {"evening ticket": Decimal("24.00"), "programme": Decimal("5.00")}


class Shop:
    """An agent that runs two others: triage, of the OpenAI Agents SDK, and checkout, a LangGraph graph."""

    def __init__(self, runner: Runner, tell: Tell) -> None:
        set_tracing_disabled(True)  # the SDK would send traces away
        self._runner = runner
        self._triage = _triage(tell)
        self._checkout = _checkout(tell)

    async def __call__(self, prompt: str, session: Session) -> str:
        """Run two agents as one: all of it is one turn, because both are given the session of this run."""
        order = await self._runner.run(self._triage, session, prompt)
        bill = await self._runner.run(self._checkout, session, order.output)
        return str(bill.output)


# --------------------------------------------------------------------------------------------------- OpenAI Agents SDK


def _triage(tell: Tell) -> Agent:
    @skill
    async def fill_cart(item: str, count: int, session: Session) -> str:
        """Put something into the cart."""
        session.update("cart", lambda cart: {**cart, item: cart.get(item, 0) + count}, default={})
        tell("skill", f"fill_cart({item!r}, {count}) writes the cart of session {session.id}")
        return f"{count} × {item}"

    def answer(call: ModelCall) -> Any:
        shown = list(call.input)
        if shown[-1].get("type") == "function_call_output":
            return [assistant_message(f"{shown[-1]['output']}. Please make out the bill.")]
        wishes = [item["content"] for item in shown if item.get("role") == "user"]
        tell("triage", _shown("OpenAI Agents SDK", "items", shown, wishes[0]))
        item, count = WISHES[wishes[-1]]
        return [function_call("fill_cart", json.dumps({"item": item, "count": count}), call_id=f"call-{len(shown)}")]

    model = ScriptedModel([ModelStep.respond(answer)] * 2)
    return Agent(name="triage", model=model, tools=[function_tool(fill_cart)])


# --------------------------------------------------------------------------------------------------- LangGraph


class _Clerk(BaseChatModel):
    tell: Any

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        if isinstance(messages[-1], ToolMessage):
            answer = AIMessage(f"That makes {messages[-1].text}.")
        else:
            self.tell("checkout", _shown("LangGraph", "messages", messages, messages[0].text))
            answer = AIMessage("", tool_calls=[{"name": "read_cart", "args": {}, "id": f"call-{len(messages)}"}])
        return ChatResult(generations=[ChatGeneration(message=answer)])


def _checkout(tell: Tell) -> Any:
    @skill
    def read_cart() -> str:
        """What the cart costs."""
        session = current_session()  # the other way to know one's session
        cart: dict[str, int] = session.get("cart")
        tell("skill", f"read_cart() finds {cart} in session {session.id}")
        return f"{sum(PRICES[item] * count for item, count in cart.items())} €"

    tools = [tool(read_cart)]
    clerk = _Clerk(tell=tell).bind_tools(tools)

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [clerk.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("clerk", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "clerk")
    graph.add_conditional_edges("clerk", tools_condition)
    graph.add_edge("tools", "clerk")
    return graph.compile(name="checkout")


def _shown(framework: str, what: str, shown: Sequence[Any], first: str) -> str:
    return f"{framework}; its model is shown {len(shown)} {what if len(shown) > 1 else what[:-1]}, first {first!r}"
