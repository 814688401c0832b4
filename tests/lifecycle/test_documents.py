"""A session as a JSON document: exported, imported, and what comes from elsewhere."""

from __future__ import annotations

import base64
import json
import os
import secrets
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import pytest

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.auth import AuthContext
from agent_sessions.errors import (
    DecryptionError,
    ForbiddenError,
    FormatTooNewError,
    InvalidError,
    SessionConflictError,
    SessionNotFoundError,
)
from agent_sessions.lifecycle.copies import document_schema
from agent_sessions.stores.base import Key
from agent_sessions.stores.encryption import EncryptedStore, Keyring
from agent_sessions.stores.whole import read_whole
from agent_sessions.testing import FakeClock

from ..fixtures import MakeManager, make_manager

__all__ = ["make_manager"]

MB = 2**20


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def manager(clock: FakeClock) -> SessionManager:
    return SessionManager(MemoryStore(clock))


async def filled(manager: SessionManager, clock: FakeClock) -> None:
    expires_at = datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(hours=1)
    await manager.create(
        "ann", session_id="s", ttl=500, expires_at=expires_at, policy={"idle_after": "1m"}, metadata={"ä": [1, None]}
    )
    clock.advance(1)
    async with manager.open("s") as session:
        session.set("deep", {"t": (1, 2), "b": b"\x00\xff", "n": -(2**90), "when": expires_at})
        log = session.namespace("openai").log("items", messages=True)
        await log.append([{"n": n} for n in range(50)])
        await log.pop()
        await session.namespace("ns").collection("entries").put_many({f"k{n}/é": n for n in range(50)})
    clock.advance(1)


async def whole_of(manager: SessionManager, session_id: str) -> Any:
    found = await read_whole(manager.store, Key(manager.tenant_id, "session", session_id))
    assert found is not None
    return found.content


async def document_of(manager: SessionManager, clock: FakeClock) -> dict[str, Any]:
    await filled(manager, clock)
    document: dict[str, Any] = json.loads(json.dumps(await manager.export("s")))
    return document


def test_the_schema_in_the_package_is_the_one_of_the_code() -> None:
    published = files("agent_sessions.lifecycle").joinpath("session-1.schema.json").read_text()
    assert json.loads(published) == document_schema()


async def test_an_export_is_as_its_schema_says(manager: SessionManager, clock: FakeClock) -> None:
    document = await document_of(manager, clock)
    schema = document_schema()["$defs"]

    assert set(document) == set(schema["Document"]["properties"])
    assert set(document["record"]) == set(schema["Record"]["properties"])
    assert set(document["record"]["own"]) <= set(schema["Own"]["properties"])
    assert document["format"] in schema["Document"]["properties"]["format"]["enum"]
    assert base64.b64decode(document["logs"]["openai"]["items"][0]) == b"\x81\xa1n\x00"


async def test_a_document_is_imported_byte_for_byte_wherever_it_goes(make_manager: MakeManager) -> None:
    clock = FakeClock()
    origin, manager = SessionManager(MemoryStore(clock)), make_manager(clock=clock)
    document = await document_of(origin, clock)

    imported = await manager.import_(document)

    assert await whole_of(manager, "s") == await whole_of(origin, "s")
    assert (imported.ttl, imported.message_count) == (timedelta(seconds=500), 49)
    again = await manager.export("s")
    assert again.pop("record") == {**document["record"], "revision": document["record"]["revision"] + 1}
    assert again == {name: held for name, held in document.items() if name != "record"}


async def test_an_ended_session_is_imported_as_ended(manager: SessionManager, clock: FakeClock) -> None:
    await filled(manager, clock)
    await manager.end("s", reason="revoked")
    elsewhere = SessionManager(MemoryStore(clock))

    imported = await elsewhere.import_(await manager.export("s"))

    original = await manager.get("s", strict=True)
    assert original is not None
    assert (imported.status, imported.end_reason, imported.ended_at) == ("ended", "revoked", original.ended_at)


async def test_a_session_larger_than_any_turn_is_copied_whole(make_manager: MakeManager) -> None:
    manager = make_manager()
    async with manager.open("s", commit="step") as session:
        log = session.namespace("ns").log("items")
        for number in range(4):
            session.set(f"v{number}", os.urandom(5 * MB))
            await log.append([os.urandom(1_500) for _ in range(2_500)])
    content = await whole_of(manager, "s")
    assert content.size() > 32 * MB

    await manager.fork("s", "forked")
    await manager.import_(await manager.export("s"), session_id="imported")

    assert await whole_of(manager, "imported") == content
    forked = await whole_of(manager, "forked")
    assert (forked.values, forked.logs) == (content.values, content.logs)


async def test_the_revision_of_a_copy_goes_on(manager: SessionManager, clock: FakeClock) -> None:
    await filled(manager, clock)
    forked = await manager.fork("s", "t")
    async with manager.open("t") as session:
        assert session.revision == forked.revision == 3
        session.set("deep", 1)
    again = await manager.fork("t", "u")
    assert again.revision == 5
    assert [one.revision for one in (await manager.list("ann", order="started")).sessions] == [5, 4, 2]


