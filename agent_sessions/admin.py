"""Maintenance over all tenants, which no manager of a tenant can do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from .errors import ForbiddenError
from .lifecycle import ExpiredSessions, Stats
from .manager import SessionManager
from .policy import Policy


class AdminManager:
    """Goes through all tenants of a manager's store. Who makes one may see and end everybody's sessions.

    A tenant is known from the moment on that something is written for it through a manager.

    Args:
        manager: A manager of the store that is not for one tenant; its listeners hear what happens.

    Raises:
        ForbiddenError: It is for one tenant.
    """

    def __init__(self, manager: SessionManager) -> None:
        if manager._own_tenant is not None:
            raise ForbiddenError("the manager of one tenant can't reach the others", field="tenant_id")
        self._manager = manager

    @classmethod
    def from_env(cls) -> AdminManager:
        """That of `SessionManager.from_env()`."""
        return cls(SessionManager.from_env())

    def for_tenant(self, tenant_id: str) -> SessionManager:
        """The manager of one tenant's sessions."""
        return self._manager.for_tenant(tenant_id)

    async def tenants(self) -> list[str]:
        """All tenants that there is, or was, anything of, sorted."""
        return sorted([tenant async for tenant in self._manager.policies.tenants()])

    async def stats(self) -> dict[str, Stats]:
        """How many sessions each tenant has, by status."""
        return {tenant: await self.for_tenant(tenant).stats() for tenant in await self.tenants()}

    async def expire_idle(
        self, *, max_age: float | timedelta | str | None = None, dry_run: bool = False, limit: int = 10_000
    ) -> dict[str, ExpiredSessions]:
        """See `SessionManager.expire_idle`: what ran out of each tenant, but for tenants where nothing did.

        `limit` is for each tenant.
        """
        expired = {
            tenant: await self.for_tenant(tenant).expire_idle(max_age=max_age, dry_run=dry_run, limit=limit)
            for tenant in await self.tenants()
        }
        return {tenant: sessions for tenant, sessions in expired.items() if sessions.expired}

    async def get_policy(self) -> Policy:
        """What is stored for all tenants."""
        return await self._manager.policies.get(None) or Policy()

    async def set_policy(self, policy: Policy | Mapping[str, Any] | None) -> None:
        """Store a policy for all tenants: what is not said for one of them is as it says. None removes it."""
        await self._manager.policies.set(None, None if policy is None else Policy.of(policy), self._manager.lease_ms)

    async def apply_policy(self) -> dict[str, int]:
        """See `SessionManager.apply_policy`: of each tenant, how many sessions were stamped."""
        return {tenant: await self.for_tenant(tenant).apply_policy() for tenant in await self.tenants()}
