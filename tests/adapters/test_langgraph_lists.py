"""Lists in checkpoints are stored by what is new in them, and read back exactly as they were put."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agent_sessions import MemoryStore, Runner, SessionManager
from agent_sessions.stores.base import Commit, Committed, Key
from agent_sessions.sweeping import MOST_SECONDS
from agent_sessions_langgraph import SessionSaver, chunks, lists
from agent_sessions_langgraph.prints import are_prints_of, prints_of
from agent_sessions_langgraph.serde import StrictSerializer

from ..support import Counting
from .graphs import chat, on, said, texts


def forget() -> None:
    """As if this were another process."""
    chunks.cache.clear()


class Writes(Counting):
    """Notes what each commit puts into collections."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.put: list[dict[str, int]] = []

    async def commit(self, key: Key, commit: Commit) -> Committed:
        entries = {k: len(v) for change in commit.collections.values() for k, v in change.entries.items() if v}
        self.put.append(entries)
        return await super().commit(key, commit)


# ---------------------------------------------------------------------------------------------------- exactly as put


def message(kind: str, place: int) -> Any:
    """Messages with everything in them that can be changed in place."""
    if kind == "human":
        blocks: Any = [{"type": "text", "text": f"look {place}"}, {"type": "image_url", "image_url": {"url": "x"}}]
        return HumanMessage(blocks, id=f"h{place}", favourite=place)
    if kind == "ai":
        usage: Any = {"input_tokens": place, "output_tokens": 1, "total_tokens": place + 1}
        call = {"name": "find", "args": {"deep": {"er": [place]}}, "id": f"c{place}"}
        return AIMessage(f"a{place}", id=f"a{place}", tool_calls=[call], usage_metadata=usage)
    if kind == "tool":
        return ToolMessage(f"t{place}", tool_call_id="c", artifact={"when": datetime(2026, 1, 1, tzinfo=UTC)})
    if kind == "odd":
        return SystemMessage("s", additional_kwargs={"tuple": (place, place), "set": {place}})
    return {"dict": {"text": "same"}, "text": "same", "number": place, "float": 0.5}.get(kind)


def edit(item: Any, how: int) -> None:
    """Change an item in place, if it can be."""
    if isinstance(item, dict):
        item["text"] += "!"
    elif isinstance(item, AIMessage) and how % 3 == 1:
        item.tool_calls[0]["args"]["deep"]["er"].append(how)
    elif isinstance(item, AIMessage) and how % 3 == 2:
        item.usage_metadata["input_tokens"] = how  # type: ignore[index]
    elif isinstance(item, HumanMessage) and how % 2 and isinstance(item.content, list):
        item.content[0]["text"] += "."  # type: ignore[index]
    elif isinstance(item, ToolMessage):
        item.artifact["when"] = how
    elif hasattr(item, "additional_kwargs"):
        item.additional_kwargs["seen"] = [how, {"by": True if how % 2 else 1}]


KINDS = st.sampled_from(["human", "ai", "tool", "odd", "dict", "text", "number", "float"])
PLACES = st.integers(0, 30)
STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(KINDS, min_size=1, max_size=4)),
    st.tuples(st.sampled_from(["edit", "edit, unsaved", "replace", "remove", "to the end", "again"]), PLACES),
    st.tuples(st.sampled_from(["reverse", "keep the last", "go on", "go on elsewhere", "go back"]), PLACES),
    st.tuples(st.just("nothing"), st.just(0)),
)


