"""Many processes that decide for one user at the same moment."""

from __future__ import annotations

from collections import Counter

from agent_sessions import Settings
from agent_sessions.policy import Policy
from tests.faults import crowds, victims


def is_light(backend: Settings) -> bool:
    """Whether the machine can be asked for fifty processes beside what the backend itself needs."""
    return backend.type == "sqlite" or (backend.type == "redis" and not backend.redis.cluster)


async def test_fifty_processes_get_one_session_for_a_new_user(backend: Settings) -> None:
    processes = 50 if is_light(backend) else 10
    answers = crowds.all_at_once(processes, backend, crowds.get_or_create)
    assert len(answers) == processes
    assert len(set(answers)) == 1
    manager = victims.manager_of(backend)
    assert len(await manager.list("new")) == 1
    await manager.store.aclose()


async def test_fifty_creates_make_ten_sessions_where_ten_are_allowed(backend: Settings) -> None:
    allowed = processes = victims.fewer(backend, 10)
    limited = backend.model_copy(update={"policy": Policy(max_sessions_per_user=allowed)})
    answers = crowds.all_at_once(processes, limited, crowds.create_five)
    assert Counter(" ".join(answers).split()) == {"made": allowed, "SESSION_LIMIT_REACHED": 4 * allowed}
    manager = victims.manager_of(backend)
    assert len(await manager.list("u")) == allowed
    await manager.store.aclose()


async def test_three_processes_expire_each_session_once(backend: Settings) -> None:
    manager = victims.manager_of(backend)
    ids = {(await manager.create("u")).session_id for _ in range(30)}
    answers = crowds.all_at_once(3, backend, crowds.expire)
    await manager.store.aclose()
    assert sorted(" ".join(answers).split()) == sorted(ids)
