"""A pipeline of two agents, of two frameworks, that share one session.

A triage agent of the OpenAI Agents SDK fills the cart by a skill; a LangGraph graph reads it by another. Each framework
keeps its own conversation in the session, and the cart belongs to both. The two runs are one turn: if the graph
fails, the cart is not filled either.

The models are scripted, so that this runs without a key. Put real ones in their places.

Prints:
    You: two umbrellas, please
    Shop: The bill: 2 × umbrella
    You: and a hat
    Shop: The bill: 2 × umbrella, 1 × hat
    Triage was shown 5 items in its second run, the first was: two umbrellas, please
    The cart: {'umbrella': 2, 'hat': 1}
    newest run first:
      checkout, langgraph, skills: read_cart
      triage, openai, skills: fill_cart
      shop, callable, skills: none
      checkout, langgraph, skills: read_cart
      triage, openai, skills: fill_cart
      shop, callable, skills: none
"""

import asyncio
import json
from typing import Any
from uuid import uuid4

from agents import Agent, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call
from langgraph.graph import START, MessagesState, StateGraph

from agent_sessions import Runner, Session, SessionManager, skill

SESSION_ID = f"user-123-thread-{uuid4()}"  # a new thread at each start

runner = Runner()  # configured by AK_SESSION__*, in memory without
set_tracing_disabled(True)


@skill
async def fill_cart(item: str, count: int, session: Session) -> str:
    """Put something into the cart."""
    session.update("cart", lambda cart: {**cart, item: cart.get(item, 0) + count}, default={})
    return "done"


@skill
def read_cart(session: Session) -> str:
    """What is in the cart."""
    return ", ".join(f"{count} × {item}" for item, count in session.get("cart").items())


def calls(item: str, count: int) -> list[Any]:
    """What a model answers that decides to call the skill."""
    return [function_call("fill_cart", json.dumps({"item": item, "count": count}), call_id=f"call-{item}")]


model = ScriptedModel(
    [
        calls("umbrella", 2),
        [assistant_message("The bill, please.")],
        calls("hat", 1),
        [assistant_message("The bill, please.")],
    ]
)
triage = Agent(name="triage", instructions="Fill the cart.", model=model, tools=[function_tool(fill_cart)])


def make_out_bill(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("assistant", f"The bill: {read_cart()}")]}


graph = StateGraph(MessagesState)
graph.add_node("make_out_bill", make_out_bill)
graph.add_edge(START, "make_out_bill")
checkout = graph.compile(name="checkout")


async def shop(prompt: str, session: Session) -> str:
    """An agent that runs two others in its own session: one turn."""
    order = await runner.run(triage, session, prompt)
    return (await runner.run(checkout, session, order.output)).output


async def main() -> None:
    for prompt in ("two umbrellas, please", "and a hat"):
        print("You:", prompt)
        print("Shop:", (await runner.run(shop, SESSION_ID, prompt)).output)

    shown = model.calls[2].input
    print(f"Triage was shown {len(shown)} items in its second run, the first was: {shown[0]['content']}")
    async with SessionManager.from_env() as manager, manager.read(SESSION_ID) as session:
        print("The cart:", session.get("cart"))
    print("newest run first:")
    for run in await runner.activations(SESSION_ID):
        skills = ", ".join(call.name for call in run.skills) or "none"
        print(f"  {run.agent_name}, {run.framework}, skills: {skills}")


asyncio.run(main())
