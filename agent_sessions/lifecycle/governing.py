"""Saying how long sessions last, and how many a user may have."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from ..background import finished
from ..errors import SessionNotFoundError
from ..policy import Policy
from ..stores.base import Amend, Cursor, Key
from ..stores.lifetime import Lifetime
from ..turns.commits import store_amend
from .tenant import BATCH, TenantSessions


class Governing(TenantSessions):
    """`get_policy`, `set_policy` and `apply_policy`."""

    async def get_policy(self) -> Policy:
        """The policy in force for this tenant: its own over that for all tenants, over what is configured."""
        return await self.policies.of(self.tenant_id)

    async def set_policy(self, policy: Policy | Mapping[str, Any] | None) -> None:
        """Store a policy for this tenant: every host goes by it within half a minute. None removes it.

        It reaches a session at its next activity; `apply_policy` reaches all. That for all tenants is set with an
        `AdminManager`.
        """
        self._check_maintenance()
        await self.policies.set(self.tenant_id, None if policy is None else Policy.of(policy), self.lease_ms)

    async def apply_policy(self) -> int:
        """Stamp every session of this tenant by the policy in force, in batches; return how many.

        It is no activity, and does the same when it is done again: after a crash, say.
        """
        self._check_maintenance()
        lifetime = await self._lifetime()
        number = 0
        place: Cursor | None = None
        while True:
            page = await self._find(None, None, "start", BATCH, place)
            keys = [self._session_key(found.id) for found in page.found]
            number += sum(await self._for_each(keys, lambda key: self._stamp(key, lifetime)))
            place = page.next
            if place is None:
                return number

    async def _stamp(self, key: Key, lifetime: Lifetime) -> bool:
        amend = Amend(id=secrets.token_bytes(8), lifetime=lifetime)
        try:
            await finished(lambda: store_amend(self.store, key, amend, self.lease_ms))
        except SessionNotFoundError:
            return False
        return True
