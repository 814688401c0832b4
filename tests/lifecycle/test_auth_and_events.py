"""Acting with an identity, and hearing of what happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_sessions import MemoryStore, SessionManager, Settings
from agent_sessions.auth import AuthContext
from agent_sessions.errors import ForbiddenError, InvalidError
from agent_sessions.events import SessionEvent
from agent_sessions.testing import FakeClock

ANN = AuthContext(user_id="ann", tenant_id="acme", claims={"role": "admin"})


@pytest.fixture
def manager() -> SessionManager:
    return SessionManager(MemoryStore(FakeClock()))


async def test_an_identity_fills_user_and_tenant(manager: SessionManager) -> None:
    with manager.acting_as(ANN):
        made = await manager.create()
        async with manager.open("chat"):
            pass
        assert [r.session_id for r in await manager.get_active()] in (
            ["chat", made.session_id],
            [made.session_id, "chat"],
        )
        assert await manager.count() == 2
    assert (made.user_id, made.tenant_id) == ("ann", "acme")
    assert await manager.get(made.session_id) is None
    record = await manager.for_tenant("acme").get("chat")
    assert record is not None
    assert record.user_id == "ann"


async def test_an_argument_that_contradicts_it_is_refused(manager: SessionManager) -> None:
    with manager.acting_as(ANN):
        refused: list[Any] = [
            lambda: manager.create("bob"),
            lambda: manager.list("bob"),
            lambda: manager.count("bob"),
            lambda: manager.end_all("bob"),
            lambda: manager.get_active("bob"),
            lambda: manager.get_or_create("bob"),
            lambda: manager.delete_user("bob"),
            lambda: manager.for_tenant("other").create(),
            lambda: manager.for_tenant("other").get("s"),
            lambda: manager.append("s", "openai", "items", [1], user_id="bob"),
            lambda: manager.list(tenant_id="other"),
        ]
        for operation in refused:
            with pytest.raises(ForbiddenError):
                await operation()


async def test_somebody_elses_session_is_refused_if_that_is_on() -> None:
    manager = SessionManager(MemoryStore(FakeClock()), settings=Settings(enforce_ownership=True))
    await manager.create("bob", session_id="bobs")
    await manager.create("ann", session_id="anns")

    async def opened(session_id: str) -> None:
        async with manager.open(session_id):
            pass

    async def read(session_id: str) -> None:
        async with manager.read(session_id):
            pass

    operations: list[Any] = [
        opened,
        read,
        manager.get,
        manager.touch,
        lambda id: manager.update(id, description="x"),
        lambda id: manager.extend(id, hours=1),
        manager.export,
        manager.fork,
        manager.lock,
        manager.end,
        manager.delete,
    ]
    with manager.acting_as(AuthContext(user_id="ann")):
        for operation in operations:
            with pytest.raises(ForbiddenError):
                await operation("bobs")
            await operation("anns")
    record = await manager.get("bobs")
    assert record is not None
    assert record.status == "active"


async def test_who_is_acting_stays_in_its_context(manager: SessionManager) -> None:
    async def create(user: str) -> str | None:
        with manager.acting_as(AuthContext(user_id=user)):
            await asyncio.sleep(0)
            return (await manager.create()).user_id

    assert await asyncio.gather(*(create(f"u{n}") for n in range(20))) == [f"u{n}" for n in range(20)]
    with pytest.raises(InvalidError):
        await manager.get_active()


async def test_listeners_hear_what_happens_and_disturb_nothing(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, str, str | None]] = []
    later: list[SessionEvent] = []

    def listener(event: SessionEvent) -> None:
        heard.append((event.type, event.session_id, event.user_id))
        raise RuntimeError("secret")

    async def slow(event: SessionEvent) -> None:
        await asyncio.sleep(0)
        later.append(event)

    stop = manager.listen(listener)
    manager.listen(slow)
    await manager.create("ann", session_id="s")
    await manager.touch("s")
    async with manager.open("s") as session:
        session.set("a", 1)
    with pytest.raises(ZeroDivisionError):
        await _failing_turn(manager)
    await manager.end("s")
    await manager.end("s")
    await manager.delete("s")
    assert heard == [
        ("created", "s", "ann"),
        ("touched", "s", "ann"),
        ("turn_committed", "s", "ann"),
        ("turn_discarded", "s", None),
        ("ended", "s", "ann"),
        ("deleted", "s", None),
    ]
    stop()
    await manager.create("ann", session_id="s")
    await asyncio.sleep(0.01)
    assert len(heard) == 6
    assert len(later) == 7
    assert "secret" not in caplog.text


async def test_a_listener_can_not_cancel_what_it_hears_of(manager: SessionManager) -> None:
    def listener(event: SessionEvent) -> None:
        raise asyncio.CancelledError

    manager.listen(listener)
    assert (await manager.create("ann")).user_id == "ann"
    with pytest.raises(InvalidError):
        manager.listen(None)  # type: ignore[arg-type]


async def test_appends_and_copies_are_heard_of_as_well(manager: SessionManager) -> None:
    heard: list[tuple[str, str]] = []
    manager.listen(lambda event: heard.append((event.type, event.session_id)))
    for _ in range(2):
        await manager.append("s", "openai", "items", [1])
    async with manager.open("steps", commit="step", user_id="ann") as session:
        await session.log("log").append([1])
    await manager.fork("s", "copy")
    await manager.import_(await manager.export("s"), session_id="import")
    await manager.get_or_create("ann")
    assert heard == [
        ("created", "s"),
        ("turn_committed", "s"),
        ("turn_committed", "s"),
        ("created", "steps"),
        ("turn_committed", "steps"),
        ("created", "copy"),
        ("created", "import"),
        ("touched", "steps"),
    ]


async def _failing_turn(manager: SessionManager) -> None:
    async with manager.open("s"):
        raise ZeroDivisionError
