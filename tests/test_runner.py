"""The runner: agents in turns, activations beside them, streams, hooks, nested runs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent_sessions import (
    Activation,
    MemoryStore,
    Runner,
    Session,
    SessionManager,
    Settings,
    SyncSessionManager,
    current_session,
    skill,
)
from agent_sessions.errors import (
    InvalidError,
    SessionBusyError,
    SessionConflictError,
    TurnClosedError,
)
from agent_sessions.runs.adapters import Call, Outcome
from agent_sessions.settings import TurnSettings
from agent_sessions.testing import FakeClock
from tests.fixtures import MakeManager, make_manager, manager
from tests.support import Failing, Stopping, alone, before, until

__all__ = ["make_manager", "manager"]


class Fault(Exception):
    """What an agent may raise."""


class Person(BaseModel):
    """What a caller may hand to an agent."""

    name: str


async def count(prompt: str, session: Session) -> str:
    """An agent that counts its runs."""
    number = session.update("runs", lambda n: n + 1, default=0)
    await session.log("prompts").append([prompt])
    return f"{number}: {prompt}"


def count_sync(prompt: str, session: Session) -> str:
    return f"{session.update('runs', lambda n: n + 1, default=0)}: {prompt}"


async def count_streaming(prompt: str, session: Session) -> AsyncIterator[str]:
    session.update("runs", lambda n: n + 1, default=0)
    for text in prompt:
        yield text


class Agent:
    async def __call__(self, prompt: str, session: Session) -> str:
        return await count(prompt, session)


class StreamingAgent:
    async def __call__(self, prompt: str, session: Session) -> AsyncIterator[str]:
        async for text in count_streaming(prompt, session):
            yield text


async def fail(prompt: str, session: Session) -> str:
    await count(prompt, session)
    raise Fault


async def error_of(work: Awaitable[Any]) -> BaseException:
    try:
        await work
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


async def runs_of(manager: SessionManager, session_id: str = "s") -> int:
    async with manager.read(session_id) as session:
        return int(session.get("runs", default=0))


async def activation_of(runner: Runner, activation_id: str) -> Activation:
    activation = await runner.get_activation(activation_id)
    assert activation is not None
    return activation


async def only_activation(runner: Runner, session_id: str = "s") -> Activation:
    async def is_written() -> bool:  # which happens beside the turn
        return bool(await runner.activations(session_id))

    await until(is_written)
    [activation] = await runner.activations(session_id)
    return activation


async def ended(runner: Runner) -> None:
    """Return when the one run of the session has ended."""

    async def has_ended() -> bool:
        return [one.status for one in await runner.activations("s")] not in ([], ["RUNNING"])

    await until(has_ended)


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("agent", [count, Agent()], ids=["function", "object"])
async def test_a_run_is_a_turn_of_its_session(manager: SessionManager, agent: Any) -> None:
    runner = Runner(manager)
    for number in (1, 2):
        run = await runner.run(agent, "s", "Hello!")
        assert (run.output, run.session_id, run.status) == (f"{number}: Hello!", "s", "COMPLETE")
    async with manager.read("s") as session:
        assert (session.get("runs"), session.revision) == (2, 2)
        assert await session.log("prompts").read() == ["Hello!", "Hello!"]


async def test_a_sync_agent_runs_in_a_thread_and_knows_its_session(manager: SessionManager) -> None:
    def agent(prompt: str, session: Session) -> str:
        assert current_session() is session
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return count_sync(prompt, session)

    assert (await Runner(manager).run(agent, "s", "Hi")).output == "1: Hi"


async def test_a_function_that_returns_an_awaitable_is_awaited(manager: SessionManager) -> None:
    assert (await Runner(manager).run(lambda prompt, session: count(prompt, session), "s", "Hi")).output == "1: Hi"


@pytest.mark.parametrize("agent", [count_streaming, StreamingAgent()], ids=["function", "object"])
async def test_a_generator_that_is_run_gives_all_its_text(manager: SessionManager, agent: Any) -> None:
    assert (await Runner(manager).run(agent, "s", "Hello")).output == "Hello"
    assert await runs_of(manager) == 1


async def test_what_is_no_agent_is_refused(manager: SessionManager) -> None:
    runner = Runner(manager)
    for agent in (object(), "agent", None):
        error = await error_of(runner.run(agent, "s", "Hi"))
        assert isinstance(error, InvalidError)
        assert error.code == "INVALID_AGENT"
    assert await manager.get("s") is None


@pytest.mark.parametrize("session", ["", "a\nb", "x" * 257, 5, b"s", "\ud800"], ids=repr)
async def test_a_bad_session_id_is_refused_and_leaves_no_trace(manager: SessionManager, session: Any) -> None:
    error = await error_of(Runner(manager).run(count, session, "Hi"))
    assert isinstance(error, InvalidError)
    assert error.code == "INVALID_SESSION_ID"
    assert (await manager.store.find("default", "run")).found == []


async def test_without_a_session_a_new_one_is_named_after_the_activation(manager: SessionManager) -> None:
    run = await Runner(manager).run(count, None, "Hi")
    assert run.session_id == run.activation_id
    assert await runs_of(manager, run.session_id) == 1


async def test_a_session_made_by_hand_is_bound(manager: SessionManager) -> None:
    mine = Session("s")
    mine.set("runs", 10)
    run = await Runner(manager).run(count, mine, "Hi")
    assert run.output == "11: Hi"
    assert (mine.get("runs"), mine.revision) == (11, 1)
    assert (await Runner(manager).run(count, mine, "Hi")).output == "12: Hi"


async def test_an_agent_that_raises_stores_nothing_and_its_error_is_raised_as_it_is(manager: SessionManager) -> None:
    runner = Runner(manager)
    await runner.run(count, "s", "Hi")
    error = await error_of(runner.run(fail, "s", "Hi"))
    assert type(error) is Fault
    assert error.__cause__ is None
    assert await runs_of(manager) == 1
    assert await manager.lock("s") is None


async def test_steps_of_a_run_that_fails_stay(manager: SessionManager) -> None:
    assert type(await error_of(Runner(manager).run(fail, "s", "Hi", commit="step"))) is Fault
    assert await runs_of(manager) == 1


async def test_a_busy_session_is_waited_for_or_refused(manager: SessionManager) -> None:
    runner = Runner(manager)
    async with manager.open("s"):
        running = asyncio.create_task(runner.run(count, "s", "Hi", wait_s=0), context=alone())
        assert type(await error_of(running)) is SessionBusyError
        waiting = asyncio.create_task(runner.run(count, "s", "Hi"), context=alone())
    assert (await waiting).output == "1: Hi"


async def test_user_tenant_metadata_and_options_reach_their_places(manager: SessionManager) -> None:
    seen: list[Call] = []

    class Look:
        async def before_run(self, call: Call) -> Outcome | None:
            seen.append(call)
            return None

        async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
            return outcome

    runner = Runner(manager, hooks=[Look()])
    run = await runner.run(
        count, "s", "Hi", user_id="u", tenant_id="acme", metadata={"a": 1}, context={"db": 1}, max_turns=3
    )
    assert (seen[0].context, seen[0].options, seen[0].activation_id) == ({"db": 1}, {"max_turns": 3}, run.activation_id)
    assert await manager.get("s") is None
    record = await manager.for_tenant("acme").get("s")
    assert record is not None
    assert (record.user_id, record.metadata) == ("u", {"a": 1})
    assert await runner.get_activation(run.activation_id) is None
    activation = await runner.get_activation(run.activation_id, tenant_id="acme")
    assert activation is not None
    assert (activation.user_id, activation.tenant_id) == ("u", "acme")


async def test_a_volatile_value_is_shared_in_a_run_and_gone_after_it(manager: SessionManager) -> None:
    held: list[Session] = []

    @skill
    async def remember(session: Session) -> None:
        session.volatile["seen"] = session.volatile.get("seen", 0) + 1

    async def agent(prompt: str, session: Session) -> int:
        held.append(session)
        tool: Any = remember
        await tool()
        await Runner(manager).run(inner, "s", prompt)
        return int(session.volatile["seen"])

    async def inner(prompt: str, session: Session) -> None:
        session.volatile["seen"] += 1

    runner = Runner(manager)
    for _ in range(2):
        assert (await runner.run(agent, "s", "Hi")).output == 2
    assert [session.volatile for session in held] == [{}, {}]
    async with manager.read("s") as session:
        assert session.namespaces() == []


# --------------------------------------------------------------------------------------------------------------- hooks


class Note:
    """A hook that writes down when it is asked."""

    def __init__(self, name: str, notes: list[str], answer: str | None = None) -> None:
        self.name, self.notes, self.answer = name, notes, answer

    async def before_run(self, call: Call) -> Outcome | None:
        self.notes.append(f"before {self.name}")
        call.session.set(self.name, True)
        return None if self.answer is None else Outcome(self.answer)

    async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
        self.notes.append(f"after {self.name}")
        return Outcome(f"{outcome.output} {self.name}")


async def test_hooks_come_in_order_and_in_the_opposite_order_after(manager: SessionManager) -> None:
    notes: list[str] = []
    run = await Runner(manager, hooks=[Note("a", notes), Note("b", notes)]).run(count, "s", "Hi")
    assert notes == ["before a", "before b", "after b", "after a"]
    assert run.output == "1: Hi b a"
    async with manager.read("s") as session:
        assert (session.get("a"), session.get("b")) == (True, True)


async def test_a_hook_may_answer_in_the_agent_s_place(manager: SessionManager) -> None:
    notes: list[str] = []
    run = await Runner(manager, hooks=[Note("a", notes, "mine"), Note("b", notes)]).run(fail, "s", "Hi")
    assert run.output == "mine b a"
    assert "before b" not in notes
    assert await runs_of(manager) == 0


async def test_a_hook_that_raises_fails_the_run(manager: SessionManager) -> None:
    class Refuse(Note):
        async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
            raise Fault

    runner = Runner(manager, hooks=[Refuse("a", [])])
    assert type(await error_of(runner.run(count, "s", "Hi"))) is Fault
    assert await runs_of(manager) == 0
    assert (await only_activation(runner)).status == "FAILED"


# ---------------------------------------------------------------------------------------------------------- activations


async def test_an_activation_tells_of_a_run(manager: SessionManager) -> None:
    runner = Runner(manager)
    during: list[Activation] = []

    async def agent(prompt: str, session: Session) -> dict[str, int]:
        during.append(await only_activation(runner))
        return {"n": 1}

    run = await runner.run(agent, "s", "Hi", user_id="u")
    assert (during[0].status, during[0].end, during[0].payload) == ("RUNNING", None, "Hi")
    activation = await activation_of(runner, run.activation_id)
    assert activation.request_id == activation.activation_id == run.activation_id
    assert (activation.session_id, activation.tenant_id, activation.user_id) == ("s", "default", "u")
    assert (activation.agent_name, activation.framework) == ("agent", "callable")
    assert (activation.payload, activation.response, activation.cut) == ("Hi", {"n": 1}, False)
    assert (activation.status, activation.error, activation.parent_activation_id) == ("COMPLETE", None, None)
    assert activation.end is not None
    assert activation.start <= activation.end
    assert activation.start.utcoffset() is not None


async def test_activations_do_not_touch_the_session(manager: SessionManager) -> None:
    await error_of(Runner(manager).run(fail, "s", "Hi"))
    assert await manager.get("s") is None


async def test_activations_of_a_session_come_newest_first(manager: SessionManager) -> None:
    runner = Runner(manager)
    runs = [await runner.run(count, "s", "Hi") for _ in range(4)]
    await runner.run(count, "other", "Hi")
    found = await runner.activations("s")
    assert [one.activation_id for one in found] == [run.activation_id for run in reversed(runs)]
    assert len(await runner.activations("s", limit=2)) == 2
    assert await runner.activations("none") == []
    assert await runner.get_activation("none") is None


async def test_a_failed_run_names_the_error_and_not_its_text(manager: SessionManager) -> None:
    async def agent(prompt: str, session: Session) -> None:
        raise Fault("hunter2")

    runner = Runner(manager)
    await error_of(runner.run(agent, "s", "hunter2"))
    activation = await only_activation(runner)
    assert (activation.status, activation.error, activation.response) == ("FAILED", "Fault", None)
    assert "hunter2" not in repr(activation)


async def test_a_run_whose_commit_is_refused_has_failed(make_manager: MakeManager) -> None:
    manager, other = make_manager(), make_manager()
    runner = Runner(manager)

    async def overtake() -> None:
        await other.unlock("s", force=True)
        async with other.open("s"):
            pass

    async def agent(prompt: str, session: Session) -> str:
        await asyncio.create_task(overtake(), context=alone())
        return "done"

    assert type(await error_of(runner.run(agent, "s", "Hi"))) is SessionConflictError
    activation = await only_activation(runner)
    assert (activation.status, activation.error) == ("FAILED", "SESSION_CONFLICT")


async def test_a_cancelled_run_is_discarded_and_says_so(manager: SessionManager) -> None:
    runner, begun = Runner(manager), asyncio.Event()

    async def agent(prompt: str, session: Session) -> None:
        await count(prompt, session)
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(runner.run(agent, "s", "Hi"))
    await begun.wait()
    running.cancel()
    assert type(await error_of(running)) is asyncio.CancelledError
    assert await runs_of(manager) == 0
    assert (await only_activation(runner)).status == "CANCELLED"
    assert await manager.lock("s") is None


async def test_a_run_whose_process_died_is_abandoned_after_its_lease(make_manager: MakeManager) -> None:
    clock = FakeClock()
    manager = make_manager(clock=clock)
    runner, begun = Runner(manager), asyncio.Event()

    async def agent(prompt: str, session: Session) -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(runner.run(agent, "s", "Hi"))
    await begun.wait()
    elsewhere = Runner(make_manager(clock=clock))
    assert (await only_activation(elsewhere)).status == "RUNNING"
    clock.advance(30.1)  # nobody has renewed it
    abandoned = await only_activation(elsewhere)
    assert abandoned.status == "ABANDONED"
    assert abandoned.end is not None
    running.cancel()
    await error_of(running)


@pytest.mark.parametrize(
    ("given", "kept", "cut"),
    [
        ("x" * 16_384, "x" * 16_384, False),
        ("x" * 16_385, "x" * 16_384, True),
        ("é" * 16_384, "é" * 8_192, True),
        ("a" + "\N{GRINNING FACE}" * 5_000, "a" + "\N{GRINNING FACE}" * 4_095, True),
        ("a\ud800b", "a?b", True),
        ({"a": [1, None]}, {"a": [1, None]}, False),
        (object, "<type>", True),
        (["\ud800", object], '["\\ud800", "<type>"]', True),
        ({"a": Person(name="Ann")}, '{"a":{"name":"Ann"}}', True),
    ],
    ids=[
        "16 KiB",
        "more",
        "of two bytes",
        "of four bytes",
        "surrogate",
        "data",
        "no data",
        "surrogate inside",
        "model",
    ],
)
async def test_payload_and_response_are_kept_up_to_16_kib(given: Any, kept: Any, cut: bool) -> None:
    runner = Runner(SessionManager(MemoryStore()))

    async def agent(prompt: Any, session: Session) -> Any:
        return prompt

    run = await runner.run(agent, "s", given)
    assert run.output is given
    activation = await activation_of(runner, run.activation_id)
    assert (activation.payload, activation.response, activation.cut) == (kept, kept, cut)


async def test_an_input_without_a_text_does_not_fail_the_run() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise Fault

    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    runner = Runner(SessionManager(MemoryStore()))
    for given in (Mute(), deep):
        assert (await runner.run(lambda prompt, session: prompt, "s", given)).output is given


async def test_the_payload_is_what_was_given_whatever_the_agent_does_to_it(manager: SessionManager) -> None:
    async def agent(prompt: list[Any], session: Session) -> None:
        prompt.append(object())
        raise Fault

    runner = Runner(manager)
    assert type(await error_of(runner.run(agent, "s", ["Hi"]))) is Fault
    assert (await only_activation(runner)).payload == ["Hi"]


async def test_a_store_that_takes_no_activations_does_not_stop_runs(make_manager: MakeManager) -> None:
    manager = make_manager(lambda inner: Failing(inner, "commit", kind="run"))
    runner = Runner(manager)
    assert (await runner.run(count, "s", "Hi")).output == "1: Hi"
    assert type(await error_of(runner.run(fail, "s", "Hi"))) is Fault
    assert await runs_of(manager) == 1


async def test_the_last_hundred_activations_are_kept() -> None:
    runner = Runner(SessionManager(MemoryStore()))
    for _ in range(130):
        last = await runner.run(count, "s", "Hi")
    found = await runner.activations("s", limit=1000)
    assert len(found) == 100
    assert last.activation_id in {one.activation_id for one in found}


# --------------------------------------------------------------------------------------------------------- nested runs


async def test_a_nested_run_is_part_of_the_turn_and_a_child(manager: SessionManager) -> None:
    runner = Runner(manager)
    children: list[str] = []

    async def outer(prompt: str, session: Session) -> str:
        inner = await runner.run(count, session, prompt)
        children.append(inner.activation_id)
        assert await runs_of(manager) == 0
        assert await asyncio.to_thread(runner_in_thread) == "2: thread"
        return str(inner.output)

    def runner_in_thread() -> str:
        return str(runner.run_sync(count, "s", "thread").output)

    run = await runner.run(outer, "s", "Hi")
    assert run.output == "1: Hi"
    child = await activation_of(runner, children[0])
    assert child.parent_activation_id == run.activation_id
    assert {one.parent_activation_id for one in await runner.activations("s")} == {None, run.activation_id}
    async with manager.read("s") as session:
        assert (session.get("runs"), session.revision) == (2, 1)


async def test_a_nested_run_that_raises_may_be_caught(manager: SessionManager) -> None:
    runner = Runner(manager)

    async def outer(prompt: str, session: Session) -> str:
        with pytest.raises(Fault):
            await runner.run(fail, "s", prompt)
        return "caught"

    assert (await runner.run(outer, "s", "Hi")).output == "caught"
    assert await runs_of(manager) == 1  # no savepoint
    assert {one.status for one in await runner.activations("s")} == {"COMPLETE", "FAILED"}


async def test_what_a_skill_runs_has_a_conversation_of_its_own(manager: SessionManager) -> None:
    threads: list[tuple[str, bool]] = []

    class Look:
        async def before_run(self, call: Call) -> Outcome | None:
            threads.append((call.thread, call.is_child))
            return None

        async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
            return outcome

    runner = Runner(manager, hooks=[Look()])

    @skill
    async def delegate(session_id: str) -> None:
        await runner.run(count, session_id, "in a skill")
        await runner.run(count, session_id, "in a skill, by name", conversation="named")

    async def outer(prompt: str, session: Session) -> None:
        await runner.run(count, "s", "beside")
        tool: Any = delegate
        await tool()
        if prompt == "again":
            await runner.run(outer, "s", "itself")

    await runner.run(outer, "s", "again")
    names = [(thread.partition("@")[0], "@" in thread, is_child) for thread, is_child in threads]
    assert names == [
        ("outer", False, False),
        ("count", False, False),
        ("count", True, True),
        ("named", False, False),
        ("outer", True, True),
        ("count", False, False),
        ("count", True, True),
        ("named", False, False),
    ]
    own = [thread for thread, is_child in threads if is_child]
    assert len(set(own)) == len(own)


async def test_conversations_are_kept_apart(manager: SessionManager) -> None:
    threads: list[str] = []

    class Look:
        async def before_run(self, call: Call) -> Outcome | None:
            threads.append(call.thread)
            return None

        async def after_run(self, call: Call, outcome: Outcome) -> Outcome:
            return outcome

    runner = Runner(manager, hooks=[Look()])
    await runner.run(count, "s", "Hi")
    await runner.run(count, "s", "Hi", conversation="support")
    assert threads == ["count", "support"]
    error = await error_of(runner.run(count, "s", "Hi", conversation=""))
    assert isinstance(error, InvalidError)


async def test_a_function_cannot_be_resumed(manager: SessionManager) -> None:
    runner = Runner(manager)
    error = await error_of(runner.resume(count, "s", True))
    assert isinstance(error, InvalidError)
    assert error.code == "INVALID_DECISIONS"
    assert await manager.get("s") is None


# ------------------------------------------------------------------------------------------------------------ streaming


async def test_a_stream_ends_with_what_is_stored(manager: SessionManager) -> None:
    runner = Runner(manager)
    async with runner.stream(count_streaming, "s", "Hello") as events:
        seen = [event async for event in events]
    assert [event.text for event in seen[:-1]] == list("Hello")
    assert (seen[-1].type, seen[-1].run.output, seen[-1].run.status) == ("done", "Hello", "COMPLETE")
    assert await runs_of(manager) == 1
    assert (await only_activation(runner)).response == "Hello"


async def test_by_the_last_event_everything_is_stored(manager: SessionManager) -> None:
    async with Runner(manager).stream(count_streaming, "s", "Hi") as events:
        async for event in events:
            assert await runs_of(manager) == (event.type == "done")


async def test_a_function_that_is_streamed_gives_its_answer_at_once(manager: SessionManager) -> None:
    async with Runner(manager).stream(count, "s", "Hi") as events:
        assert [event.type async for event in events] == ["text", "done"]


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_whoever_leaves_a_stream_early_discards_the_run(manager: SessionManager, taken: int) -> None:
    """Also if the agent has been quicker: it has ended long before."""
    ended = asyncio.Event()

    async def agent(prompt: str, session: Session) -> AsyncIterator[str]:
        session.set("runs", 1)
        for text in prompt:
            yield text
        ended.set()

    runner = Runner(manager)
    async with runner.stream(agent, "s", "Hello") as events:
        await ended.wait()
        for _ in range(taken):
            await anext(events)
    assert await runs_of(manager) == 0
    assert await manager.lock("s") is None
    assert (await only_activation(runner)).status == "CANCELLED"


async def test_a_stream_left_closes_the_agent_s_generator_in_its_turn(manager: SessionManager) -> None:
    closed: list[str] = []

    async def agent(prompt: str, session: Session) -> AsyncIterator[str]:
        try:
            while True:
                yield "more"
        finally:
            closed.append(current_session().id)

    async with Runner(manager).stream(agent, "s", "Hi") as events:
        assert (await anext(events)).text == "more"
    assert closed == ["s"]


async def test_a_stream_that_nobody_reads_is_discarded_when_the_lease_ends(make_manager: MakeManager) -> None:
    manager = make_manager(lease_s=1)
    runner = Runner(manager)
    async with runner.stream(count_streaming, "s", "Hi") as events:
        await ended(runner)
        assert (await only_activation(runner)).status == "CANCELLED"
        with pytest.raises(TurnClosedError, match="nobody took the events"):
            [event async for event in events]
    assert await runs_of(manager) == 0


async def test_a_reader_may_take_its_time_for_more_events_than_are_kept_ahead(manager: SessionManager) -> None:
    async with Runner(manager).stream(count_streaming, "s", "x" * 500) as events:
        assert len([event async for event in events]) == 501
    assert await runs_of(manager) == 1


async def test_runs_that_wait_for_one_another_are_told_so(make_manager: MakeManager) -> None:
    manager = make_manager(wait_s=0.2)
    runner, both = Runner(manager), asyncio.Barrier(2)

    async def leaf(prompt: str, session: Session) -> str:
        return ""

    async def crossing(conversation: str, session: Session) -> str:
        await both.wait()
        await runner.run(leaf, session, "", conversation=conversation)
        return conversation

    async def team(prompt: str, session: Session) -> list[Any]:
        crossed = (runner.run(crossing, session, there, conversation=here) for here, there in ("xy", "yx"))
        return await asyncio.gather(*crossed, return_exceptions=True)

    ended = (await runner.run(team, "s", "")).output
    assert any(isinstance(one, SessionBusyError) for one in ended)


async def test_a_generator_of_texts_is_an_agent(manager: SessionManager) -> None:
    def agent(prompt: str, session: Session) -> Iterator[str]:
        yield prompt
        yield current_session().id

    assert (await Runner(manager).run(agent, "s", "Hi ")).output == "Hi s"


async def test_a_stream_forgotten_altogether_is_discarded(manager: SessionManager) -> None:
    runner = Runner(manager)
    closed = asyncio.Event()

    async def agent(prompt: str, session: Session) -> AsyncIterator[str]:
        try:
            yield "text"
            await asyncio.Event().wait()
        finally:
            closed.set()

    streaming = runner.stream(agent, "s", "Hi")
    events = await streaming.__aenter__()
    assert (await anext(events)).text == "text"
    del streaming, events
    gc.collect()
    await asyncio.wait_for(closed.wait(), 5)
    await ended(runner)
    assert await manager.lock("s") is None
    assert await manager.get("s") is None


@pytest.mark.parametrize("error", [Fault, asyncio.CancelledError], ids=["an error", "CancelledError"])
async def test_an_error_of_a_streaming_agent_reaches_the_reader(
    manager: SessionManager, error: type[BaseException]
) -> None:
    async def agent(prompt: str, session: Session) -> AsyncIterator[str]:
        session.set("runs", 1)
        yield "text"
        raise error

    async def read() -> list[Any]:
        async with Runner(manager).stream(agent, "s", "Hi") as events:
            return [event async for event in events]

    assert type(await error_of(asyncio.wait_for(read(), 5))) is error
    assert await runs_of(manager) == 0


async def test_an_error_of_the_reader_is_raised_and_discards_the_run(manager: SessionManager) -> None:
    async def read() -> None:
        async with Runner(manager).stream(count_streaming, "s", "Hi") as events:
            async for _ in events:
                raise Fault

    assert type(await error_of(read())) is Fault
    assert await runs_of(manager) == 0


async def test_a_reader_cancelled_discards_the_run(manager: SessionManager) -> None:
    got = asyncio.Event()

    async def read() -> None:
        async with Runner(manager).stream(count_streaming, "s", "Hi") as events:
            async for _ in events:
                got.set()
                await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await got.wait()
    reading.cancel()
    assert type(await error_of(reading)) is asyncio.CancelledError
    assert await runs_of(manager) == 0
    assert await manager.lock("s") is None


async def test_a_stream_inside_a_run_is_part_of_its_turn(manager: SessionManager) -> None:
    runner = Runner(manager)

    async def outer(prompt: str, session: Session) -> str:
        async with runner.stream(count_streaming, "s", prompt) as events:
            return "".join([event.text or "" async for event in events])

    assert (await runner.run(outer, "s", "Hi")).output == "Hi"
    async with manager.read("s") as session:
        assert (session.get("runs"), session.revision) == (1, 1)


async def test_a_stream_does_not_leave_its_session_with_the_reader(manager: SessionManager) -> None:
    async with Runner(manager).stream(count_streaming, "s", "Hi") as events:
        await anext(events)
        with pytest.raises(TurnClosedError):
            current_session()


# ------------------------------------------------------------------------------------------------------- without async


def test_run_sync_runs_in_the_calling_thread() -> None:
    import threading

    runner = Runner(SessionManager(MemoryStore()))
    here = threading.get_ident()

    async def agent(prompt: str, session: Session) -> bool:
        return threading.get_ident() == here

    assert runner.run_sync(agent, "s", "Hi").output is True


def test_the_sync_halves_do_the_same() -> None:
    manager = SessionManager(MemoryStore())
    runner = Runner(manager)
    run = runner.run_sync(count, "s", "Hi", user_id="u", metadata={"a": 1})
    assert run.output == "1: Hi"
    with runner.stream_sync(count_streaming, "s", "Hey") as events:
        assert [event.text for event in events] == ["H", "e", "y", None]
    with runner.stream_sync(count_streaming, "s", "Hey") as events:
        assert next(events).text == "H"
    assert len(runner.activations_sync("s")) == 3
    assert runner.get_activation_sync(run.activation_id) is not None
    with pytest.raises(InvalidError):
        runner.resume_sync(count, "s", True)
    with pytest.raises(Fault):
        runner.run_sync(fail, "s", "Hi")
    with SyncSessionManager(manager=manager).read("s") as session:
        assert (session.get("runs"), session.user_id) == (2, "u")


async def test_the_sync_halves_say_what_to_do_inside_a_running_loop() -> None:
    runner = Runner(SessionManager(MemoryStore()))
    for call in (
        lambda: runner.run_sync(count, "s", "Hi"),
        lambda: runner.resume_sync(count, "s", True),
        lambda: runner.stream_sync(count_streaming, "s", "Hi").__enter__(),
    ):
        with pytest.raises(InvalidError, match="await") as caught:
            call()
        assert caught.value.code == "INVALID_CONTEXT"


def test_run_sync_from_many_threads_at_once_loses_nothing() -> None:
    from concurrent.futures import ThreadPoolExecutor

    manager = SessionManager(MemoryStore(), settings=Settings(turn=TurnSettings()))
    runner = Runner(manager)
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda _: runner.run_sync(count_sync, "s", "x").output, range(40)))
    assert sorted(int(output.partition(":")[0]) for output in outputs) == list(range(1, 41))


async def test_cancelled_in_its_commit_a_run_is_stored_and_raises(make_manager: MakeManager) -> None:
    manager = make_manager(Stopping)
    runner = Runner(manager)
    barrier = before(manager, Stopping).stop("commit")
    running = asyncio.create_task(runner.run(count, "s", "Hi"))
    await barrier.reached.wait()
    running.cancel()
    await asyncio.sleep(0)
    barrier.lift()
    assert type(await error_of(running)) is asyncio.CancelledError
    assert await runs_of(manager) == 1
    assert (await only_activation(runner)).status == "COMPLETE"


# ------------------------------------------------------------------------------------------------------------- imports


def test_importing_agent_sessions_imports_no_framework_and_no_client() -> None:
    unwanted = ["agents", "openai", "langgraph", "langchain_core", "redis", "boto3", "botocore", "aiobotocore"]
    unwanted += ["fastapi", "uvicorn", "typer", "rich", "opentelemetry", "pytest", "hypothesis"]
    code = f"import sys, agent_sessions; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_a_function_imports_no_framework_either() -> None:
    code = """
import sys
from agent_sessions import MemoryStore, Runner, SessionManager
print(Runner(SessionManager(MemoryStore())).run_sync(lambda prompt, session: prompt, "s", "Hi").output)
print([name for name in ("agents", "openai", "langgraph", "redis", "opentelemetry") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["Hi", "[]"]


def test_a_package_of_the_users_own_may_have_a_frameworks_name(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text(
        "class Helper:\n    async def __call__(self, prompt, session):\n        return prompt.upper()\n"
        "class Thing:\n    pass\n"
    )
    code = """
from agent_sessions import Runner, SessionError
from agents import Helper, Thing
print(Runner().run_sync(Helper(), "s", "hi").output)
try:
    Runner().run_sync(Thing(), "s", "hi")
except SessionError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["HI", "INVALID_AGENT"]
