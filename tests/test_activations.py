"""Activations beside sessions that end, are deleted, or are many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_sessions import Activation, MemoryStore, Runner, Session, SessionManager
from agent_sessions.errors import SessionEndedError, SessionError
from agent_sessions.runs.adapters import Call, Outcome
from agent_sessions.stores.base import Commit, Committed, Key, Kind, Page, Store
from agent_sessions.testing import FakeClock
from tests.fixtures import MakeManager, make_manager, manager
from tests.support import Barrier, Before, alone, until

__all__ = ["make_manager", "manager"]

Work = Callable[[], Awaitable[object]]


class Fault(Exception):
    """What an agent raises."""


async def answer(prompt: str, session: Session) -> str:
    session.set("heard", prompt)
    return f"re: {prompt}"


class Ids:
    """A hook that notes the activations that it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def before_run(self, call: Call) -> None:
        self.seen.append(call.activation_id)

    async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
        return outcome


class Beside(Before):
    """Does something before the activation of a run is written as running, or around what it has become."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.before_start: Work | None = None
        self.before_end: Work | None = None
        self.after_end: Work | None = None

    async def commit(self, key: Key, commit: Commit) -> Committed:
        work = self.before_start if commit.hold_ms else self.before_end
        if key.kind == "run" and work is not None:
            await work()
        committed = await super().commit(key, commit)
        if key.kind == "run" and commit.hold_ms is None and self.after_end is not None:
            await self.after_end()
        return committed


async def keys(manager: SessionManager) -> Counter[str]:
    """How many keys of each kind there are in the store, but for the library's own."""
    found: dict[Key, None] = {}
    cursor = None
    while True:
        page = await manager.store.scan(limit=100, cursor=cursor)
        found |= dict.fromkeys(key for key in page.keys if key.kind != "system")
        cursor = page.next
        if cursor is None:
            return Counter(key.kind for key in found)


async def elsewhere(work: Awaitable[object]) -> None:
    """Do something as somebody would who is not part of the run."""

    async def done() -> None:
        await work

    await asyncio.create_task(done(), context=alone())


async def outcome_of(work: Awaitable[Any]) -> str:
    try:
        return str((await work).status)
    except SessionError as error:
        return error.code
    except Fault:
        return "Fault"


# ------------------------------------------------------------------------------------------- deleted while it runs


@pytest.mark.parametrize("raises", [False, True], ids=["it answers", "it raises"])
@pytest.mark.parametrize("by", ["session", "user"])
async def test_a_run_whose_session_is_deleted_meanwhile_leaves_nothing(
    make_manager: MakeManager, by: str, raises: bool
) -> None:
    manager, other = make_manager(), make_manager()
    ids = Ids()
    runner = Runner(manager, hooks=[ids])
    await runner.run(answer, "s", "1", user_id="u")

    async def agent(prompt: str, session: Session) -> str:
        await elsewhere(other.delete("s") if by == "session" else other.delete_user("u"))
        if raises:
            raise Fault
        return await answer(prompt, session)

    assert await outcome_of(runner.run(agent, "s", "2", user_id="u")) == ("Fault" if raises else "SESSION_NOT_FOUND")
    assert await keys(other) == Counter()
    assert [await runner.get_activation(one) for one in ids.seen] == [None, None]


async def test_a_run_that_would_make_a_session_for_a_user_who_is_being_erased_leaves_nothing(
    make_manager: MakeManager,
) -> None:
    manager, other = make_manager(), make_manager()

    async def agent(prompt: str, session: Session) -> str:
        await elsewhere(other.delete_user("u"))
        return await answer(prompt, session)

    async def failing(prompt: str, session: Session) -> None:
        await elsewhere(other.delete_user("u"))
        raise Fault

    assert await outcome_of(Runner(manager).run(agent, "s", "1", user_id="u")) == "SESSION_CONFLICT"
    assert await outcome_of(Runner(manager).run(failing, "t", "1", user_id="u")) == "Fault"
    assert await keys(other) == Counter()


async def test_what_is_deleted_between_the_commit_and_the_end_of_the_run_stays_deleted(
    make_manager: MakeManager,
) -> None:
    beside: list[Beside] = []

    def wrapped(inner: Store) -> Beside:
        beside.append(Beside(inner))
        return beside[-1]

    manager, other = make_manager(wrapped), make_manager()
    beside[0].before_end = lambda: elsewhere(other.delete("s"))

    assert (await Runner(manager).run(answer, "s", "1")).output == "re: 1"
    assert await keys(other) == Counter()


