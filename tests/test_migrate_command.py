"""`agent-sessions migrate`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
from typer.testing import CliRunner

from agent_sessions import SessionManager
from agent_sessions.cli import app
from agent_sessions.cli.migrate import store_settings
from agent_sessions.errors import InvalidError
from agent_sessions.stores.base import Store
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.stores.whole import read_whole

SESSIONS = 300

PROGRAM = """
import signal

from agent_sessions.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # deaf to it is what a shell starts in the background
main()
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start it in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, "migrate", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("AK_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Run(Protocol):
    """Runs it to its end, here: exit code, the lines that it said, and its complaints."""

    async def __call__(self, *arguments: str) -> tuple[int, list[str], str]: ...


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("AK_"):
            monkeypatch.delenv(name)

    async def run(*arguments: str) -> tuple[int, list[str], str]:
        done = await asyncio.to_thread(CliRunner().invoke, app, ["migrate", *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout.splitlines(), done.stderr

    return run


async def fill(file: Path, number: int) -> None:
    store = SQLiteStore(file, synchronous="normal")
    manager = SessionManager(store)

    async def make(place: int) -> None:
        async with manager.open(f"s-{place}", user_id="ann") as session:
            session.set("place", place)
            await session.namespace("ns").log("items").append([place] * 10)

    for begin in range(0, number, 20):
        await asyncio.gather(*map(make, range(begin, min(number, begin + 20))))
    await store.aclose()


async def everything(store: Store) -> dict[str, Any]:
    found, cursor = dict[str, Any](), None
    while True:
        page = await store.scan(limit=1000, cursor=cursor)
        for key in page.keys:
            whole = await read_whole(store, key)
            assert whole is not None
            found[key.id] = whole.content
        cursor = page.next
        if cursor is None:
            return found


async def in_file(file: Path) -> dict[str, Any]:
    store = SQLiteStore(file)
    found = await everything(store)
    await store.aclose()
    return found


async def test_it_says_what_it_has_done(tmp_path: Path, run: Run) -> None:
    await fill(tmp_path / "old.db", 12)
    stores = ("--from", "sqlite:///old.db", "--to", f"sqlite:///{tmp_path}/new.db?synchronous=normal")
    heading = f"Copying sqlite ({tmp_path}/old.db) to sqlite ({tmp_path}/new.db)."

    dry = await run(*stores, "--dry-run")
    first = await run(*stores)
    second = await run(*stores, "--verify")

    assert dry[0] == first[0] == second[0] == 0
    assert dry[1][-1] == "That is what would be done: 13 copied. Nothing was written."
    assert first[1] == [
        heading,
        "  session: 12 copied",
        "  system: 1 copied",
        "Done: 13 copied. What was copied was read back, and is the same byte for byte.",
    ]
    assert second[1][1:] == ["  session: 12 there already", "  system: 1 there already", "Done: 13 there already."]
    assert await in_file(tmp_path / "new.db") == await in_file(tmp_path / "old.db")


async def test_what_differs_is_exit_code_1_until_it_is_overwritten(tmp_path: Path, run: Run) -> None:
    await fill(tmp_path / "old.db", 3)
    await fill(tmp_path / "new.db", 1)
    stores = ("--from", "sqlite:///old.db", "--to", "sqlite:///new.db")

    code, said, _ = await run(*stores)

    assert code == 1
    assert "session 's-0' of tenant 'default': something else has this id in the target" in said
    assert said[-1].startswith("Not wholly done: 2 copied, 1 there already, 1 differs; what differs was left alone")
    assert (await run(*stores, "--overwrite"))[0] == 0
    assert await in_file(tmp_path / "new.db") == {
        **await in_file(tmp_path / "old.db"),
        "tenants": (await in_file(tmp_path / "new.db"))["tenants"],
    }


async def test_stopped_in_the_middle_the_next_run_goes_on(tmp_path: Path) -> None:
    await fill(tmp_path / "old.db", SESSIONS)
    stores = ("--from", "sqlite:///old.db", "--to", "sqlite:///new.db")
    target = SQLiteStore(tmp_path / "new.db")

    async def stopped(how: signal.Signals, past: int) -> str:
        process = start(tmp_path, *stores)
        while await target.count("default", "session") <= past:  # noqa: ASYNC110 - it is asked of a store
            await asyncio.sleep(0.001)
        process.send_signal(how)
        _, complaints = process.communicate(timeout=60)
        assert process.returncode != 0
        return complaints

    await stopped(signal.SIGKILL, 50)
    complaints = await stopped(signal.SIGINT, 150)
    assert complaints == "Stopped: interrupted. Run it again, and it goes on from there.\n"
    copied = await target.count("default", "session")
    assert 150 < copied < SESSIONS
    original = await in_file(tmp_path / "old.db")
    for session_id, content in (await everything(target)).items():
        assert content == original[session_id]  # whole, or not there

    process = start(tmp_path, *stores)
    said, complaints = process.communicate(timeout=60)

    assert (process.returncode, complaints) == (0, "")
    assert "\x1b" not in said
    assert f"  session: {SESSIONS - copied} copied, {copied} there already" in said.splitlines()
    assert await everything(target) == original
    await target.aclose()


async def test_from_a_file_of_settings_to_the_environments_store(
    tmp_path: Path, run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path / "old.db", 5)
    (tmp_path / "old.yaml").write_text("session:\n  type: sqlite\n  sqlite:\n    path: old.db\n")
    monkeypatch.setenv("AK_SESSION__TYPE", "redis")
    monkeypatch.setenv("AK_SESSION__REDIS__URL", redis_url)

    there = await run("--from", "old.yaml")
    back = await run("--from", redis_url, "--to", "sqlite:///back.db")
    other = await run("--from", f"{redis_url}?prefix=other:", "--to", "sqlite:///nothing.db")

    assert there[0] == back[0] == other[0] == 0
    assert there[1][0] == f"Copying sqlite ({tmp_path}/old.db) to redis ({redis_url}, keys ak:sessions:*)."
    assert other[1][1:] == ["Done: nothing."]
    assert await in_file(tmp_path / "back.db") == await in_file(tmp_path / "old.db")


@pytest.mark.parametrize(
    ("stores", "complaint"),
    [
        (("--from", "sqlite:///old.db"), "--to: nothing outlives this command in memory"),
        (("--to", "sqlite:///new.db"), "--from: nothing outlives this command in memory"),
        (("--from", "sqlite:///old.db", "--to", "sqlite:///./old.db"), "--to: this is the store that everything is"),
        (("--from", "sqlite:///missing.db", "--to", "sqlite:///new.db"), "--from: there is no file missing.db"),
        (("--from", "mysql://host", "--to", "sqlite:///new.db"), "--from: there is no store for mysql://"),
        (("--from", "missing.yaml", "--to", "sqlite:///new.db"), "missing.yaml can't be read"),
        (("--from", "sqlite:///old.db", "--to", "redis://:hunter2@127.0.0.1:1"), "Stopped: STORE_UNAVAILABLE"),
    ],
)
async def test_what_can_not_be_says_why(tmp_path: Path, run: Run, stores: tuple[str, ...], complaint: str) -> None:
    await fill(tmp_path / "old.db", 1)
    code, said, complaints = await run(*stores)

    assert code == 1
    assert complaint in complaints
    assert "hunter2" not in complaints + "".join(said)
    assert not (tmp_path / "missing.db").exists()


# --------------------------------------------------------------------------------------------------- naming a store


def test_a_url_stands_alone_but_for_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AK_SESSION__REDIS__PASSWORD", "of another server")
    monkeypatch.setenv("AK_SESSION__REDIS__CLUSTER", "true")
    monkeypatch.setenv("AK_SESSION__ENCRYPTION__KEYS", "A" * 43)

    settings = store_settings("valkeys://me:secret%40@host:7000/3?prefix=p:&ssl_check_hostname=false", "--from")

    assert settings.type == "redis"
    assert settings.redis.url == "rediss://me@host:7000/3"
    assert settings.redis.password is not None
    assert settings.redis.password.get_secret_value() == "secret@"
    assert (settings.redis.prefix, settings.redis.ssl_check_hostname, settings.redis.cluster) == ("p:", False, False)
    assert len(settings.encryption.keys) == 1


def test_a_table_and_a_file_are_named_with_their_options() -> None:
    table = store_settings("dynamodb://my-table?region=eu-west-1&create_table=true", "--to")
    file = store_settings("sqlite:////var/data/my%20file.db?synchronous=normal", "--to")

    assert (table.type, table.dynamodb.table_name) == ("dynamodb", "my-table")
    assert (table.dynamodb.region, table.dynamodb.create_table) == ("eu-west-1", True)
    assert (file.sqlite.path, file.sqlite.synchronous) == (Path("/var/data/my file.db"), "normal")


@pytest.mark.parametrize(
    "wrong",
    [
        "sqlite://host/file.db",
        "sqlite:///",
        "sqlite:///file.db?synchronos=full",
        "dynamodb://x",
        "dynamodb://table?regoin=x",
        "redis://host:hunter2",
        "redis://host?password=hunter2",
        "redis://user:hunter2@host?prefix={x}",
        "redis://[hunter2",
    ],
)
def test_a_wrong_url_is_told_and_not_shown(wrong: str) -> None:
    with pytest.raises(InvalidError, match="--from: ") as refused:
        store_settings(wrong, "--from")
    assert "hunter2" not in str(refused.value)
