"""The policies in force, and what they make of the lifetime of a session."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from functools import partial

from .. import codec
from ..background import spawn
from ..durations import milliseconds
from ..errors import SessionError
from ..policy import Policy
from ..stores.base import Commit, Key, Store, Wanted
from ..stores.lifetime import Lifetime

logger = logging.getLogger("agent_sessions")

FRESH_S = 5.0
"""So long a process goes by the policy that it read: a change reaches the other hosts within that time."""

_FIELD = "policy"
_OF_LIFETIME = {
    "idle_after": "idle_ms",
    "end_after": "end_ms",
    "absolute_timeout": "absolute_ms",
    "retention": "retention_ms",
}


def lifetime_of(policy: Policy, ttl_ms: int | None) -> Lifetime:
    """What a policy makes of the lifetime of a session."""
    ages = {ours: getattr(policy, name) for name, ours in _OF_LIFETIME.items()}
    return Lifetime(ttl_ms=ttl_ms, **{name: None if age is None else milliseconds(age) for name, age in ages.items()})


def own_of(policy: Policy) -> dict[str, int | None]:
    """Of a session's own policy, what it makes the session's own."""
    lifetime = lifetime_of(policy, None)
    return {ours: getattr(lifetime, ours) for name, ours in _OF_LIFETIME.items() if name in policy.model_fields_set}


class Policies:
    """The policies in force, as they are in the store: for all tenants, and for one."""

    def __init__(self, store: Store, configured: Policy) -> None:
        self._store = store
        self._configured = configured
        self._read: dict[str, tuple[float, Policy]] = {}

    async def of(self, tenant: str) -> Policy:
        """The policy of a tenant. It is read once, and then again beside the work that asks for it."""
        found = self._read.get(tenant)
        if found is None:
            return await self._load(tenant)
        read_at, policy = found
        if read_at + FRESH_S < time.monotonic():
            self._read[tenant] = (time.monotonic(), policy)  # others need not read it as well
            spawn(partial(self._refresh, tenant))
        return policy

    async def _load(self, tenant: str) -> Policy:
        for_all, own = await asyncio.gather(self._stored(_for_all()), self._stored(_for_tenant(tenant)))
        policy = (own or Policy()).over((for_all or Policy()).over(self._configured))
        self._read[tenant] = (time.monotonic(), policy)
        return policy

    async def _refresh(self, tenant: str) -> None:
        try:
            await self._load(tenant)
        except SessionError as error:
            logger.warning("the policy of tenant %r could not be read again (%s)", tenant, error.code)

    async def get(self, tenant: str | None) -> Policy | None:
        """What is stored for a tenant, or for all (None)."""
        return await self._stored(_for_all() if tenant is None else _for_tenant(tenant))

    async def set(self, tenant: str | None, policy: Policy | None) -> None:
        """Store a policy for a tenant, or for all; None removes it."""
        key = _for_all() if tenant is None else _for_tenant(tenant)
        data = None if policy is None else codec.encode(policy.model_dump(mode="python", exclude_unset=True))
        await self._store.commit(
            key, Commit(id=secrets.token_bytes(8), owner="policy", expected=None, fields={_FIELD: data})
        )
        self._read.clear()

    async def _stored(self, key: Key) -> Policy | None:
        opened = await self._store.open(key, wanted=Wanted(values=False))
        data = None if opened.row is None else (opened.row.fields or {}).get(_FIELD)
        return None if data is None else Policy.model_validate(codec.decode(data))


def _for_all() -> Key:
    return Key("default", "system", "policy of all")


def _for_tenant(tenant: str) -> Key:
    return Key(tenant, "system", "policy")
