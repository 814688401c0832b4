"""Wrap an agent once. From then on every run has a session, and is stored whole or not at all.

The agent here is a plain function, so that this runs without a key. An agent of the OpenAI Agents SDK or a LangGraph
graph is passed to the runner in the same way: see pipeline.py.

Prints:
    You: two evening tickets, please
    Assistant: I have put 2 × evening ticket into your cart.
    You: and a programme
    Assistant: I have put 1 × programme into your cart. So far you have asked me 2 things.
    You: and a thousand umbrellas
    The agent failed: the warehouse is on fire
    The cart after all that: {'evening ticket': 2, 'programme': 1}
"""

import asyncio
from uuid import uuid4

from agent_sessions import Runner, Session, SessionManager, skill

SESSION_ID = f"user-123-thread-{uuid4()}"  # a new thread at each start


@skill
async def add_to_cart(item: str, count: int, session: Session) -> str:
    """Put something into the cart. A model sees `item` and `count` only; the session is filled in."""
    session.update("cart", lambda cart: {**cart, item: cart.get(item, 0) + count}, default={})
    if count > 100:
        raise RuntimeError("the warehouse is on fire")
    return f"{count} × {item}"


async def assistant(prompt: str, session: Session) -> str:
    """Stands for an agent: remembers what it was asked, and calls a skill."""
    log = session.namespace("assistant").log("messages")
    await log.append([{"role": "user", "content": prompt}])
    wishes = {"evening": ("evening ticket", 2), "programme": ("programme", 1), "umbrellas": ("umbrella", 1000)}
    item, count = next(wish for word, wish in wishes.items() if word in prompt)
    answer = f"I have put {await add_to_cart(item, count)} into your cart."
    asked = await log.count()
    return answer if asked == 1 else f"{answer} So far you have asked me {asked} things."


async def main() -> None:
    runner = Runner()
    for prompt in ("two evening tickets, please", "and a programme", "and a thousand umbrellas"):
        print("You:", prompt)
        try:
            run = await runner.run(assistant, SESSION_ID, prompt)
        except RuntimeError as error:
            print("The agent failed:", error)  # its message and the umbrellas are not stored
        else:
            print("Assistant:", run.output)
    async with SessionManager.from_env() as manager, manager.read(SESSION_ID) as session:
        print("The cart after all that:", session.get("cart"))


asyncio.run(main())
