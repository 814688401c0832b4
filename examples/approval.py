"""A run that waits for a person, and goes on in another process.

The program asks for an order that a person must approve. When sessions are kept in Redis it then starts itself as a
second process, which approves it. In memory a second runner stands for that.

    AK_SESSION__TYPE=redis AK_SESSION__REDIS__URL=redis://localhost:6379 python examples/approval.py

Prints:
    PAUSED: order wants {'item': 'umbrella', 'price': 12}
    A new input meanwhile: RUN_PAUSED
    COMPLETE: The umbrella is ordered.
    The orders: ['umbrella']
"""

import asyncio
import os
import subprocess
import sys
from uuid import uuid4

from agents import Agent, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from agent_sessions import Runner, Session, SessionError, SessionManager, skill

set_tracing_disabled(True)


@skill
async def order(item: str, price: int, session: Session) -> str:
    """Order an item."""
    session.update("orders", lambda orders: [*orders, item], default=[])
    return f"The {item} is ordered."


def buyer(*answers) -> Agent:
    """The same agent in every process; here it is told what its model will say."""
    tools = [function_tool(order, needs_approval=True)]
    return Agent(name="buyer", model=ScriptedModel(list(answers)), tools=tools)


async def ask(session_id: str) -> None:
    wish = [function_call("order", '{"item": "umbrella", "price": 12}', call_id="call-1")]
    run = await Runner().run(buyer(wish), session_id, "An umbrella, please.")
    (pending,) = run.pending
    print(f"{run.status}: {pending.tool} wants {pending.payload}", flush=True)
    try:
        await Runner().run(buyer(), session_id, "Hello?")
    except SessionError as error:
        print("A new input meanwhile:", error.code, flush=True)


async def approve(session_id: str) -> None:
    agent = buyer([assistant_message("The umbrella is ordered.")])
    run = await Runner().resume(agent, session_id, True)
    print(f"{run.status}: {run.output}")
    async with SessionManager.from_env() as manager, manager.read(session_id) as session:
        print("The orders:", session.get("orders"))


if sys.argv[1:]:
    asyncio.run(approve(sys.argv[1]))
else:
    session_id = f"user-123-thread-{uuid4()}"
    asyncio.run(ask(session_id))
    if os.environ.get("AK_SESSION__TYPE", "in_memory") == "in_memory":
        asyncio.run(approve(session_id))
    else:
        subprocess.run([sys.executable, __file__, session_id], check=True)
