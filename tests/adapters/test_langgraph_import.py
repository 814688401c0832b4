"""Threads of LangGraph's own checkpointers become sessions, exactly, and go on there."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command

from agent_sessions import MemoryStore, Runner, SessionManager
from agent_sessions.stores.redis import RedisStore
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions_langgraph import SessionSaver
from agent_sessions_langgraph.importing import (
    Problem,
    Progress,
    Source,
    SourceError,
    import_threads,
    open_source,
)
from agent_sessions_langgraph.importing import threads as importing_threads

from .graphs import chat, on, one_node, reply_sync, said
from .langgraph_sources import ORDER, Order, Origin, World, asking, places, sqlite, tuples

LOSES_DELTAS = "redis"
"""langgraph-checkpoint-redis itself forgets writes of delta channels."""


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def saver(manager: SessionManager) -> SessionSaver:
    return SessionSaver(manager, allowed_types=[Order])


class Imported:
    """What an import has come to."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.problems: list[Problem] = []

    def __call__(self, progress: Progress) -> None:
        self.problems += progress.problems

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Imported, same, replaced, refused."""
        found = self.progress.checkpoints
        assert found.seen == found.imported + found.same + found.replaced + found.refused
        return found.imported, found.same, found.replaced, found.refused


async def bring(kind: str, uri: str, saver: SessionSaver, **options: Any) -> Imported:
    source = await asyncio.to_thread(open_source, kind, uri, allowed=[ORDER])
    try:
        return await copy(source, saver, **options)
    finally:
        source.close()


async def copy(source: Source, saver: SessionSaver, **options: Any) -> Imported:
    imported = Imported()
    imported.progress = await import_threads(source, saver, report=imported, **options)
    return imported


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file of langgraph-checkpoint-sqlite, with a thread of two turns and one that waits."""
    path = str(tmp_path / "threads.db")
    with sqlite(path) as theirs:
        graph = chat(reply_sync, checkpointer=theirs)
        graph.invoke(said("1"), on("chat"))
        graph.invoke(said("2"), on("chat"))
        chat(asking, checkpointer=theirs).invoke(said("hello"), on("waiting"))
    return path


# ---------------------------------------------------------------------------------------------------- exactly


@pytest.fixture
async def durable(request: pytest.FixtureRequest, origin: Origin, tmp_path: Path) -> AsyncIterator[Any]:
    """A store on another medium than the origin's."""
    if origin.kind in ("redis", "plainredis"):
        store: Any = SQLiteStore(tmp_path / "sessions.db")
    else:
        store = RedisStore.from_url(request.getfixturevalue("redis_url"))
    yield store
    await store.aclose()


async def test_threads_of_every_kind_come_over_and_go_on(origin: Origin, durable: Any) -> None:
    deltas = origin.kind != LOSES_DELTAS
    saver = SessionSaver(SessionManager(durable), allowed_types=[Order])

    def at_the_source() -> tuple[Any, Any]:
        with origin.open() as theirs:
            world = World(theirs, deltas=deltas)
            world.begin()
            return {thread_id: tuples(theirs, thread_id) for thread_id in world.graphs}, world.states()

    threads, states = await asyncio.to_thread(at_the_source)
    imported = await bring(origin.kind, origin.uri, saver)

    assert imported.problems == []
    assert imported.counts == (sum(map(len, threads.values())), 0, 0, 0)
    world = World(saver, deltas=deltas)
    for thread_id, theirs in threads.items():
        ours = await asyncio.to_thread(tuples, saver, thread_id)
        assert {place: comparable(one) for place, one in ours.items()} == {
            place: comparable(one) for place, one in theirs.items()
        }
    assert await asyncio.to_thread(world.states) == states

    again = await bring(origin.kind, origin.uri, saver)
    assert again.problems == []
    assert again.counts == (0, imported.counts[0], 0, 0)

    def theirs_goes_on() -> Any:
        with origin.open() as theirs:
            return World(theirs, deltas=deltas).go_on()

    assert await asyncio.to_thread(world.go_on) == await asyncio.to_thread(theirs_goes_on)