@pytest.mark.parametrize("by", ["session", "user"])
async def test_an_activation_that_is_written_after_its_session_was_deleted_goes_with_the_run(
    make_manager: MakeManager, by: str
) -> None:
    beside: list[Beside] = []

    def wrapped(inner: Store) -> Beside:
        beside.append(Beside(inner))
        return beside[-1]

    manager, other = make_manager(wrapped), make_manager()
    await Runner(manager).run(answer, "s", "1", user_id="u")
    is_deleted = asyncio.Event()
    beside[0].before_start = is_deleted.wait

    async def agent(prompt: str, session: Session) -> str:
        await elsewhere(other.delete("s") if by == "session" else other.delete_user("u"))
        is_deleted.set()
        return await answer(prompt, session)

    assert await outcome_of(Runner(manager).run(agent, "s", "2")) == "SESSION_NOT_FOUND"
    assert await keys(other) == Counter()


async def test_an_activation_is_written_before_its_turn_is_stored(make_manager: MakeManager) -> None:
    beside: list[Beside] = []

    def wrapped(inner: Store) -> Beside:
        beside.append(Beside(inner))
        return beside[-1]

    manager, other = make_manager(wrapped), make_manager()
    has_answered = asyncio.Event()

    async def late() -> None:
        await has_answered.wait()
        assert await other.get("s") is None

    async def agent(prompt: str, session: Session) -> str:
        has_answered.set()
        return prompt

    beside[0].before_start = late
    await Runner(manager).run(agent, "s", "1")
    assert await keys(other) == Counter(session=1, run=1)


async def test_a_run_inside_a_turn_whose_session_was_deleted_leaves_nothing(make_manager: MakeManager) -> None:
    manager, other = make_manager(), make_manager()
    async with manager.open("s"):
        pass

    async def turn() -> None:
        async with manager.open("s"):
            await Runner(manager).run(answer, "s", "before")
            await elsewhere(other.delete("s"))
            await Runner(manager).run(answer, "s", "after")

    with pytest.raises(SessionError) as caught:
        await turn()
    assert caught.value.code == "SESSION_NOT_FOUND"
    assert await keys(other) == Counter()


async def test_a_session_made_anew_keeps_its_own_activations_only(make_manager: MakeManager) -> None:
    manager, other = make_manager(), make_manager()
    await Runner(manager).run(answer, "s", "1")

    async def anew() -> None:
        await other.delete("s")
        await Runner(other).run(answer, "s", "anew")

    async def agent(prompt: str, session: Session) -> str:
        await elsewhere(anew())
        return prompt

    assert await outcome_of(Runner(manager).run(agent, "s", "2")) == "SESSION_CONFLICT"
    assert [one.payload for one in await Runner(manager).activations("s")] == ["anew"]


async def test_whoever_deletes_among_runs_no_activation_is_left_without_its_session(make_manager: MakeManager) -> None:
    managers = [make_manager() for _ in range(4)]
    sessions = ["a", "b"]

    async def run(manager: SessionManager, number: int) -> str:
        return await outcome_of(Runner(manager).run(answer, sessions[number % 2], str(number), user_id="u"))

    async def erase(number: int) -> None:
        await managers[0].delete(sessions[number % 2])

    async def one_after_another(place: int, manager: SessionManager) -> list[str]:
        outcomes = []
        for number in range(12):
            outcomes.append(await run(manager, number + place))
            if place == 0:
                await erase(number)
        return outcomes

    told = await asyncio.gather(*(one_after_another(place, manager) for place, manager in enumerate(managers)))
    assert {one for outcomes in told for one in outcomes} <= {"COMPLETE", "SESSION_NOT_FOUND", "SESSION_CONFLICT"}
    for session_id in sessions:
        await managers[1].delete(session_id)
    assert await keys(managers[2]) == Counter()


class Overtaken(Before):
    """Does something once, after it has listed the activations of a session and before the caller goes on."""

    work: Work | None = None

    async def find(self, tenant: str, kind: Kind, **asked: Any) -> Page:
        page = await self.inner.find(tenant, kind, **asked)
        work = self.work if kind == "run" else None
        if work is not None:
            self.work = None
            await work()
        return page


