"""LangGraph's graphs under our runner: LangGraph's own code, with scripted models."""

from __future__ import annotations

import asyncio
import operator
import time
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from agent_sessions import MemoryStore, Runner, Session, SessionManager, SyncSession, current_session, skill
from agent_sessions.errors import InvalidError, RunPausedError
from agent_sessions_langgraph import SessionSaver
from agent_sessions_langgraph.adapter import BREAKPOINT

from ..support import Counting
from .graphs import agent, calls, chat, on, one_node, reply_sync, said, stored, texts

# ---------------------------------------------------------------------------------------------------- conversations


async def test_the_second_run_knows_what_the_first_one_said(runner: Runner, manager: SessionManager) -> None:
    graph = chat()

    first = await runner.run(graph, "s", "1")
    second = await runner.run(graph, "s", "2")

    assert (first.output, second.output, second.status) == ("re: 1", "re: 2", "COMPLETE")
    assert texts(second.raw) == ["1", "re: 1", "2", "re: 2"]
    assert await stored(manager, "s") == texts(second.raw)


async def test_concurrent_runs_on_one_session_come_one_after_another(runner: Runner) -> None:
    graph = chat()

    await asyncio.gather(*(runner.run(graph, "s", str(one)) for one in range(3)))

    kept = (await runner.run(graph, "s", "last")).raw["messages"][:-2]
    assert [message.type for message in kept] == ["human", "ai"] * 3
    assert [f"re: {message.text}" for message in kept[::2]] == [message.text for message in kept[1::2]]


async def test_one_graph_serves_a_hundred_sessions_at_once(runner: Runner) -> None:
    saver = InMemorySaver()
    graph = chat(checkpointer=saver)
    before = dict(vars(graph))

    for turn in range(2):
        runs = await asyncio.gather(*(runner.run(graph, f"s{one}", f"{turn}-{one}") for one in range(100)))
        assert [run.output for run in runs] == [f"re: {turn}-{one}" for one in range(100)]

    assert [texts(run.raw)[0] for run in runs] == [f"0-{one}" for one in range(100)]
    assert all(len(texts(run.raw)) == 4 for run in runs)
    assert vars(graph) == before
    assert graph.checkpointer is saver
    assert saver.storage == {}


async def test_one_graph_serves_a_thousand_sessions_at_once() -> None:
    runner, graph = Runner(SessionManager(MemoryStore())), chat()

    runs = await asyncio.gather(*(runner.run(graph, f"s{one}", str(one)) for one in range(1_000)))

    assert [texts(run.raw) for run in runs] == [[str(one), f"re: {one}"] for one in range(1_000)]


async def test_graphs_of_one_session_have_threads_of_their_own(runner: Runner, manager: SessionManager) -> None:
    await runner.run(chat(name="a/b"), "s", "1")
    await runner.run(chat(name="a"), "s", "2", conversation="b")
    await runner.run(chat(name="a"), "s", "3")

    assert texts((await runner.run(chat(name="a/b"), "s", "4")).raw)[0] == "1"
    assert texts((await runner.run(chat(name="a"), "s", "5", conversation="b")).raw)[0] == "2"
    assert texts((await runner.run(chat(name="a"), "s", "6")).raw)[0] == "3"


async def test_long_names_stay_apart(runner: Runner) -> None:
    names = ["x" * 150 + one for one in "ab"]
    for name in names:
        await runner.run(chat(name=name), "s", name[-1])

    assert [texts((await runner.run(chat(name=name), "s", "?")).raw)[0] for name in names] == ["a", "b"]


async def test_two_different_graphs_of_one_name_are_told_apart(runner: Runner) -> None:
    await runner.run(chat(), "s", "1")
    other = StateGraph(MessagesState)
    other.add_node("other", reply_sync)
    other.add_edge(START, "other")

    with pytest.raises(InvalidError, match="name"):
        await runner.run(other.compile(name="chat"), "s", "2")


async def test_the_graphs_own_saver_reads_what_the_runner_stored(runner: Runner, manager: SessionManager) -> None:
    graph = chat(checkpointer=SessionSaver(manager, thread="chat"))

    await runner.run(graph, "s", "1")
    await graph.ainvoke(said("2"), on())
    await runner.run(graph, "s", "3")

    assert texts((await graph.aget_state(on())).values)[::2] == ["1", "2", "3"]


