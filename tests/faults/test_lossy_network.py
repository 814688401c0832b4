"""Requests reach the store, answers get lost."""

from __future__ import annotations

import asyncio

import pytest

from agent_sessions import SessionError, SessionManager, Settings
from agent_sessions.errors import CommitUnknownError
from agent_sessions.settings import TurnSettings
from agent_sessions.stores.redis import RedisStore
from tests.faults.proxy import Fault, LossyProxy

SESSIONS, TURNS_EACH = 8, 125


@pytest.mark.parametrize("fault", ["drop the reply", "close the connection"])
async def test_a_thousand_turns_are_each_stored_once_or_reported(redis_url: str, fault: Fault) -> None:
    settings = Settings(turn=TurnSettings(lease_s=2))
    direct = SessionManager(RedisStore.from_url(redis_url))
    async with LossyProxy(redis_url, fault) as proxy:
        store = RedisStore.from_url(proxy.url, timeout_s=0.1)
        manager = SessionManager(store, settings=settings)
        told = await asyncio.gather(*(_turns(manager, direct, f"s{index}") for index in range(SESSIONS)))
        await store.aclose()
    assert proxy.lost > 100
    for index, (stored, failed) in enumerate(told):
        assert len(stored) + len(failed) == TURNS_EACH
        async with direct.read(f"s{index}") as session:
            turns = [item["turn"] for item in await session.namespace("openai").log("items").read()]
            assert session.get("turns") == len(turns)
        assert len(turns) == len(set(turns)), "a turn was applied twice"
        assert set(turns) == stored, "a turn was lost, or one that failed is stored"
        assert turns == sorted(turns)
    await direct.store.aclose()


async def _turns(manager: SessionManager, direct: SessionManager, session_id: str) -> tuple[set[int], set[int]]:
    """Run turns; return which are stored and which are not. Of one that nobody can tell, ask its commit."""
    stored: set[int] = set()
    failed: set[int] = set()
    for turn in range(TURNS_EACH):
        try:
            async with manager.open(session_id) as session:
                session.update("turns", lambda count: count + 1, default=0)
                await session.namespace("openai").log("items").append([{"turn": turn}])
            stored.add(turn)
        except CommitUnknownError as error:
            status = await direct.commit_status(session_id, error.commit_id)
            assert status != "unknown"
            (stored if status == "stored" else failed).add(turn)
        except SessionError as error:
            assert error.code in ("STORE_UNAVAILABLE", "SESSION_BUSY")
            failed.add(turn)
    return stored, failed