def comparable(one: Any) -> Any:
    """A checkpoint as it is to come over: without what only some of the sources add to it."""
    checkpoint = {name: value for name, value in one.checkpoint.items() if name not in ("type", "pending_sends")}
    writes = sorted(one.pending_writes or (), key=lambda write: (write[0], write[1], repr(write[2])))
    parent = (one.parent_config or {}).get("configurable", {}).get("checkpoint_id") or None
    for versions in [checkpoint["channel_versions"], *checkpoint["versions_seen"].values()]:
        versions.update({name: f"{at:032}.{0:016}" if isinstance(at, int) else at for name, at in versions.items()})
    return checkpoint, one.metadata, parent, writes


async def test_the_order_of_writes_comes_over(path: str, saver: SessionSaver) -> None:
    with sqlite(path) as theirs:
        last = theirs.get_tuple(on("chat")).config
        for task_id, task_path in (("a", "~b"), ("b", "~a"), ("c", "~c")):
            theirs.put_writes(last, [("items", f"{task_id}{number}") for number in range(12)], task_id, task_path)
        before = theirs.get_tuple(last).pending_writes

    await bring("sqlite", path, saver)
    await saver.aput_writes(last, [("items", "late")], "d", "~aa")

    found = await saver.aget_tuple(on("chat"))
    assert found is not None
    assert found.pending_writes is not None
    assert [write[0] for write in before[::12]] == ["b", "a", "c"]
    assert found.pending_writes == [*before[:12], ("d", "items", "late"), *before[12:]]


async def test_lists_are_stored_as_what_is_new_in_them(tmp_path: Path, path: str) -> None:
    with sqlite(path) as theirs:
        graph = chat(reply_sync, checkpointer=theirs)
        for number in range(70):
            graph.invoke(said(f"{number}" * 500), on("long"))
    store = SQLiteStore(tmp_path / "sessions.db")

    imported = await bring("sqlite", path, SessionSaver(SessionManager(store)), only=["long"])
    await store.aclose()

    assert imported.counts == (210, 0, 0, 0)

    with sqlite3.connect(path) as source:
        (size,) = source.execute("SELECT sum(length(checkpoint)) FROM checkpoints WHERE thread_id = 'long'").fetchone()
    assert (tmp_path / "sessions.db").stat().st_size < size / 10


async def test_a_source_is_left_as_it_is(path: str, saver: SessionSaver) -> None:
    def digest() -> str:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    before = digest()
    await bring("sqlite", path, saver)

    assert digest() == before
    with sqlite3.connect(path) as source:
        source.execute("PRAGMA journal_mode = DELETE")
    again = await bring("sqlite", path, saver)
    assert again.problems == []


async def test_a_file_from_before_the_paths_of_tasks_is_read(path: str, saver: SessionSaver) -> None:
    with sqlite3.connect(path) as source:
        source.execute("ALTER TABLE writes DROP COLUMN task_path")

    imported = await bring("sqlite", path, saver)

    assert imported.problems == []
    resumed = await chat(asking, checkpointer=saver).ainvoke(Command(resume="yes"), on("waiting"))
    assert resumed["messages"][-1].text == "answered yes"


async def test_graphs_that_the_runner_runs_go_on(path: str, manager: SessionManager, runner: Runner) -> None:
    await bring("sqlite", path, SessionSaver(manager, thread="helpdesk"))

    run = await runner.run(chat(reply_sync, name="helpdesk"), "chat", "3")
    resumed = await runner.run(chat(asking, name="helpdesk"), "waiting", Command(resume="yes"))

    assert [message.text for message in run.raw["messages"]] == ["1", "re: 1", "2", "re: 2", "3", "re: 3"]
    assert resumed.output == "answered yes"


async def test_threads_become_sessions_of_the_tenant(path: str, manager: SessionManager) -> None:
    await bring("sqlite", path, SessionSaver(manager.for_tenant("acme")))

    assert await manager.get("chat") is None
    assert await manager.for_tenant("acme").get("chat") is not None


