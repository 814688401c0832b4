"""How the calls of a checkpointer that stands alone get to the store: few round trips, and none lost."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import CommitTooLargeError, SerializationError
from agent_sessions.stores.base import Commit, Committed, Key
from agent_sessions_langgraph import SessionSaver

from ..support import Counting
from .graphs import chat, on, said, texts


class Slow(Counting):
    """Holds commits up while it is shut."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.arrived = asyncio.Event()

    async def commit(self, key: Key, commit: Commit) -> Committed:
        self.arrived.set()
        await self.is_open.wait()
        return await super().commit(key, commit)


@pytest.fixture
async def slow(store: Any) -> Slow:
    return Slow(store)


@pytest.fixture
def saver(slow: Slow) -> SessionSaver:
    return SessionSaver(SessionManager(slow.store))


async def put(saver: SessionSaver, thread_id: str = "s") -> Any:
    checkpoint: Any = {**empty_checkpoint(), "id": "1f000001"}
    return await saver.aput(on(thread_id, checkpoint_ns=""), checkpoint, {}, {})


async def written(saver: SessionSaver, thread_id: str = "s") -> list[Any]:
    found = await saver.aget_tuple(on(thread_id))
    assert found is not None
    return [value for _, _, value in found.pending_writes or []]


async def test_a_call_is_one_round_trip_where_the_process_knows_the_session(saver: SessionSaver, slow: Slow) -> None:
    config = await put(saver)
    slow.calls.clear()
    await saver.aput_writes(config, [("a", 1)], "task-1")
    assert dict(slow.calls) == {"commit": 1}

    elsewhere = SessionSaver(SessionManager(slow.inner))
    await elsewhere.aput_writes(config, [("a", 2)], "task-2")
    slow.calls.clear()
    await saver.aput_writes(config, [("a", 3)], "task-3")  # on what it has seen; then on what is there

    assert dict(slow.calls) == {"open": 1, "commit": 2}
    assert await written(saver) == [1, 2, 3]


async def test_a_session_that_was_deleted_is_made_again(saver: SessionSaver, slow: Slow) -> None:
    config = await put(saver)
    await SessionManager(slow.inner).delete("s")

    await saver.aput_writes(config, [("a", 1)], "task-1")
    await put(saver)

    assert await written(saver) == [1]


async def test_a_process_that_has_seen_nothing_for_long_writes_all_the_same(saver: SessionSaver, slow: Slow) -> None:
    config = await put(saver)
    elsewhere = SessionSaver(SessionManager(slow.inner))
    for one in range(70):  # more than the store remembers
        await elsewhere.aput_writes(config, [("a", one)], f"task-{one:02}")

    await saver.aput_writes(config, [("a", "late")], "task-99")

    assert await written(saver) == [*range(70), "late"]


async def test_what_comes_while_a_write_is_under_way_is_stored_together(saver: SessionSaver, slow: Slow) -> None:
    config = await put(saver)
    slow.calls.clear()

    await asyncio.gather(*(saver.aput_writes(config, [("a", one)], f"task-{one:02}") for one in range(50)))

    assert await written(saver) == list(range(50))
    assert slow.calls["commit"] <= 5


async def test_parallel_tasks_of_a_graph_share_commits(slow: Slow) -> None:
    class Wide(TypedDict):
        items: Annotated[list[int], operator.add]

    async def work(item: int) -> dict[str, list[int]]:
        return {"items": [item]}

    graph: Any = StateGraph(Wide)
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda _: [Send("work", one) for one in range(100)], ["work"])
    graph.add_edge("work", END)
    state = await graph.compile(checkpointer=SessionSaver(SessionManager(slow.store))).ainvoke({"items": []}, on())

    assert state["items"] == list(range(100))
    assert slow.calls["commit"] < 20


async def test_a_cancelled_call_takes_no_other_with_it(saver: SessionSaver, slow: Slow) -> None:
    config = await put(saver)
    slow.is_open.clear()
    slow.arrived.clear()
    tasks = [asyncio.create_task(saver.aput_writes(config, [("a", one)], f"task-{one}")) for one in range(4)]
    await slow.arrived.wait()

    for task in (tasks[0], tasks[2]):  # one is at the store, one waits
        task.cancel()
    await asyncio.sleep(0)
    slow.is_open.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert [isinstance(one, asyncio.CancelledError) for one in ended] == [True, False, True, False]
    assert {1, 3} <= set(await written(saver)) <= {0, 1, 3}


async def test_one_that_can_not_be_stored_leaves_the_others(saver: SessionSaver) -> None:
    config = await put(saver)

    class Unwritable:
        pass

    calls = [
        saver.aput_writes(config, [("a", 1)], "task-1"),
        saver.aput_writes(config, [("b", Unwritable())], "task-2"),
        saver.aput_writes(on(checkpoint_ns="", checkpoint_id="1f000001"), [("\ud800", 2)], "task-3"),
        saver.aput_writes(config, [("a", 4)], "task-4"),
    ]
    ended = await asyncio.gather(*calls, return_exceptions=True)

    assert ended[0] is ended[3] is None
    assert isinstance(ended[1], TypeError)
    assert isinstance(ended[2], SerializationError)
    assert await written(saver) == [1, 4]


async def test_what_is_too_much_for_one_commit_is_stored_in_several(saver: SessionSaver, slow: Slow) -> None:
    config = await put(saver)
    large = b"x" * (12 * 2**20)

    ended = await asyncio.gather(
        *(saver.aput_writes(config, [("a", large)], f"task-{one}") for one in range(4)),
        saver.aput_writes(config, [("a", large), ("b", large), ("c", large)], "task-9"),
        return_exceptions=True,
    )

    assert [type(one) for one in ended] == [type(None)] * 4 + [CommitTooLargeError]
    assert len(await written(saver)) == 4


async def test_two_stores_of_one_process_are_never_mixed_up() -> None:
    savers = [SessionSaver(SessionManager(Slow(MemoryStore()).store)) for _ in range(2)]

    await asyncio.gather(
        *(chat(checkpointer=saver).ainvoke(said(str(place)), on()) for place, saver in enumerate(savers))
    )

    for place, saver in enumerate(savers):
        found = await saver.aget_tuple(on())
        assert found is not None
        assert texts(found.checkpoint["channel_values"]) == [str(place), f"re: {place}"]
