"""Every rule about the status of a session, by the clock, on every store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent_sessions import Session, SessionManager
from agent_sessions.auth import AuthContext
from agent_sessions.errors import SessionError
from agent_sessions.testing import FakeClock
from tests.lifecycle.conftest import Everywhere

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
MOMENT = 0.001


@pytest.fixture
def manager(everywhere: Everywhere) -> SessionManager:
    return everywhere()


async def status_of(manager: SessionManager, session_id: str) -> str:
    """As the record says, in accord with what listings and counts say."""
    record = await manager.get(session_id)
    if record is None:
        return "gone"
    page = await manager.list(status=record.status)
    assert session_id in [listed.session_id for listed in page]
    return record.status


async def after(manager: SessionManager, clock: FakeClock, session_id: str, seconds: float) -> tuple[str, str]:
    """The status a moment before so many seconds have passed, and then."""
    clock.advance(seconds - MOMENT)
    before = await status_of(manager, session_id)
    clock.advance(MOMENT)
    return before, await status_of(manager, session_id)


def _in(clock: FakeClock, seconds: float) -> datetime:
    return datetime.fromtimestamp(clock.now_ms() / 1000, UTC) + timedelta(seconds=seconds)


# --------------------------------------------------------------------------------------------------- by the clock


async def test_a_created_session_idles_and_ends_and_goes_to_the_second(
    manager: SessionManager, clock: FakeClock
) -> None:
    await manager.create("u", session_id="s")
    assert await after(manager, clock, "s", 30 * MINUTE) == ("active", "idle")
    assert await after(manager, clock, "s", DAY) == ("idle", "ended")
    assert await after(manager, clock, "s", 7 * DAY) == ("ended", "gone")
    assert (await manager.stats()).total == 0


async def test_an_opened_session_never_ends_by_idling(manager: SessionManager, clock: FakeClock) -> None:
    await manager.append("appended", "openai", "items", [1])
    async with manager.open("s"):
        pass
    assert await after(manager, clock, "s", 30 * MINUTE) == ("active", "idle")
    clock.advance(6 * DAY)
    assert await status_of(manager, "s") == "idle"
    await manager.touch("s")  # nor does one that was touched or created over
    assert await after(manager, clock, "s", 7 * DAY) == ("idle", "gone")
    assert await status_of(manager, "appended") == "gone"
    assert (await manager.expire_idle()).expired == 0


async def test_the_ttl_counts_from_the_last_activity(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create(session_id="s", ttl=1000)
    assert (await manager.create(session_id="forever", ttl=0, policy={"end_after": None})).gone_at is None
    clock.advance(900)
    await manager.update("s", metadata={"no": "activity"})
    await manager.list()
    async with manager.read("s"):
        pass
    assert await after(manager, clock, "s", 100) == ("active", "gone")
    await manager.create(session_id="s", ttl=1000)
    for activity in (lambda: manager.touch("s"), lambda: manager.extend("s", seconds=1), lambda: _turn(manager)):
        clock.advance(900)
        await activity()
    assert await status_of(manager, "s") == "active"
    clock.advance(100 * DAY)
    assert await status_of(manager, "forever") == "idle"


async def test_what_expires_and_what_is_too_old_ends_in_spite_of_activity(
    manager: SessionManager, clock: FakeClock
) -> None:
    await manager.create(session_id="s", expires_at=_in(clock, HOUR))
    await manager.create(session_id="old", policy={"absolute_timeout": "1h"})
    for _ in range(3):
        clock.advance(19 * MINUTE)
        await _turn(manager)
        await _turn(manager, "old")
    for id in ("s", "old"):
        record = await manager.get(id)
        assert record is not None
        assert record.time_remaining == timedelta(minutes=3)
    assert await after(manager, clock, "s", 3 * MINUTE) == ("active", "ended")
    for id in ("s", "old"):
        ended = await manager.get(id)
        assert ended is not None
        assert (ended.status, ended.end_reason, ended.ended_at) == ("ended", "expired", _in(clock, 0))
    assert await after(manager, clock, "old", 7 * DAY) == ("ended", "gone")


async def test_an_ended_session_stays_for_its_retention(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create(session_id="s", policy={"retention": "1h"})
    await manager.end("s")
    clock.advance(HOUR - MOMENT)
    assert (await manager.end("s")).duration == timedelta(0)
    clock.advance(MOMENT)
    assert await status_of(manager, "s") == "gone"


async def test_a_running_turn_keeps_a_session_from_idling_and_going(manager: SessionManager, clock: FakeClock) -> None:
    await manager.create(session_id="s", policy={"idle_after": 5, "end_after": 5}, ttl=20)
    for rests, status in ((4, "active"), (9, "idle"), (6, "idle")):
        clock.advance(rests)
        assert await status_of(manager, "s") == status
        async with manager.open("s") as session:
            clock.advance(15)
            assert await status_of(manager, "s") == "active"
            session.set("n", rests)
    async with manager.read("s") as snapshot:
        assert snapshot.get("n") == 6
    clock.advance(10)
    assert await status_of(manager, "s") == "ended"


async def test_what_is_changed_beside_a_turn_does_not_let_its_session_idle_or_go(
    everywhere: Everywhere, clock: FakeClock
) -> None:
    manager, beside = everywhere(), everywhere()
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "touch": lambda: beside.touch("touch"),
        "update": lambda: beside.update("update", description="new"),
        "apply_policy": beside.apply_policy,
    }
    for name, change in changes.items():
        await manager.create(session_id=name, ttl=5)
        async with manager.open(name) as session:
            session.set("n", 1)
            clock.advance(4)
            await change()
            clock.advance(6)
            assert await status_of(beside, name) == "active"
        assert (await manager.get(name, strict=True)).revision == 2


# --------------------------------------------------------------------------------------------------- what it refuses


async def _turn(manager: SessionManager, session: str | Session = "s", **options: Any) -> None:
    async with manager.open(session, **options) as opened:
        opened.set("by", "turn")


async def _attempt(manager: SessionManager) -> None:
    async with manager.attempt("s") as session:
        session.set("by", "attempt")


async def _made_over(manager: SessionManager) -> None:
    await manager.create("u", session_id="s")


Write = Callable[[SessionManager], Awaitable[object]]
WRITES: dict[str, Write] = {
    "open": _turn,
    "open existing": lambda manager: _turn(manager, create=False),
    "open as its user": lambda manager: _turn(manager, user_id="u"),
    "open by hand": lambda manager: _turn(manager, Session(id="s")),
    "attempt": _attempt,
    "append": lambda manager: manager.append("s", "openai", "items", [1]),
    "touch": lambda manager: manager.touch("s"),
    "update": lambda manager: manager.update("s", description="new"),
    "extend": lambda manager: manager.extend("s", hours=1),
}


async def outcome(work: Awaitable[object]) -> str:
    try:
        await work
    except SessionError as error:
        return error.code
    return "done"


async def _ended(manager: SessionManager, clock: FakeClock) -> str:
    await manager.create("u", session_id="s")
    await _turn(manager)
    await manager.end("s")
    return "SESSION_ALREADY_ENDED"


async def _idled_out(manager: SessionManager, clock: FakeClock) -> str:
    await manager.create("u", session_id="s")
    await _turn(manager)
    clock.advance(DAY + 30 * MINUTE)
    return "SESSION_ALREADY_ENDED"


async def _expired(manager: SessionManager, clock: FakeClock) -> str:
    await manager.create("u", session_id="s", expires_at=_in(clock, HOUR))
    await _turn(manager)
    clock.advance(HOUR)
    return "SESSION_EXPIRED"


@pytest.mark.parametrize("over", [_ended, _idled_out, _expired], ids=lambda over: over.__name__[1:])
async def test_what_has_ended_takes_no_write(
    everywhere: Everywhere, clock: FakeClock, over: Callable[[SessionManager, FakeClock], Awaitable[str]]
) -> None:
    manager, elsewhere = everywhere(), everywhere()
    code = await over(elsewhere, clock)
    await manager.get("s")  # so that it is in the cache, for the attempt
    before = await manager.export("s")
    assert {name: await outcome(write(manager)) for name, write in WRITES.items()} == dict.fromkeys(WRITES, code)
    assert await outcome(_made_over(manager)) == "SESSION_ALREADY_EXISTS"
    assert await outcome(manager.import_(before)) == "SESSION_ALREADY_EXISTS"
    assert await outcome(manager.fork("other", "s")) == "SESSION_NOT_FOUND"
    assert await manager.export("s") == before
    assert (await manager.fork("s")).status == "active"
    assert await manager.lock("s") is None
    assert await manager.unlock("s", force=True) is None
    reason = (await manager.end("s")).end_reason
    assert (await manager.end("s", reason="revoked")).end_reason == reason
    async with manager.read("s") as snapshot:
        assert snapshot.get("by") == "turn"
    assert await manager.delete("s")
    assert await manager.get("s") is None


@pytest.mark.parametrize("how", ["deleted", "past its TTL", "retained long enough"])
async def test_what_is_gone_is_as_if_it_had_never_been(everywhere: Everywhere, clock: FakeClock, how: str) -> None:
    manager, elsewhere = everywhere(), everywhere()
    await elsewhere.create("u", session_id="s", ttl=100)
    await _turn(elsewhere)
    await manager.get("s")  # so that it is in the cache, for the attempt
    if how == "deleted":
        assert await elsewhere.delete("s")
    elif how == "past its TTL":
        clock.advance(100)
    else:
        await elsewhere.end("s")
        clock.advance(7 * DAY)
    for name in ("touch", "update", "extend", "open existing", "attempt"):
        assert await outcome(WRITES[name](manager)) == "SESSION_NOT_FOUND", name
    for refused in (manager.end, manager.export, manager.fork):
        assert await outcome(refused("s")) == "SESSION_NOT_FOUND"
    assert not await manager.delete("s")
    assert await manager.lock("s") is None
    assert await manager.count() == 0
    async with manager.open("s", user_id="another") as session:
        assert session.get("by") is None
    record = await manager.get("s")
    assert record is not None
    assert (record.user_id, record.ttl) == ("another", timedelta(days=7))


async def test_what_is_anothers_is_refused_where_a_user_is_named_or_ownership_enforced(everywhere: Everywhere) -> None:
    manager = everywhere(enforce_ownership=True)
    await manager.create("bob", session_id="s")
    await _turn(manager)
    assert await outcome(_turn(manager, user_id="ann")) == "FORBIDDEN"
    assert await outcome(manager.append("s", "openai", "items", [1], user_id="ann")) == "FORBIDDEN"
    before = await manager.export("s")
    with manager.acting_as(AuthContext(user_id="ann")):
        for name, write in WRITES.items():
            assert await outcome(write(manager)) == "FORBIDDEN", name
        for refused in (manager.get, manager.end, manager.delete, manager.lock, manager.export, manager.fork):
            assert await outcome(refused("s")) == "FORBIDDEN"
        assert await outcome(manager.unlock("s", force=True)) == "FORBIDDEN"
        assert await outcome(manager.commit_status("s", "1--" + "0" * 16)) == "FORBIDDEN"
        for maintenance in (manager.stats, manager.expire_idle, manager.apply_policy):
            assert await outcome(maintenance()) == "FORBIDDEN"
    assert await manager.export("s") == before


async def test_what_is_nobodys_becomes_that_of_the_first_user_who_opens_it(everywhere: Everywhere) -> None:
    manager = everywhere(enforce_ownership=True)
    await _turn(manager)
    with manager.acting_as(AuthContext(user_id="ann")):
        await _turn(manager)
    with manager.acting_as(AuthContext(user_id="bob")):
        assert await outcome(_turn(manager)) == "FORBIDDEN"
    assert (await manager.list("ann")).sessions[0].session_id == "s"


async def test_a_turn_is_refused_when_its_session_ends_or_goes_meanwhile(everywhere: Everywhere) -> None:
    manager, elsewhere = everywhere(), everywhere()

    async def turn_during(over: Callable[[str], Awaitable[object]]) -> None:
        async with manager.open("s") as session:
            session.set("by", "turn")
            await over("s")

    await manager.create(session_id="s")
    assert await outcome(turn_during(elsewhere.end)) == "SESSION_ALREADY_ENDED"
    async with manager.read("s") as snapshot:
        assert snapshot.get("by") is None
    await manager.delete("s")
    await manager.create(session_id="s")
    assert await outcome(turn_during(elsewhere.delete)) == "SESSION_NOT_FOUND"
    assert await manager.get("s") is None
