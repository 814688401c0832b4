"""Where threads are copied to."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple

from agent_sessions import Session, SessionManager

from ..coding import config_of
from ..keys import COLLECTION, NAMESPACE, base_of, head_name, writes_prefix
from ..saver import SessionSaver
from .compare import Comparison
from .source import Original

_USUAL_ID = re.compile(r"[0-9A-Za-z-]{1,60}")
_AFTER_ALL = "~"
"""Follows the last character of any usual id."""


class Held(NamedTuple):
    """What is there of a batch."""

    head: str | None
    """The latest checkpoint of its namespace."""
    checkpoints: dict[str, CheckpointTuple]
    """Those of the batch, and others between them, by their ids."""


class Target:
    """Where threads are copied to.

    Args:
        saver: The checkpointer to go on with.
        dry_run: Store nothing.
        overwrite: Replace what differs.
    """

    def __init__(self, saver: SessionSaver, *, dry_run: bool, overwrite: bool) -> None:
        self.saver = saver
        self.dry_run = dry_run
        self.overwrite = overwrite
        self.compare = Comparison(saver.serde)
        # What this process has written it must not find in its memory when it looks whether it is there.
        self.reader = SessionSaver(
            SessionManager(self.manager.store, settings=self.manager.settings, tenant_id=self.manager.tenant_id),
            thread=saver._thread,
            serde=copy.copy(saver.serde),
        )

    @property
    def manager(self) -> SessionManager:
        """Where the sessions are."""
        return self.saver._access.manager

    async def held(self, thread_id: str, batch: Sequence[Original]) -> Held:
        """What is there of a batch."""
        async with self.reader._access.manager.read(thread_id) as session:
            head = self._head(session, batch[0].place.ns)
        return Held(head, await _between(self.reader, thread_id, batch))

    async def held_in_turn(self, session: Session, batch: Sequence[Original]) -> Held:
        """The same in a turn on the session, which keeps it so."""
        return Held(self._head(session, batch[0].place.ns), await _between(self.saver, session.id, batch))

    async def put(self, session: Session, one: Original, known: set[tuple[str, Any]]) -> None:
        """Store a checkpoint with its writes, in a turn. Of its values, those whose version is known are there."""
        values, versions = one.checkpoint["channel_values"], one.checkpoint["channel_versions"]
        new = {name: at for name, at in versions.items() if name not in values or (name, at) not in known}
        parent = {"thread_id": session.id, "checkpoint_ns": one.place.ns}
        if one.parent is not None:
            parent["checkpoint_id"] = one.parent
        await self.saver.aput({"configurable": parent}, one.checkpoint, one.metadata, new)
        await self.put_writes(session, one)

    async def put_writes(self, session: Session, one: Original) -> None:
        """Store the writes of a checkpoint, in a turn. Those that are there stay as they are."""
        config = config_of(session.id, *one.place)
        for (task_path, task_id, _), writes in groupby(one.writes, _call):
            await self.saver.aput_writes(config, [(write.channel, write.value) for write in writes], task_id, task_path)

    async def drop_writes(self, session: Session, one: Original) -> None:
        """Take the pending writes of a checkpoint away, in a turn."""
        prefix = writes_prefix(base_of(self.saver._thread, one.place.ns), one.place.id)
        await session.namespace(NAMESPACE).collection(COLLECTION).delete_prefix(prefix)

    def _head(self, session: Session, ns: str) -> str | None:
        held = session.namespace(NAMESPACE).get(head_name(base_of(self.saver._thread, ns)))
        return None if held is None else str(held[0])


def _call(write: Any) -> tuple[str, str, bool]:
    """The call of `put_writes` that a write belongs to: special ones have no place among the others."""
    return write.task_path, write.task_id, write.channel in WRITES_IDX_MAP


async def _between(saver: SessionSaver, thread_id: str, batch: Sequence[Original]) -> dict[str, CheckpointTuple]:
    """The stored checkpoints from the first to the last of a batch, by their ids."""
    first, last = batch[0].place, batch[-1].place
    if not all(_USUAL_ID.fullmatch(one.place.id) for one in batch):  # stored in another order than that of their ids
        single = [await saver.aget_tuple(config_of(thread_id, *one.place)) for one in batch]
        return {one.place.id: found for one, found in zip(batch, single, strict=True) if found is not None}
    found: dict[str, CheckpointTuple] = {}
    config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": first.ns}}
    before = last.id + _AFTER_ALL
    while True:
        ids = []
        async for one in saver.alist(config, before={"configurable": {"checkpoint_id": before}}, limit=len(batch)):
            ids.append(str(one.config["configurable"]["checkpoint_id"]))
            found[ids[-1]] = one
        if len(ids) < len(batch) or ids[-1] <= first.id:
            return found
        before = ids[-1]