# ---------------------------------------------------------------------------------------------------- in and out


class Sum(TypedDict):
    numbers: Annotated[list[int], operator.add]


async def test_a_graph_without_messages_takes_and_gives_its_state(runner: Runner) -> None:
    graph = one_node(Sum, lambda state: {"numbers": [sum(state["numbers"])]})

    await runner.run(graph, "s", {"numbers": [1, 2]})
    run = await runner.run(graph, "s", {"numbers": [4]})

    assert run.output == run.raw == {"numbers": [1, 2, 3, 4, 10]}


async def test_a_functions_graph_takes_text(runner: Runner) -> None:
    @entrypoint()
    async def shout(text: str, *, previous: str | None = None) -> str:
        return f"{previous or ''}{text.upper()}"

    await runner.run(shout, "s", "a")

    assert (await runner.run(shout, "s", "b")).output == "AB"


async def test_input_may_be_the_graphs_own(runner: Runner) -> None:
    graph = chat()

    await runner.run(graph, "s", {"messages": [{"role": "user", "content": "1"}]})
    run = await runner.run(graph, "s", Command(update=said("2"), goto="reply"))

    assert texts(run.raw) == ["1", "re: 1", "2", "re: 2"]


async def test_options_reach_langgraph(runner: Runner) -> None:
    seen: dict[str, Any] = {}

    @dataclass
    class Context:
        tone: str

    async def looking(state: MessagesState, config: RunnableConfig, runtime: Runtime[Context]) -> dict[str, Any]:
        seen.update(config["configurable"], tags=config["tags"], who=config["metadata"]["who"])
        seen["tone"] = runtime.context.tone
        return {"messages": [AIMessage("ok")]}

    graph = one_node(MessagesState, looking)
    config = {"configurable": {"model": "m", "thread_id": "theirs"}, "tags": ["t"], "metadata": {"who": "w"}}

    await runner.run(graph, "s", "1", context=Context("dry"), config=config)

    assert (seen["model"], seen["thread_id"], seen["who"], seen["tone"]) == ("m", "s", "w", "dry")
    assert seen["tags"] == ["t"]
    assert config["configurable"] == {"model": "m", "thread_id": "theirs"}


class Item(BaseModel):
    name: str


class Items(TypedDict):
    items: Annotated[list[Item], operator.add]


async def test_types_in_a_graphs_state_need_no_permission(runner: Runner) -> None:
    graph = one_node(Items, lambda _: {"items": [Item(name="tea")]})

    await runner.run(graph, "s", {"items": []})

    assert (await runner.run(graph, "s", {"items": []})).output["items"] == [Item(name="tea")] * 2


async def test_what_is_not_compiled_is_refused(runner: Runner) -> None:
    with pytest.raises(InvalidError, match="compile"):
        await runner.run(StateGraph(MessagesState), "s", "1")


# ---------------------------------------------------------------------------------------------------- turns


async def test_a_graph_that_fails_stores_nothing(runner: Runner, manager: SessionManager) -> None:
    async def failing(state: MessagesState) -> dict[str, Any]:
        current_session().set("seen", True)
        if len(state["messages"]) > 2:
            raise ZeroDivisionError
        return {"messages": [AIMessage("ok")]}

    graph = chat(failing)
    await runner.run(graph, "s", "1")
    with pytest.raises(ZeroDivisionError):
        await runner.run(graph, "s", "2", durability="sync")

    assert await stored(manager, "s") == ["1", "ok"]


async def test_a_step_survives_the_failure_of_the_next(runner: Runner, manager: SessionManager) -> None:
    async def failing(state: MessagesState) -> dict[str, Any]:
        raise ZeroDivisionError

    graph = StateGraph(MessagesState)
    graph.add_node("first", reply_sync)
    graph.add_node("second", failing)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")

    with pytest.raises(ZeroDivisionError):
        await runner.run(graph.compile(name="chat"), "s", "1", commit="step")

    assert await stored(manager, "s") == ["1", "re: 1"]


