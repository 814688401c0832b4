"""What many do at once has one outcome, on every store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from secrets import token_bytes

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import SessionError
from agent_sessions.stores.base import Amend, Amended, Key, Kind, Page
from agent_sessions.testing import FakeClock
from tests.lifecycle.conftest import Everywhere
from tests.support import alone

HOUR, DAY = 3600.0, 86_400.0


async def outcome(work: Awaitable[object]) -> str:
    try:
        await work
    except SessionError as error:
        return error.code
    return "done"


async def at_once(*works: Awaitable[object]) -> Counter[str]:
    return Counter(await asyncio.gather(*map(outcome, works)))


async def test_fifty_ask_for_one_new_user(everywhere: Everywhere) -> None:
    managers = [everywhere() for _ in range(5)]
    times = everywhere.fewer(50)
    records = await asyncio.gather(*(managers[number % 5].get_or_create("new") for number in range(times)))
    assert len({record.session_id for record in records}) == 1
    assert len(await managers[0].list("new")) == 1


async def test_fifty_create_against_a_limit_of_ten(everywhere: Everywhere) -> None:
    allowed, times = everywhere.fewer(10), everywhere.fewer(50)
    managers = [everywhere(policy={"max_sessions_per_user": allowed}) for _ in range(5)]
    outcomes = await at_once(*(managers[number % 5].create("u") for number in range(times)))
    assert outcomes == {"done": allowed, "SESSION_LIMIT_REACHED": times - allowed}
    assert len(await managers[0].list("u")) == allowed


async def test_creates_at_once_that_end_the_oldest_leave_as_many_as_allowed(everywhere: Everywhere) -> None:
    managers = [everywhere(policy={"max_sessions_per_user": 3, "on_limit": "end_oldest"}) for _ in range(3)]
    assert await at_once(*(managers[number % 3].create("u") for number in range(8))) == {"done": 8}
    assert (await managers[0].stats()).active == 3
    ended = await managers[0].list("u", status="ended")
    assert [record.end_reason for record in ended] == ["replaced"] * 5


async def test_one_of_many_creates_of_an_id_wins(everywhere: Everywhere) -> None:
    managers = [everywhere() for _ in range(3)]
    outcomes = await at_once(*(managers[number % 3].create(f"u{number}", session_id="s") for number in range(20)))
    assert outcomes == {"done": 1, "SESSION_ALREADY_EXISTS": 19}


async def test_an_end_comes_before_a_turn_or_after_it(everywhere: Everywhere) -> None:
    """Whatever the order: what is stored is what a turn that succeeded wrote, and the end is told once."""
    managers = [everywhere() for _ in range(3)]
    ends: list[str] = []
    for manager in managers:
        manager.listen(lambda event: ends.append(event.session_id) if event.type == "ended" else None)
    rounds = everywhere.fewer(10)
    for number in range(rounds):
        session_id = f"s{number}"
        await managers[0].create(session_id=session_id)
        outcomes = await at_once(
            *(asyncio.create_task(add(manager, session_id), context=alone()) for manager in managers),
            *(manager.end(session_id) for manager in managers),
        )
        assert sum(outcomes.values()) == 6
        assert outcomes.keys() <= {"done", "SESSION_ALREADY_ENDED"}
        async with managers[0].read(session_id) as snapshot:
            assert snapshot.get("n", 0) == outcomes["done"] - 3
    assert sorted(ends) == [f"s{number}" for number in range(rounds)]


async def test_a_delete_comes_before_a_turn_or_after_it(everywhere: Everywhere) -> None:
    managers = [everywhere() for _ in range(2)]
    for number in range(everywhere.fewer(10)):
        session_id = f"s{number}"
        await managers[0].create(session_id=session_id)
        turns = await asyncio.gather(
            *(asyncio.create_task(outcome(add(manager, session_id)), context=alone()) for manager in managers),
            managers[number % 2].delete(session_id),
        )
        assert {turns[0], turns[1]} <= {"done", "SESSION_NOT_FOUND"}
        assert turns[2] is True
        assert await managers[0].get(session_id) is None


async def test_three_that_expire_tell_each_session_once(everywhere: Everywhere, clock: FakeClock) -> None:
    managers = [everywhere() for _ in range(3)]
    heard: list[str] = []
    for manager in managers:
        manager.listen(lambda event: heard.append(event.session_id) if event.type == "ended" else None)
    ids = [f"s{number:02}" for number in range(40)]
    await asyncio.gather(*(managers[0].create("u", session_id=id) for id in ids))
    async with managers[0].open("chat"):
        pass
    clock.advance(DAY + HOUR)
    async with managers[1].open("young"):
        runs = await asyncio.gather(*(manager.expire_idle() for manager in managers))
    assert sorted(id for run in runs for id in run.session_ids) == ids
    assert sorted(heard) == ids
    assert [run.expired for run in await asyncio.gather(*(manager.expire_idle() for manager in managers))] == [0] * 3


async def test_who_finds_ended_what_is_on_a_page_takes_parts_of_the_next_ones() -> None:
    """Else all who expire at the same time would go through all pages together."""
    tried: list[int] = []

    class Overtaking(MemoryStore):
        async def run_out(self, tenant: str, kind: Kind, *, limit: int = 100) -> Page:
            page = await super().run_out(tenant, kind, limit=limit)
            if not tried:
                for found in page.found:
                    await super().amend(Key(tenant, kind, found.id), Amend(id=token_bytes(8), end=True))
            tried.append(0)
            return page

        async def amend(self, key: Key, amend: Amend) -> Amended:
            tried[-1] += 1
            return await super().amend(key, amend)

    clock = FakeClock()
    manager = SessionManager(Overtaking(clock=clock))
    for _ in range(625):
        await manager.create()
    clock.advance(DAY + HOUR)
    assert (await manager.expire_idle()).expired == 425
    assert tried == [200, 25, 50, 100, 200, 50]
    assert (await manager.expire_idle()).expired == 0


async def test_what_is_held_is_not_expired_for_its_age(everywhere: Everywhere, clock: FakeClock) -> None:
    manager, elsewhere = everywhere(), everywhere()
    await manager.create(session_id="resting")
    await manager.create(session_id="held")
    async with manager.open("held") as session:
        clock.advance(20)
        session.set("a", 1)
        assert (await elsewhere.expire_idle(max_age=10, dry_run=True)).session_ids == ["resting"]
        assert (await elsewhere.expire_idle(max_age=10)).session_ids == ["resting"]
    assert (await manager.stats()).active == 1


async def test_changes_of_a_record_at_once_lose_nothing(everywhere: Everywhere) -> None:
    managers = [everywhere() for _ in range(2)]
    made = await managers[0].create("u", session_id="s")
    works = [manager.update("s", metadata={f"{n}{m}": n}) for m, manager in enumerate(managers) for n in range(4)]
    works += [manager.extend("s", hours=1) for manager in managers for _ in range(3)]
    await asyncio.gather(*works, add(managers[0], "s"))
    record = await managers[1].get("s", strict=True)
    assert record is not None
    assert len(record.metadata) == 8
    assert record.expires_at is not None
    assert (record.expires_at - made.started_at).total_seconds() == 7 * DAY + 6 * HOUR
    assert record.revision == 2


async def add(manager: SessionManager, session_id: str) -> None:
    async with manager.open(session_id, create=False) as session:
        await asyncio.sleep(0)
        session.update("n", lambda n: n + 1, default=0)