async def test_only_the_threads_asked_for_are_copied(path: str, saver: SessionSaver, manager: SessionManager) -> None:
    named = await bring("sqlite", path, saver, only=["chat", "nobody's"])

    assert await manager.get("waiting") is None
    assert named.problems == [Problem("nobody's", "there is no such thread in the source")]
    assert (named.progress.threads, named.progress.failed, named.progress.total) == (2, 1, 2)

    begun = await bring("sqlite", path, saver, prefix="wait")
    assert await manager.get("waiting") is not None
    assert begun.progress.threads == 1


async def test_a_dry_run_stores_nothing(path: str, saver: SessionSaver, manager: SessionManager) -> None:
    imported = await bring("sqlite", path, saver, dry_run=True)

    assert imported.counts == (8, 0, 0, 0)
    assert await manager.get("chat") is None
    assert [key async for key in _keys(manager)] == []


async def _keys(manager: SessionManager) -> AsyncIterator[Any]:
    for key in (await manager.store.scan(limit=10)).keys:
        yield key


# ---------------------------------------------------------------------------------------------------- what is there


async def test_a_thread_that_has_gone_on_here_stays(path: str, saver: SessionSaver) -> None:
    await bring("sqlite", path, saver)
    await chat(reply_sync, checkpointer=saver).ainvoke(said("3"), on("chat"))
    await chat(asking, checkpointer=saver).ainvoke(Command(resume="yes"), on("waiting"))

    again = await bring("sqlite", path, saver, overwrite=True)

    assert again.problems == []
    assert again.counts == (0, 8, 0, 0)
    found = await saver.aget_tuple(on("chat"))
    assert found is not None
    assert len(found.checkpoint["channel_values"]["messages"]) == 6


async def test_what_the_source_has_got_since_is_added(path: str, saver: SessionSaver) -> None:
    await bring("sqlite", path, saver)
    with sqlite(path) as theirs:
        chat(reply_sync, checkpointer=theirs).invoke(said("3"), on("chat"))
        chat(asking, checkpointer=theirs).invoke(Command(resume="yes"), on("waiting"))
        expected = {thread_id: tuples(theirs, thread_id) for thread_id in ("chat", "waiting")}

    again = await bring("sqlite", path, saver)

    assert again.problems == []
    assert again.counts == (5, 7, 0, 0)  # of the one that waited, the last one has got more writes
    for thread_id, theirs in expected.items():
        ours = await asyncio.to_thread(tuples, saver, thread_id)
        assert {place: comparable(one) for place, one in ours.items()} == {
            place: comparable(one) for place, one in theirs.items()
        }


async def test_of_a_thread_that_has_gone_on_at_both_nothing_is_stored(path: str, saver: SessionSaver) -> None:
    await bring("sqlite", path, saver)
    with sqlite(path) as theirs:
        for text in ("there", "there again"):
            chat(reply_sync, checkpointer=theirs).invoke(said(text), on("chat"))
    await chat(reply_sync, checkpointer=saver).ainvoke(said("here"), on("chat"))
    before = await asyncio.to_thread(tuples, saver, "chat")

    again = await bring("sqlite", path, saver)

    assert [problem.thread_id for problem in again.problems] == ["chat"]
    assert again.problems[0].what.startswith("the thread has gone on here, and at the source, with checkpoint ")
    assert again.counts == (0, 8, 0, 6)
    assert (await asyncio.to_thread(tuples, saver, "chat")).keys() == before.keys()


