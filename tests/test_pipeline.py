"""Both frameworks in one session: their agents call one another, run at once, block, fail, and fork."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from agents import function_tool

from agent_sessions import Runner, Session, SessionManager, SyncSessionManager, skill
from tests.adapters import graphs
from tests.adapters.openai_agents import (
    Broken,
    assert_every_call_is_answered,
    calls,
    says,
    scripted,
    stored,
    texts,
)
from tests.fixtures import MakeManager, elsewhere, make_manager, manager
from tests.support import alone, waiters

__all__ = ["elsewhere", "make_manager", "manager"]


class Fault(Exception):
    """What a node of a graph may raise."""


@pytest.fixture
def runner(manager: SessionManager) -> Runner:
    return Runner(manager)


async def value(manager: SessionManager, name: str, session_id: str = "s") -> Any:
    async with manager.read(session_id) as session:
        return session.get(name)


# -------------------------------------------------------------------------------------------- agents that call agents


@pytest.mark.parametrize("commit", ["turn", "step"])
async def test_eight_skills_at_once_open_their_session_and_run_agents_of_both_frameworks_in_it(
    commit: Any, runner: Runner, manager: SessionManager, elsewhere: SessionManager
) -> None:
    expert = scripted(*[says("from the agent")] * 8, name="expert")
    graph = graphs.chat(name="graph")

    @skill
    async def work(number: int, session: Session) -> str:
        async with manager.open(session.id) as opened:
            assert opened is session
            by_agent = await runner.run(expert, opened, f"question {number}")
            by_graph = await runner.run(graph, session.id, f"question {number}")
            opened.update("worked", lambda done: [*done, number], default=[])
            return f"{by_agent.output}, {by_graph.output}"

    parent = scripted(
        calls("work", *({"number": n} for n in range(8))), says("all done"), says("again"), tools=[function_tool(work)]
    )
    async with asyncio.timeout(60):
        run = await runner.run(parent, "s", "go", commit=commit)
        await runner.run(parent, "s", "more")

    items = await stored(elsewhere, "s")
    assert_every_call_is_answered(items)
    answers = [f"from the agent, re: question {n}" for n in range(8)]
    assert texts(items) == ["go", *answers, "all done", "more", "again"]
    assert sorted(await value(elsewhere, "worked")) == list(range(8))
    activations = {one.activation_id: one for one in await runner.activations("s")}
    children = [one for one in activations.values() if one.parent_activation_id == run.activation_id]
    assert sorted(one.framework for one in children) == ["langgraph"] * 8 + ["openai"] * 8
    assert {one.status for one in activations.values()} == {"COMPLETE"}
    assert [(call.name, call.status) for call in activations[run.activation_id].skills] == [("work", "COMPLETE")] * 8


async def test_a_graph_whose_tool_runs_an_agent_of_the_other_framework(runner: Runner, manager: SessionManager) -> None:
    expert = scripted(says("42"), says("43"), name="expert")

    @skill
    async def ask(question: str, session: Session) -> str:
        """Ask the expert."""
        session.update("asked", lambda n: n + 1, default=0)
        return str((await runner.run(expert, session, question)).output)

    question = ("ask", {"question": "Why?"})
    graph = graphs.agent([ask], graphs.calls(question), "It is 42", graphs.calls(question), "It is 43")
    assert (await runner.run(graph, "s", "one")).output == "It is 42"
    assert (await runner.run(graph, "s", "two")).output == "It is 43"
    kept = await graphs.stored(manager, "s", "shop")
    assert kept == ["one", "", "42", "It is 42", "two", "", "43", "It is 43"]
    assert await value(manager, "asked") == 2
    assert await stored(manager, "s") == []  # the expert was asked aside


async def test_agents_of_both_frameworks_in_turn_keep_a_conversation_each(
    runner: Runner, manager: SessionManager
) -> None:
    agent, graph = scripted(says("one"), says("two")), graphs.chat()

    async def both(prompt: str, session: Session) -> str:
        first = await runner.run(agent, session, prompt)
        return str((await runner.run(graph, session, str(first.output))).output)

    assert [(await runner.run(both, "s", prompt)).output for prompt in ("1", "2")] == ["re: one", "re: two"]
    assert texts(await stored(manager, "s")) == ["1", "one", "2", "two"]
    assert await graphs.stored(manager, "s") == ["one", "re: one", "two", "re: two"]
    async with manager.read("s") as session:
        assert session.revision == 2


# ------------------------------------------------------------------------------------------------------ who is slow


async def test_a_tool_that_blocks_the_event_loop_keeps_the_lease_and_the_next_turn_waits(
    make_manager: MakeManager,
) -> None:
    manager, other = make_manager(lease_s=0.2), make_manager(lease_s=0.2)
    found: list[Any] = []

    def rival() -> None:
        with SyncSessionManager(manager=other).open("s") as session:
            found.append((session.get("blocked"), session.namespace("openai").logs()))
            session.set("rival", 1)

    waiting = threading.Thread(target=alone().run, args=(rival,))

    @skill
    async def block(session: Session) -> str:
        waiting.start()
        await waiters(manager, "s", 1)
        time.sleep(0.4)  # noqa: ASYNC251 - twice the lease
        assert found == []
        session.set("blocked", "over")
        return "over"

    agent = scripted(calls("block", {}), says("done"), tools=[function_tool(block)])
    run = await Runner(manager).run(agent, "s", "go")
    await asyncio.to_thread(waiting.join)
    assert run.status == "COMPLETE"
    assert found == [("over", {"items": 4})]
    assert await value(manager, "rival") == 1


async def test_one_agent_and_one_graph_serve_fifty_sessions_at_once(runner: Runner, manager: SessionManager) -> None:
    graph = graphs.chat()

    @skill
    async def forward(text: str, session: Session) -> str:
        session.update("forwarded", lambda texts: [*texts, text], default=[])
        return str((await runner.run(graph, session, text)).output)

    async def answer(call: Any) -> Any:
        await asyncio.sleep(0.001)
        last = call.input[-1]
        if last.get("type") == "function_call_output":
            return says(f"heard {last['output']}")
        return calls("forward", {"text": last["content"]})

    agent = scripted(*[{"responder": answer}] * 200, tools=[function_tool(forward)])
    for turn in range(2):
        runs = await asyncio.gather(
            *(runner.run(agent, f"s{n}", f"{turn}-{n}") for n in range(50)),
            *(runner.run(graph, f"s{n}", f"graph {turn}-{n}") for n in range(50)),
        )
        assert [run.session_id for run in runs] == [f"s{n}" for n in range(50)] * 2
        assert [run.output for run in runs[:50]] == [f"heard re: {turn}-{n}" for n in range(50)]
        assert [run.output for run in runs[50:]] == [f"re: graph {turn}-{n}" for n in range(50)]
    for n in range(50):
        assert await value(manager, "forwarded", f"s{n}") == [f"0-{n}", f"1-{n}"]
        said = [[f"{turn}-{n}", f"re: {turn}-{n}", f"heard re: {turn}-{n}"] for turn in range(2)]
        assert texts(await stored(manager, f"s{n}")) == [*said[0], *said[1]]
        kept = [[f"graph {turn}-{n}", f"re: graph {turn}-{n}"] for turn in range(2)]
        assert await graphs.stored(manager, f"s{n}") == [*kept[0], *kept[1]]


# ------------------------------------------------------------------------------------------------------- who fails


@pytest.mark.parametrize("last", ["agent", "graph", "pipeline"])
async def test_one_that_fails_takes_back_what_both_frameworks_wrote(
    last: str, runner: Runner, manager: SessionManager, elsewhere: SessionManager
) -> None:
    def fail(_: Any) -> Any:
        raise Fault

    agent, graph = scripted(says("one"), says("two"), Broken(), says("three")), graphs.chat()
    broken_graph = graphs.chat(fail, name="broken")

    async def pipeline(prompt: str, session: Session) -> str:
        session.set("last", prompt)
        await runner.run(agent, session, prompt)
        await runner.run(graph, session, prompt)
        if prompt == "fails":
            if last == "pipeline":
                raise Fault
            await runner.run({"agent": agent, "graph": broken_graph}[last], session, prompt)
        return prompt

    async def everything(of: SessionManager) -> tuple[Any, ...]:
        async with of.read("s") as session:
            state = (session.revision, session.items(), session.namespaces())
        return (*state, texts(await stored(of, "s")), await graphs.stored(of, "s"))

    await runner.run(pipeline, "s", "works")
    before = await everything(manager)
    assert before[3:] == (["works", "one"], ["works", "re: works"])
    with pytest.raises((Fault, Broken)):
        await runner.run(pipeline, "s", "fails")
    assert await everything(manager) == await everything(elsewhere) == before

    statuses = [one.status for one in await runner.activations("s")]
    assert statuses.count("FAILED") == (1 if last == "pipeline" else 2)
    assert (await runner.run(graph, "s", "next")).output == "re: next"
    assert await graphs.stored(elsewhere, "s") == ["works", "re: works", "next", "re: next"]


# ------------------------------------------------------------------------------------------------------- who forks

FORKS = """
import asyncio, os, sys
from agent_sessions import Runner, SessionManager, current_session
from tests.adapters import graphs
from tests.adapters.openai_agents import says, scripted, stored, texts

