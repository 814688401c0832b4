"""The examples of Cortex Memory's Sessions API, put into Python: they run as written, and give what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent_sessions import AuthContext, MemoryStore, SessionManager, SessionRecord
from agent_sessions.errors import SessionError
from agent_sessions.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def sessions(clock: FakeClock) -> AsyncIterator[SessionManager]:
    """`cortex.sessions`."""
    store = MemoryStore(clock)
    yield SessionManager(store)
    await store.aclose()


@pytest.mark.parametrize(
    "metadata",
    [
        {"device_type": "mobile", "app_version": "2.1.0", "platform": "ios", "device_id": "device-xyz"},
        {
            "auth_provider": "auth0",
            "auth_method": "oauth",
            "email": "user@example.com",
            "roles": ["admin", "editor"],
            "permissions": ["read", "write", "delete"],
            "custom_claim": "any-value",
        },
        {"ip_address": "192.168.1.1", "country": "US", "timezone": "America/New_York", "locale": "en-US"},
    ],
    ids=["device", "auth", "place"],
)
async def test_metadata_holds_what_an_application_needs(sessions: SessionManager, metadata: dict[str, Any]) -> None:
    made = await sessions.create(user_id="user-123", metadata=metadata)
    found = await sessions.get(made.session_id)
    assert found is not None
    assert found.metadata == metadata


async def test_create(sessions: SessionManager) -> None:
    before = datetime.now(UTC)
    session = await sessions.create(
        user_id="user-123",
        tenant_id="tenant-abc",
        memory_space_id="user-123-personal",
        metadata={"device_type": "web", "user_agent": "Mozilla/5.0...", "auth_provider": "google"},
    )
    assert (session.status, session.user_id, session.tenant_id) == ("active", "user-123", "tenant-abc")
    assert session.memory_space_id == "user-123-personal"
    assert (session.ended_at, session.expires_at, session.message_count, session.memory_count) == (None, None, 0, 0)
    assert session.started_at == session.last_active_at
    assert before - timedelta(days=3000) < session.started_at


async def test_create_with_an_end_of_its_own(sessions: SessionManager, clock: FakeClock) -> None:
    expires_at = datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(hours=1)
    session = await sessions.create(user_id="user-123", expires_at=expires_at)
    assert session.expires_at == expires_at
    clock.advance(3600)
    with pytest.raises(SessionError) as error:
        await sessions.touch(session.session_id)
    assert error.value.code == "SESSION_EXPIRED"


async def test_get(sessions: SessionManager) -> None:
    await sessions.create("user-123", session_id="session-xyz")
    session = await sessions.get("session-xyz")
    assert session
    assert session.status == "active"
    assert session.last_active_at.tzinfo is UTC
    assert await sessions.get("no such session") is None


async def test_get_or_create(sessions: SessionManager, clock: FakeClock) -> None:
    session = await sessions.get_or_create("user-123", {"device_type": "mobile"})
    assert session.metadata == {"device_type": "mobile"}
    clock.advance(60)
    again = await sessions.get_or_create("user-123", {"device_type": "desktop"})
    assert again.session_id == session.session_id
    assert again.last_active_at == session.last_active_at + timedelta(seconds=60)


async def test_touch(sessions: SessionManager, clock: FakeClock) -> None:
    session = await sessions.create("user-123")
    for _ in range(5):
        clock.advance(29 * 60)
        await sessions.touch(session.session_id)
    clock.advance(29 * 60)
    assert (await sessions.get(session.session_id, strict=True)).status == "active"


async def test_end(sessions: SessionManager) -> None:
    session = await sessions.create("user-123")
    await sessions.end(session.session_id)
    assert (await sessions.get(session.session_id, strict=True)).status == "ended"
    with pytest.raises(SessionError) as error:
        async with sessions.open(session.session_id):
            pass
    assert error.value.code == "SESSION_ALREADY_ENDED"


async def test_end_all(sessions: SessionManager) -> None:
    for _ in range(3):
        await sessions.create("user-123")
    other = await sessions.create("user-456")
    result = await sessions.end_all("user-123")
    assert result.ended == 3
    assert await sessions.get_active("user-123") == []
    assert (await sessions.get(other.session_id, strict=True)).status == "active"


async def test_list_and_count(sessions: SessionManager, clock: FakeClock) -> None:
    mine = [(await sessions.create("user-123")).session_id for _ in range(2)]
    await sessions.create("user-123", tenant_id="tenant-abc")
    await sessions.create("user-456", tenant_id="tenant-abc")
    left = await sessions.create("user-789", tenant_id="tenant-abc")
    await sessions.for_tenant("tenant-abc").end(left.session_id)

    active_sessions = await sessions.list(user_id="user-123", status="active")
    assert {session.session_id for session in active_sessions} == {*mine}

    tenant_sessions = await sessions.list(tenant_id="tenant-abc", status="active", limit=100)
    assert {session.user_id for session in tenant_sessions} == {"user-123", "user-456"}

    assert await sessions.count(tenant_id="tenant-abc", status="active") == 2

    middle = datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(minutes=1)
    clock.advance(120)
    late = await sessions.create("user-123")
    page = await sessions.list(user_id="user-123", started_after=middle)
    assert [session.session_id for session in page] == [late.session_id]
    page = await sessions.list(user_id="user-123", started_before=middle, limit=1, offset=1)
    assert len(page) == 1
    assert page.sessions[0].session_id in mine


async def test_get_active(sessions: SessionManager, clock: FakeClock) -> None:
    for device in ("web", "mobile"):
        await sessions.create("user-123", metadata={"device_type": device})
        clock.advance(1)
    active = await sessions.get_active("user-123")
    assert [session.metadata.get("device_type") for session in active] == ["mobile", "web"]


async def test_expire_idle(sessions: SessionManager, clock: FakeClock) -> None:
    for number in range(3):
        await sessions.create(f"user-{number}", tenant_id="tenant-abc")
    clock.advance(31 * 60)
    assert await sessions.count(tenant_id="tenant-abc", status="idle") == 3
    assert (await sessions.expire_idle(tenant_id="tenant-abc")).expired == 0
    clock.advance(24 * 3600)
    assert (await sessions.expire_idle(tenant_id="tenant-abc", dry_run=True)).expired == 3
    result = await sessions.expire_idle(tenant_id="tenant-abc")
    assert result.expired == 3
    assert await sessions.count(tenant_id="tenant-abc", status="ended") == 3
    assert (await sessions.expire_idle(tenant_id="tenant-abc")).expired == 0


async def test_expire_idle_by_an_age(sessions: SessionManager, clock: FakeClock) -> None:
    await sessions.create("user-123")
    clock.advance(600)
    assert (await sessions.expire_idle(max_age=600)).expired == 0
    assert (await sessions.expire_idle(max_age=599)).expired == 1


async def test_set_policy(sessions: SessionManager, clock: FakeClock) -> None:
    await sessions.set_policy({"inactiveTimeout": 1_800_000, "absoluteTimeout": 86_400_000, "maxSessionsPerUser": 10})
    made = [await sessions.create("user-123") for _ in range(10)]
    with pytest.raises(SessionError) as error:
        await sessions.create("user-123")
    assert error.value.code == "SESSION_LIMIT_REACHED"
    for _ in range(48):
        clock.advance(1800 - 0.001)
        await sessions.touch(made[0].session_id)
    clock.advance(0.048)
    assert (await sessions.get(made[0].session_id, strict=True)).status == "ended"


async def test_auth_context(sessions: SessionManager) -> None:
    auth = AuthContext(
        user_id="user-123",
        session_id="session-xyz",
        tenant_id="tenant-abc",
        auth_provider="auth0",
        claims={"email": "user@example.com", "roles": ["admin"]},
    )
    with sessions.acting_as(auth):
        session = await sessions.create()
        assert (session.user_id, session.tenant_id) == ("user-123", "tenant-abc")
    assert await sessions.count(tenant_id="tenant-abc") == 1


async def test_a_users_sessions_go_with_the_user(sessions: SessionManager) -> None:
    for _ in range(3):
        await sessions.create("user-123")
    await sessions.create("user-456")
    assert (await sessions.delete_user("user-123")).counts["sessions"] == 3
    assert await sessions.count() == 1


async def test_session_resume_flow(sessions: SessionManager, clock: FakeClock) -> None:
    async def handle_user_connection(user_id: str, metadata: dict[str, Any]) -> SessionRecord:
        existing_sessions = await sessions.get_active(user_id)
        if len(existing_sessions) > 0:
            session = existing_sessions[0]
            await sessions.touch(session.session_id)
            return session
        return await sessions.create(user_id=user_id, metadata=metadata)

    first = await handle_user_connection("user-123", {"device_type": "web"})
    clock.advance(60)
    assert (await handle_user_connection("user-123", {})).session_id == first.session_id
    clock.advance(30 * 60)
    assert (await handle_user_connection("user-123", {})).session_id != first.session_id


async def test_multi_device_support(sessions: SessionManager) -> None:
    devices = {device: await sessions.create("user-123", metadata={"device_type": device}) for device in ("a", "b")}
    devices["unknown"] = await sessions.create("user-123")
    current_session_id = devices["a"].session_id

    async def get_active_sessions(user_id: str) -> list[dict[str, Any]]:
        return [
            {
                "id": s.session_id,
                "device": s.metadata.get("device_type") or "unknown",
                "last_active": s.last_active_at,
                "is_current": s.session_id == current_session_id,
            }
            for s in await sessions.get_active(user_id)
        ]

    async def logout_other_devices(user_id: str, current_session_id: str) -> None:
        for session in await sessions.get_active(user_id):
            if session.session_id != current_session_id:
                await sessions.end(session.session_id)

    assert sorted((s["device"], s["is_current"]) for s in await get_active_sessions("user-123")) == [
        ("a", True),
        ("b", False),
        ("unknown", False),
    ]
    await logout_other_devices("user-123", current_session_id)
    assert [s["device"] for s in await get_active_sessions("user-123")] == ["a"]


async def test_session_analytics(sessions: SessionManager, clock: FakeClock) -> None:
    async def get_session_stats(tenant_id: str) -> dict[str, int]:
        active, idle, ended = await asyncio.gather(
            sessions.count(tenant_id=tenant_id, status="active"),
            sessions.count(tenant_id=tenant_id, status="idle"),
            sessions.count(tenant_id=tenant_id, status="ended"),
        )
        return {"currently_online": active, "recently_active": idle, "total_sessions": active + idle + ended}

    acme = sessions.for_tenant("acme")
    await acme.end((await acme.create("left")).session_id)
    await acme.create("resting")
    clock.advance(1800)
    for number in range(3):
        await acme.create(f"user-{number}")
    await sessions.create("elsewhere")
    told = await get_session_stats("acme")
    assert told == {"currently_online": 3, "recently_active": 1, "total_sessions": 5}
    stats = await sessions.stats(tenant_id="acme")
    assert (stats.active, stats.idle, stats.total) == (3, 1, 5)


async def test_error_handling(sessions: SessionManager, clock: FakeClock) -> None:
    ended = await sessions.create("user-123")
    await sessions.end(ended.session_id)
    expired = await sessions.create("user-123", policy={"absolute_timeout": "1h"})
    clock.advance(3600)
    codes = []
    for session_id in ("invalid-session-id", expired.session_id, ended.session_id):
        try:
            await sessions.touch(session_id)
        except SessionError as error:
            codes.append(error.code)
    assert codes == ["SESSION_NOT_FOUND", "SESSION_EXPIRED", "SESSION_ALREADY_ENDED"]
