"""Skills: plain functions that are told their session, whatever calls them and however."""

from __future__ import annotations

import asyncio
import inspect
import typing
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest
from pydantic import BaseModel

from agent_sessions import MemoryStore, Runner, Session, SessionManager, SyncSession, current_session, skill
from agent_sessions.errors import InvalidError, TurnClosedError
from tests import skills_without_future_annotations as plain

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypes


class Item(BaseModel):
    name: str


@pytest.fixture
def manager() -> SessionManager:
    return SessionManager(MemoryStore())


# ------------------------------------------------------------------------------------------------------- definitions


@skill
async def add(item: str, session: Session, count: int = 1) -> str:
    """Add an item to the cart.

    Args:
        item: What to add.
        count: How many.
    """
    session.update("cart", lambda cart: [*cart, *[item] * count], default=[])
    return "added"


@skill
async def add_optional(item: str, session: Optional[Session] = None) -> str:  # noqa: UP045 - as people write it
    return f"{item} {session.id if session else None}"


@skill
async def add_union(item: str, session: Session | None = None) -> str:
    return f"{item} {session.id if session else None}"


@skill
async def add_annotated(item: str, session: Annotated[Session, "the session"]) -> str:
    return f"{item} {session.id}"


@skill
async def add_first(session: Session, item: str) -> str:
    return f"{item} {session.id}"


@skill
async def add_keyword(item: str, *, session: Session) -> str:
    return f"{item} {session.id}"


@skill
async def add_by_id(item: str, session_id: str) -> str:
    return f"{item} {session_id}"


@skill
async def add_beside_unresolvable(item: str, session: Session | None = None, price: OnlyForTypes | None = None) -> str:
    return f"{item} {session.id if session else None}"


@skill
def add_sync(item: str, session: Session) -> str:
    return f"{item} {session.id}"


@skill
def add_sync_first(session_id: str, item: str) -> str:
    return f"{item} {session_id}"


class Shop:
    @skill
    async def add(self, item: str, session: Session) -> str:
        return f"{item} {session.id}"

    @skill
    def add_sync(self, session: Session, item: str) -> str:
        return f"{item} {session.id}"

    @staticmethod
    @skill
    async def add_static(item: str, session: Session) -> str:
        return f"{item} {session.id}"

    @classmethod
    @skill
    async def add_class(cls, session: Session, item: str) -> str:
        assert cls is Shop
        return f"{item} {session.id}"


ALL: dict[str, Any] = {
    "optional": add_optional,
    "union": add_union,
    "annotated": add_annotated,
    "first": add_first,
    "keyword only": add_keyword,
    "session_id": add_by_id,
    "beside an unresolvable one": add_beside_unresolvable,
    "sync": add_sync,
    "sync, session_id first": add_sync_first,
    "method": Shop().add,
    "sync method": Shop().add_sync,
    "static method": Shop.add_static,
    "class method": Shop.add_class,
    "plain": plain.add,
    "plain optional": plain.add_optional,
    "plain union": plain.add_union,
    "plain quoted": plain.add_quoted,
    "plain sync": plain.add_sync,
    "plain session_id": plain.add_by_id,
}


async def called(function: Any, *args: Any, **kwargs: Any) -> Any:
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


# --------------------------------------------------------------------------------------------------- what they are told


@pytest.mark.parametrize("name", ALL)
async def test_the_session_is_filled_in(manager: SessionManager, name: str) -> None:
    async with manager.open("s"):
        assert await called(ALL[name], item="apple") == "apple s"
        assert await called(ALL[name], item="pear") == "pear s"


@pytest.mark.parametrize("name", [name for name in ALL if name != "keyword only"])
async def test_arguments_by_position_come_in_the_order_that_callers_see(manager: SessionManager, name: str) -> None:
    async with manager.open("s"):
        assert await called(ALL[name], "apple") == "apple s"


@pytest.mark.parametrize("name", ALL)
def test_what_is_filled_in_is_not_shown(name: str) -> None:
    shown = inspect.signature(ALL[name])
    assert "session" not in shown.parameters
    assert "session_id" not in shown.parameters
    assert next(iter(shown.parameters)) == "item"
    assert "session" not in ALL[name].__annotations__


def test_everything_else_is_as_it_was() -> None:
    assert add.__name__ == "add"
    assert add.__qualname__ == "add"
    assert add.__module__ == __name__
    assert (add.__doc__ or "").startswith("Add an item to the cart.")
    assert inspect.iscoroutinefunction(add)
    assert not inspect.iscoroutinefunction(add_sync)
    assert str(inspect.signature(add)) == "(item: 'str', count: 'int' = 1) -> 'str'"
    assert typing.get_type_hints(add) == {"item": str, "count": int, "return": str}


def test_a_function_without_a_session_is_a_skill_too(manager: SessionManager) -> None:
    @skill
    def double(n: int) -> int:
        return 2 * n

    assert double(4) == 8
    assert list(inspect.signature(double).parameters) == ["n"]


def test_annotations_of_the_function_s_own_module_resolve() -> None:
    @skill
    def buy(item: Item, session: Session) -> Item:
        return item

    assert typing.get_type_hints(buy) == {"item": Item, "return": Item}


async def test_a_list_of_sessions_is_no_session(manager: SessionManager) -> None:
    @skill
    def many(sessions: list[Session]) -> int:
        return len(sessions)

    assert list(inspect.signature(many).parameters) == ["sessions"]