@pytest.mark.parametrize("durability", ["exit", "async", "sync"])
async def test_a_warm_turn_is_one_open_and_one_commit(store: Any, durability: Any) -> None:
    counting = Counting(store)
    runner = Runner(SessionManager(counting.store))
    graphs = [chat(), chat(chat(), name="outer")]
    for graph in graphs:
        await runner.run(graph, "s", "1", durability=durability)
        counting.calls.clear()
        await runner.run(graph, "s", "2", durability=durability)
        assert dict(counting.calls) == {"open": 1, "commit": 1}

    counting.calls.clear()
    await Runner(SessionManager(counting.store)).run(graphs[0], "s", "3")
    assert dict(counting.calls) == {"open": 2, "commit": 1}


async def test_runs_of_one_thread_in_one_turn_follow_on_one_another(runner: Runner) -> None:
    graph = chat()

    async def both(_: str, session: Session) -> Any:
        await asyncio.gather(*(runner.run(graph, session, str(one)) for one in range(2)))
        return (await runner.run(graph, session, "2")).raw

    assert len(texts((await runner.run(both, "s", "")).output)) == 6


# ---------------------------------------------------------------------------------------------------- skills


@skill
async def add_to_cart(item: str, session: Session) -> str:
    """Add an item to the cart."""
    session.update("cart", lambda cart: [*cart, item], default=[])
    return f"added {item} for {current_session().id}"


@skill
def note(text: str, session: SyncSession, session_id: str) -> str:
    """Write something down."""
    session.namespace("notes").log("all").append([text])
    return f"noted in {session_id}"


async def test_skills_are_tools_that_know_their_session(runner: Runner, manager: SessionManager) -> None:
    both = calls(("add_to_cart", {"item": "tea"}), ("note", {"text": "hot"}), ("add_to_cart", {"item": "cake"}))
    graph = agent([add_to_cart, note], both, "All done")

    run = await runner.run(graph, "s", "please")

    assert run.output == "All done"
    assert texts(run.raw)[2:5] == ["added tea for s", "noted in s", "added cake for s"]
    async with manager.open("s") as session:
        assert sorted(session.get("cart")) == ["cake", "tea"]
        assert await session.namespace("notes").log("all").read() == ["hot"]
    assert set(tool(add_to_cart).args) == {"item"}
    assert set(tool(note).args) == {"text"}
    activation = await runner.get_activation(run.activation_id)
    assert activation is not None
    assert sorted(one.name for one in activation.skills) == ["add_to_cart", "add_to_cart", "note"]


async def test_a_skill_runs_another_graph_as_a_child(runner: Runner, manager: SessionManager) -> None:
    inner = chat()

    @skill
    async def consult(question: str, session: Session) -> str:
        """Ask somebody else."""
        return str((await runner.run(inner, session, question)).output)

    graph = agent([consult], calls(("consult", {"question": "why"})), "because")
    run = await runner.run(graph, "s", "hm")

    assert texts(run.raw) == ["hm", "", "re: why", "because"]
    assert await stored(manager, "s") == []
    assert texts((await runner.run(inner, "s", "2")).raw) == ["2", "re: 2"]


# ---------------------------------------------------------------------------------------------------- pausing


@skill
def approve(what: str, session: Session) -> str:
    """Ask the person."""
    decided = interrupt({"approve": what})
    session.set("decided", decided)
    return f"{what}: {decided}"


async def test_a_paused_run_is_resumed_in_another_process(runner: Runner, store: Any) -> None:
    def graph() -> Any:
        return agent([approve], calls(("approve", {"what": "pay"})), "paid")

    paused = await runner.run(graph(), "s", "buy")
    assert (paused.status, paused.output) == ("PAUSED", None)
    assert [one.payload for one in paused.pending] == [{"approve": "pay"}]
    with pytest.raises(RunPausedError):
        await runner.run(graph(), "s", "hello?")

    elsewhere = SessionManager(store)
    run = await Runner(elsewhere).resume(agent([approve], "paid"), "s", True)

    assert (run.status, run.output) == ("COMPLETE", "paid")
    assert texts(run.raw) == ["buy", "", "pay: True", "paid"]
    async with elsewhere.open("s") as session:
        assert session.get("decided") is True


@pytest.mark.parametrize("by", ["id", "command", "value"])
async def test_decisions_are_as_langgraphs_users_know_them(runner: Runner, by: str) -> None:
    paused = await runner.run(agent([approve], calls(("approve", {"what": "pay"}))), "s", "buy")

    answer: Any = {"edited": 1}
    decisions = {"id": {paused.pending[0].id: answer}, "command": Command(resume=answer), "value": answer}[by]
    run = await runner.resume(agent([approve], "paid"), "s", decisions)

    assert texts(run.raw)[2] == "pay: {'edited': 1}"