class Twins:
    """Our saver and LangGraph's own, given the same."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ours = SessionSaver(SessionManager(self.store))
        self.theirs = InMemorySaver(serde=self.ours.serde)
        self.config: Any = on(checkpoint_ns="")
        self.ids: list[str] = []
        self.items: list[Any] = []
        self.version: Any = None
        self.made = 0
        self.in_turn = False

    async def step(self, what: str, how: Any) -> None:
        items = self.items
        place = how % len(items) if items and isinstance(how, int) else 0
        if what == "append":
            items += [message(kind, self.made + at) for at, kind in enumerate(how)]
            self.made += len(how)
        elif what == "go on":
            await self.read(None)
        elif what == "go on elsewhere":
            forget()
            self.ours = SessionSaver(SessionManager(self.store), serde=self.ours.serde)
            await self.read(None)
        elif what == "go back":
            await self.read(self.ids[how % len(self.ids)] if self.ids else None)
        elif not items:
            return
        elif what.startswith("edit"):
            edit(items[place], how)
        elif what == "replace":
            items[place] = message("ai", self.made)
        elif what == "remove":
            del items[place]
        elif what == "to the end":
            items.append(items.pop(place))
        elif what == "again":
            items.append(items[place])
        elif what == "reverse":
            items.reverse()
        elif what == "keep the last":
            del items[:place]
        await self.put(is_saved=what != "edit, unsaved")

    async def read(self, checkpoint_id: str | None) -> None:
        """Go on from what is stored, as a run does: our objects, which the next steps change."""
        config = on(checkpoint_ns="", **({"checkpoint_id": checkpoint_id} if checkpoint_id else {}))
        self.in_turn = not self.in_turn
        async with self.ours.turn("s" if self.in_turn else "another"):
            ours = await self.ours.aget_tuple(config)
        theirs = self.theirs.get_tuple(config)
        if ours is None or theirs is None:
            assert ours is theirs
            return
        self.same(ours, theirs)
        self.items = ours.checkpoint["channel_values"]["items"]
        self.version = ours.checkpoint["channel_versions"]["items"]
        self.config = on(checkpoint_ns="", checkpoint_id=theirs.config["configurable"]["checkpoint_id"])

    async def put(self, *, is_saved: bool) -> None:
        if is_saved or self.version is None:
            self.version = self.ours.get_next_version(self.version, None)
        checkpoint: Any = {**empty_checkpoint(), "id": f"1f{len(self.ids):06d}-0000-6000-8000-000000000000"}
        checkpoint["channel_values"] = {"items": self.items}
        checkpoint["channel_versions"] = {"items": self.version}
        new: Any = {"items": self.version} if is_saved else {}
        for saver in (self.ours, self.theirs):
            await saver.aput(self.config, checkpoint, {}, new)
        self.items = list(self.items)
        self.ids.append(checkpoint["id"])
        self.config = on(checkpoint_ns="", checkpoint_id=checkpoint["id"])
        async with self.ours.turn("s"):  # in turns, items are shared: every one of them checks
            self.same(await self.ours.aget_tuple(self.config), self.theirs.get_tuple(self.config))

    async def check(self) -> None:
        """Every checkpoint, warm and cold."""
        for _ in range(2):
            for checkpoint_id in self.ids:
                config = on(checkpoint_ns="", checkpoint_id=checkpoint_id)
                self.same(await self.ours.aget_tuple(config), self.theirs.get_tuple(config))
            forget()
            self.ours = SessionSaver(SessionManager(self.store), serde=self.ours.serde)

    def same(self, ours: Any, theirs: Any) -> None:
        dumps = JsonPlusSerializer().dumps_typed
        ours, theirs = (one.checkpoint["channel_values"] for one in (ours, theirs))
        assert ours == theirs
        assert dumps(ours) == dumps(theirs)
        changeable = [item for item in ours.get("items", ()) if hasattr(item, "__dict__") or isinstance(item, dict)]
        assert len({id(item) for item in changeable}) == len(changeable)
        for a, b in zip(ours.get("items", ()), theirs.get("items", ()), strict=True):
            assert type(a) is type(b)
            if hasattr(a, "__pydantic_fields_set__"):
                assert (vars(a), a.__pydantic_fields_set__) == (vars(b), b.__pydantic_fields_set__)
                assert (a.__pydantic_extra__, a.__pydantic_private__) == (b.__pydantic_extra__, b.__pydantic_private__)


def played(steps: list[tuple[str, Any]]) -> None:
    async def play() -> None:
        twins = Twins()
        for what, how in steps:
            await twins.step(what, how)
        await twins.check()

    asyncio.run(play())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
@pytest.mark.parametrize("size", ["usual", "tiny"])
def test_every_checkpoint_is_read_as_it_was_put(
    size: str, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, Any]]
) -> None:
    if size == "tiny":  # so that chunks are written again all the time
        monkeypatch.setattr(lists, "MERGED", 3)
        monkeypatch.setattr(lists, "SMALL", (300, 900))
        monkeypatch.setattr(lists, "MOST_FRAGMENTS", 4)
        monkeypatch.setattr(lists, "CHUNK_BYTES", 400)
    played(steps)


async def test_an_encrypting_serializer_is_honoured() -> None:
    class Reversing:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "reversed", plaintext[::-1]

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            assert ciphername == "reversed"
            return ciphertext[::-1]

    writes = Writes(MemoryStore())
    graph = chat(checkpointer=SessionSaver(SessionManager(writes.store), serde=EncryptedSerializer(Reversing())))
    for turn in range(5):
        state = await graph.ainvoke(said(f"question {turn}"), on(), durability="exit")

    assert texts(state)[::2] == [f"question {turn}" for turn in range(5)]
    assert max(writes.put[-1].values()) < 2 * max(writes.put[1].values())


# ---------------------------------------------------------------------------------------------------- whose objects


async def test_what_a_reader_changes_reaches_no_other_reader() -> None:
    saver = SessionSaver(SessionManager(MemoryStore()))
    graph = chat(checkpointer=saver)
    await graph.ainvoke(said("1"), on())
    for _ in range(3):
        found = await saver.aget_tuple(on())
        assert found is not None
        (first, second) = found.checkpoint["channel_values"]["messages"]
        assert (first.text, second.text, second.additional_kwargs) == ("1", "re: 1", {})
        first.content = "changed"
        second.additional_kwargs["changed"] = [1]
        found.checkpoint["channel_values"]["messages"].clear()

    assert texts(await graph.ainvoke(said("2"), on())) == ["1", "re: 1", "2", "re: 2"]


@pytest.mark.parametrize("again", [1, 30])
async def test_what_is_changed_after_a_turn_reaches_no_later_turn(again: int) -> None:
    runner, graph = Runner(SessionManager(MemoryStore())), chat()
    for turn in range(again):
        run = await runner.run(graph, "s", f"{turn}")
        run = await runner.run(graph, "s", f"again {turn}")
        assert "changed" not in str(run.raw)
        for message in run.raw["messages"]:
            message.additional_kwargs["changed"] = [1]
        run.raw["messages"][0].content = "changed"
        run.raw["messages"][1].tool_calls.append({"name": "changed", "args": {}, "id": "1"})
        del run.raw["messages"][-1:]

    said_ones = [
        text for turn in range(again) for text in (f"{turn}", f"re: {turn}", f"again {turn}", f"re: again {turn}")
    ]
    assert texts((await runner.run(graph, "s", "last")).raw)[:-2] == said_ones


async def test_a_message_that_a_node_changes_in_place_is_stored_as_it_is_then() -> None:
    def editing(state: Any) -> Any:
        state["messages"][0].content += "!"
        return {"messages": [AIMessage("ok")]}

    store = MemoryStore()
    graph = chat(editing, checkpointer=SessionSaver(SessionManager(store)))
    theirs = chat(editing, checkpointer=InMemorySaver())
    for _ in range(3):
        await graph.ainvoke(
            said("1"), on(), durability="sync"
        )  # else a node may be faster than the checkpoint before it
        await theirs.ainvoke(said("1"), on(), durability="sync")

    elsewhere = chat(editing, checkpointer=SessionSaver(SessionManager(store)))
    ours = [texts(one.values) async for one in elsewhere.aget_state_history(on())]
    assert ours == [texts(one.values) async for one in theirs.aget_state_history(on())]
    assert ours[0][0] == "1!!!"


@pytest.mark.parametrize("length", [0, 1, 15, 16, 300])
def test_prints_of_many_messages_are_compared_at_once(length: int) -> None:
    def messages() -> list[Any]:
        return [HumanMessage(f"{place}", additional_kwargs={"n": [place]}) for place in range(length)]

    serde, kept = StrictSerializer(), prints_of(messages(), StrictSerializer())
    assert are_prints_of(kept, messages(), serde)
    assert not are_prints_of(kept, [*messages(), HumanMessage("more")], serde)
    edits: list[Any] = [1.0, True, (1,), "1"] if length else []
    for edit in edits:
        edited = messages()
        edited[-1].additional_kwargs["n"] = edit
        assert not are_prints_of(kept, edited, serde)
    if length:
        assert not are_prints_of(kept, [AIMessage("0"), *messages()[1:]], serde)


# ---------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize("durability", ["exit", "async", "sync"])
async def test_a_turn_writes_what_is_new(durability: Any) -> None:
    writes = Writes(MemoryStore())
    graph = chat(checkpointer=SessionSaver(SessionManager(writes.store)))
    written = []
    for turn in range(100):
        writes.put.clear()
        await graph.ainvoke(said(f"question {turn:03} " + "x" * 100), on(), durability=durability)
        written.append(sum(sum(entries.values()) for entries in writes.put))

    first, last = written[20:52], written[-32:]  # in each, the same number of turns that write some of the list again
    assert sum(last) < 1.2 * sum(first)
    assert sorted(last)[16] < 1.2 * sorted(first)[16]
    found = await SessionSaver(SessionManager(writes.store)).aget_tuple(on())
    assert found is not None
    assert len(texts(found.checkpoint["channel_values"])) == 200


async def test_a_channel_that_did_not_change_is_not_written() -> None:
    writes = Writes(MemoryStore())
    saver = SessionSaver(SessionManager(writes.store))
    checkpoint: Any = {**empty_checkpoint(), "id": "1f000001"}
    checkpoint["channel_values"] = {"big": ["x" * 10_000], "blob": {"y": "y" * 10_000}, "small": ["s"]}
    checkpoint["channel_versions"] = {"big": "1", "blob": "1", "small": "1"}
    config = await saver.aput(on(checkpoint_ns=""), checkpoint, {}, checkpoint["channel_versions"])
    writes.put.clear()

    second: Any = {**checkpoint, "id": "1f000002", "channel_versions": {"big": "1", "blob": "1", "small": "2"}}
    await saver.aput(config, second, {}, {"small": "2"})

    assert sum(writes.put[0].values()) < 1_000
    found = await saver.aget_tuple(on())
    assert found is not None
    assert found.checkpoint["channel_values"] == checkpoint["channel_values"]


async def test_a_list_is_read_in_a_bounded_number_of_entries() -> None:
    store = MemoryStore()
    manager = SessionManager(store)
    graph = chat(checkpointer=SessionSaver(manager))
    for turn in range(150):
        async with manager.open("s"):
            await graph.ainvoke(said(f"question {turn}"), on(), durability="exit")
    forget()

    counting = Counting(store)
    found = await SessionSaver(SessionManager(counting.store)).aget_tuple(on())

    assert found is not None
    assert len(texts(found.checkpoint["channel_values"])) == 300
    assert dict(counting.calls) == {"open": 3}  # the session, the checkpoint, the chunks
    assert sum(len(asked["wanted"].entries) for asked in counting.opens) < 40


async def test_who_has_read_a_list_reads_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    graph = chat(checkpointer=SessionSaver(SessionManager(store)))
    for turn in range(20):
        await graph.ainvoke(said(f"question {turn}"), on(), durability="exit")
    forget()
    counting = Counting(store)
    elsewhere = SessionSaver(SessionManager(counting.store))
    await elsewhere.aget_tuple(on())
    mine = chunks.cache
    monkeypatch.setattr(chunks, "cache", chunks.ChunkCache())
    monkeypatch.setattr(lists, "cache", chunks.cache)
    await graph.ainvoke(said("one more"), on(), durability="exit")
    monkeypatch.setattr(chunks, "cache", mine)
    monkeypatch.setattr(lists, "cache", mine)

    counting.opens.clear()
    found = await elsewhere.aget_tuple(on())

    assert found is not None
    assert len(texts(found.checkpoint["channel_values"])) == 42
    read = [key for asked in counting.opens for _, key in asked["wanted"].entries]
    assert len([key for key in read if key.startswith("m/")]) == 1


def test_a_chunk_that_is_not_used_leaves_the_memory_of_a_process_that_rests() -> None:
    now = 0.0
    cache = chunks.ChunkCache(clock=lambda: now)
    place, serde = chunks.ListName(Key("default", "session", "s"), "", "messages"), StrictSerializer()
    for name in (b"used", b"left"):
        cache.put((0, place.session, name), chunks.Chunk(name, ("msgpack", b"\x90")), serde)
    cache.note_latest(place, ())
    now = 200.0
    assert cache.get((0, place.session, b"used")) is not None
    cache.sweep()  # which a timer does every 30 s
    assert len(cache) == 3
    now = MOST_SECONDS
    cache.sweep()
    assert len(cache) == 1
    now = 200 + MOST_SECONDS
    cache.sweep()
    assert len(cache) == 0


async def test_a_list_trimmed_at_its_beginning_is_not_written_again() -> None:
    writes = Writes(MemoryStore())
    saver = SessionSaver(SessionManager(writes.store))
    config, items, version = on(checkpoint_ns=""), [HumanMessage("x" * 500, id=str(one)) for one in range(50)], "0"
    for turn in range(30):
        version = saver.get_next_version(version, None)
        checkpoint: Any = {**empty_checkpoint(), "id": f"1f{turn:06}"}
        checkpoint |= {"channel_values": {"items": items}, "channel_versions": {"items": version}}
        writes.put.clear()
        config = await saver.aput(config, checkpoint, {}, {"items": version})
        items = [*items[2:], *(HumanMessage("y" * 500, id=f"{turn}-{one}") for one in range(2))]

    assert sum(writes.put[0].values()) < 5_000
    found = await saver.aget_tuple(on())
    assert found is not None
    assert len(found.checkpoint["channel_values"]["items"]) == 50