# --------------------------------------------------------------------------------------------------- from elsewhere


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(document))
    *way, last = path.split(".")
    inner = changed
    for name in way:
        inner = inner[name]
    inner[last] = value
    return changed


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("record.user_id", " "),
        ("record.user_id", 5),
        ("record.session_id", None),
        ("record.started_at", -1),
        ("record.started_at", 2**62),
        ("record.active_at", 0),
        ("record.own.ttl_ms", 2**62),
        ("record.own.unknown", 1),
        ("record.counters.messages", 2**60),
        ("record.counters.commits_before", 5),
        ("record.counters." + "x" * 129, 5),
        ("record.fields." + "x" * 129, b64(b"\x01")),
        ("record.user_id", "\ud800"),
        ("values.default.deep", "\ud800"),
        ("logs", {"\ud800": {"items": [b64(b"\x01")]}}),
        ("record.fields.metadata", b64(b"\x81\x01\x02")),
        ("record.fields.metadata", b64(b"\x01")),
        ("record.fields.metadata", b64(b"\xc1\x01")),
        ("record.fields.description", b64(b"\xd9")),
        ("record.extra", 1),
        ("values", []),
        ("values.default.deep", "not base64!"),
        ("values.default.deep", b64(b"\xc1\x01" + bytes(40))),
        ("values.default." + "x" * 129, b64(b"\x01")),
        ("values." + "x" * 129, {"a": b64(b"\x01")}),
        ("logs.openai.items", b64(b"\x01")),
        ("collections.ns.entries." + "x" * 513, b64(b"\x01")),
        ("collections.ns.entries.", b64(b"\x01")),
    ],
)
async def test_what_no_session_could_hold_is_refused(
    manager: SessionManager, clock: FakeClock, path: str, value: Any
) -> None:
    document = changed(await document_of(manager, clock), path, value)

    with pytest.raises(InvalidError) as refused:
        await manager.import_(document, session_id="new")

    assert refused.value.code == "INVALID_DOCUMENT"
    assert await manager.get("new") is None


async def test_a_value_that_is_too_large_is_refused(manager: SessionManager, clock: FakeClock) -> None:
    document = changed(await document_of(manager, clock), "values.default.deep", b64(bytes(16 * MB + 1)))
    with pytest.raises(InvalidError, match=r"value 'deep' in namespace 'default' has 16777217 bytes"):
        await manager.import_(document, session_id="new")


async def test_a_newer_document_is_told_from_a_wrong_one(manager: SessionManager) -> None:
    with pytest.raises(FormatTooNewError):
        await manager.import_({"format": "agent-sessions/session/2", "anything": 1})


async def test_a_wrong_id_is_refused(manager: SessionManager, clock: FakeClock) -> None:
    document = changed(await document_of(manager, clock), "record.session_id", " ")
    with pytest.raises(InvalidError) as refused:
        await manager.import_(document)
    assert refused.value.code == "INVALID_SESSION_ID"


async def test_who_is_acting_imports_only_what_is_theirs(manager: SessionManager, clock: FakeClock) -> None:
    document = await document_of(manager, clock)
    with manager.acting_as(AuthContext(user_id="bob")):
        with pytest.raises(ForbiddenError):
            await manager.import_(document, session_id="new")
        record = await manager.import_(changed(document, "record.user_id", None), session_id="bobs")
    assert record.user_id == "bob"


async def test_nothing_is_imported_for_a_user_that_is_being_erased(manager: SessionManager, clock: FakeClock) -> None:
    document = await document_of(manager, clock)
    await manager.delete_user("ann")
    with pytest.raises(SessionConflictError):
        await manager.import_(document)
    assert await manager.get("s") is None


async def test_an_end_that_lies_ahead_of_this_clock_is_one(manager: SessionManager, clock: FakeClock) -> None:
    await filled(manager, clock)
    await manager.end("s")
    document = await manager.export("s")
    document["record"]["ended_at"] += 60_000
    assert (await manager.import_(document, session_id="t")).status == "ended"
    assert (await manager.end("t")).end_reason == "explicit"
    clock.advance(-10)
    assert (await manager.end("s")).end_reason == "explicit"


async def test_what_is_past_its_time_is_not_imported(manager: SessionManager, clock: FakeClock) -> None:
    document = await document_of(manager, clock)
    clock.advance(8 * 86_400)
    with pytest.raises(SessionNotFoundError):
        await manager.import_(document, session_id="new")


# --------------------------------------------------------------------------------------------------- encryption


async def test_a_document_is_plain_and_what_is_imported_is_encrypted(clock: FakeClock) -> None:
    stores = MemoryStore(clock), MemoryStore(clock)
    origin, manager = (SessionManager(EncryptedStore(store, Keyring([secrets.token_urlsafe(32)]))) for store in stores)
    document = await document_of(origin, clock)

    await manager.import_(document)

    assert await whole_of(manager, "s") == await whole_of(origin, "s")
    assert base64.b64decode(document["record"]["fields"]["metadata"]) == b"\x81\xa2\xc3\xa4\x92\x01\xc0"
    raw = await whole_of(SessionManager(stores[1]), "s")
    assert all(data.startswith(b"\xc1\x01") for _, data in raw.pieces())


async def test_what_can_not_be_decrypted_is_not_copied(manager: SessionManager, clock: FakeClock) -> None:
    store = manager.store
    await filled(SessionManager(EncryptedStore(store, Keyring([secrets.token_urlsafe(32)]))), clock)
    for reading in (store, EncryptedStore(store, Keyring([secrets.token_urlsafe(32)]))):
        with pytest.raises(DecryptionError, match="session 's' can't be copied"):
            await SessionManager(reading).export("s")
        with pytest.raises(DecryptionError, match="session 's' can't be copied"):
            await SessionManager(reading).fork("s", "t")
        assert (await SessionManager(reading).store.open(Key("default", "session", "t"))).row is None