async def test_variable_arguments_pass_through(manager: SessionManager) -> None:
    @skill
    def all_of(session: Session, first: int, *rest: int, **named: int) -> Any:
        return session.id, first, rest, named

    async with manager.open("s"):
        assert await called(all_of, 1, 2, 3, a=4) == ("s", 1, (2, 3), {"a": 4})
        assert await called(all_of, first=1) == ("s", 1, (), {})


def test_a_positional_only_session_is_refused() -> None:
    def odd(session: Session, /, item: str) -> None: ...

    with pytest.raises(InvalidError) as caught:
        skill(odd)
    assert (caught.value.code, caught.value.field) == ("INVALID_SKILL", "session")


async def test_wrong_arguments_are_the_caller_s_type_error(manager: SessionManager) -> None:
    async with manager.open("s"):
        for wrong in ({"things": 1}, {}):
            with pytest.raises(TypeError):
                await called(add_sync, **wrong)
        with pytest.raises(TypeError):
            await called(add_sync, "apple", item="pear")


# -------------------------------------------------------------------------------------------------------- unit tests


async def test_a_unit_test_passes_a_session_of_its_own() -> None:
    mine = Session("mine")
    assert await add("apple", mine) == "added"
    assert await add("apple", session=mine, count=2) == "added"
    assert mine.get("cart") == ["apple"] * 3
    assert await add_first(mine, "apple") == "apple mine"
    assert await called(add_first, "apple", session=mine) == "apple mine"
    assert await add_optional("apple", None) == "apple None"
    assert await add_by_id("apple", "sid") == "apple sid"
    assert await add_by_id("apple", session_id="sid") == "apple sid"
    assert await Shop().add("apple", mine) == "apple mine"
    assert Shop().add_sync(mine, "apple") == "apple mine"


async def test_called_outside_any_run_a_skill_says_so() -> None:
    with pytest.raises(TurnClosedError):
        await called(add, "apple")
    with pytest.raises(TurnClosedError):
        await called(add_sync, "apple")


# ----------------------------------------------------------------------------------------------------------- in runs


async def test_skills_of_a_run_share_its_session(manager: SessionManager) -> None:
    @skill
    def in_a_thread(item: str, session: SyncSession) -> int:
        session.update("cart", lambda cart: [*cart, item], default=[])
        session.log("l").append([item])
        session.collection("c").put(item, session.id)
        return session.log("l").count()

    async def agent(prompt: str, session: Session) -> str:
        assert current_session() is session
        await called(add, "apple")
        tool: Any = in_a_thread
        counts = await asyncio.gather(*(asyncio.to_thread(tool, item) for item in "abc"))
        return str(max(counts))

    run = await Runner(manager).run(agent, "s", "go")
    assert run.output == "3"
    async with manager.read("s") as session:
        assert sorted(session.get("cart")) == ["a", "apple", "b", "c"]
        assert sorted(await session.log("l").read()) == ["a", "b", "c"]
        assert await session.collection("c").get("a") == "s"


async def test_a_sync_skill_called_on_the_event_loop_may_use_logs(manager: SessionManager) -> None:
    @skill
    def note(text: str, session: SyncSession) -> list[str]:
        session.log("notes").append([text])
        return session.log("notes").read()

    async def agent(prompt: str, session: Session) -> Any:
        return await called(note, "a")

    assert (await Runner(manager).run(agent, "s", "go")).output == ["a"]


async def test_skill_calls_are_in_the_activation(manager: SessionManager) -> None:
    @skill
    def fail(item: str, session: Session) -> None:
        raise LookupError(item)

    @skill
    async def wait(session: Session) -> None:
        await asyncio.Event().wait()

    async def agent(prompt: str, session: Session) -> str:
        await called(add, "apple")
        with pytest.raises(LookupError):
            await called(fail, "pear")
        waiting = asyncio.ensure_future(called(wait))
        await asyncio.sleep(0)  # it begins
        waiting.cancel()
        await asyncio.wait({waiting})
        return "done"

    runner = Runner(manager)
    run = await runner.run(agent, "s", "go")
    activation = await runner.get_activation(run.activation_id)
    assert activation is not None
    assert [(call.name, call.status) for call in activation.skills] == [
        ("add", "COMPLETE"),
        ("fail", "FAILED"),
        ("wait", "CANCELLED"),
    ]
    for call in activation.skills:
        assert call.end is not None
        assert activation.start <= call.start <= call.end


async def test_eight_skills_at_once_with_a_run_in_each_lose_nothing(manager: SessionManager) -> None:
    runner = Runner(manager)

    async def sub_agent(prompt: str, session: Session) -> str:
        session.update("count", lambda n: n + 1, default=0)
        async with manager.open(session.id) as joined:
            joined.update("count", lambda n: n + 1)
            await joined.log("l").append([prompt])
        return prompt

    @skill
    async def delegate(n: str, session: Session, session_id: str) -> str:
        session.update("count", lambda n: n + 1, default=0)
        return str((await runner.run(sub_agent, session_id, n)).output)

    async def agent(prompt: str, session: Session) -> list[str]:
        return await asyncio.gather(*(called(delegate, n) for n in "abcdefgh"))

    run = await asyncio.wait_for(runner.run(agent, "s", "go"), 10)
    assert run.output == list("abcdefgh")
    async with manager.read("s") as session:
        assert session.get("count") == 24
        assert sorted(await session.log("l").read()) == list("abcdefgh")
        assert session.revision == 1
    children = [one for one in await runner.activations("s") if one.parent_activation_id == run.activation_id]
    assert len(children) == 8
