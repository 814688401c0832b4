"""`agent-sessions langgraph import`, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent_sessions import SessionManager, Settings
from agent_sessions.cli import app
from agent_sessions.stores import open_store
from agent_sessions_langgraph import SessionSaver

from .graphs import chat, on, reply_sync, said
from .langgraph_sources import ORDER, Order, parallel, sqlite

THREADS = 150

ARGUMENTS = ("langgraph", "import", "--from", "sqlite", "--thread-prefix", "t")

Environment = dict[str, str]

PROGRAM = """
import signal

from agent_sessions.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # deaf to it is what a shell starts in the background
main()
"""


@pytest.fixture(params=["sqlite", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    """An empty backend, by its variables."""
    if request.param == "redis":
        return {"AK_SESSION__TYPE": "redis", "AK_SESSION__REDIS__URL": request.getfixturevalue("redis_url")}
    return {"AK_SESSION__TYPE": "sqlite", "AK_SESSION__SQLITE__PATH": str(tmp_path / "sessions.db")}


@pytest.fixture
async def manager(backend: Environment, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SessionManager]:
    for name, value in backend.items():
        monkeypatch.setenv(name, value)
    opened = open_store(Settings.load())
    yield SessionManager(opened)
    await opened.aclose()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file of langgraph-checkpoint-sqlite, with two threads."""
    path = str(tmp_path / "threads.db")
    with sqlite(path) as theirs:
        chat(reply_sync, checkpointer=theirs).invoke(said("hello"), on("t000"))
        parallel(theirs).invoke({"items": [], "orders": []}, on("waiting"))
    return path


def run(backend: Environment, *arguments: str, **variables: str) -> Result:
    """Run it in this process."""
    own: dict[str, str | None] = {name: None for name in os.environ if name.startswith("AK_")}
    words = ["langgraph", "import", *arguments]
    return CliRunner().invoke(app, words, env={**own, **backend, **variables}, prog_name="agent-sessions")


async def test_it_says_what_it_has_done(backend: Environment, path: str, manager: SessionManager) -> None:
    allow = ["--allow", ":".join(ORDER)]
    first = await asyncio.to_thread(run, backend, "--from", "sqlite", path, *allow)
    again = await asyncio.to_thread(run, backend, "--from", "sqlite", *allow, LANGGRAPH_IMPORT_URI=path)

    begin = f"Importing sqlite {path} into {backend['AK_SESSION__TYPE']}."
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout.splitlines() == [
        begin,
        "Done: 2 of 2 threads, 5 checkpoints: 5 imported, 0 there already.",
        "Sessions are kept for 7 days after their last activity: AK_SESSION__TTL.",
    ]
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout.splitlines() == [
        begin,
        "Done: 2 of 2 threads, 5 checkpoints: 0 imported, 5 there already.",
    ]
    found = await SessionSaver(manager, allowed_types=[Order]).aget_tuple(on("waiting"))
    assert found is not None
    assert [Order("umbrella", 2)] in [write[2] for write in found.pending_writes or ()]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_what_was_not_copied_is_exit_code_1(backend: Environment, path: str, manager: SessionManager) -> None:
    done = await asyncio.to_thread(run, backend, "--from", "sqlite", path)

    assert (done.exit_code, done.stderr) == (1, "")
    assert f"thread 'waiting': SERIALIZATION_FAILED: a checkpoint holds a {'.'.join(ORDER)}" in done.stdout
    assert "Done: 2 of 2 threads, 3 checkpoints: 3 imported, 0 there already; 1 threads failed." in done.stdout
    assert await manager.get("t000") is not None


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_dry_run_says_what_would_be(backend: Environment, path: str) -> None:
    done = run(backend, "--from", "sqlite", path, "--thread", "t000", "--dry-run")

    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"Comparing sqlite {path} with sqlite.",
        "Nothing was stored: 1 of 1 threads, 3 checkpoints: 3 would be imported, 0 there already.",
    ]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        (["sqlite", "nowhere.db"], {}, "there is no file nowhere.db"),
        (["sqlite", "nowhere.db", "--allow", "Order"], {}, "--allow Order: a type is named as module:Name"),
        (["sqlite", "nowhere.db", "--key-prefix", "lg"], {}, "keys have a prefix on Redis only"),
        (["sqlite", "nowhere.db"], {"AK_SESSION__TYPE": "in_memory"}, "imported into memory is gone at the end"),
        (["postgres", "postgresql://me:hunter2@127.0.0.1:1/x"], {}, "the Postgres database can't be read"),
    ],
    ids=["file", "type", "prefix", "memory", "server"],
)
def test_what_can_not_be_done_is_said_in_one_line(
    backend: Environment, arguments: list[str], variables: Environment, complaint: str
) -> None:
    done = run({**backend, **variables}, "--from", *arguments)

    assert (done.exit_code, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    backend: Environment, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langgraph.checkpoint.sqlite", None)
    monkeypatch.delitem(sys.modules, "agent_sessions_langgraph.importing.sources.sqlite", raising=False)

    done = run(backend, "--from", "sqlite", path)

    assert done.exit_code == 1
    assert "pip install 'agent-sessions-runtime[import-sqlite]'" in done.stderr


# ---------------------------------------------------------------------------------------------------- broken off


def start(backend: Environment, path: str) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("AK_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, *ARGUMENTS, path],
        env={**own, **backend, "AK_SESSION__TURN__LEASE_S": "1"},  # a turn that was killed keeps its session so long
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_killed_in_the_middle_the_next_run_goes_on(
    backend: Environment, path: str, manager: SessionManager
) -> None:
    expected = multiply(path)
    async with manager.open("t060"):  # where it can't get past
        killed = start(backend, path)
        await until_there(manager, 99)
        killed.kill()
        killed.communicate()
    async with manager.open("t110"):
        stopped = start(backend, path)
        await until_there(manager, 149)
        stopped.send_signal(signal.SIGINT)
        _, complaints = await asyncio.to_thread(stopped.communicate)
    done = await asyncio.to_thread(run, backend, *ARGUMENTS[2:], path)

    assert (stopped.returncode, complaints) == (1, "Stopped. Run it again, and it goes on from there.\n")
    assert done.exit_code == 0, done.output
    assert "Of these, 100 threads are of an earlier run" in done.stdout
    saver = SessionSaver(manager)
    for place in range(THREADS):
        ids = [one.config["configurable"]["checkpoint_id"] async for one in saver.alist(on(f"t{place:03}"))]
        assert sorted(ids) == expected
    state = await chat(reply_sync, checkpointer=saver).ainvoke(said("go on"), on("t001"))
    assert [message.text for message in state["messages"]] == ["hello", "re: hello", "go on", "re: go on"]


def multiply(path: str) -> list[str]:
    """Make many threads of the one, and return the ids of their checkpoints."""
    with sqlite3.connect(path) as source:
        for place in range(1, THREADS):
            source.execute(
                "INSERT INTO checkpoints SELECT ?, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, "
                "checkpoint, metadata FROM checkpoints WHERE thread_id = 't000'",
                (f"t{place:03}",),
            )
        return [row[0] for row in source.execute("SELECT checkpoint_id FROM checkpoints WHERE thread_id = 't000'")]


async def until_there(manager: SessionManager, place: int) -> None:
    while await manager.get(f"t{place:03}") is None:  # noqa: ASYNC110 - it is asked of a store
        await asyncio.sleep(0.002)
