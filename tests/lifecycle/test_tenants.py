"""One tenant can do nothing to another, nor a user to another where ownership is enforced, by any operation."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, is_dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_sessions import (
    AdminManager,
    MemoryStore,
    SessionManager,
    Settings,
    SyncAdminManager,
    SyncSessionManager,
)
from agent_sessions.auth import AuthContext
from agent_sessions.errors import ForbiddenError, SessionError
from agent_sessions.testing import FakeClock

IDS = ["a", "b", "c"]
USERS = ["ann", "bob"]
A_COMMIT = "0--" + "0" * 16

Operation = Callable[[SessionManager, str, str, Any], Awaitable[Any]]


async def _open(manager: SessionManager, id: str, user: str, _: Any) -> Any:
    async with manager.open(id, create=False) as session:
        session.set("by", manager.tenant_id)
        return session.get("owner")


async def _open_or_make(manager: SessionManager, id: str, user: str, _: Any) -> Any:
    async with manager.open(id, user_id=user) as session:
        session.set("owner", manager.tenant_id)


async def _attempt(manager: SessionManager, id: str, user: str, _: Any) -> Any:
    async with manager.attempt(id) as session:
        session.set("by", manager.tenant_id)


async def _read(manager: SessionManager, id: str, user: str, _: Any) -> Any:
    async with manager.read(id) as session:
        return dict(session.items()), await session.namespace("openai").log("items").read()


async def _all_pages(manager: SessionManager, id: str, user: str, _: Any) -> Any:
    first = await manager.list(limit=1)
    pages = [first, await manager.list(user, order="started")]
    if first.next_cursor is not None:
        pages.append(await manager.list(limit=1, cursor=first.next_cursor))
    return [record.session_id for page in pages for record in page]


OPERATIONS: dict[str, Operation] = {
    "create": lambda manager, id, user, _: manager.create(user, session_id=id, metadata={"of": manager.tenant_id}),
    "create any": lambda manager, id, user, _: manager.create(user),
    "get_or_create": lambda manager, id, user, _: manager.get_or_create(user),
    "get": lambda manager, id, user, _: manager.get(id),
    "open": _open,
    "open or make": _open_or_make,
    "attempt": _attempt,
    "read": _read,
    "append": lambda manager, id, user, _: manager.append(id, "openai", "items", [manager.tenant_id]),
    "touch": lambda manager, id, user, _: manager.touch(id),
    "update": lambda manager, id, user, _: manager.update(id, metadata={"by": manager.tenant_id}, ttl=1000),
    "extend": lambda manager, id, user, _: manager.extend(id, hours=1),
    "end": lambda manager, id, user, _: manager.end(id),
    "end_all": lambda manager, id, user, _: manager.end_all(user),
    "list": _all_pages,
    "count": lambda manager, id, user, _: manager.count(status="active"),
    "count of a user": lambda manager, id, user, _: manager.count(user),
    "count by metadata": lambda manager, id, user, _: manager.count(metadata={"of": manager.tenant_id}),
    "stats": lambda manager, id, user, _: manager.stats(),
    "get_active": lambda manager, id, user, _: manager.get_active(user),
    "expire_idle": lambda manager, id, user, _: manager.expire_idle(max_age=0),
    "delete": lambda manager, id, user, _: manager.delete(id),
    "delete_user": lambda manager, id, user, _: manager.delete_user(user, dry_run=True),
    "fork": lambda manager, id, user, _: manager.fork(id),
    "fork over": lambda manager, id, user, other: manager.fork(id, other),
    "export": lambda manager, id, user, _: manager.export(id),
    "lock": lambda manager, id, user, _: manager.lock(id),
    "unlock": lambda manager, id, user, _: manager.unlock(id, force=True),
    "commit_status": lambda manager, id, user, _: manager.commit_status(id, A_COMMIT),
    "set_policy": lambda manager, id, user, _: manager.set_policy({"idle_after": 1}),
    "apply_policy": lambda manager, id, user, _: manager.apply_policy(),
    "get_policy": lambda manager, id, user, _: manager.get_policy(),
}


async def done(manager: SessionManager, name: str, id: str, user: str, other: str) -> str:
    """All that came of an operation, but for the ids that were made at random."""
    try:
        result = await OPERATIONS[name](manager, id, user, other)
    except SessionError as error:
        result = type(error), error.code, str(error), error.field
    records = result if isinstance(result, list) else [result]
    told = [asdict(record) if is_dataclass(record) else record for record in records]  # type: ignore[arg-type]
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "random", repr(told))


steps = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(IDS), st.sampled_from(USERS), st.sampled_from(IDS)),
    max_size=20,
)


async def everything_of(manager: SessionManager) -> Any:
    """All that a tenant has."""
    records = list(await manager.list(limit=1000))
    policy = await manager.policies.get(manager.tenant_id)
    return records, [await manager.export(record.session_id) for record in records], policy


async def filled(manager: SessionManager) -> None:
    for id, user in zip(IDS, [*USERS, None], strict=True):
        await manager.create(user, session_id=id, metadata={"of": manager.tenant_id})
        async with manager.open(id) as session:
            session.set("owner", manager.tenant_id)
            await session.namespace("openai").log("items").append([manager.tenant_id])


async def _no_operation_reaches_out(taken: list[tuple[str, str, str, str]]) -> None:
    """The same operations give the same, whether another tenant has sessions of the same ids and users or not."""
    clock = FakeClock()
    shared, alone = SessionManager(MemoryStore(clock)), SessionManager(MemoryStore(clock))
    theirs, ours, apart = shared.for_tenant("theirs"), shared.for_tenant("ours"), alone.for_tenant("ours")
    await filled(theirs)
    before = await everything_of(theirs)
    for step in taken:
        clock.advance(1)
        assert await done(ours, *step) == await done(apart, *step), step
    clock.advance(-len(taken))
    assert await everything_of(theirs) == before


@given(steps)
@settings(max_examples=60, deadline=None)
async def test_a_tenant_does_not_notice_another(taken: list[tuple[str, str, str, str]]) -> None:
    await _no_operation_reaches_out(taken)


async def test_no_operation_alone_notices_another_tenant() -> None:
    for name in sorted(OPERATIONS):
        for id in IDS:
            await _no_operation_reaches_out([(name, id, "ann", "b")])


@given(steps)
@settings(max_examples=40, deadline=None)
async def test_a_user_changes_nothing_of_anothers_where_ownership_is_enforced(
    taken: list[tuple[str, str, str, str]],
) -> None:
    clock = FakeClock()
    manager = SessionManager(MemoryStore(clock), settings=Settings(enforce_ownership=True))
    for id in IDS:
        await manager.create("bob", session_id=id, metadata={"of": "bob"})
    before = await everything_of(manager)
    with manager.acting_as(AuthContext(user_id="ann")):
        for name, id, _, other in taken:
            told = await done(manager, name, id, "ann", other)
            assert name in ("create", "fork over", "open or make") or "bob" not in told
            if name in ("list", "get_active", "end_all", "export"):
                assert not any(repr(id) in told for id in IDS) or "FORBIDDEN" in told
    after = await everything_of(manager)
    ids = [record.session_id for record in before[0]]
    kept = [(record, document) for record, document in zip(*after[:2], strict=True) if record.session_id in ids]
    assert sorted(kept, key=lambda pair: pair[0].session_id) == sorted(
        zip(*before[:2], strict=True), key=lambda pair: pair[0].session_id
    )
    assert after[2] is None


async def test_a_lease_of_another_tenant_is_not_seen() -> None:
    manager = SessionManager(MemoryStore())
    acme, other = manager.for_tenant("acme"), manager.for_tenant("other")
    async with acme.open("s"):
        assert await other.lock("s") is None
        assert await other.unlock("s", force=True) is None
        async with other.open("s", wait_s=0):
            pass
        assert await acme.lock("s") is not None


async def test_a_tenants_manager_can_not_become_anothers() -> None:
    acme = SessionManager(MemoryStore()).for_tenant("acme")
    assert acme.for_tenant("acme").tenant_id == "acme"
    forbidden: list[Callable[[], object]] = [
        lambda: acme.for_tenant("other"),
        lambda: AdminManager(acme),
    ]
    for attempt in forbidden:
        with pytest.raises(ForbiddenError):
            attempt()
    named: list[Callable[..., Awaitable[object]]] = [acme.create, acme.list, acme.count, acme.stats, acme.expire_idle]
    for operation in named:
        with pytest.raises(ForbiddenError):
            await operation(tenant_id="other")


# --------------------------------------------------------------------------------------------------- maintenance


@pytest.fixture
async def manager(clock: FakeClock) -> AsyncIterator[SessionManager]:
    store = MemoryStore(clock)
    yield SessionManager(store)
    await store.aclose()


async def test_an_admin_goes_through_all_tenants(manager: SessionManager, clock: FakeClock) -> None:
    admin = AdminManager(manager)
    assert await admin.tenants() == []
    for tenant, sessions in (("acme", 2), ("beta", 1)):
        for _ in range(sessions):
            await manager.for_tenant(tenant).create("u")
    async with manager.open("chat"):
        pass
    heard: list[tuple[str, str]] = []
    manager.listen(lambda event: heard.append((event.type, event.tenant_id)))
    assert await admin.tenants() == ["acme", "beta", "default"]
    assert {tenant: stats.active for tenant, stats in (await admin.stats()).items()} == {
        "acme": 2,
        "beta": 1,
        "default": 1,
    }
    clock.advance(25 * 3600)
    assert {tenant: found.expired for tenant, found in (await admin.expire_idle(dry_run=True)).items()} == {
        "acme": 2,
        "beta": 1,
    }
    assert (await admin.expire_idle()).keys() == {"acme", "beta"}
    assert sorted(heard) == [("ended", "acme"), ("ended", "acme"), ("ended", "beta")]
    assert await admin.expire_idle() == {}


async def test_a_policy_for_all_tenants_is_an_admins(manager: SessionManager, clock: FakeClock) -> None:
    admin = AdminManager(manager)
    made = await manager.for_tenant("acme").create("u")
    await admin.set_policy({"inactiveTimeout": 60_000})
    assert (await manager.for_tenant("acme").get_policy()).idle_after == (await admin.get_policy()).idle_after
    assert await admin.apply_policy() == {"acme": 1}
    clock.advance(60)
    record = await admin.for_tenant("acme").get(made.session_id)
    assert record is not None
    assert record.status == "idle"
    await admin.set_policy(None)
    assert (await admin.get_policy()).model_fields_set == set()


def test_an_admin_can_do_without_async() -> None:
    manager = SyncSessionManager(MemoryStore())
    admin = SyncAdminManager(manager)
    manager.for_tenant("acme").create("u")
    admin.set_policy({"idle_after": "1h"})
    assert admin.get_policy().idle_after == admin.for_tenant("acme").get_policy().idle_after
    assert admin.tenants() == ["acme"]
    assert admin.stats()["acme"].active == 1
    assert admin.apply_policy() == {"acme": 1}
    assert admin.expire_idle(max_age=3600) == {}


async def test_a_thousand_tenants_are_all_found() -> None:
    store = MemoryStore()
    manager = SessionManager(store)
    for number in range(1100):
        await manager.for_tenant(f"tenant {number:04}").get_policy()
    assert await AdminManager(SessionManager(store)).tenants() == [f"tenant {number:04}" for number in range(1100)]
