"""The life of a session by the clock of the Redis server itself."""

from __future__ import annotations

import time

from agent_sessions import SessionManager
from tests.support import until


async def test_a_session_lives_by_the_servers_clock(redis_url: str) -> None:
    from agent_sessions.stores.redis import RedisStore

    store = RedisStore.from_url(redis_url, prefix="life:")
    manager = SessionManager(store)
    policy = {"idle_after": 0.2, "end_after": 0.2, "retention": 0.2}
    made = await manager.create("u", session_id="s", policy=policy)
    begun = time.monotonic()
    seen: list[tuple[str, float]] = [("active", 0.0)]

    async def is_gone() -> bool:
        record = await manager.get("s")
        status = "gone" if record is None else record.status
        if seen[-1][0] != status:
            seen.append((status, time.monotonic() - begun))
        if record is not None and record.status == "ended":
            assert record.ended_at is not None
            assert (record.ended_at - made.started_at).total_seconds() == 0.4
        return record is None

    await until(is_gone)
    assert [status for status, _ in seen] == ["active", "idle", "ended", "gone"]
    assert all(at >= due for (_, at), due in zip(seen[1:], (0.15, 0.35, 0.55), strict=True))
    assert (await manager.stats()).total == 0
    await store.aclose()