class Asked(TypedDict):
    answers: Annotated[list[Any], operator.add]


def asking_twice() -> Any:
    graph: Any = StateGraph(Asked)
    graph.add_node("ask", lambda what: {"answers": [[what, interrupt(what)]]})
    graph.add_conditional_edges(START, lambda _: [Send("ask", "a"), Send("ask", "b")], ["ask"])
    graph.add_edge("ask", END)
    return graph.compile(name="asking")


async def test_several_interrupts_are_decided_one_by_one_or_all_alike(runner: Runner) -> None:
    paused = await runner.run(asking_twice(), "s", {"answers": []})
    assert sorted(one.payload for one in paused.pending) == ["a", "b"]
    with pytest.raises(InvalidError):
        await runner.resume(asking_twice(), "s", "yes")

    first = next(one for one in paused.pending if one.payload == "a")
    half = await runner.resume(asking_twice(), "s", {first.id: "yes"})
    assert [one.payload for one in half.pending] == ["b"]
    run = await runner.resume(asking_twice(), "s", False)

    assert run.output == {"answers": [["a", "yes"], ["b", False]]}

    await runner.run(asking_twice(), "t", {"answers": []})
    assert (await runner.resume(asking_twice(), "t", True)).output == {"answers": [["a", True], ["b", True]]}


async def test_an_abandoned_run_leaves_no_open_calls(runner: Runner) -> None:
    await runner.run(agent([approve], calls(("approve", {"what": "pay"}))), "s", "buy")

    run = await runner.run(agent([approve], "fine"), "s", "no, hello", abandon=True)

    assert [message.type for message in run.raw["messages"]] == ["human", "ai", "tool", "human", "ai"]
    assert run.raw["messages"][2].status == "error"
    assert run.output == "fine"
    assert (await runner.run(agent([approve], "good"), "s", "again")).output == "good"


async def test_an_interrupt_inside_a_subgraph_pauses_the_run(runner: Runner) -> None:
    def graph() -> Any:
        def asking(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage(f"said {interrupt('?')}")]}

        return chat(chat(asking, name="inner"), name="outer")

    paused = await runner.run(graph(), "s", "1")
    assert [one.payload for one in paused.pending] == ["?"]

    assert (await runner.resume(graph(), "s", "yes")).output == "said yes"


async def test_a_breakpoint_pauses_until_told_to_go_on(runner: Runner) -> None:
    graph = chat(interrupt_before=["reply"])

    paused = await runner.run(graph, "s", "1")
    assert [one.id for one in paused.pending] == [BREAKPOINT]
    with pytest.raises(InvalidError):
        await runner.resume(graph, "s", False)

    assert (await runner.resume(graph, "s", True)).output == "re: 1"


# ---------------------------------------------------------------------------------------------------- streaming


async def test_a_stream_tells_texts_and_tools(runner: Runner, manager: SessionManager) -> None:
    graph = agent([add_to_cart], calls(("add_to_cart", {"item": "tea"})), "There you are")

    async with runner.stream(graph, "s", "tea please") as events:
        told = [event async for event in events]

    assert [(one.type, one.text or one.tool) for one in told] == [
        ("tool_start", "add_to_cart"),
        ("tool_end", "add_to_cart"),
        ("text", "There"),
        ("text", " you"),
        ("text", " are"),
        ("done", None),
    ]
    assert told[-1].run.output == "There you are"
    assert await stored(manager, "s", "shop") == texts(told[-1].run.raw)


async def test_a_stream_that_pauses_says_so(runner: Runner) -> None:
    async with runner.stream(agent([approve], calls(("approve", {"what": "pay"}))), "s", "buy") as events:
        told = [event async for event in events]

    assert [one.type for one in told] == ["tool_start", "paused"]
    assert told[-1].run.pending[0].payload == {"approve": "pay"}


async def test_subgraphs_are_streamed_if_asked_for(runner: Runner) -> None:
    inner = agent([add_to_cart], calls(("add_to_cart", {"item": "tea"})), "There you are", name="inner")

    async with runner.stream(chat(inner), "s", "hi", subgraphs=True) as events:
        told = [event async for event in events]

    assert [one.text for one in told if one.type == "text"][:3] == ["There", " you", " are"]
    assert [one.type for one in told][:2] == ["tool_start", "tool_end"]
    assert told[-1].run.output == "There you are"