@pytest.mark.parametrize("by", ["session", "user"])
async def test_a_run_between_two_steps_of_a_deletion_is_deleted_as_well(make_manager: MakeManager, by: str) -> None:
    overtaken: list[Overtaken] = []

    def wrapped(inner: Store) -> Overtaken:
        overtaken.append(Overtaken(inner))
        return overtaken[-1]

    manager, other = make_manager(wrapped), make_manager()
    await Runner(other).run(answer, "s", "1", user_id="u")
    overtaken[0].work = lambda: Runner(other).run(answer, "s", "2")

    await (manager.delete("s") if by == "session" else manager.delete_user("u"))
    left = await keys(other)
    assert left["run"] == left["session"]


# --------------------------------------------------------------------------------------------------------- ended


async def test_the_end_of_a_run_that_is_cancelled_just_then_is_written_once(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    beside: list[Beside] = []

    def wrapped(inner: Store) -> Beside:
        beside.append(Beside(inner))
        return beside[-1]

    manager, barrier = make_manager(wrapped), Barrier()
    beside[0].after_end = barrier.stop
    running = asyncio.create_task(Runner(manager).run(answer, "s", "1"))
    await barrier.reached.wait()
    running.cancel()
    barrier.lift()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert [one.status for one in await Runner(manager).activations("s")] == ["COMPLETE"]
    assert caplog.messages == []


async def test_runs_on_an_ended_session_are_refused_and_kept_as_failed(make_manager: MakeManager) -> None:
    manager, other = make_manager(), make_manager()
    runner = Runner(manager)

    async def agent(prompt: str, session: Session) -> str:
        await elsewhere(other.end("s"))
        return await answer(prompt, session)

    await runner.run(answer, "s", "1")
    for one in (agent, answer):
        with pytest.raises(SessionEndedError):
            await runner.run(one, "s", "2")

    told = [(one.status, one.error, one.payload) for one in await runner.activations("s")]
    assert told == [("FAILED", "SESSION_ALREADY_ENDED", "2")] * 2 + [("COMPLETE", None, "1")]
    async with manager.read("s") as session:
        assert session.get("heard") == "1"


async def test_a_run_that_fails_before_there_is_a_session_of_its_user_keeps_no_text(manager: SessionManager) -> None:
    async def agent(prompt: str, session: Session) -> None:
        raise Fault

    async def only() -> Activation:
        [activation] = await runner.activations("s")
        return activation

    runner = Runner(manager)
    assert await outcome_of(runner.run(agent, "s", "secret", user_id="u")) == "Fault"
    assert ((await only()).status, (await only()).payload) == ("FAILED", None)
    await manager.delete("s")
    assert await outcome_of(runner.run(agent, "s", "of nobody")) == "Fault"
    assert (await only()).payload == "of nobody"


# ---------------------------------------------------------------------------------------------------------- many


class Asked(Before):
    """Counts what is asked of the store, of activations."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.asked: Counter[str] = Counter()

    async def commit(self, key: Key, commit: Commit) -> Committed:
        self.asked["commit"] += key.kind == "run"
        return await super().commit(key, commit)

    async def delete(self, key: Key, write_id: bytes) -> bool:
        self.asked["delete"] += key.kind == "run"
        return await super().delete(key, write_id)

    async def find(self, *where: Any, **asked: Any) -> Page:
        self.asked["find"] += 1
        return await self.inner.find(*where, **asked)


async def test_old_activations_go_and_none_is_read_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.9)
    clock = FakeClock()
    inner = MemoryStore(clock)
    asked = Asked(inner)
    runner = Runner(SessionManager(asked.store))
    for number in range(140):
        await runner.run(answer, "s", str(number))
        clock.advance(0.001)

    async def are_gone() -> bool:
        return await inner.count("default", "run", belongs_to="s") == 108

    await until(are_gone)
    assert asked.asked == Counter(commit=280, delete=32)
    assert [one.payload for one in await runner.activations("s", limit=200)] == [str(n) for n in range(139, 39, -1)]


async def test_those_of_other_processes_go_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.9)
    store = MemoryStore()
    for part in range(3):
        runner = Runner(SessionManager(store))
        for number in range(50):
            await runner.run(answer, "s", f"{part}-{number}")
    assert await store.count("default", "run", belongs_to="s") == 150
    monkeypatch.setattr("random.random", lambda: 0.0)
    await Runner(SessionManager(store)).run(answer, "s", "last")

    async def are_gone() -> bool:
        return await store.count("default", "run", belongs_to="s") == 100

    await until(are_gone)
