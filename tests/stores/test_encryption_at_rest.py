"""No word of what is stored can be found in what the backend holds."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from agent_sessions import Runner, Session, SessionManager
from agent_sessions.stores.base import Store
from agent_sessions.stores.encryption import EncryptedStore, Keyring
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import ScriptedAgent

if TYPE_CHECKING:
    from tests.dynamodb import DynamoDB
    from tests.redis_server import RedisServer

STORED = [
    *("aubergine", "broccoli", "cauliflower", "dandelion", "elderberry", "fennel", "gooseberry", "horseradish"),
    *("jalapeno", "kohlrabi"),
]
READABLE = ["tenant-zucchini", "session-yam", "user-xigua", "namespace-watercress", "log-vanilla", "entry-turnip"]


class Backend(NamedTuple):
    """A store, and all bytes that its backend holds, not compressed, which would hide words."""

    store: Store
    held: Callable[[], bytes]


@pytest.fixture(params=["sqlite", "redis", "dynamodb"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    match request.param:
        case "sqlite":
            store = SQLiteStore(tmp_path / "sessions.db")
            return Backend(store, lambda: b"".join(file.read_bytes() for file in tmp_path.glob("sessions.db*")))
        case "redis":
            from agent_sessions.stores.redis import RedisStore

            server: RedisServer = request.getfixturevalue("start_redis")("--rdbcompression", "no")
            return Backend(RedisStore.from_url(server.url), lambda: dump_of(server))
        case _:
            made: DynamoDB = request.getfixturevalue("dynamodb")
            return Backend(made.store(), lambda: scan_of(made))


def dump_of(server: RedisServer) -> bytes:
    """The file in which Redis saves everything."""
    server.command("SAVE")
    _, folder = server.command("CONFIG", "GET", "dir")
    return (Path(folder.decode()) / "dump.rdb").read_bytes()


def scan_of(made: DynamoDB) -> bytes:
    """Every attribute of every item of a table."""
    from botocore.session import get_session

    client = get_session().create_client("dynamodb", endpoint_url=made.url)
    pages = client.get_paginator("scan").paginate(TableName=made.table)
    held = b"\n".join(flat(page["Items"]) for page in pages)
    client.close()
    return held


def flat(value: Any) -> bytes:
    if isinstance(value, dict):
        return flat(list(value.items()))
    if isinstance(value, list | tuple):
        return b"\n".join(map(flat, value))
    return value if isinstance(value, bytes) else str(value).encode()


async def test_encrypted_no_word_of_what_is_stored_is_found(backend: Backend) -> None:
    held = await use(EncryptedStore(backend.store, Keyring([secrets.token_urlsafe(32)])), backend.held)

    assert [word for word in STORED if word.encode() in held] == []
    assert [word for word in READABLE if word.encode() not in held] == []


async def test_without_keys_every_word_is(backend: Backend) -> None:
    """Else the test above would prove nothing."""
    held = await use(backend.store, backend.held)

    assert [word for word in STORED if word.encode() not in held] == []


async def use(store: Store, held: Callable[[], bytes]) -> bytes:
    """Put words into every corner of a session, with a run's activation; read them back; return what is held then."""
    runner = Runner(SessionManager(store, tenant_id="tenant-zucchini"))

    async def answer(prompt: Any, session: Session) -> str:
        session.set("cart", {"aubergine": "broccoli"})
        session.set("added", "cauliflower")
        vegetables = session.namespace("namespace-watercress")
        await vegetables.log("log-vanilla").append([{"role": "user", "content": "dandelion"}])
        await vegetables.collection("checkpoints").put("entry-turnip", ["elderberry" * 1000])
        return "fennel"

    metadata = {"gooseberry": "horseradish", "description": "jalapeno"}
    run = await runner.run(ScriptedAgent(answer), "session-yam", "kohlrabi", user_id="user-xigua", metadata=metadata)

    elsewhere = SessionManager(store, tenant_id="tenant-zucchini")
    async with elsewhere.read("session-yam") as session:
        assert session.get("cart") == {"aubergine": "broccoli"}
        assert session.get("added") == "cauliflower"
    activation = await Runner(elsewhere).get_activation(run.activation_id)
    assert activation is not None
    assert (activation.payload, activation.response) == ("kohlrabi", "fennel")
    while_open = held()
    await store.aclose()
    return while_open + held()
