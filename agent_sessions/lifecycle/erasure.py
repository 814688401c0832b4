"""Removing sessions, and everything of a user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..background import finished
from ..stores.base import Cursor, Key, Kind
from ..turns.commits import store_delete
from .tenant import BATCH, TenantSessions

CACHED_S = 300
"""So long, at most, the cache of another process holds a copy of what was erased."""

_OF_A_USER: tuple[Kind, ...] = ("user", "app", "agent")
"""The kinds of keys, beside sessions, that may belong to a user."""


@dataclass
class ErasureReceipt:
    """What an erasure removed, or would have: evidence to keep."""

    user_id: str
    dry_run: bool
    ids: dict[str, list[str]] = field(default_factory=lambda: {"sessions": [], "activations": [], "others": []})
    """The ids of what was removed, by kind. `others` is what frameworks keep of the user outside of sessions."""
    cached_copies_gone_within_s: int = CACHED_S

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: len(ids) for kind, ids in self.ids.items()}

    @property
    def session_ids(self) -> list[str]:
        """The sessions."""
        return self.ids["sessions"]

    @property
    def activation_ids(self) -> list[str]:
        """The records of runs in them."""
        return self.ids["activations"]


class Erasing(TenantSessions):
    """`delete` and `delete_user`."""

    async def delete(self, session_id: str) -> bool:
        """Remove a session with all its state at once; a turn that is running can't store anything any more.

        The records of the runs in it go as well. Returns False if there was none.
        """
        key = await self._owned(session_id)
        existed = await self._remove(key)
        await self._remove_activations(key)
        return existed

    async def delete_user(
        self,
        user_id: str | None = None,
        *,
        dry_run: bool = False,
        progress: Callable[[ErasureReceipt], object] | None = None,
    ) -> ErasureReceipt:
        """Remove everything of a user: sessions with all their state, activations, and what else belongs to the user.

        It goes in batches. If it is cut short, call it again: it goes on with what is left, and the receipt is that of
        the rest. A session that is being made for the user meanwhile, and for a minute afterwards, is taken back
        (`SESSION_CONFLICT`), and a running turn can't store anything any more.

        Args:
            user_id: The user.
            dry_run: Only tell what there is.
            progress: Called after each batch with the receipt so far.
        """
        user_id = self._needed_user(user_id)
        receipt = ErasureReceipt(user_id, dry_run)
        await self._sweep_user("session", receipt, progress)
        for kind in _OF_A_USER:
            await self._sweep_user(kind, receipt, progress)
        if not dry_run:
            await self._users.forget(user_id)
        return receipt

    async def _sweep_user(
        self, kind: Kind, receipt: ErasureReceipt, progress: Callable[[ErasureReceipt], object] | None
    ) -> None:
        """Remove the user's keys of a kind, batch by batch, until there are none; or only tell of them."""
        place: Cursor | None = None
        told: set[str] = set()
        while True:
            if not receipt.dry_run:
                await self._users.mark_erased(receipt.user_id)  # for each batch: the mark lasts for a minute
            page = await self.store.find(self.tenant_id, kind, belongs_to=receipt.user_id, limit=BATCH, cursor=place)
            keys = [Key(self.tenant_id, kind, found.id) for found in page.found]
            work = self._activations if receipt.dry_run else self._remove_with_activations
            for key, activations in zip(keys, await self._for_each(keys, work), strict=True):
                if key.id not in told:  # an index may lag behind
                    receipt.ids["sessions" if kind == "session" else "others"].append(key.id)
                    receipt.ids["activations"] += activations
            told.update(key.id for key in keys)
            if progress is not None and keys:
                progress(receipt)
            goes_on = receipt.dry_run or not keys
            if goes_on and page.next is None:
                return
            place = page.next if goes_on else None

    async def _remove(self, key: Key) -> bool:
        self._cache.drop(key)
        existed = await finished(lambda: store_delete(self.store, key, self.lease_ms))
        if existed and key.kind == "session":
            self._listeners.tell("deleted", key)
        return existed

    async def _remove_with_activations(self, key: Key) -> list[str]:
        """Remove the activations first: so a session that is left after a crash still leads to them.

        And again at last: those of runs that ended in between. What ends later finds its session gone.
        """
        activations = await self._remove_activations(key)
        await self._remove(key)
        return [*activations, *(await self._remove_activations(key))]

    async def _remove_activations(self, key: Key) -> list[str]:
        ids = await self._activations(key)
        await self._for_each(
            ids, lambda id: finished(lambda: store_delete(self.store, key._replace(kind="run", id=id), self.lease_ms))
        )
        return ids

    async def _activations(self, key: Key) -> list[str]:
        """The ids of the activations of a session."""
        ids: list[str] = []
        place: Cursor | None = None
        while key.kind == "session":
            page = await self.store.find(key.tenant, "run", belongs_to=key.id, limit=BATCH, cursor=place)
            ids += [found.id for found in page.found]
            place = page.next
            if place is None:
                break
        return ids
