"""The policies in force, and what they make of the lifetime of a session."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from weakref import WeakKeyDictionary

from msgspec import Struct
from pydantic import ValidationError

from .. import codec
from ..background import finished, spawn, together
from ..durations import milliseconds
from ..errors import FormatTooNewError, InvalidError, SessionError, StoreUnavailableError
from ..identifiers import DEFAULT_TENANT
from ..policy import Policy
from ..stores.base import CollectionChange, Commit, EntryRange, Key, Opened, Part, Store, Wanted
from ..stores.lifetime import Lifetime
from ..turns.commits import Traffic, store_commit

logger = logging.getLogger("agent_sessions")

FRESH_S = 5.0
"""After so long a process reads a policy again, beside the work that goes by what it has."""

STALE_S = 30.0
"""What was read longer ago is not gone by any more: a change reaches every host within that time."""

_FIELD = "policy"
_PAGE = 500
_MOST_KEPT = 1000
_TRIES = 3
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
    """Of a session's own policy, what it makes the session's own.

    Raises:
        InvalidError: `INVALID_POLICY`: it says how many sessions a user may have.
    """
    for name in policy.model_fields_set - _OF_LIFETIME.keys():
        raise InvalidError("POLICY", f"{name} is for a tenant, or for all, and not for one session", field=name)
    lifetime = lifetime_of(policy, None)
    return {ours: getattr(lifetime, ours) for name, ours in _OF_LIFETIME.items() if name in policy.model_fields_set}


class _Known(Struct):
    """A policy as it was read."""

    policy: Policy
    lifetime: Lifetime
    at: float
    is_refreshed: bool = False
    """Whether it is being read again, or could not be."""


class Policies:
    """The policies in force, as they are in the store: for all tenants, and for one.

    With a tenant's policy goes a list of all tenants, for maintenance: whoever is to write something for a tenant asks
    for its policy first, and so enters it.
    """

    def __init__(self, store: Store, configured: Policy, ttl_ms: int | None) -> None:
        self._store = store
        self._configured = configured
        self._ttl_ms = ttl_ms
        self._read: OrderedDict[str, _Known] = OrderedDict()
        self._loading: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Loading]]
        self._loading = WeakKeyDictionary()

    async def of(self, tenant: str) -> Policy:
        """The policy of a tenant. It is read once, and then again beside the work that asks for it."""
        return (self._known(tenant) or await self._load_once(tenant)).policy

    async def lifetime(self, tenant: str) -> Lifetime:
        """What it makes of the lifetime of a session."""
        return (self._known(tenant) or await self._load_once(tenant)).lifetime

    def is_known(self, tenant: str) -> bool:
        """Whether the policy of a tenant is known here, so that nothing waits for it."""
        return self._known(tenant) is not None

    def _known(self, tenant: str) -> _Known | None:
        found, now = self._read.get(tenant), time.monotonic()
        if found is None or found.at + STALE_S < now:
            return None
        if found.at + FRESH_S < now and not found.is_refreshed:
            found.is_refreshed = True  # others need not read it as well
            spawn(partial(self._refresh, tenant))
        return found

    async def get(self, tenant: str | None) -> Policy | None:
        """What is stored for a tenant, or for all (None)."""
        opened = await self._store.open(_for_all() if tenant is None else _for_tenant(tenant), wanted=_RECORD)
        return _stored(opened)

    async def set(self, tenant: str | None, policy: Policy | None, lease_ms: int) -> None:
        """Store a policy for a tenant, or for all; None removes it."""
        data = None if policy is None else codec.encode(policy.model_dump(mode="python", exclude_unset=True))
        commit = Commit(id=secrets.token_bytes(8), owner="policy", expected=None, fields={_FIELD: data})
        key = _for_all() if tenant is None else _for_tenant(tenant)
        await finished(lambda: store_commit(self._store, key, commit, lease_ms, Traffic()))
        self._read.clear()

    async def tenants(self) -> AsyncIterator[str]:
        """All tenants that there is, or was, anything of."""
        after: str | None = None
        while True:
            asked = EntryRange(_TENANTS, after=after, limit=_PAGE)
            opened = await self._store.open(_tenants(), wanted=Wanted(values=False, ranges=[asked]))
            entries = opened.ranges[0] if opened.row is not None else []
            for _, name in entries:
                yield codec.decode(name)
            if len(entries) < _PAGE:
                return
            after = entries[-1][0]

    async def _load_once(self, tenant: str) -> _Known:
        """Load it for all on this event loop that ask at once; no longer when none of them waits for it any more."""
        all_loading = self._loading.setdefault(asyncio.get_running_loop(), {})
        loading = all_loading.get(tenant)
        if loading is None:
            loading = all_loading[tenant] = _Loading(asyncio.ensure_future(self._load(tenant)))
            loading.task.add_done_callback(lambda task: _forget(all_loading, tenant, task))
        loading.waiting += 1
        try:
            return await asyncio.shield(loading.task)
        except asyncio.CancelledError:
            if loading.waiting == 1:
                _forget(all_loading, tenant, loading.task)
                loading.task.cancel()
                await asyncio.wait({loading.task})
            raise
        finally:
            loading.waiting -= 1

    async def _load(self, tenant: str) -> _Known:
        entry = (_TENANTS, _entry_of(tenant))
        for_all, own, listed = await together(
            (
                self._store.open(_for_all(), wanted=_RECORD),
                self._store.open(_for_tenant(tenant), wanted=_RECORD),
                self._store.open(_tenants(), wanted=Wanted(values=False, entries=[entry])),
            )
        )
        if listed.row is None or listed.entries == [None]:
            await self._enter(tenant)
        policy = (_stored(own) or Policy()).over((_stored(for_all) or Policy()).over(self._configured))
        return self._keep(tenant, policy)

    async def _enter(self, tenant: str) -> None:
        """Put a tenant on the list, as others may be doing."""
        entry = _entry_of(tenant)
        change = CollectionChange(entries={entry: codec.encode(tenant)})
        for tries_left in range(_TRIES, -1, -1):
            commit = Commit(id=secrets.token_bytes(8), owner="tenants", expected=None, collections={_TENANTS: change})
            try:
                await self._store.commit(_tenants(), commit)
                return
            except StoreUnavailableError:  # so it is as well where many write to one key at once
                await asyncio.sleep(random.uniform(0, 0.1))
                listed = await self._store.open(_tenants(), wanted=Wanted(values=False, entries=[(_TENANTS, entry)]))
                if listed.row is not None and listed.entries != [None]:
                    return
                if not tries_left:
                    raise

    async def _refresh(self, tenant: str) -> None:
        try:
            await self._load(tenant)
        except SessionError as error:
            logger.warning("the policy of tenant %r could not be read again (%s)", tenant, error.code)

    def _keep(self, tenant: str, policy: Policy) -> _Known:
        known = self._read[tenant] = _Known(policy, lifetime_of(policy, self._ttl_ms), time.monotonic())
        if len(self._read) > _MOST_KEPT:
            self._read.popitem(last=False)
        return known


_RECORD = Wanted(values=False)
_TENANTS = Part("tenants", "all")


@dataclass
class _Loading:
    """A policy on its way, and how many wait for it."""

    task: asyncio.Task[_Known]
    waiting: int = 0


def _forget(all_loading: dict[str, _Loading], tenant: str, task: asyncio.Task[_Known]) -> None:
    if tenant in all_loading and all_loading[tenant].task is task:
        del all_loading[tenant]
    if task.done() and not task.cancelled():
        task.exception()  # seen: those who wait for it are told


def _stored(opened: Opened) -> Policy | None:
    data = None if opened.row is None else (opened.row.fields or {}).get(_FIELD)
    if data is None:
        return None
    try:
        return Policy.model_validate(codec.decode(data))
    except ValidationError:
        raise FormatTooNewError(
            "a newer version of agent-sessions has stored a policy with rules that this one does not know"
        ) from None


def _for_all() -> Key:
    return Key(DEFAULT_TENANT, "system", "policy of all")


def _for_tenant(tenant: str) -> Key:
    return Key(tenant, "system", "policy")


def _tenants() -> Key:
    return Key(DEFAULT_TENANT, "system", "tenants")


def _entry_of(tenant: str) -> str:
    return blake2b(tenant.encode(), digest_size=16, person=b"tenant").hexdigest()  # a tenant's name may be too long