runner, graph = Runner(), graphs.chat()
agent = scripted(*[says("ok")] * 100)

async def both(prompt, session):
    session.update("runs", lambda n: n + 1, default=0)
    await runner.run(agent, session, prompt)
    await runner.run(graph, session, prompt)
    return prompt

async def work(name):
    manager = SessionManager.from_env()
    await asyncio.gather(*(runner.run(both, session, name) for session in (name, "shared") * 5))
    assert len(await stored(manager, name)) == len(await graphs.stored(manager, name)) == 10
    await manager.aclose()

def serve(name):
    asyncio.run(work(name))
    for n in range(5):
        assert runner.run_sync(both, "shared", name).output == name

serve("before")  # connections, the background thread and the cache are there
children = []
for name in ("first", "second"):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            serve(name)
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(child)
serve("parent")
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]

async def check():
    manager = SessionManager.from_env()
    async with manager.read("shared") as session:
        assert session.get("runs") == session.revision == 40, (session.get("runs"), session.revision)
    assert len(await stored(manager, "shared")) == len(await graphs.stored(manager, "shared")) == 80
    said = texts(await stored(manager, "shared"))[::2]
    assert sorted(said) == sorted(["before", "first", "second", "parent"] * 10), said
    await manager.aclose()

asyncio.run(check())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_parent_and_forked_children_go_on_in_the_same_sessions(redis_url: str) -> None:
    environment = {**os.environ, "AK_SESSION__TYPE": "redis", "AK_SESSION__REDIS__URL": redis_url}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