async def test_what_differs_is_reported_and_overwritten_only_if_asked(path: str, saver: SessionSaver) -> None:
    with sqlite(path) as theirs:
        ids = [checkpoint_id for _, checkpoint_id in places(theirs, "chat")]
        before = tuples(theirs, "chat")
    await bring("sqlite", path, saver)
    there = await saver.aget_tuple(on("chat", checkpoint_id=ids[2]))
    assert there is not None
    there.checkpoint["channel_values"]["messages"].append(AIMessage("made here"))
    versions = there.checkpoint["channel_versions"]
    await saver.aput(there.parent_config or {}, there.checkpoint, there.metadata, versions)
    await saver.aput_writes(there.config, [("messages", "written here")], "task")

    refused = await bring("sqlite", path, saver)

    assert refused.problems == [
        Problem("chat", f"checkpoint {ids[2]} is there already, and differs in the values of channels")
    ]
    assert refused.counts[2:] == (0, 2)  # the next one has the same version of the messages
    kept = await saver.aget_tuple(on("chat", checkpoint_id=ids[2]))
    assert kept is not None
    assert kept.checkpoint["channel_values"]["messages"][-1].text == "made here"

    would = await bring("sqlite", path, saver, overwrite=True, dry_run=True)
    replaced = await bring("sqlite", path, saver, overwrite=True)
    assert would.counts == replaced.counts
    assert replaced.counts[2:] == (2, 0)
    assert replaced.problems == []
    ours = await asyncio.to_thread(tuples, saver, "chat")
    assert {place: comparable(one) for place, one in ours.items()} == {
        place: comparable(one) for place, one in before.items()
    }


# ---------------------------------------------------------------------------------------------------- broken off


