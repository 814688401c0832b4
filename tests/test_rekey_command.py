"""`agent-sessions rekey`, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_sessions import SessionManager, Settings
from agent_sessions.stores import open_store
from agent_sessions.stores.base import Key, Store
from agent_sessions.stores.encryption import EncryptedStore, Keyring

OLD, NEW = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
SESSIONS = 1_000

Environment = dict[str, str]


@pytest.fixture(params=["redis", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    """An empty backend, by its variables."""
    if request.param == "redis":
        return {"AK_SESSION__TYPE": "redis", "AK_SESSION__REDIS__URL": request.getfixturevalue("redis_url")}
    return {"AK_SESSION__TYPE": "sqlite", "AK_SESSION__SQLITE__PATH": str(tmp_path / "sessions.db")}


PROGRAM = """
import signal

from agent_sessions.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # deaf to it is what a shell starts in the background
main()
"""


def start(backend: Environment, *, keys: str = f"{NEW},{OLD}") -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("AK_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, "rekey"],
        env={**own, **backend, "AK_SESSION__ENCRYPTION__KEYS": keys},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(backend: Environment, *, keys: str = f"{NEW},{OLD}") -> tuple[int, str, str]:
    """Run it to its end: exit code, and what it said."""
    process = start(backend, keys=keys)
    said, complaints = process.communicate(timeout=60)
    assert not any(key in said + complaints for key in (OLD, NEW))
    return process.returncode, said, complaints


@pytest.fixture
async def store(backend: Environment, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """The store itself, without what encrypts before it."""
    for name, value in backend.items():
        monkeypatch.setenv(name, value)
    opened = open_store(Settings.load())
    yield opened
    await opened.aclose()


async def fill(store: Store, number: int, *keys: str) -> dict[str, int]:
    manager = SessionManager(EncryptedStore(store, Keyring(keys)))

    async def make(place: int) -> None:
        async with manager.open(f"s-{place}") as session:
            session.set("place", place)

    for start in range(0, number, 20):
        await asyncio.gather(*map(make, range(start, min(number, start + 20))))
    return {f"s-{place}": place for place in range(number)}


async def read(store: Store, number: int, *keys: str) -> dict[str, int]:
    manager, found = SessionManager(EncryptedStore(store, Keyring(keys))), {}
    for place in range(number):
        async with manager.read(f"s-{place}") as session:
            found[f"s-{place}"] = session.get("place")
    return found


async def test_it_says_what_it_has_done(backend: Environment, store: Store) -> None:
    expected = await fill(store, 20, OLD)

    code, said, complaints = run(backend)

    assert (code, complaints) == (0, "")
    assert "\x1b" not in said
    assert said.splitlines() == [
        f"Encrypting everything in {backend['AK_SESSION__TYPE']} with the key {Keyring([NEW]).key_ids[0]}.",
        "Done: 21 looked at, 21 rewritten.",  # with the list of tenants
        "Everything is encrypted with the first key; no other is needed any more.",
    ]
    assert await read(store, 20, NEW) == expected


async def test_what_it_can_not_read_is_exit_code_1(backend: Environment, store: Store) -> None:
    expected = await fill(store, 3, OLD)

    code, said, _ = run(backend, keys=NEW)

    assert code == 1
    assert (
        "session 's-0' of tenant 'default': value 'place' in namespace 'default': the stored data is encrypted" in said
    )
    assert f"the key {Keyring([OLD]).key_ids[0]}, which is none of those configured" in said
    assert "4 looked at, 0 rewritten, 4 failed" in said  # with the list of tenants
    assert await read(store, 3, OLD) == expected


async def test_killed_in_the_middle_all_is_readable_and_the_next_run_goes_on(
    backend: Environment, store: Store
) -> None:
    expected = await fill(store, SESSIONS, OLD)
    for _ in range(3):
        before = await notes(store)
        process = start(backend)
        await until_past(store, before)
        process.kill()
        process.communicate()
        assert await read(store, SESSIONS, NEW, OLD) == expected
    assert await notes(store) > before

    assert run(backend)[0] == 0
    assert await read(store, SESSIONS, NEW) == expected
    assert await notes(store) == 0


async def notes(store: Store) -> int:
    """How often it has noted how far it is; 0 if it has nothing to go on from."""
    return (await store.open(Key("default", "system", "rekey"))).version.revision


async def until_past(store: Store, before: int) -> None:
    while await notes(store) <= before:  # noqa: ASYNC110 - it is asked of a store
        await asyncio.sleep(0.001)


async def test_after_a_ctrl_c_it_goes_on(backend: Environment, store: Store) -> None:
    await fill(store, SESSIONS, OLD)
    process = start(backend)
    await until_past(store, 0)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert complaints == "Stopped: interrupted. Run it again, and it goes on from there.\n"
    assert process.returncode == 1

    code, said, _ = run(backend)

    assert code == 0
    rewritten = int(re.findall(r"([0-9,]+) rewritten", said)[-1].replace(",", ""))
    assert rewritten > SESSIONS - 110  # with those of the first run; all but the page that it was stopped in


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({}, "INVALID_SETTING: no encryption keys are set"),
        ({"AK_SESSION__ENCRYPTION__KEYS": NEW}, "INVALID_SETTING: there is nothing to do in memory"),
        ({"AK_SESSION__ENCRYPTION__KEYS": "hunter2"}, "AK_SESSION__ENCRYPTION__KEYS is wrong: key 1 is not 32 bytes"),
        (
            {
                "AK_SESSION__ENCRYPTION__KEYS": NEW,
                "AK_SESSION__TYPE": "redis",
                "AK_SESSION__REDIS__URL": "redis://127.0.0.1:1",
            },
            "Stopped: STORE_UNAVAILABLE",
        ),
    ],
)
def test_what_can_not_begin_says_why(variables: Environment, complaint: str) -> None:
    code, said, complaints = run(variables, keys=variables.get("AK_SESSION__ENCRYPTION__KEYS", ""))

    assert code == 1
    assert complaint in complaints
    assert "Traceback" not in complaints
    assert "hunter2" not in said + complaints