async def test_a_stream_tells_what_further_modes_say(runner: Runner) -> None:
    async def working(state: MessagesState) -> dict[str, Any]:
        get_stream_writer()({"progress": 50})
        return {"messages": [AIMessage("ok")]}

    graph = chat(working)
    async with runner.stream(graph, "s", "1", stream_mode=["custom", "updates"]) as events:
        told = [event async for event in events]
    assert {one.type for one in told} == {"other", "text", "done"}
    others = [one.raw for one in told if one.type == "other"]
    assert others[0] == ("custom", {"progress": 50})
    assert others[1][0] == "updates"
    assert texts(others[1][1]["reply"]) == ["ok"]

    async with runner.stream(graph, "s", "2", stream_mode="custom", subgraphs=True) as events:
        others = [event.raw async for event in events if event.type == "other"]
    assert others == [((), "custom", {"progress": 50})]


class Conversation(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages] = []


@pytest.mark.parametrize("subgraphs", [False, True])
async def test_langgraphs_typed_parts_tell_the_same(runner: Runner, subgraphs: bool) -> None:
    inner = agent([add_to_cart], calls(("add_to_cart", {"item": "tea"})), "There you are", name="inner")
    graph = one_node(Conversation, inner)
    options: dict[str, Any] = {"version": "v2", "subgraphs": subgraphs, "stream_mode": "updates"}
    async with runner.stream(graph, "s", "hi", **options) as events:
        told = [event async for event in events]

    expected = ["tool_start", "tool_end", "text", "other", "done"] if subgraphs else ["text", "other", "done"]
    assert list(dict.fromkeys(one.type for one in told if one.type != "other" or not one.raw["ns"])) == expected
    assert {one.raw["type"] for one in told if one.type == "other"} == {"updates"}
    run = told[-1].run
    assert (run.output, type(run.raw)) == ("There you are", Conversation)
    assert (await runner.run(chat(), "s", "hi", version="v2")).output == "re: hi"


async def test_a_pause_is_told_in_typed_parts_too(runner: Runner) -> None:
    graph = agent([approve], calls(("approve", {"what": "pay"})), "paid")
    async with runner.stream(graph, "s", "buy", version="v2") as events:
        told = [event async for event in events]

    assert [one.type for one in told] == ["tool_start", "paused"]
    assert told[-1].run.pending[0].payload == {"approve": "pay"}
    assert (await runner.resume(graph, "s", True, version="v2")).output == "paid"


async def test_leaving_a_stream_cancels_the_run(runner: Runner, manager: SessionManager) -> None:
    cancelled = asyncio.Event()

    async def slow(state: MessagesState) -> dict[str, Any]:
        current_session().set("seen", True)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return {}

    graph = StateGraph(MessagesState)
    graph.add_node("first", reply_sync)
    graph.add_node("second", slow)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    started = time.monotonic()
    async with runner.stream(graph.compile(name="chat"), "s", "1") as events:
        async for event in events:
            assert event.text == "re: 1"
            break

    assert cancelled.is_set()
    assert time.monotonic() - started < 5
    assert await manager.get("s") is None
    assert await stored(manager, "s") == []


# ---------------------------------------------------------------------------------------------------- without async


def test_a_graph_runs_without_async() -> None:
    runner = Runner(SessionManager(MemoryStore()))
    graph = agent([note], calls(("note", {"text": "x"})), "noted", "bye")

    assert runner.run_sync(graph, "s", "1").output == "noted"
    with runner.stream_sync(graph, "s", "2") as events:
        assert [event.text for event in events if event.type == "text"] == ["bye"]


async def test_time_travel_goes_through_the_runner(runner: Runner, manager: SessionManager) -> None:
    graph = chat(checkpointer=SessionSaver(manager, thread="chat"))
    for text in ("1", "2"):
        await runner.run(graph, "s", text)
    history = [one async for one in graph.aget_state_history(on())]
    first = next(one for one in history if texts(one.values) == ["1", "re: 1"])

    run = await runner.run(graph, "s", {"messages": [HumanMessage("fork")]}, config=first.config)

    assert texts(run.raw) == ["1", "re: 1", "fork", "re: fork"]
    assert await stored(manager, "s") == texts(run.raw)