class Breaking:
    """A source that breaks at a read."""

    def __init__(self, inner: Source, reads: int) -> None:
        self.name = inner.name
        self.left = reads
        self.count, self.threads, self.places, self.close = inner.count, inner.threads, inner.places, inner.close
        self._inner = inner

    def read(self, thread_id: str, place: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise SourceError("it is away")
        return self._inner.read(thread_id, place)


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Threads of two checkpoints each."""
    path = str(tmp_path / "many.db")
    with sqlite(path) as theirs:
        graph = one_node(dict, lambda state: state, checkpointer=theirs)
        for number in range(9):
            graph.invoke({"number": number}, on(f"t{number}"))
    return path


async def test_an_import_that_was_broken_off_goes_on(
    many: str, saver: SessionSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing_threads, "PAGE_THREADS", 3)
    source = open_source("sqlite", many)
    each = len(source.places("t0"))

    with pytest.raises(SourceError):
        await copy(Breaking(source, 5 * each), saver)
    went_on = Breaking(source, 10**6)
    rest = await copy(went_on, saver)

    assert (rest.progress.earlier, rest.progress.threads, rest.progress.failed) == (3, 9, 0)
    assert 10**6 - went_on.left == 6 * each
    assert rest.progress.checkpoints.seen >= 9 * each
    assert (await copy(source, saver)).counts == (0, 9 * each, 0, 0)  # all of it again, after one that was complete
    with pytest.raises(SourceError):
        await copy(Breaking(source, 5 * each), saver)
    assert (await copy(source, saver, restart=True)).progress.earlier == 0
    source.close()


async def test_what_is_cancelled_leaves_whole_checkpoints(many: str, saver: SessionSaver) -> None:
    source = open_source("sqlite", many)
    seen = asyncio.Event()
    running = asyncio.create_task(import_threads(source, saver, report=lambda _: seen.set()))
    await seen.wait()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    rest = await copy(source, saver)
    assert rest.problems == []
    source.close()


# ---------------------------------------------------------------------------------------------------- what can't be


WICKED = """
from dataclasses import dataclass
from pathlib import Path

(Path(__file__).parent / "was-imported").touch()

@dataclass
class Evil:
    item: str
"""


async def test_no_type_is_made_that_is_not_allowed(
    origin: Origin, saver: SessionSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    mark, module = folder / "was-imported", f"wicked_{origin.kind}"
    (folder / f"{module}.py").write_text(WICKED)
    monkeypatch.syspath_prepend(str(folder))

    def at_the_source() -> None:
        with origin.open() as theirs:
            graph = one_node(dict, lambda state: state, checkpointer=theirs)
            graph.invoke({"it": importlib.import_module(module).Evil("thing")}, on("evil"))
            chat(reply_sync, checkpointer=theirs).invoke(said("1"), on("good"))

    await asyncio.to_thread(at_the_source)
    monkeypatch.delitem(sys.modules, module)
    mark.unlink()
    imported = await bring(origin.kind, origin.uri, saver)

    assert [problem.thread_id for problem in imported.problems] == ["evil"]
    assert f"a checkpoint holds a {module}.Evil, which may not be constructed" in imported.problems[0].what
    assert not mark.exists()
    assert await saver.aget_tuple(on("good")) is not None
    assert await saver.aget_tuple(on("evil")) is None


async def test_old_json_is_not_constructed_either(path: str, saver: SessionSaver) -> None:
    order = {"lc": 2, "type": "constructor", "id": [*ORDER[0].split("."), "Order"], "kwargs": {"item": "x", "count": 1}}
    with sqlite3.connect(path) as file:
        file.execute(
            "INSERT INTO writes (thread_id, checkpoint_id, task_id, idx, channel, type, value) VALUES ('chat', "
            "(SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = 'chat'), 'task', 0, 'items', 'json', ?)",
            (json.dumps([order]).encode(),),
        )

    source = open_source("sqlite", path)
    refused = await copy(source, saver)
    source.close()
    allowed = await bring("sqlite", path, saver)

    assert f"holds a {ORDER[0]}.Order" in refused.problems[0].what
    assert allowed.problems == []
    found = await saver.aget_tuple(on("chat"))
    assert found is not None
    assert found.pending_writes == [("task", "items", [Order("x", 1)])]


async def test_what_another_serializer_wrote_is_said_to_be_so(path: str, saver: SessionSaver) -> None:
    with sqlite3.connect(path) as source:
        source.execute("UPDATE checkpoints SET type = 'msgpack+aes' WHERE thread_id = 'chat'")

    imported = await bring("sqlite", path, saver)

    assert [problem.thread_id for problem in imported.problems] == ["chat"]
    assert "in a format 'msgpack+aes'" in imported.problems[0].what


async def test_a_thread_whose_id_no_session_can_have_is_reported(path: str, saver: SessionSaver) -> None:
    with sqlite3.connect(path) as source:
        source.execute("UPDATE checkpoints SET thread_id = 'a\nb' WHERE thread_id = 'chat'")

    imported = await bring("sqlite", path, saver)

    assert [problem.thread_id for problem in imported.problems] == ["a\nb"]
    assert await saver.aget_tuple(on("waiting")) is not None


async def test_what_does_not_read_back_is_reported(path: str, manager: SessionManager) -> None:
    class Forgetful(JsonPlusSerializer):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            return super().dumps_typed({**obj, "step": 0} if isinstance(obj, dict) and "step" in obj else obj)

    imported = await bring("sqlite", path, SessionSaver(manager, serde=Forgetful()), only=["waiting"])

    assert len(imported.problems) == 1
    assert "did not come back as it was stored" in imported.problems[0].what


@pytest.mark.parametrize(
    ("kind", "uri", "said_of_it"),
    [
        ("sqlite", "nowhere/threads.db", "there is no file nowhere/threads.db"),
        ("postgres", "postgre://me:hunter2@127.0.0.1/threads", "that is no URI of a Postgres database"),
        ("postgres", "postgresql://me:hunter2@127.0.0.1:1/threads", "the Postgres database can't be read"),
        ("redis", "rediss//me:hunter2@127.0.0.1", "that is no URI of a Redis server"),
        ("plainredis", "redis://me:hunter2@127.0.0.1:1", "the Redis server can't be read"),
        ("mongodb", "mongodb://me:hunter2@127.0.0.1", "there is no source 'mongodb'; there are sqlite, postgres"),
    ],
)
def test_a_source_that_can_not_be_opened_says_why_and_no_password(kind: str, uri: str, said_of_it: str) -> None:
    with pytest.raises(SourceError) as raised:
        open_source(kind, uri)

    assert said_of_it in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_source_without_checkpoints_says_so(origin: Origin, tmp_path: Path) -> None:
    uri = origin.uri
    if origin.kind == "sqlite":
        sqlite3.connect(uri).close()
    if origin.kind == "postgres":
        source = open_source("postgres", uri)
        with pytest.raises(SourceError, match="no checkpoints"):
            source.count()
        source.close()
        return

    with pytest.raises(SourceError, match="no checkpoints"):
        open_source(origin.kind, uri)
