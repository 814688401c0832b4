"""No word of what is stored can be found in the backend's own files."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from agent_sessions import Runner, Session, SessionManager, Settings
from agent_sessions.settings import EncryptionSettings, RedisSettings, SQLiteSettings
from agent_sessions.stores import open_store
from agent_sessions.testing import ScriptedAgent

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

STORED = [
    *("aubergine", "broccoli", "cauliflower", "dandelion", "elderberry", "fennel", "gooseberry", "horseradish"),
    *("jalapeno", "kohlrabi"),
]
READABLE = ["tenant-zucchini", "session-yam", "user-xigua", "namespace-watercress", "log-vanilla", "entry-turnip"]

Raw = Callable[[], bytes]


@pytest.fixture(params=["redis", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, Raw]:
    """A backend, and all bytes that it has on disk. Nothing of it is compressed, which would hide words."""
    if request.param == "sqlite":
        settings = Settings(type="sqlite", sqlite=SQLiteSettings(path=tmp_path / "sessions.db"))
        return settings, lambda: b"".join(file.read_bytes() for file in tmp_path.glob("sessions.db*"))
    server: RedisServer = request.getfixturevalue("start_redis")("--rdbcompression", "no")

    def dumped() -> bytes:
        server.command("SAVE")
        _, folder = server.command("CONFIG", "GET", "dir")
        return (Path(folder.decode()) / "dump.rdb").read_bytes()

    return Settings(type="redis", redis=RedisSettings(url=server.url)), dumped


@pytest.fixture
def encryption() -> EncryptionSettings:
    return EncryptionSettings(keys=(SecretStr(secrets.token_urlsafe(32)),))


async def test_no_word_of_what_is_stored_is_on_the_disk(
    backend: tuple[Settings, Raw], encryption: EncryptionSettings
) -> None:
    settings, raw = backend
    on_disk = await use(settings.model_copy(update={"encryption": encryption}), raw)

    assert [word for word in STORED if word.encode() in on_disk] == []
    assert [word for word in READABLE if word.encode() not in on_disk] == []


async def test_without_keys_every_word_is(backend: tuple[Settings, Raw]) -> None:
    """Else the test above would prove nothing."""
    settings, raw = backend
    on_disk = await use(settings, raw)

    assert [word for word in STORED if word.encode() not in on_disk] == []


async def use(settings: Settings, raw: Raw) -> bytes:
    """Put words into every corner of a session, with a run's activation; read them back; return what is on the disk."""
    store = open_store(settings)
    manager = SessionManager(store, settings=settings, tenant_id="tenant-zucchini")
    runner = Runner(manager)

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
    while_open = raw()
    await store.aclose()
    return while_open + raw()
