"""`OpenAISession` under the SDK's own Runner, and by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, Runner, function_tool
from agents.memory import OpenAIResponsesCompactionSession, SessionSettings
from agents.memory import Session as SDKSession
from agents.testing import ScriptedModel, function_call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_sessions import MemoryStore, SessionManager
from agent_sessions.errors import ForbiddenError, InvalidError, SerializationError
from agent_sessions_openai import OpenAISession

from .openai_agents import Broken, says


@pytest.fixture
def session(manager: SessionManager) -> OpenAISession:
    return OpenAISession("s", manager=manager)


def user(*texts: Any) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


def said(items: list[Any]) -> list[Any]:
    return [item["content"] for item in items]


# ---------------------------------------------------------------------------------------------------- the four methods


async def test_it_is_a_session_of_the_sdks_that_takes_the_runs_context(session: OpenAISession) -> None:
    assert isinstance(session, SDKSession)
    wrapper: Any = object()

    await session.add_items(user("a"), wrapper=wrapper)
    assert await session.get_items(wrapper=wrapper) == user("a")
    assert await session.pop_item(wrapper=wrapper) == user("a")[0]
    await session.clear_session(wrapper=wrapper)


async def test_the_last_items_come_in_order(session: OpenAISession) -> None:
    await session.add_items(user(*range(5)))

    assert said(await session.get_items()) == [0, 1, 2, 3, 4]
    assert said(await session.get_items(2)) == [3, 4]
    assert said(await session.get_items(limit=9)) == [0, 1, 2, 3, 4]
    assert await session.get_items(0) == []
    assert await session.get_items(-1) == []


async def test_settings_limit_what_is_read_unless_a_limit_is_given(manager: SessionManager) -> None:
    session = OpenAISession("s", manager=manager, session_settings=SessionSettings(limit=2))
    await session.add_items(user(*range(5)))

    assert said(await session.get_items()) == [3, 4]
    assert said(await session.get_items(4)) == [1, 2, 3, 4]
    model = ScriptedModel([says("x")])
    await Runner.run(Agent("a", model=model), "new", session=session)
    assert model.last_call is not None
    assert said(model.last_call.input) == [3, 4, "new"]


async def test_the_last_item_in_is_the_first_one_out(session: OpenAISession) -> None:
    await session.add_items(user("a", "b"))
    await session.add_items(user("c"))

    popped = [await session.pop_item() for _ in range(4)]

    assert popped == [*user("c", "b", "a"), None]


async def test_what_was_popped_can_be_put_back_and_is_seen_at_once(session: OpenAISession) -> None:
    await session.add_items(user(*range(4)))

    popped: list[Any] = [await session.pop_item() for _ in range(2)]
    assert said(await session.get_items()) == [0, 1]
    await session.add_items(popped[::-1])

    assert said(await session.get_items()) == [0, 1, 2, 3]


async def test_clearing_leaves_the_rest_of_the_session(session: OpenAISession, manager: SessionManager) -> None:
    async with manager.open("s") as turn:
        turn.set("cart", ["tea"])
    other = OpenAISession("s", manager=manager, conversation="other")
    await session.add_items(user("a"))
    await other.add_items(user("b"))

    await session.clear_session()

    assert await session.get_items() == []
    assert await other.get_items() == user("b")
    async with manager.read("s") as turn:
        assert turn.get("cart") == ["tea"]


async def test_no_items_are_no_session(session: OpenAISession, manager: SessionManager) -> None:
    await session.add_items([])

    assert await session.get_items() == []
    assert await manager.get("s") is None


async def test_batches_added_at_once_stay_whole(manager: SessionManager) -> None:
    async def add(n: int) -> None:
        await OpenAISession("s", manager=manager).add_items(user(*[n] * 7))

    await asyncio.gather(*map(add, range(20)))

    items = said(await OpenAISession("s", manager=manager).get_items())
    batches = [items[start : start + 7] for start in range(0, 140, 7)]
    assert len(items) == 140
    assert sorted(batches) == [[n] * 7 for n in range(20)]


async def test_an_item_that_cant_be_stored_keeps_its_batch_out(session: OpenAISession) -> None:
    with pytest.raises(SerializationError) as error:
        await session.add_items([*user("a"), *user(object())])

    assert error.value.field == "items[1].content"
    assert await session.get_items() == []


async def test_adding_survives_a_cancellation(session: OpenAISession) -> None:
    for n in range(20):
        task = asyncio.create_task(session.add_items(user(n, n)))
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    items = said(await session.get_items())
    assert items[0::2] == items[1::2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
any_text = st.text(st.characters(exclude_categories=()))  # halves of surrogate pairs too


@given(items=st.lists(st.dictionaries(any_text, json_values | any_text, max_size=4), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_items_come_back_to_the_letter(items: list[Any]) -> None:
    async def there_and_back() -> list[Any]:
        session = OpenAISession("s", manager=SessionManager(MemoryStore()))
        await session.add_items(items)
        return list(await session.get_items())

    back = asyncio.run(there_and_back())

    assert json.dumps(back) == json.dumps(items)


async def test_items_come_back_to_the_letter_from_any_store(session: OpenAISession) -> None:
    items: list[Any] = [
        {"z": 1, "a": [0.1 + 0.2, 1e308, -0.0, 5e-324, 1.0, 1], "empty": {}, "list": [], "text": "", "no": None},
        {"é🎉\u2028": {"deep": {"deeper": [{"deepest": [[]]}]}}, "big": 2**200, "half": json.loads('"\\ud83d"')},
        {},
    ]
    await session.add_items(items)

    assert json.dumps(await session.get_items()) == json.dumps(items)
    assert json.dumps(await session.get_items(2)) == json.dumps(items[1:])
    assert [json.dumps(await session.pop_item()) for _ in items] == [json.dumps(item) for item in items[::-1]]


async def test_what_only_json_knows_how_to_write_is_stored_as_json(session: OpenAISession) -> None:
    class Role(str):
        pass

    await session.add_items(user(Role("a")))

    assert await session.get_items() == user("a")


async def test_what_a_reader_does_to_items_stays_with_it(session: OpenAISession, manager: SessionManager) -> None:
    await session.add_items(user("a"))
    alone: list[Any] = await session.get_items()
    alone[0]["content"] = "changed"
    async with manager.open("s"):
        inside: list[Any] = await session.get_items()
        assert inside == user("a")
        inside[0]["content"] = "changed"

    assert await session.get_items() == user("a")


# ---------------------------------------------------------------------------------------------------- whose it is


async def test_another_users_session_is_not_opened(manager: SessionManager) -> None:
    await OpenAISession("s", manager=manager, user_id="ada").add_items(user("a"))
    record = await manager.get("s")
    assert record is not None
    assert record.user_id == "ada"
    other = OpenAISession("s", manager=manager, user_id="bob")

    acts: list[Callable[[], Any]] = [
        other.get_items,
        lambda: other.add_items(user("b")),
        other.pop_item,
        other.clear_session,
    ]
    for act in acts:
        with pytest.raises(ForbiddenError):
            await act()

    assert await OpenAISession("s", manager=manager).get_items() == user("a")


async def test_tenants_are_apart(manager: SessionManager) -> None:
    await OpenAISession("s", manager=manager, tenant_id="acme").add_items(user("a"))

    assert await OpenAISession("s", manager=manager).get_items() == []
    assert await OpenAISession("s", manager=manager.for_tenant("acme")).get_items() == user("a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"session_id": ""},
        {"session_id": "a\nb"},
        {"session_id": "s", "user_id": " "},
        {"session_id": "s", "tenant_id": ""},
        {"session_id": "s", "conversation": ""},
        {"session_id": "s", "conversation": "c" * 101},
    ],
)
def test_a_wrong_name_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        OpenAISession(**wrong, manager=SessionManager(MemoryStore()))


async def test_without_a_manager_all_share_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AK_SESSION__TYPE", "in_memory")
    await OpenAISession("shared-by-environment").add_items(user("a"))

    assert await OpenAISession("shared-by-environment").get_items() == user("a")
    async with SessionManager.from_env().read("shared-by-environment") as session:
        assert await session.namespace("openai").log("items").count() == 1


# ---------------------------------------------------------------------------------------------------- turns


async def test_in_a_turn_it_is_part_of_the_turn(session: OpenAISession, manager: SessionManager) -> None:
    await session.add_items(user("before"))
    async with manager.open("s") as turn:
        await Runner.run(Agent("a", model=ScriptedModel([says("hello")])), "hi", session=session)
        turn.set("step", 1)
        assert len(await session.get_items()) == 3
        async with manager.read("s") as outside:
            assert await outside.namespace("openai").log("items").count() == 1

    assert len(await session.get_items()) == 3
    async with manager.read("s") as stored:
        assert stored.revision == 2


async def test_a_turn_that_raises_takes_the_sdks_run_back(session: OpenAISession, manager: SessionManager) -> None:
    await session.add_items(user("before"))

    async def fail() -> None:
        async with manager.open("s"):
            await Runner.run(Agent("a", model=ScriptedModel([says("hello")])), "hi", session=session)
            await session.pop_item()
            raise Broken

    with pytest.raises(Broken):
        await fail()

    assert await session.get_items() == user("before")


async def test_adding_waits_for_a_turn_elsewhere(session: OpenAISession, manager: SessionManager) -> None:
    other = SessionManager(manager.store)
    async with other.open("s") as turn:
        adding = asyncio.create_task(OpenAISession("s", manager=manager).add_items(user("b")), context=empty_context())
        await asyncio.sleep(0.05)
        assert not adding.done()
        await turn.namespace("openai").log("items").append(user("a"))
    await adding

    assert await session.get_items() == user("a", "b")


def empty_context() -> Any:
    from contextvars import Context

    return Context()


# ---------------------------------------------------------------------------------------------------- the SDK's runner


async def test_the_sdks_runner_keeps_a_conversation(session: OpenAISession) -> None:
    @function_tool
    def look() -> str:
        return "nothing"

    model = ScriptedModel([[function_call("look", {}, call_id="c")], says("Nothing"), says("Still nothing")])
    agent = Agent("a", model=model, tools=[look])

    await Runner.run(agent, "Look", session=session)
    streamed = Runner.run_streamed(agent, "Again", session=session)
    async for _ in streamed.stream_events():
        pass

    kinds = [item.get("type", "user") for item in await session.get_items()]
    assert kinds == ["user", "function_call", "function_call_output", "message", "user", "message"]
    assert model.last_call is not None
    assert len(model.last_call.input) == 5


async def test_the_sdks_blocking_runner_works_in_a_thread(session: OpenAISession, manager: SessionManager) -> None:
    agent = Agent("a", model=ScriptedModel([says(str(n)) for n in range(3)]))

    def run() -> Any:
        try:
            return Runner.run_sync(agent, "hi", session=session).final_output
        finally:
            loop = asyncio.get_event_loop_policy().get_event_loop()
            loop.run_until_complete(manager.store.detach())
            loop.close()

    outputs = [await asyncio.to_thread(run) for _ in range(3)]

    assert outputs == ["0", "1", "2"]
    assert len(await session.get_items()) == 6


async def test_a_run_that_pauses_goes_on_by_the_sdks_own_means(session: OpenAISession) -> None:
    @function_tool(needs_approval=True)
    def delete() -> str:
        return "deleted"

    model = ScriptedModel([[function_call("delete", {}, call_id="c")], says("Done")])
    agent = Agent("a", model=model, tools=[delete])
    result = await Runner.run(agent, "Delete", session=session)
    state = result.to_state()
    state.approve(result.interruptions[0])

    assert (await Runner.run(agent, state, session=session)).final_output == "Done"
    kinds = [item.get("type", "user") for item in await session.get_items()]
    assert kinds == ["user", "function_call", "function_call_output", "message"]


async def test_the_sdks_compaction_wraps_it(session: OpenAISession) -> None:
    class Responses:
        async def compact(self, **_: Any) -> Any:
            class Compacted:
                output = [{"type": "compaction", "id": "cmp_1", "encrypted_content": "short"}]  # noqa: RUF012

            return Compacted()

    class Client:
        responses = Responses()

    client: Any = Client()
    compacting = OpenAIResponsesCompactionSession(
        "s", session, client=client, compaction_mode="input", should_trigger_compaction=lambda _: True
    )
    await Runner.run(Agent("a", model=ScriptedModel([says("hello")])), "hi", session=compacting)

    assert [item.get("type") for item in await session.get_items()] == ["compaction"]
